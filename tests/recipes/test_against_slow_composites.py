"""Every sample of small plans against an implementation that shares nothing with the recipe but its words."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from shardgen.domain.identifiers import SampleIndex
from shardgen.domain.plan import Plan
from shardgen.imaging.codec import decode_encoded
from shardgen.imaging.compose import Canvas
from shardgen.operations.plan import draft_plan
from shardgen.recipes.base import DeviceChoice, Encoded, Folders, Maker, Recipe, Station
from shardgen.recipes.composites.composer import ComposedSample, Composer
from shardgen.recipes.composites.plan import CompositesPlan
from shardgen.recipes.registry import recipe_of
from shardgen.settings.run_directory import RunDirectory
from tests.imaging.slow_reference import SlowCutOut, opened_and_closed, resized
from tests.photographs import blob, colours, write_rgb
from tests.recipes.slow_composites import (
    HALVED,
    Height,
    Person,
    Size,
    Slow,
    composite,
    draw,
    frame_size,
    on_grid,
    pairs,
)

LARGEST_SEED = 2**63 - 1
# Odd, and odd again at every halving: of an odd number of equal shares a mask never takes just a half, which
# float32 and exact arithmetic would round differently.
CANVAS, OUTPUT = (63, 49), (31, 25)
PEOPLE = [(37, 55), (61, 29), (95, 127), (21, 25)]
SCENES = [CANVAS, (90, 71), (41, 70)]


@dataclass(frozen=True, kw_only=True)
class Case:
    """Settings as they mean; `grid` None is random. `blocks` are new backgrounds and new foregrounds."""

    blocks: tuple[tuple[int, int], ...] = ((1, 3),)
    grid: Size | None = None
    places: int = 3
    seed: int = 0
    height: Height = HALVED
    overhang: int = 0
    people: tuple[int, int] = (1, 1)
    flips: str = "none"
    blend: str = "mask"
    output: Size = OUTPUT

    @property
    def text(self) -> str:
        """The keys of `[compose]` and `[output]` that say so."""
        height = f'"{self.height}"' if isinstance(self.height, str) else _toml(self.height)
        lines = [
            "[compose]",
            f"canvas = {_toml(CANVAS)}",
            f'flips = "{self.flips}"',
            f'blend = "{self.blend}"',
            f"foreground_height = {height}",
        ]
        if self.grid is not None:
            lines.append(f"grid = {_toml(self.grid)}")
        else:
            lines += [
                'placement = "random"',
                f"places = {self.places}",
                f"seed = {self.seed}",
                f"overhang = {self.overhang}",
                f"foregrounds_per_sample = {_toml(self.people)}",
            ]
        lines += ["[output]", f"size = {_toml(self.output)}", 'image = "png"', 'mask = "png"']
        return "\n".join(lines) + "\n"

    @cached_property
    def variants(self) -> list[tuple[int, int]]:
        """Flip and place of each sample of a pair."""
        places = self.places if self.grid is None else self.grid[0] * self.grid[1]
        return list(product(range(1 if self.flips == "none" else 2), range(places)))


def _toml(value: int | tuple[int, int]) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)


CASES = {
    "grid": Case(grid=(3, 2), flips="foregrounds", blocks=((1, 2),)),
    "grid-of-one": Case(grid=(1, 1), flips="backgrounds", blocks=((2, 2), (1, 1))),
    "grid-fixed-height": Case(grid=(2, 3), flips="foregrounds", height=31, blend="alpha"),
    "random": Case(flips="foregrounds", blocks=((3, 3),)),
    "random-alpha": Case(flips="backgrounds", blend="alpha", overhang=300),
    "seed": Case(seed=LARGEST_SEED, overhang=1000, flips="foregrounds"),
    "height": Case(height=31, overhang=300, blocks=((1, 4),)),
    "height-beyond-the-canvas": Case(height=340, overhang=300, blocks=((1, 4),)),
    "height-of-a-cut-out": Case(height=25, blocks=((1, 4),)),
    "heights": Case(height=(300, 600), flips="foregrounds", blend="alpha", blocks=((1, 4),)),
    "heights-of-all-sizes": Case(height=(100, 1000), places=6, overhang=1000, blocks=((1, 4),)),
    "people": Case(people=(1, 3), flips="foregrounds", height=(200, 900), overhang=300),
    "people-halved-alpha": Case(people=(1, 3), flips="backgrounds", blend="alpha", places=4),
    "people-of-one-height": Case(people=(2, 3), height=31, places=6),
    "people-at-the-lower-edge": Case(people=(3, 3), height=49, places=4),
    "people-run-out": Case(people=(3, 3), blocks=((2, 2),), flips="foregrounds", height=(300, 600)),
    "people-leave": Case(people=(3, 3), height=(100, 1000), overhang=1000, places=8),
    "people-large-output": Case(people=(3, 3), height=(300, 800), output=(80, 25), overhang=300),
    "people-in-blocks": Case(
        people=(1, 3),
        blocks=((1, 2), (1, 0), (1, 2)),
        flips="foregrounds",
        height=(300, 800),
        seed=LARGEST_SEED,
        places=1,
    ),
    "people-of-small-cut-outs": Case(people=(3, 3), height=(900, 1000), blocks=((1, 4),), blend="alpha"),
}
FAST = {"grid", "people"}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name, marks=() if name in FAST else pytest.mark.slow)
        for name, case in CASES.items()
    ],
)
def test_every_sample_is_that_of_the_slow_implementation(tmp_path: Path, case: Case) -> None:
    made = Made(tmp_path, case)
    expected = list(expected_samples(case))
    assert made.plan.samples == len(expected)
    assert [output.name for output in made.plan.outputs] == made.outputs
    for sample, (background, people, slow) in enumerate(expected):
        canvas, encoded = made.sample(SampleIndex(sample))
        where = f"sample {sample}: {people}"
        assert_nearly_same(canvas.fgbg, slow.fgbg, where)
        assert_same(canvas.mask, slow.mask, where)
        assert_nearly_same(decoded(encoded, "fgbg"), resized(canvas.fgbg, case.output), where)
        assert_same(decoded(encoded, "mask"), slow.mask_output, where)
        if case.people[1] > 1:
            assert_same(decoded(encoded, "instances"), slow.instances, where)
        assert encoded.facts == sum(slow.boxes, ()), where
        assert made.recipe.sources_of(SampleIndex(sample)) == {
            f"backgrounds/{background_name(case, background)}",
            *(f"foregrounds/{foreground_name(case, one.foreground)}" for one in people),
        }
        assert made.labels(SampleIndex(sample), encoded.facts) == expected_labels(
            case, sample, slow.people, slow.boxes
        )


def test_of_many_samples_the_draws_are_those_of_the_slow_implementation(tmp_path: Path) -> None:
    case = Case(
        blocks=((1, 2), (1, 2), (1, 0)),
        places=10_000,
        seed=LARGEST_SEED,
        height=(100, 1000),
        overhang=333,
        people=(1, 3),
        flips="foregrounds",
    )
    made = Made(tmp_path, case)
    assert made.plan.samples == 12 * 2 * 10_000
    for sample in range(0, made.plan.samples, 997):
        people = sorted(expected_people(case, sample)[2], key=lambda one: one.y + one.height)
        expected = expected_labels(case, sample, people, [[""] * 11] * len(people))
        assert made.labels(SampleIndex(sample), None) == expected


class Made:
    """The real thing: photographs, settings, draft, blocks, maker."""

    def __init__(self, folder: Path, case: Case) -> None:
        self._folder = folder
        self.plan, self._folders, self._local = self._planned(case)
        self.recipe: Recipe = recipe_of(self.plan)
        assert self.recipe.problem() is None
        self.outputs = ["fgbg", "mask", *(["instances"] if case.people[1] > 1 else [])]

    @cached_property
    def composer(self) -> Composer:
        plan = CompositesPlan(self.plan)
        return Composer(plan, self._folders["foregrounds"], self._folders["backgrounds"])

    @cached_property
    def maker(self) -> Maker[ComposedSample, object]:
        device = DeviceChoice(threads=1)
        return self.recipe.open_maker(Station(folders=self._folders, local=self._local, device=device))

    def sample(self, sample: SampleIndex) -> tuple[Canvas, Encoded]:
        prepared = self.maker.prepare(sample)
        (computed,) = self.maker.compute([prepared], between=lambda _done: None)
        assert not isinstance(computed, Exception)
        encoded = self.maker.encode(sample, prepared, computed)
        assert list(encoded.files) == self.outputs
        return self.composer.canvas(sample), encoded

    def labels(self, sample: SampleIndex, facts: tuple[int, ...] | None) -> list[list[str]]:
        rows = self.recipe.label_rows(
            range(sample, sample + 1),
            tail=",0,0\n",
            without=(),
            facts=None if facts is None else {sample: facts},
        )
        return list(csv.reader(rows.splitlines()))

    def _planned(self, case: Case) -> tuple[Plan, Folders, object]:
        run_dir = self._folder / "run"
        run_dir.mkdir()
        (run_dir / "shardgen.toml").write_text(
            '[sources]\nforegrounds = "../foregrounds"\nbackgrounds = "../backgrounds"\n'
            f'[depth]\nmodel = "none"\n{case.text}',
            encoding="utf-8",
        )
        run = RunDirectory.open(run_dir)
        plan: Plan | None = None
        for photographs in photographs_of(case):
            for name, pixels in photographs.items():
                path = self._folder / name
                path.parent.mkdir(exist_ok=True)
                write_rgb(path, pixels)
            folders = run.folders({})
            drafted, draft = draft_plan(run, folders)
            if plan is None:
                plan = drafted
            else:
                blocks = run.settings.kind.arrange(run.recipe(plan), draft).blocks
                assert blocks[:-1] == plan.blocks
                plan = replace(plan, blocks=blocks)
        assert plan is not None
        return plan, run.folders({}), run.local


def photographs_of(case: Case) -> Iterator[Mapping[str, NDArray[np.uint8]]]:
    """The new files of each block."""
    backgrounds = foregrounds = 0
    for new_backgrounds, new_foregrounds in case.blocks:
        files: dict[str, NDArray[np.uint8]] = {}
        for number in range(backgrounds, backgrounds + new_backgrounds):
            files[f"backgrounds/{background_name(case, number)}"] = background(number)
        for number in range(foregrounds, foregrounds + new_foregrounds):
            pixels, alpha = foreground(number)
            files[f"foregrounds/{foreground_name(case, number)}"] = np.dstack([pixels, alpha])
        yield files
        backgrounds, foregrounds = backgrounds + new_backgrounds, foregrounds + new_foregrounds


def background_name(case: Case, number: int) -> str:
    return _name(number, [new for new, _ in case.blocks])


def foreground_name(case: Case, number: int) -> str:
    return _name(number, [new for _, new in case.blocks])


def _name(number: int, new: list[int]) -> str:
    """Those of later blocks sort before those of earlier ones."""
    block = next(one for one in range(len(new)) if number < sum(new[: one + 1]))
    return f"{'zyx'[block]}{number}.png"


def background(number: int) -> NDArray[np.uint8]:
    return colours(np.random.default_rng(100 + number), *SCENES[number])


def foreground(number: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Pixels and alpha: a blob with a ragged edge that has holes; one side is heavier, so mirrors show."""
    width, height = PEOPLE[number]
    random = np.random.default_rng(number)
    alpha = blob(width, height).astype(int) - 3 * random.integers(0, 60, (height, width))
    alpha[height // 3 :, : width // 2] = 255
    return colours(random, width, height), np.clip(alpha, 0, 255).astype(np.uint8)


@cache
def full_cut_out(number: int) -> SlowCutOut:
    pixels, alpha = foreground(number)
    return SlowCutOut(pixels=pixels, matte=alpha, mask=opened_and_closed(alpha >= 128))


def expected_samples(case: Case) -> Iterator[tuple[int, list[Person], Slow]]:
    """Background, people in the order of their draw, and what is to be seen, of every sample."""
    for sample in range(len(pairs(case.blocks)) * len(case.variants)):
        scene, flip, people = expected_people(case, sample)
        canvas = resized(background(scene), CANVAS)
        if flip and case.flips == "backgrounds":
            canvas = canvas[:, ::-1]
        slow = composite(
            canvas,
            [(person, full_cut_out(person.foreground)) for person in people],
            output=case.output,
            by_alpha=case.blend == "alpha",
            by_halving=case.height == HALVED,
        )
        yield scene, people, slow


def expected_people(case: Case, sample: int) -> tuple[int, int, list[Person]]:
    """Background, flip and people in the order of their draw."""
    pair, variant = divmod(sample, len(case.variants))
    scene, first, known = pairs(case.blocks)[pair]
    flip, place = case.variants[variant]
    mirrors = case.flips == "foregrounds"
    if case.grid is None:
        people = draw(
            sample=sample,
            seed=case.seed,
            count_range=case.people,
            pool=range(known),
            first=first,
            flip=flip,
            mirrors=mirrors,
            canvas=CANVAS,
            sizes=PEOPLE,
            height=case.height,
            overhang=case.overhang,
        )
        return scene, flip, people
    person = on_grid(
        foreground=first,
        flip=flip,
        mirrors=mirrors,
        size=frame_size(PEOPLE[first], CANVAS, case.height),
        canvas=CANVAS,
        grid=case.grid,
        place=(place % case.grid[0], place // case.grid[0]),
    )
    return scene, flip, [person]


def expected_labels(
    case: Case, sample: int, people: Sequence[Person], facts: Sequence[Sequence[object]]
) -> list[list[str]]:
    """Rows of people in paint order."""
    scene, flip, _people = expected_people(case, sample)
    place = case.variants[sample % len(case.variants)][1]
    column_row = ("", "") if case.grid is None else (place % case.grid[0], place // case.grid[0])
    rows = []
    for number, (person, known) in enumerate(zip(people, facts, strict=True), 1):
        own_flip = int(person.mirrored) if case.flips == "foregrounds" else flip
        names = background_name(case, scene), foreground_name(case, person.foreground)
        rows.append(
            [str(one) for one in (sample, number, *names, own_flip, *column_row, *person.frame, *known, 0, 0)]
        )
    return rows


def decoded(encoded: Encoded, output: str) -> NDArray[np.uint8]:
    pixels = decode_encoded(encoded.files[output], channels=3 if output == "fgbg" else 1)
    assert pixels.dtype == np.uint8
    return pixels.astype(np.uint8)


def assert_same(found: NDArray[np.uint8], expected: NDArray[np.uint8], where: str) -> None:
    assert found.shape == expected.shape, where
    np.testing.assert_array_equal(found, expected, err_msg=where)


def assert_nearly_same(found: NDArray[np.uint8], expected: NDArray[np.uint8], where: str) -> None:
    """Within 1 level, in 0.2 % of the values: scaled colours are float32 there and exact here.

    That is 18 of a canvas; an enlarged cut-out has some values that lie halfway between two levels.
    """
    assert found.shape == expected.shape, where
    difference = np.abs(found.astype(int) - expected.astype(int))
    assert difference.max() <= 1, where
    assert (difference > 0).mean() <= 0.002, where
