from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from training.people import CutOut
from training.rendering import PASTED_FARTHEST, PASTED_STEP, _Canvas, render_samples
from training.scenes import FAR, Camera, Face, Pasted, Scene
from training.textures import (
    HELD_OUT_PHOTOGRAPHS,
    SIDE,
    TRAINING_PHOTOGRAPHS,
    TextureBank,
)

SIZE = (128, 96)
CAMERA = Camera(height=1.4, pitch=0.2, roll=0.05, focal=1.0)
GREY = np.full((SIDE, SIDE, 3), 120, np.uint8)
BLOCK = CutOut(pixels=np.full((40, 20, 3), 200, np.uint8), mask=np.full((40, 20), 255, np.uint8))
PHOTOGRAPH = np.full((50, 60, 3), 90, np.uint8)
BANK = TextureBank(textures=[GREY], cut_outs=[BLOCK], photographs=[PHOTOGRAPH])
Vector = NDArray[np.float64]


def face(corner: tuple[float, ...], along: tuple[float, ...], across: tuple[float, ...]) -> Face:
    return Face(
        corner=np.array(corner),
        along=np.array(along),
        across=np.array(across),
        texture=0,
        tile=1,
        is_open=True,
    )


def floor(camera: Camera) -> Face:
    return face((-20, camera.height, -1), (40, 0, 0), (0, 0, 40))


def drawn(*faces: Face, camera: Camera = CAMERA, size: tuple[int, int] = SIZE) -> _Canvas:
    canvas = _Canvas(camera, size)
    canvas.draw_faces(Scene(camera=camera, faces=list(faces)), BANK, np.ones((len(faces), 3)))
    return canvas


def level_rays(camera: Camera, size: tuple[int, int]) -> Vector:
    """Every pixel's ray in the level world, of depth 1 along the camera's axis, (H, W, 3)."""
    width, height = size
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    focal = camera.focal * height
    x, y = (columns - (width - 1) / 2) / focal, (rows - (height - 1) / 2) / focal
    # Undo the roll, then the pitch (downwards).
    x, y = (
        np.cos(camera.roll) * x + np.sin(camera.roll) * y,
        np.cos(camera.roll) * y - np.sin(camera.roll) * x,
    )
    down = np.cos(camera.pitch) * y + np.sin(camera.pitch)
    ahead = np.cos(camera.pitch) - np.sin(camera.pitch) * y
    return np.stack([x, down, ahead], axis=2)


def test_the_depth_of_a_floor_is_where_each_pixels_ray_meets_it() -> None:
    canvas = drawn(floor(CAMERA))
    rays = level_rays(CAMERA, SIZE)
    depth = CAMERA.height / np.maximum(rays[..., 1], 1e-9)
    is_near = (rays[..., 1] > 0) & (depth < 15)
    assert is_near.mean() > 0.5
    np.testing.assert_allclose(1 / canvas.nearness[is_near], depth[is_near], rtol=1e-3)
    horizon = 1 / canvas.nearness[rays[..., 1] < -0.01]
    assert (horizon > 100).all()


def test_every_pixel_of_a_closed_room_lies_on_the_nearest_wall_of_its_ray() -> None:
    left, right, ahead, top = 1.5, 2.0, 5.0, -1.2
    bottom = CAMERA.height
    wide, tall, deep = left + right, bottom - top, ahead + 1
    canvas = drawn(
        face((-left, bottom, -1), (wide, 0, 0), (0, 0, deep)),
        face((-left, top, -1), (wide, 0, 0), (0, 0, deep)),
        face((-left, top, ahead), (wide, 0, 0), (0, tall, 0)),
        face((-left, top, -1), (0, 0, deep), (0, tall, 0)),
        face((right, top, -1), (0, 0, deep), (0, tall, 0)),
    )
    rays = level_rays(CAMERA, SIZE)
    with np.errstate(divide="ignore"):
        hits = [bottom / rays[..., 1], top / rays[..., 1], ahead / rays[..., 2]]
        hits += [-left / rays[..., 0], right / rays[..., 0]]
    expected = np.min([np.where(hit > 0, hit, np.inf) for hit in hits], axis=0)
    wrong = np.abs(1 / canvas.nearness / expected - 1) > 1e-2
    assert wrong.mean() < 0.03  # only where two walls meet, by a pixel


def test_a_nearer_face_hides_a_farther_one_whichever_is_drawn_first() -> None:
    near = face((-1, -1, 2), (2, 0, 0), (0, 2, 0))
    far = face((-2, -2, 4), (4, 0, 0), (0, 4, 0))
    level = Camera(height=1.4, pitch=0, roll=0, focal=1.0)
    for faces in ((near, far), (far, near)):
        middle = drawn(*faces, camera=level).nearness[48, 64]
        assert middle == pytest.approx(1 / 2, rel=1e-3)


@pytest.mark.parametrize("bottom", [0.55, 0.7, 0.95])
def test_a_pasted_cut_out_is_where_its_lowest_row_would_stand_or_in_front_of_most_it_hides(
    bottom: float,
) -> None:
    camera = Camera(height=1.4, pitch=0.25, roll=0, focal=1.0)
    canvas = drawn(floor(camera), camera=camera)
    row = int(bottom * SIZE[1])
    expected = float(canvas.nearness[row, 64])
    hidden = np.quantile(canvas.nearness[row - int(0.3 * SIZE[1]) : row, 64], 0.8)
    canvas.paste(pasted_at(bottom), BANK)
    pasted = canvas.nearness[row - 10, int(0.7 * SIZE[1])]
    assert pasted == pytest.approx(max(expected, PASTED_STEP * hidden, 1 / PASTED_FARTHEST), rel=0.1)


def pasted_at(bottom: float) -> Pasted:
    return Pasted(cut_out=0, left=0.6, bottom=bottom, height=0.3, is_mirrored=False)


def test_a_soft_edge_blends_and_a_hard_one_does_not() -> None:
    rim = np.full((40, 20), 255, np.uint8)
    rim[:, :10] = 100
    bank = TextureBank(
        textures=[GREY], cut_outs=[CutOut(pixels=BLOCK.pixels, mask=rim)], photographs=[PHOTOGRAPH]
    )
    wall = face((-5, -5, 2.5), (10, 0, 0), (0, 10, 0))
    level = Camera(height=1.4, pitch=0, roll=0, focal=1.0)
    colours = {}
    for is_soft in (False, True):
        canvas = drawn(wall, camera=level)
        before = canvas.picture.copy()
        canvas.paste(replace(pasted_at(0.7), is_soft=is_soft), bank)
        colours[is_soft] = int((canvas.picture != before).any(axis=2).sum())
    assert colours[True] > colours[False] > 0


def test_a_cut_out_pasted_above_the_horizon_is_in_front_of_the_sky() -> None:
    camera = Camera(height=1.4, pitch=0.0, roll=0, focal=1.0)
    canvas = drawn(floor(camera), camera=camera)
    canvas.paste(pasted_at(0.35), BANK)
    assert canvas.nearness[20, int(0.7 * SIZE[1])] == pytest.approx(1 / PASTED_FARTHEST)


def test_a_standing_cut_out_is_hidden_by_what_is_nearer_only() -> None:
    camera = Camera(height=1.4, pitch=0.1, roll=0, focal=1.0)
    screen = face((-1, 0, 3), (2, 0, 0), (0, 1.4, 0))
    for distance, is_seen in ((2.0, True), (4.0, False)):
        canvas = drawn(floor(camera), screen, camera=camera)
        before = canvas.nearness.copy()
        canvas.stand(0, BANK, (0.0, distance, 1.2), mirrored=False)
        changed = canvas.nearness[canvas.nearness != before]
        assert (changed.size > 0) == is_seen
        if is_seen:
            assert np.ptp(changed) == 0
            assert 1 / changed[0] == pytest.approx(distance, rel=0.15)  # along the tilted axis


def test_the_same_seed_gives_the_same_pictures_and_a_longer_series_begins_with_them() -> None:
    random = np.random.default_rng(0)
    textures = [random.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8) for _ in range(4)]
    bank = TextureBank(textures=textures, cut_outs=[BLOCK], photographs=[PHOTOGRAPH])
    first = render_samples(bank, seed=3, count=4, size=SIZE)
    again = render_samples(bank, seed=3, count=6, size=SIZE)
    other = render_samples(bank, seed=4, count=4, size=SIZE)
    np.testing.assert_array_equal(first.images, again.images[:4])
    np.testing.assert_array_equal(first.outputs, again.outputs[:4])
    assert not np.array_equal(first.images, other.images)
    assert first.images.shape == (4, 96, 128, 3)
    assert first.outputs.shape == (4, 48, 64)
    assert first.outputs.dtype == np.float32
    assert first.outputs.min() >= 1
    assert first.outputs.max() <= 100


def test_the_output_is_a_thousand_by_the_depth_in_centimetres() -> None:
    wall = face((-5, -5, 2.5), (10, 0, 0), (0, 10, 0))
    level = Camera(height=1.4, pitch=0, roll=0, focal=1.0)
    output = drawn(wall, camera=level).output()
    np.testing.assert_allclose(output, 1000 / 250, rtol=1e-3)
    assert FAR == 10


def test_no_photograph_is_trained_with_and_evaluated_on() -> None:
    assert not set(TRAINING_PHOTOGRAPHS) & set(HELD_OUT_PHOTOGRAPHS)
    assert not any("motorcycle" in name for name in TRAINING_PHOTOGRAPHS + HELD_OUT_PHOTOGRAPHS)
