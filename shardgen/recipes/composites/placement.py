"""Where the people of a composite stand, and how large: on a grid, or random from the sample's number."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from shardgen.imaging.options import Rectangle

if TYPE_CHECKING:
    import numpy as np

MAX_SEED = 2**63 - 1
MAX_PEOPLE = 255
"""Of a picture: `instances` has 8 bits."""
_WORDS_EACH = 5  # foreground, mirror, height, x, y
_WORD_BITS = 64


class Placement(StrEnum):
    """Places of a grid, or places drawn at random."""

    GRID = "grid"
    RANDOM = "random"


Height = int | tuple[int, int] | None
"""Pixels; or the least and the largest in per mille of the canvas's; None: halved until it fits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """A foreground in a picture; `frame` is its cut-out's rectangle, which may reach beyond the canvas."""

    foreground: int
    is_mirrored: bool
    frame: Rectangle


def size_at(whole: tuple[int, int], height: int, canvas: tuple[int, int]) -> tuple[int, int]:
    """Width and height of a cut-out, `whole` (width, height), at this height, or at the largest that fits.

    The width is rounded half up.
    """
    widest = canvas[0]
    # The largest height whose rounded width is no more than the canvas's.
    fitting = (whole[1] * (2 * widest + 1) - 1) // (2 * whole[0])
    height = max(1, min(height, canvas[1], fitting))
    width = (2 * whole[0] * height + whole[1]) // (2 * whole[1])
    return min(max(1, width), widest), height


def heights(range_: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
    """The least and the largest height in pixels of those in per mille; the least is larger when none is."""
    least, largest = range_
    return -(-least * canvas[1] // 1000), largest * canvas[1] // 1000


def drawn(word: int, least: int, largest: int) -> int:
    """An integer from `least` to `largest`, both included, by a word of 64 random bits."""
    return least + (word * (largest - least + 1) >> _WORD_BITS)


class Words:
    """The random words of a sample's number; the same on every machine. Thread-safe.

    `Philox4x64-10` (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): the sample is a part
    of the counter, so no word depends on how many were drawn before.
    """

    def __init__(self, seed: int, people: int) -> None:
        self._seed = seed
        self._count = 1 + _WORDS_EACH * people
        self._local = threading.local()

    def of(self, sample: int) -> list[int]:
        """One word, and five for each person that there may be."""
        generator, state = self._own()
        # A generator takes five times as long to make as to set.
        state["state"]["counter"][:] = (0, 0, sample, 0)
        generator.state = state
        return [int(word) for word in generator.random_raw(self._count)]

    def _own(self) -> tuple[np.random.Philox, Any]:
        try:
            return self._local.generator, self._local.state
        except AttributeError:
            import numpy as np

            generator = np.random.Philox(
                counter=np.zeros(4, np.uint64), key=np.array([self._seed, 0], np.uint64)
            )
            self._local.generator, self._local.state = generator, generator.state
            return self._local.generator, self._local.state


def untaken(place: int, taken: Sequence[int]) -> int:
    """The number at this place, from 0, among those that are not taken."""
    for number in sorted(taken):
        if place < number:
            break
        place += 1
    return place


def words_of(words: Sequence[int], person: int) -> Sequence[int]:
    """A person's five words: foreground, mirror, height, x, y."""
    start = 1 + _WORDS_EACH * person
    return words[start : start + _WORDS_EACH]


def grid_offset(room: int, step: int, steps: int) -> int:
    """Pixels left or above; the last step touches the far edge, a single one is centred."""
    return room // 2 if steps == 1 else room * step // (steps - 1)


def random_offset(word: int, side: int, room: int, overhang: int) -> int:
    """Pixels left or above of a figure with this side; `overhang` in per mille of it lies outside at most."""
    outside = side * overhang // 1000
    return drawn(word, -outside, room - side + outside)
