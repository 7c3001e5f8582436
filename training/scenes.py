"""What a rendered scene is made of: flat faces of rooms and streets, a camera, light and air."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from training.textures import TextureBank

STREET_SCALE = 4.0  # streets are modelled at a quarter of their size: the output's range ends at 10 m
FAR = 10.0  # metres; the network's output is 1 there
ROOM_SHARE, STREET_SHARE = 0.5, 0.3  # the others are photographs with a guessed depth
PASTED_COUNTS = (0.12, 0.63, 0.2, 0.05)  # shares of scenes with none to three
WHOLE_SHARE = 0.75  # of what is pasted; the others leave the picture
PASTED_LAST_SHARE = 0.6
Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Face:
    """A parallelogram: `corner`, and the edges `along` and `across` from it; x right, y down, z ahead.

    `tile` is the side of one texture tile in metres, 0 for one tile over the whole face; `is_open` faces are
    seen from both sides. `lift` moves it towards the camera by that share: pictures on walls.
    """

    corner: Vector
    along: Vector
    across: Vector
    texture: int
    tile: float = 0.0
    is_open: bool = False
    lift: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Camera:
    """At the origin, `height` metres above the floor; angles in radians, `focal` in image heights."""

    height: float
    pitch: float
    roll: float
    focal: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A cut-out that stands on the floor at (x, z), `height` metres tall, facing the camera."""

    cut_out: int
    x: float
    z: float
    height: float
    is_mirrored: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Pasted:
    """A cut-out laid over the finished picture: its left and lowest edge and height, in image heights.

    `stretch` widens it, as a canvas of another shape than the network's input does; `is_soft` blends its
    edge.
    """

    cut_out: int
    left: float
    bottom: float
    height: float
    is_mirrored: bool
    stretch: float = 1.0
    is_soft: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Backdrop:
    """A part of a photograph: its left and upper edge and sides as shares of the photograph's."""

    photograph: int
    left: float
    top: float
    width: float
    height: float


@dataclass(slots=True, kw_only=True)
class Scene:
    """Everything that is drawn; `shadows` are footprints (n, 3) on the floor. `sky` is None in rooms.

    A `backdrop` is laid over all faces, which then are only the depth that a photograph most likely has.
    What is pasted lies over the finished photograph where `is_pasted_last`, else it is photographed with the
    scene.
    """

    camera: Camera
    faces: list[Face] = field(default_factory=list)
    shadows: list[Vector] = field(default_factory=list)
    standing: list[Standing] = field(default_factory=list)
    pasted: list[Pasted] = field(default_factory=list)
    sky: tuple[Vector, Vector] | None = None
    lamp: Vector = field(default_factory=lambda: np.zeros(3))
    lamp_reach: float = 4.0
    ambient: float = 0.5
    fog: float = 0.0
    clouds: float = 0.0
    backdrop: Backdrop | None = None
    is_pasted_last: bool = False


def draw_scene(random: np.random.Generator, bank: TextureBank) -> Scene:
    """A room, a street or a photograph with a guessed depth."""
    return _Builder(random, bank).draw()


class _Builder:
    """Draws one scene; x and z are the floor's axes, turned by `yaw` against the camera's."""

    def __init__(self, random: np.random.Generator, bank: TextureBank) -> None:
        self._random = random
        # A scene has few materials, as real ones have.
        self._materials = random.integers(len(bank.textures), size=10)
        self._cut_outs = bank.cut_outs
        self._photographs = len(bank.photographs)
        self._yaw = 0.0
        self._floor = 0.0

    def draw(self) -> Scene:
        random = self._random
        kind = random.random()
        is_street = ROOM_SHARE <= kind < ROOM_SHARE + STREET_SHARE
        if is_street:
            camera = self._camera(height=random.uniform(1.3, 2.4) / STREET_SCALE, pitch=random.normal(3, 6))
        else:
            camera = self._camera(height=random.uniform(0.8, 1.8), pitch=random.normal(8, 9))
        scene = Scene(camera=camera, is_pasted_last=bool(random.random() < PASTED_LAST_SHARE))
        self._floor = camera.height
        self._yaw = random.normal(0, 0.25) if is_street else random.uniform(-0.8, 0.8)
        if is_street:
            self._street(scene)
        elif kind < ROOM_SHARE:
            self._room(scene)
        else:
            self._photograph(scene)
        scene.ambient = random.uniform(0.35, 0.9)
        if scene.backdrop is None:
            self._standing(scene, scale=STREET_SCALE if is_street else 1.0)
        self._pasted(scene)
        return scene

    def _photograph(self, scene: Scene) -> None:
        """Edges without a step in depth, and in front of them what is pasted: the only certain step."""
        random = self._random
        width, height = random.uniform(0.4, 1, 2)
        scene.backdrop = Backdrop(
            photograph=int(random.integers(self._photographs)),
            left=float(random.uniform(0, 1 - width)),
            top=float(random.uniform(0, 1 - height)),
            width=float(width),
            height=float(height),
        )
        scene.faces.append(self._face((-30, self._floor, -30), (60, 0, 0), (0, 0, 60), is_open=1))
        if random.random() < 0.7:
            ahead = float(random.uniform(2.5, 12))
            scene.faces.append(self._face((-30, self._floor - 20, ahead), (60, 0, 0), (0, 20, 0), is_open=1))

    def _camera(self, *, height: float, pitch: float) -> Camera:
        random = self._random
        return Camera(
            height=height,
            pitch=float(np.radians(np.clip(pitch, -15, 32))),
            roll=float(np.radians(random.normal(0, 2.5))),
            focal=random.uniform(0.75, 1.5),
        )

    def _texture(self) -> int:
        return int(self._materials[self._random.integers(len(self._materials))])

    def _turned(self, x: float, y: float, z: float) -> Vector:
        cosine, sine = np.cos(self._yaw), np.sin(self._yaw)
        return np.array([cosine * x + sine * z, y, cosine * z - sine * x])

    def _face(
        self, corner: tuple[float, float, float], along: tuple[float, float, float],
        across: tuple[float, float, float], **settings: float,
    ) -> Face:  # fmt: skip
        return Face(
            corner=self._turned(*corner),
            along=self._turned(*along),
            across=self._turned(*across),
            texture=int(settings.get("texture", self._texture())),
            tile=settings.get("tile", 0.0),
            is_open=bool(settings.get("is_open", 0)),
            lift=settings.get("lift", 0.0),
        )

    def _box(
        self,
        scene: Scene,
        at: tuple[float, float, float],
        size: tuple[float, float, float],
        turn: float = 0.0,
    ) -> None:
        """A box whose base's middle is `at` (x, height above the floor, z); size is (wide, tall, deep)."""
        (x, above, z), (wide, tall, deep) = at, size
        cosine, sine = np.cos(turn), np.sin(turn)
        u, v = (cosine * wide, 0.0, -sine * wide), (sine * deep, 0.0, cosine * deep)
        base, top = self._floor - above, self._floor - above - tall
        x0, z0 = x - (u[0] + v[0]) / 2, z - (u[2] + v[2]) / 2
        down = (0.0, tall, 0.0)
        front, side = self._texture(), self._texture()
        material = {"tile": 0.0 if self._random.random() < 0.5 else float(self._random.uniform(0.3, 1.5))}
        near_left, near_right = (x0, top, z0), (x0 + u[0], top, z0 + u[2])
        far_left = (x0 + v[0], top, z0 + v[2])
        far_right = (x0 + u[0] + v[0], top, z0 + u[2] + v[2])
        back = (-u[0], 0.0, -u[2])
        toward = (-v[0], 0.0, -v[2])
        scene.faces += [
            self._face(near_left, u, down, texture=front, **material),
            self._face(near_right, v, down, texture=side, **material),
            self._face(far_right, back, down, texture=front, **material),
            self._face(far_left, toward, down, texture=side, **material),
            self._face(far_left, u, toward, texture=side, **material),
        ]
        if above > 0:
            scene.faces.append(self._face((x0, base, z0), u, v, texture=side, **material))
        if above < 0.1:
            grown = [
                (x + 0.6 * (sx * u[0] + sz * v[0]), self._floor, z + 0.6 * (sx * u[2] + sz * v[2]))
                for sx, sz in ((-1, -1), (1, -1), (1, 1), (-1, 1))
            ]
            scene.shadows.append(np.stack([self._turned(*point) for point in grown]))

    def _room(self, scene: Scene) -> None:
        random = self._random
        left, right = random.uniform(0.8, 4.5, 2)
        ahead, behind = random.uniform(1.8, 9.5), random.uniform(0.5, 3)
        ceiling = self._floor - random.uniform(2.3, 3.6)
        tall, wide, deep = self._floor - ceiling, left + right, ahead + behind
        wall, tile = self._texture(), float(random.uniform(0.8, 3))
        floor_tile = float(random.uniform(0.5, 2.5))
        scene.faces += [
            self._face((-left, self._floor, -behind), (wide, 0, 0), (0, 0, deep), tile=floor_tile, is_open=1),
            self._face((-left, ceiling, -behind), (wide, 0, 0), (0, 0, deep), tile=tile, is_open=1),
        ]
        sides = (
            ((-left, ceiling, ahead), (wide, 0.0, 0.0)),
            ((-left, ceiling, -behind), (0.0, 0.0, deep)),
            ((right, ceiling, -behind), (0.0, 0.0, deep)),
            ((-left, ceiling, -behind), (wide, 0.0, 0.0)),
        )
        for corner, along in sides:
            texture = wall if random.random() < 0.75 else self._texture()
            scene.faces.append(self._face(corner, along, (0, tall, 0), texture=texture, tile=tile, is_open=1))
            self._pictures(scene, corner, along, tall)
        for _ in range(random.integers(0, 3)):
            self._rug(scene, (-left, right), (0.3, ahead))
        for _ in range(random.integers(2, 10)):
            at = (random.uniform(-left, right) * 0.9, 0.0, random.uniform(0.6, ahead * 0.97))
            self._furniture(scene, at, wall_z=ahead)
        if random.random() < 0.25:
            for _ in range(random.integers(1, 4)):
                at = (random.uniform(-left, right), 0.0, random.uniform(1.2, ahead))
                self._column(scene, at, tall)
        scene.lamp = self._turned(
            random.uniform(-left, right), ceiling + random.uniform(0.2, 1), random.uniform(0, ahead)
        )
        scene.lamp_reach = random.uniform(1.5, 6)

    def _pictures(
        self, scene: Scene, corner: tuple[float, float, float], along: tuple[float, float, float], tall: float
    ) -> None:
        """Pictures, doors and windows: edges in the picture that are none in the depth."""
        random = self._random
        length = float(np.hypot(along[0], along[2]))
        for _ in range(random.integers(0, 4)):
            wide, high = random.uniform(0.3, min(2.5, 0.9 * length)), random.uniform(0.3, 0.8 * tall)
            start, top = random.uniform(0, length - wide) / length, random.uniform(0, tall - high)
            origin = (corner[0] + start * along[0], corner[1] + top, corner[2] + start * along[2])
            step = wide / length
            edge = (along[0] * step, 0.0, along[2] * step)
            scene.faces.append(self._face(origin, edge, (0, high, 0), is_open=1, lift=2e-3))

    def _rug(self, scene: Scene, across: tuple[float, float], ahead: tuple[float, float]) -> None:
        random = self._random
        x, z = random.uniform(*across), random.uniform(*ahead)
        wide, deep = random.uniform(0.5, 2.5, 2)
        scene.faces.append(self._face((x, self._floor, z), (wide, 0, 0), (0, 0, deep), is_open=1, lift=2e-3))

    def _furniture(self, scene: Scene, at: tuple[float, float, float], *, wall_z: float) -> None:
        random = self._random
        x, _, z = at
        turn = float(random.choice([0.0, random.uniform(-1.5, 1.5)]))
        kind = random.integers(5)
        if kind == 0:
            self._table(scene, (x, z), turn)
        elif kind == 1:
            side = float(random.uniform(0.35, 0.6))
            seat = float(random.uniform(0.35, 0.5))
            self._box(scene, (x, 0.0, z), (side, seat, side), turn)
            back = (x + np.sin(turn) * side * 0.45, seat, z + np.cos(turn) * side * 0.45)
            self._box(scene, back, (side, float(random.uniform(0.3, 0.6)), side * 0.12), turn)
        elif kind == 2:
            wide, deep = float(random.uniform(1.2, 2.4)), float(random.uniform(0.6, 1))
            self._box(scene, (x, 0.0, z), (wide, 0.42, deep), turn)
            back = (x + np.sin(turn) * deep * 0.4, 0.42, z + np.cos(turn) * deep * 0.4)
            self._box(scene, back, (wide, 0.4, deep * 0.2), turn)
        elif kind == 3:
            deep = float(random.uniform(0.25, 0.6))
            size = (float(random.uniform(0.5, 1.8)), float(random.uniform(0.6, 2.2)), deep)
            self._box(scene, (x, 0.0, wall_z - deep / 2 - 0.02), size)
        else:
            size = (
                float(random.uniform(0.15, 1.0)),
                float(random.uniform(0.15, 1.4)),
                float(random.uniform(0.15, 1.0)),
            )
            self._box(scene, at, size, turn)

    def _table(self, scene: Scene, at: tuple[float, float], turn: float) -> None:
        random = self._random
        x, z = at
        wide, deep, tall = random.uniform(0.6, 1.8), random.uniform(0.5, 1), random.uniform(0.45, 0.95)
        self._box(scene, (x, tall, z), (float(wide), 0.05, float(deep)), turn)
        cosine, sine = np.cos(turn), np.sin(turn)
        for side_x, side_z in ((-1, -1), (1, -1), (-1, 1), (1, 1)):
            dx, dz = side_x * wide * 0.45, side_z * deep * 0.45
            leg = (float(x + cosine * dx + sine * dz), 0.0, float(z + cosine * dz - sine * dx))
            self._box(scene, leg, (0.06, float(tall), 0.06), turn)
        for _ in range(random.integers(0, 3)):
            size = tuple(float(side) for side in random.uniform(0.08, 0.4, 3))
            on_top = (float(x + random.uniform(-0.3, 0.3) * wide), float(tall + 0.05), float(z))
            self._box(scene, on_top, (size[0], size[1], size[2]), float(random.uniform(-1, 1)))

    def _column(self, scene: Scene, at: tuple[float, float, float], tall: float) -> None:
        """Two boxes turned against each other: eight edges, as good as round from a distance."""
        side = float(self._random.uniform(0.12, 0.4))
        for turn in (0.0, np.pi / 4):
            self._box(scene, at, (side, tall, side), turn)

    def _street(self, scene: Scene) -> None:
        random = self._random
        scene.sky = (self._sky_colour(), self._sky_colour())
        scene.clouds = float(random.choice([0.0, random.uniform(0.05, 0.5)]))
        ground = float(random.uniform(0.5, 2.5))
        scene.faces.append(self._face((-30, self._floor, -3), (60, 0, 0), (0, 0, 60), tile=ground, is_open=1))
        road = random.uniform(0.6, 2.2, 2)
        if random.random() < 0.7:
            strip = float(random.uniform(0.3, 1.5))
            scene.faces.append(
                self._face(
                    (-road[0] * 0.7, self._floor, -1), (road.sum() * 0.7, 0, 0), (0, 0, 60),
                    tile=strip, is_open=1, lift=1e-3,
                )
            )  # fmt: skip
        for side, distance in zip((-1, 1), road, strict=True):
            if random.random() < 0.8:
                self._row_of_houses(scene, side, float(distance))
        if random.random() < 0.5:
            end = float(random.uniform(3, 14))
            size = (float(random.uniform(2, 12)), float(random.uniform(0.7, 5)), 2.0)
            self._box(scene, (random.uniform(-2, 2), 0.0, end + 1), size)
        for _ in range(random.integers(0, 8)):
            at = (random.uniform(-1, 1) * 2.2, 0.0, random.uniform(0.8, 8))
            if random.random() < 0.4:
                side_length = float(random.uniform(0.02, 0.12))
                self._column(scene, at, float(random.uniform(0.4, 1.8)) + side_length)
            else:
                wide, tall, deep = (random.uniform(0.12, 1.0, 3) * (1, 0.45, 1)).tolist()
                self._box(scene, at, (wide, tall, deep), float(random.normal(0, 0.4)))
        scene.lamp = self._turned(random.uniform(-20, 20), -20.0, random.uniform(-20, 20))
        scene.lamp_reach = 60.0
        scene.fog = float(random.choice([0.0, random.uniform(0.02, 0.25)]))

    def _row_of_houses(self, scene: Scene, side: int, distance: float) -> None:
        random = self._random
        z = float(random.uniform(-1, 2))
        while z < 14:
            deep = float(random.uniform(0.6, 3))
            tall = float(random.uniform(0.6, 4))
            x = side * (distance + 1 + random.uniform(0, 0.5))
            self._box(scene, (x, 0.0, z + deep / 2), (2.0, tall, deep))
            z += deep + float(random.choice([0.0, random.uniform(0.1, 1.5)]))

    def _sky_colour(self) -> Vector:
        random = self._random
        light = random.uniform(90, 255)
        return np.clip([light * random.uniform(0.5, 1), light * random.uniform(0.7, 1), light], 0, 255)

    def _standing(self, scene: Scene, *, scale: float) -> None:
        random = self._random
        for _ in range(random.integers(0, 4)):
            scene.standing.append(
                Standing(
                    cut_out=int(random.integers(len(self._cut_outs))),
                    x=float(random.normal(0, 1.5)),
                    z=float(random.uniform(1.2, 8)),
                    height=float(random.uniform(1.5, 1.9) / scale),
                    is_mirrored=bool(random.integers(2)),
                )
            )

    def _pasted(self, scene: Scene) -> None:
        """Mostly one and whole inside the picture, as the data set places them."""
        random = self._random
        for _ in range(random.choice(4, p=PASTED_COUNTS)):
            cut_out = int(random.integers(len(self._cut_outs)))
            high, wide = self._cut_outs[cut_out].mask.shape
            stretch, height = random.uniform(0.8, 1.45), random.uniform(0.2, 0.9)
            height = min(height, 1.2 * high / (wide * stretch))
            width = height * stretch * wide / high
            if random.random() < WHOLE_SHARE:
                left, bottom = random.uniform(0, 4 / 3 - width), random.uniform(height, 1)
            else:
                left, bottom = random.uniform(-width / 2, 4 / 3 - width / 2), random.uniform(height / 2, 1.3)
            scene.pasted.append(
                Pasted(
                    cut_out=cut_out,
                    left=float(left),
                    bottom=float(bottom),
                    height=float(height),
                    is_mirrored=bool(random.integers(2)),
                    stretch=float(stretch),
                    is_soft=bool(random.integers(2)),
                )
            )
