"""Which split a sample is in, by its photographs, so that no photograph is in two splits."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from shardgen.domain.identifiers import SampleIndex
from shardgen.domain.selection import Ranges
from shardgen.errors import InvalidSettings
from shardgen.recipes.base import Recipe, csv_field

SPLITS = ("train", "validation", "test")
WHOLE = "data"
"""What stands in the place of a split's name where there are none."""
BOTH = "both"
DROPPED = -1
HEADER = "source,sha256,split\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A wish: `parts` are the proportions of train, validation and, if there are three, test.

    `by` is a folder of sources, or both; "" where the recipe decides. Raises ValueError for proportions that
    are no two or three numbers from 0 on, of which two are more.
    """

    parts: tuple[int, ...]
    by: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        is_counted = len(self.parts) in (2, 3) and all(type(part) is int for part in self.parts)
        if not is_counted or min(self.parts) < 0 or sum(map(bool, self.parts)) < 2:
            raise ValueError("two or three whole numbers, at least two of them above 0")

    @property
    def names(self) -> tuple[str, ...]:
        """Those of the splits that get anything."""
        return tuple(name for name, part in zip(SPLITS, self.parts, strict=False) if part)


def bounds(count: int, parts: Iterable[int]) -> list[int]:
    """Where the ranks of each part end, of so many photographs: rounded, halves up."""
    sums = list(accumulate(parts))
    return [(2 * count * cumulated + sums[-1]) // (2 * sums[-1]) for cumulated in sums]


def rank(seed: int, sha256: str) -> bytes:
    """What photographs are sorted by: the sha256 of `SEED:HEX`."""
    return hashlib.sha256(f"{seed}:{sha256}".encode()).digest()


def assigned(digests: Iterable[tuple[int, str, str]], split: Split) -> dict[str, int]:
    """The place in `split.names` of every photograph, by its name.

    Ranked in each folder of each block, so an extension moves none; of files that are alike all are where the
    first of them is. `digests` come block by block, as `Recipe.digests` gives them.
    """
    folders: dict[tuple[int, str], list[tuple[bytes, str, bytes]]] = {}
    for block, name, sha256 in digests:
        folder = folders.setdefault((block, name.partition("/")[0]), [])
        folder.append((rank(split.seed, sha256), name, bytes.fromhex(sha256)))
    parts = [part for part in split.parts if part]
    places: dict[str, int] = {}
    first: dict[bytes, int] = {}
    for sources in folders.values():
        sources.sort()
        ends = bounds(len(sources), parts)
        for place, (_rank, name, digest) in enumerate(sources):
            places[name] = first.setdefault(digest, bisect_right(ends, place))
    return places


class Assignment:
    """The split of each sample of a recipe, by its place in `names`; one for all without a split.

    Photographs all of whose samples are excluded have their place, so that no other one moves, but are
    neither named nor counted. Memory is for each photograph that counts, not for each sample. Raises
    InvalidSettings for a split that the recipe does not allow.
    """

    def __init__(self, recipe: Recipe, split: Split | None, excluded: Ranges | None = None) -> None:
        self._recipe = recipe
        self.split = split
        self.names = (WHOLE,) if split is None else split.names
        self.by = ""
        """A folder of sources, or both; "" without a split."""
        self._folders: frozenset[str] = frozenset()
        self._places: dict[str, int] = {}
        self._withdrawn = _withdrawn(recipe, excluded) if excluded else frozenset()
        if split is not None:
            self.by, self._folders = _folders(recipe, split)
            self._places = assigned(self._digests(), split)

    def _digests(self) -> Iterator[tuple[int, str, str]]:
        for block, name, sha256 in self._recipe.digests():
            if name.partition("/")[0] in self._folders:
                yield block, name, sha256

    @property
    def photographs(self) -> list[int]:
        """How many photographs are in each split; without splits, all there are."""
        if self.split is None:
            if not self._withdrawn:
                return [self._recipe.photographs]
            return [sum(name not in self._withdrawn for _, name, _ in self._recipe.digests())]
        found = Counter(place for name, place in self._places.items() if name not in self._withdrawn)
        return [found[place] for place in range(len(self.names))]

    def photographs_of_folders(self) -> dict[str, dict[str, int]]:
        """How many of each folder that counts are in each split, by its name."""
        found = {folder: dict.fromkeys(self.names, 0) for folder in sorted(self._folders)}
        for name, place in self._places.items():
            if name not in self._withdrawn:
                found[name.partition("/")[0]][self.names[place]] += 1
        return found

    def table(self) -> Iterator[str]:
        """The lines of `splits.csv`."""
        yield HEADER
        for _block, name, sha256 in self._digests():
            if name not in self._withdrawn:
                yield f"{csv_field(name)},{sha256},{self.names[self._places[name]]}\n"

    def of(self, samples: NDArray[np.int64]) -> NDArray[np.int8]:
        """The splits of ascending samples; DROPPED for those whose photographs are in several."""
        found = np.zeros(len(samples), np.int8)
        if self.split is None or not len(samples):
            return found
        edges = [0, *(np.flatnonzero(np.diff(samples) != 1) + 1).tolist(), len(samples)]
        for start, stop in pairwise(edges):
            offset = start - int(samples[start])
            for first, end, sources in self._recipe.groups(int(samples[start]), int(samples[stop - 1]) + 1):
                found[first + offset : end + offset] = self._of_sources(sources)
        return found

    def _of_sources(self, sources: frozenset[str]) -> int:
        places = self._places
        found = {places[name] for name in sources if name in places}
        return found.pop() if len(found) == 1 else DROPPED


def _folders(recipe: Recipe, split: Split) -> tuple[str, frozenset[str]]:
    """What a split goes by, and the folders of sources that this means."""
    if next(recipe.digests(), None) is None:
        raise InvalidSettings(
            f"--split: samples of the recipe {recipe.plan.recipe.kind} share no photographs to split by",
            hint="leave --split out",
        )
    known = {name.partition("/")[0] for name in recipe.sources_of(SampleIndex(0))}
    choices = [*sorted(known, reverse=True), *([BOTH] if len(known) > 1 else [])]
    by = split.by or choices[-1]
    if by not in choices:
        raise InvalidSettings(
            f"--split-by {by}: the plan has no folder of that name",
            hint=f"--split-by {' or '.join(choices)}",
        )
    return by, frozenset(known) if by == BOTH else frozenset({by})


def _withdrawn(recipe: Recipe, excluded: Ranges) -> frozenset[str]:
    """The sources that are in excluded samples only."""
    found: set[str] = set()
    for pair in excluded.pairs:
        found.update(*(sources for _, _, sources in recipe.groups(*pair)))
    for pair in excluded.gaps(0, recipe.plan.samples):
        for _, _, sources in recipe.groups(*pair):
            found -= sources
    return frozenset(found)
