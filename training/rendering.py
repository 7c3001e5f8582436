"""Pictures and exact depth of scenes: flat faces warped into place and sorted by a depth buffer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from training.people import CutOut
from training.scenes import FAR, Backdrop, Camera, Face, Pasted, Scene, draw_scene
from training.textures import SIDE, TextureBank

NEAR_PLANE = 0.05  # metres
NEAREST_OUTPUT = 100.0  # the formula's: 10 cm
PASTED_FARTHEST = 5.0  # metres: someone pasted into the sky stands nowhere, yet in front of it
PASTED_STEP = 1.15  # nearer than what it hides, where the floor at its lowest row is not
SOLID = 128  # of a mask's levels
Image = NDArray[np.uint8]
Plane = NDArray[np.float32]
Matrix = NDArray[np.float64]
AnyArray = NDArray[Any]  # what OpenCV returns


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """`images` uint8 (B, H, W, 3) RGB; `outputs` float32 (B, H/2, W/2): `1000 / depth in cm`, 1 to 100."""

    images: Image
    outputs: Plane


def render_samples(bank: TextureBank, *, seed: int, count: int, size: tuple[int, int]) -> Samples:
    """Pictures of random scenes; the same arguments give the same ones. `size` is (width, height)."""
    width, height = size
    images = np.empty((count, height, width, 3), np.uint8)
    outputs = np.empty((count, height // 2, width // 2), np.float32)
    for index in range(count):
        random = np.random.default_rng((seed, index))
        images[index], outputs[index] = render(random, bank, size)
    return Samples(images=images, outputs=outputs)


def render(random: np.random.Generator, bank: TextureBank, size: tuple[int, int]) -> tuple[Image, Plane]:
    """One random scene: its picture, and what the network should put out for it."""
    canvas = _drawn(random, bank, draw_scene(random, bank), size)
    return np.asarray(canvas.picture, np.uint8), canvas.output()


def _drawn(random: np.random.Generator, bank: TextureBank, scene: Scene, size: tuple[int, int]) -> _Canvas:
    canvas = _Canvas(scene.camera, size)
    canvas.draw_sky(scene, bank.textures[random.integers(len(bank.textures))])
    tints = random.normal(1, 0.12, (len(scene.faces), 1)) * random.normal(1, 0.03, (len(scene.faces), 3))
    canvas.draw_faces(scene, bank, tints)
    if scene.backdrop is None:
        canvas.light(scene)
    else:
        canvas.lay_backdrop(scene.backdrop, bank)
    for person in sorted(scene.standing, key=lambda one: -one.z):
        canvas.stand(person.cut_out, bank, (person.x, person.z, person.height), mirrored=person.is_mirrored)
    canvas.veil(scene, random)
    if scene.is_pasted_last:
        canvas.picture = _photographed(random, canvas.picture)
    for pasted in scene.pasted:
        canvas.paste(pasted, bank)
    if not scene.is_pasted_last:
        canvas.picture = _photographed(random, canvas.picture)
    return canvas


@dataclass(frozen=True, slots=True, kw_only=True)
class _Laid:
    """How a cut-out is laid."""

    is_mirrored: bool
    is_soft: bool = False


class _Canvas:
    """A picture, float or 8 bit, and 1 / depth of every pixel."""

    def __init__(self, camera: Camera, size: tuple[int, int]) -> None:
        self._width, self._height = size
        self._camera_height = camera.height
        focal = camera.focal * self._height
        self._lens = np.array([
            [focal, 0, (self._width - 1) / 2], [0, focal, (self._height - 1) / 2], [0, 0, 1],
        ])  # fmt: skip
        self._lens_inverse = np.linalg.inv(self._lens)
        self._rotation = _rotation(camera)
        self.picture: AnyArray = np.zeros((self._height, self._width, 3), np.uint8)
        self.nearness = np.full((self._height, self._width), 1e-3, np.float32)
        self._columns = np.arange(self._width, dtype=np.float32)
        self._rows = np.arange(self._height, dtype=np.float32)[:, None]
        floor = self._rotation @ np.array([0, camera.height, 0])
        # A plane's 1 / depth is linear in the pixel's coordinates.
        self._floor_plane = self._lens_inverse.T @ floor / float(floor @ floor)

    def draw_sky(self, scene: Scene, clouds: Image) -> None:
        """From one colour above to another below, with something cloudy in it."""
        if scene.sky is None:
            return
        above, below = scene.sky
        share = np.linspace(0, 1, self._height)[:, None, None]
        cloudy = cv2.resize(cv2.blur(clouds, (9, 9)), (self._width, self._height))
        mixed = above * (1 - share) + below * share + scene.clouds * (cloudy.astype(np.float32) - 128)
        self.picture[:] = np.clip(mixed, 0, 255)

    def draw_faces(self, scene: Scene, bank: TextureBank, tints: Matrix) -> None:
        """All faces; shadows fall on the floor, which is the first."""
        faces = scene.faces
        corners = np.stack([face.corner for face in faces]) @ self._rotation.T
        along = np.stack([face.along for face in faces]) @ self._rotation.T
        across = np.stack([face.across for face in faces]) @ self._rotation.T
        normals = np.cross(along, across)
        offsets = np.einsum("fi,fi->f", normals, corners)
        is_open = np.array([face.is_open for face in faces])
        is_seen = (np.abs(offsets) > 1e-9) & (is_open | (offsets > 0))
        with np.errstate(divide="ignore", invalid="ignore"):
            planes = (normals / offsets[:, None]) @ self._lens_inverse
        planes *= 1 + np.array([face.lift for face in faces])[:, None]
        polygons = np.stack([corners, corners + along, corners + along + across, corners + across], axis=1)
        is_seen &= self._may_be_seen(polygons)
        owners = np.full((self._height, self._width), len(faces), np.int32)
        areas = {
            index: self._claim(polygons[index], planes[index], owners, index)
            for index in np.flatnonzero(is_seen).tolist()
        }
        to_textures = self._to_textures(faces, corners, along, across)
        facing = np.abs(normals[:, 2]) / (np.linalg.norm(normals, axis=1) + 1e-12)
        shades = tints * (0.75 + 0.25 * facing[:, None])
        for index, claimed in areas.items():
            if claimed is not None:
                texture = bank.textures[faces[index].texture]
                self._dress(
                    np.equal(owners[claimed], index), claimed, (texture, to_textures[index]), shades[index]
                )
        self._draw_shadows(scene, owners == 0)

    def _may_be_seen(self, polygons: Matrix) -> NDArray[np.bool_]:
        """False for polygons (F, 4, 3) that lie wholly beyond one edge of the picture, or behind."""
        pixels = polygons @ self._lens.T
        x, y, z = (pixels[..., axis] for axis in range(3))
        beyond = [z < NEAR_PLANE, x < 0, y < 0, x > self._width * z, y > self._height * z]
        return np.asarray(~np.stack([side.all(axis=1) for side in beyond]).any(axis=0))

    def _to_textures(self, faces: list[Face], corners: Matrix, along: Matrix, across: Matrix) -> Matrix:
        """Homographies (F, 3, 3) from pixels to texture pixels."""
        frames = np.empty((len(faces), 3, 3))
        for axis, edges in enumerate((along, across)):
            lengths = np.linalg.norm(edges, axis=1)
            tiles = np.array([face.tile for face in faces])
            tiles = np.where(tiles > 0, tiles, lengths)
            frames[:, :, axis] = edges * (tiles / (lengths * SIDE))[:, None]
        frames[:, :, 2] = corners
        return _inverse(self._lens @ frames)

    def _projected(self, polygon: Matrix) -> NDArray[np.int32] | None:
        """Pixels of a polygon cut off at the near plane; None if nothing of it is ahead."""
        if polygon[:, 2].min() < NEAR_PLANE:
            polygon = _clipped(polygon)
            if len(polygon) < 3:
                return None
        pixels = polygon @ self._lens.T
        return np.asarray(np.clip(np.round(pixels[:, :2] / pixels[:, 2:]), -1e6, 1e6), np.int32)

    def _claim(
        self, polygon: Matrix, plane: Matrix, owners: NDArray[np.int32], index: int
    ) -> tuple[slice, slice] | None:
        """Put a face's depth where it is the nearest yet; the area that holds it, None if hidden."""
        pixels = self._projected(polygon)
        if pixels is None:
            return None
        left, top = np.maximum(pixels.min(0), 0)
        right, bottom = np.minimum(pixels.max(0) + 1, (self._width, self._height))
        if right <= left or bottom <= top:
            return None
        area = slice(top, bottom), slice(left, right)
        mask = np.zeros((bottom - top, right - left), np.uint8)
        cv2.fillConvexPoly(mask, pixels - (left, top), 255)
        rows = (plane[1] * self._rows[top:bottom] + plane[2]).astype(np.float32)
        nearness = np.float32(plane[0]) * self._columns[left:right] + rows
        mask &= cv2.compare(nearness, self.nearness[area], cv2.CMP_GT)
        cv2.copyTo(nearness, mask, self.nearness[area])
        cv2.copyTo(np.full(mask.shape, index, np.int32), mask, owners[area])
        return area

    def _dress(
        self,
        is_own: NDArray[np.bool_],
        area: tuple[slice, slice],
        material: tuple[Image, Matrix],
        shade: Matrix,
    ) -> None:
        """Warp a face's texture onto the pixels that stayed its own."""
        mask = is_own.view(np.uint8)
        x, y, width, height = cv2.boundingRect(mask)
        if not width:
            return
        top, left = area[0].start + y, area[1].start + x
        texture, to_texture = material
        to_texture = to_texture @ np.array([[1, 0, left], [0, 1, top], [0, 0, 1]])
        drawn = cv2.warpPerspective(
            cv2.transform(texture, np.diag(shade)), to_texture, (width, height),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT_101,
        )  # fmt: skip
        target = self.picture[top : top + height, left : left + width]
        cv2.copyTo(drawn, mask[y : y + height, x : x + width], target)

    def _draw_shadows(self, scene: Scene, is_floor: NDArray[np.bool_]) -> None:
        shadow: AnyArray = np.zeros((self._height // 2, self._width // 2), np.float32)
        for footprint in scene.shadows:
            pixels = self._projected(footprint @ self._rotation.T)
            if pixels is not None:
                cv2.fillConvexPoly(shadow, pixels // 2, 0.5)
        shadow = cv2.GaussianBlur(shadow, (0, 0), self._height / 80)
        shadow = cv2.resize(shadow, (self._width, self._height), interpolation=cv2.INTER_LINEAR)
        light = np.where(is_floor, 1 - shadow, np.float32(1))
        self.picture = cv2.multiply(self.picture, cv2.merge([light] * 3), dtype=cv2.CV_8U)

    def lay_backdrop(self, backdrop: Backdrop, bank: TextureBank) -> None:
        """A part of a photograph over the whole picture."""
        photograph = bank.photographs[backdrop.photograph]
        height, width = photograph.shape[:2]
        top, left = int(backdrop.top * height), int(backdrop.left * width)
        part = photograph[top:, left:][: int(backdrop.height * height), : int(backdrop.width * width)]
        shrinks = part.shape[0] > self._height and part.shape[1] > self._width
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        self.picture = cv2.resize(part, (self._width, self._height), interpolation=method)

    def light(self, scene: Scene) -> None:
        """Falls off with the distance from a lamp."""
        factor = 4
        nearness = self.nearness[::factor, ::factor]
        rows, columns = self._rows[::factor], self._columns[::factor]
        rays = np.stack(np.broadcast_arrays(columns, rows, np.float32(1)), 2) @ self._lens_inverse.T
        lamp = self._rotation @ scene.lamp
        distances = np.square(rays / nearness[..., None] - lamp).sum(2)
        light: AnyArray = scene.ambient + (1.3 - scene.ambient) / (1 + distances / scene.lamp_reach**2)
        light = cv2.resize(
            light.astype(np.float32), (self._width, self._height), interpolation=cv2.INTER_LINEAR
        )
        is_sky = self.nearness < 2e-3
        light[is_sky] = 1
        self.picture = cv2.multiply(self.picture, cv2.merge([light] * 3), dtype=cv2.CV_8U)

    def stand(
        self, cut_out: int, bank: TextureBank, place: tuple[float, float, float], *, mirrored: bool
    ) -> None:
        """A cut-out on the floor at (x, z), so tall; what is nearer hides it."""
        x, z, tall = place
        foot = self._rotation @ np.array([x, self._camera_height, z])
        head = self._rotation @ np.array([x, self._camera_height - tall, z])
        if min(foot[2], head[2]) < 0.3:
            return
        (column, bottom), (_, top) = ((self._lens @ point / point[2])[:2] for point in (foot, head))
        if bottom - top < 4:
            return
        source, nearness = bank.cut_outs[cut_out], np.float32(1 / foot[2])
        wide = (bottom - top) * source.mask.shape[1] / source.mask.shape[0]
        laid = self._cut(source, (column, bottom, bottom - top, wide), _Laid(is_mirrored=mirrored))
        if laid is None:
            return
        area, pixels, alpha = laid
        is_seen = (alpha >= SOLID) & (self.nearness[area] < nearness)
        cv2.copyTo(pixels, is_seen.view(np.uint8), self.picture[area])
        self.nearness[area][is_seen] = nearness

    def paste(self, pasted: Pasted, bank: TextureBank) -> Image:
        """A cut-out over everything, as far as where its lowest row would stand; returns its mask (H, W).

        It is nearer than most of what it hides, and never farther than PASTED_FARTHEST.
        """
        left, bottom, tall = (value * self._height for value in (pasted.left, pasted.bottom, pasted.height))
        mask = bank.cut_outs[pasted.cut_out].mask
        wide = tall * pasted.stretch * mask.shape[1] / mask.shape[0]
        options = _Laid(is_mirrored=pasted.is_mirrored, is_soft=pasted.is_soft)
        place = (left + wide / 2, bottom, tall, wide)
        whole = np.zeros((self._height, self._width), np.uint8)
        laid = self._cut(bank.cut_outs[pasted.cut_out], place, options)
        if laid is None:
            return whole
        area, pixels, alpha = laid
        at = min(max(int(left + wide / 2), 0), self._width - 1)
        floor = float(self._floor_plane @ (at, min(int(bottom), self._height - 1), 1))
        is_solid = alpha >= SOLID
        hidden = self.nearness[area][is_solid][::3]
        behind = (
            float(np.partition(hidden, int(0.8 * len(hidden)))[int(0.8 * len(hidden))]) if len(hidden) else 0
        )
        self._blend(area, pixels, alpha, is_soft=pasted.is_soft)
        self.nearness[area][is_solid] = max(floor, PASTED_STEP * behind, 1 / PASTED_FARTHEST)
        whole[area][is_solid] = 255
        return whole

    def _blend(self, area: tuple[slice, slice], pixels: Image, alpha: Image, *, is_soft: bool) -> None:
        target = self.picture[area]
        if not is_soft:
            cv2.copyTo(pixels, cv2.threshold(alpha, SOLID - 1, 255, cv2.THRESH_BINARY)[1], target)
            return
        share = cv2.merge([alpha] * 3)
        over = cv2.multiply(pixels, share, scale=1 / 255)
        self.picture[area] = cv2.add(over, cv2.multiply(target, cv2.bitwise_not(share), scale=1 / 255))

    def _cut(
        self, source: CutOut, place: tuple[float, float, float, float], options: _Laid
    ) -> tuple[tuple[slice, slice], Image, Image] | None:
        """The area of a cut-out in the picture, its pixels and its alpha there; None if outside."""
        column, bottom, tall, across = place
        high, wide = max(2, round(tall)), max(2, round(across))
        left, top = round(column - wide / 2), round(bottom) - high
        inside_x = slice(max(0, -left), min(wide, self._width - left))
        inside_y = slice(max(0, -top), min(high, self._height - top))
        if inside_x.stop <= inside_x.start or inside_y.stop <= inside_y.start or high > 4 * self._height:
            return None
        shrinks = high < source.mask.shape[0] and wide < source.mask.shape[1]
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        pixels: AnyArray = cv2.resize(source.pixels, (wide, high), interpolation=method)
        alpha: AnyArray = cv2.resize(source.mask, (wide, high), interpolation=method)
        if options.is_soft:
            alpha = cv2.blur(alpha, (3, 3))
        if options.is_mirrored:
            pixels, alpha = pixels[:, ::-1], alpha[:, ::-1]
        area = (
            slice(top + inside_y.start, top + inside_y.stop),
            slice(left + inside_x.start, left + inside_x.stop),
        )
        return (
            area,
            np.ascontiguousarray(pixels[inside_y, inside_x]),
            np.ascontiguousarray(alpha[inside_y, inside_x]),
        )

    def veil(self, scene: Scene, random: np.random.Generator) -> None:
        """Fog; the farther, the thicker."""
        if not scene.fog:
            return
        depth = np.minimum(1 / self.nearness, 3 * FAR)
        clear = np.exp(-scene.fog * depth)[..., None].astype(np.float32)
        fog = random.uniform(120, 245) + random.normal(0, 6, 3)
        self.picture = (self.picture * clear + fog.astype(np.float32) * (1 - clear)).astype(np.uint8)

    def output(self) -> Plane:
        """What the network should put out: 1000 / depth in cm at half the picture's size, FAR at most."""
        half = cv2.resize(
            self.nearness, (self._width // 2, self._height // 2), interpolation=cv2.INTER_NEAREST
        )
        return np.asarray(np.clip(half * FAR, 1, NEAREST_OUTPUT), np.float32)


def _rotation(camera: Camera) -> Matrix:
    """From the level world to the camera's axes."""
    cosine, sine = np.cos(camera.pitch), np.sin(camera.pitch)
    pitch = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    cosine, sine = np.cos(camera.roll), np.sin(camera.roll)
    roll = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    return np.asarray(roll @ pitch)


def _inverse(matrices: Matrix) -> Matrix:
    """Of (F, 3, 3); of a face seen edge-on, which has none, zeros."""
    with np.errstate(divide="ignore", invalid="ignore"):
        first, second, third = (matrices[:, :, axis] for axis in range(3))
        rows = np.stack([np.cross(second, third), np.cross(third, first), np.cross(first, second)], axis=1)
        inverse = rows / np.einsum("fi,fi->f", first, rows[:, 0])[:, None, None]
    return np.asarray(np.nan_to_num(inverse, nan=0, posinf=0, neginf=0))


def _clipped(polygon: Matrix) -> Matrix:
    """The part of a polygon beyond the near plane."""
    kept: list[Matrix] = []
    for start, end in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if start[2] >= NEAR_PLANE:
            kept.append(start)
        if (start[2] >= NEAR_PLANE) != (end[2] >= NEAR_PLANE):
            share = (NEAR_PLANE - start[2]) / (end[2] - start[2])
            kept.append(start + share * (end - start))
    return np.array(kept)


_GRAIN = np.random.default_rng(0).normal(0, 1, (1024, 1024)).astype(np.float32)


def _photographed(random: np.random.Generator, picture: Image) -> Image:
    """Exposure, white balance, contrast, blur and grain."""
    gains = random.uniform(0.65, 1.35) * random.normal(1, 0.06, 3)
    contrast = random.uniform(0.7, 1.2)
    levels = np.arange(256)[:, None] * gains
    levels = 128 + contrast * (levels - 128) + random.uniform(-15, 15)
    table = np.clip(levels, 0, 255).astype(np.uint8)
    taken: AnyArray = cv2.LUT(picture, table[:, None, :])
    sigma = random.uniform(0, 1.2) * taken.shape[0] / 240
    if sigma > 0.25:
        taken = cv2.GaussianBlur(taken, (0, 0), sigma)
    strength = random.choice([0.0, random.uniform(1, 9)])
    if strength:
        height, width = taken.shape[:2]
        top, left = random.integers(1024 - height + 1), random.integers(1024 - width + 1)
        grain = strength * _GRAIN[top : top + height, left : left + width]
        taken = cv2.add(taken, cv2.merge([grain] * 3), dtype=cv2.CV_8U)
    return np.asarray(taken, np.uint8)
