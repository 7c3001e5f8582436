"""Textures of rendered scenes: cuttings of installed packages' photographs, and noise; two disjoint sets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
import skimage.data
from numpy.typing import NDArray
from sklearn.datasets import load_sample_image

from training.people import CutOut, Wardrobe, draw_cut_outs

SIDE = 128  # pixels of a texture
# The held-out photographs are the demo's backgrounds and others; stereo_motorcycle is in neither set.
TRAINING_PHOTOGRAPHS = (
    "astronaut", "chelsea", "coffee", "brick", "grass", "camera", "coins", "moon", "page", "text", "clock",
    "hubble_deep_field", "immunohistochemistry", "retina",
)  # fmt: skip
HELD_OUT_PHOTOGRAPHS = ("china.jpg", "flower.jpg", "rocket", "gravel", "microaneurysms", "cell")
Image = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextureBank:
    """What a scene is dressed with: uint8 RGB textures (SIDE, SIDE, 3), cut-outs, photographs (h, w, 3)."""

    textures: list[Image]
    cut_outs: list[CutOut]
    photographs: list[Image]


@cache
def training_bank() -> TextureBank:
    """The textures to train with."""
    return _bank(TRAINING_PHOTOGRAPHS, seed=1, texture_count=1200, cut_out_count=400)


@cache
def held_out_bank() -> TextureBank:
    """Textures and cut-outs that are never trained with."""
    return _bank(HELD_OUT_PHOTOGRAPHS, seed=2, texture_count=300, cut_out_count=80)


def photograph(name: str) -> Image:
    """An installed photograph, uint8 (H, W, 3) RGB; a name with a suffix is scikit-learn's."""
    pixels = np.asarray(load_sample_image(name) if "." in name else getattr(skimage.data, name)())
    if pixels.ndim == 2:
        pixels = np.stack([pixels] * 3, axis=2)
    return np.ascontiguousarray(pixels[..., :3], dtype=np.uint8)


def _bank(names: tuple[str, ...], *, seed: int, texture_count: int, cut_out_count: int) -> TextureBank:
    random = np.random.default_rng(seed)
    photographs = [_at_most(photograph(name), 600) for name in names]
    makers: tuple[tuple[float, Callable[[np.random.Generator], Image]], ...] = (
        (0.45, lambda random: _cutting(random, photographs)),
        (0.35, _plain),
        (0.1, _pattern),
        (0.1, _noise),
    )
    shares = np.array([share for share, _ in makers])
    chosen = random.choice(len(makers), size=texture_count, p=shares / shares.sum())
    textures = [makers[which][1](random) for which in chosen]
    wardrobe = Wardrobe(textures=textures, photographs=photographs)
    cut_outs = draw_cut_outs(random, wardrobe, cut_out_count)
    return TextureBank(textures=textures, cut_outs=cut_outs, photographs=photographs)


def _at_most(pixels: Image, side: int) -> Image:
    scale = min(1.0, side / max(pixels.shape[:2]))
    return np.asarray(cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)


def _cutting(random: np.random.Generator, photographs: list[Image]) -> Image:
    """A piece of a photograph, turned, mirrored and tinted: now a detail, now nearly the whole picture."""
    pixels = photographs[random.integers(len(photographs))]
    height, width = pixels.shape[:2]
    side = round(min(height, width) * random.uniform(0.2, 1.0))
    top, left = random.integers(height - side + 1), random.integers(width - side + 1)
    piece = np.rot90(pixels[top : top + side, left : left + side], int(random.integers(4)))
    if random.random() < 0.5:
        piece = piece[:, ::-1]
    scaled = cv2.resize(np.ascontiguousarray(piece), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    if random.random() < 0.2:
        scaled = scaled[..., random.permutation(3)]
    contrast = random.uniform(0.3, 1.1)
    tinted = (scaled - 128.0) * contrast + 128 * random.uniform(0.5, 1.5) + random.uniform(-40, 40, 3)
    return _as_pixels(tinted)


def _as_pixels(values: NDArray[np.float64]) -> Image:
    return np.asarray(np.clip(values, 0, 255), np.uint8)


def _colour(random: np.random.Generator) -> NDArray[np.float64]:
    """Mostly greyish, as walls and floors are."""
    return np.asarray(random.uniform(30, 240) + random.normal(0, random.choice([8, 40]), 3))


def _clouds(random: np.random.Generator, *, octaves: int) -> NDArray[np.float32]:
    """Smooth noise of several scales, float32 (SIDE, SIDE), about -1 to 1."""
    total = np.zeros((SIDE, SIDE), np.float32)
    for octave in range(octaves):
        coarse = random.normal(0, 1, (2 + 2 ** (octave + 1),) * 2).astype(np.float32)
        total += cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) * np.float32(0.6**octave)
    return np.asarray(total / 2, np.float32)


def _plain(random: np.random.Generator) -> Image:
    """Paint: one colour, a little uneven."""
    spread = random.choice([2, 6, 15])
    paint = _colour(random) + spread * _clouds(random, octaves=4)[..., None]
    return _as_pixels(paint)


def _noise(random: np.random.Generator) -> Image:
    """Two colours mixed by clouds."""
    share = np.clip(_clouds(random, octaves=6) * random.uniform(0.5, 2) + 0.5, 0, 1)[..., None]
    mixed = share * _colour(random) + (1 - share) * _colour(random)
    return _as_pixels(mixed)


def _pattern(random: np.random.Generator) -> Image:
    """Tiles, planks or stripes with joints."""
    rows, columns = np.mgrid[0:SIDE, 0:SIDE]
    pitch_y, pitch_x = random.choice([8, 16, 32, 64, 128], 2)
    row = rows // pitch_y
    column = (columns + (row % 2) * random.choice([0, pitch_x // 2])) // pitch_x
    shades = random.normal(0, random.choice([5, 20]), (64, 64))
    pattern = _colour(random) + shades[row % 64, column % 64][..., None]
    joints = (rows % pitch_y < 1) | ((columns + (row % 2) * (pitch_x // 2)) % pitch_x < 1)
    pattern[joints] += random.uniform(-60, 30)
    pattern += 4 * _clouds(random, octaves=5)[..., None]
    return _as_pixels(pattern)
