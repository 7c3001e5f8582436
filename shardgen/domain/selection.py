"""Which samples of a plan a data set leaves out, as ranges: a million samples cost what their ranges do."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, pairwise

from shardgen.domain.identifiers import BatchIndex, SampleIndex
from shardgen.domain.layout import Layout


class Ranges:
    """Half-open ranges of whole numbers: ascending, none of them empty, none touching the next."""

    __slots__ = ("_edges", "count", "pairs")

    def __init__(self, pairs: Iterable[tuple[int, int]] = ()) -> None:
        """Raises ValueError for pairs that are not in that order."""
        self.pairs = tuple(pairs)
        self._edges = tuple(chain.from_iterable(self.pairs))
        if any(before >= after for before, after in pairwise(self._edges)):
            raise ValueError("ranges that are empty, overlap, touch or are out of order")
        self.count = sum(stop - start for start, stop in self.pairs)

    @classmethod
    def of(cls, pairs: Iterable[tuple[int, int]]) -> Ranges:
        """Any ranges whose starts ascend; those that touch or overlap become one."""
        joined: list[tuple[int, int]] = []
        for start, stop in pairs:
            if joined and start <= joined[-1][1]:
                joined[-1] = joined[-1][0], max(joined[-1][1], stop)
            elif start < stop:
                joined.append((start, stop))
        return cls(joined)

    def __repr__(self) -> str:
        return f"Ranges({list(self.pairs)})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ranges) and self.pairs == other.pairs

    def __hash__(self) -> int:
        return hash(self.pairs)

    def __bool__(self) -> bool:
        return bool(self.pairs)

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and bisect_right(self._edges, number) % 2 == 1

    def __or__(self, other: Ranges) -> Ranges:
        return Ranges.of(sorted((*self.pairs, *other.pairs)))

    def __sub__(self, other: Ranges) -> Ranges:
        return Ranges(chain.from_iterable(other.gaps(*pair) for pair in self.pairs))

    def within(self, start: int, stop: int) -> list[tuple[int, int]]:
        """What of them lies in `[start, stop)`."""
        first, end = bisect_right(self._edges, start) // 2, -(-bisect_right(self._edges, stop - 1) // 2)
        return [(max(start, one), min(stop, two)) for one, two in self.pairs[first:end]]

    def gaps(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """What of `[start, stop)` lies in none of them."""
        for one, two in self.within(start, stop):
            if start < one:
                yield start, one
            start = two
        if start < stop:
            yield start, stop

    def next_gap(self, number: int) -> int:
        """The first number from this one on that lies in none of them."""
        at = bisect_right(self._edges, number)
        return self._edges[at] if at % 2 else number

    def nth(self, place: int) -> int:
        """The number at that place, counted from 0 through all of them. Raises IndexError behind the last."""
        for start, stop in self.pairs:
            if place < stop - start:
                return start + place
            place -= stop - start
        raise IndexError("behind the last range")


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The samples of a data set, by those that it leaves out of so many planned ones.

    `excluded` were left out on purpose, whether they were made or not; `pending` are not made yet. No sample
    is in both; dead letters are in neither. Raises ValueError for ranges that break this.
    """

    planned: int
    excluded: Ranges = field(default_factory=Ranges)
    pending: Ranges = field(default_factory=Ranges)
    left_out: Ranges = field(init=False, repr=False, compare=False)
    """Both kinds together."""

    def __post_init__(self) -> None:
        left_out = self.excluded | self.pending
        if left_out.count != self.excluded.count + self.pending.count:
            raise ValueError("samples that are excluded and pending")
        if left_out and (left_out.pairs[0][0] < 0 or left_out.pairs[-1][1] > self.planned):
            raise ValueError(f"samples outside of the {self.planned:,} planned ones")
        object.__setattr__(self, "left_out", left_out)

    @property
    def kinds(self) -> frozenset[str]:
        """Why samples are left out: `excluded`, `pending`, both or, of a whole data set, neither."""
        found = {"excluded": self.excluded, "pending": self.pending}
        return frozenset(name for name, ranges in found.items() if ranges)

    @property
    def kept(self) -> Ranges:
        """What is not left out: the stored samples and the dead letters."""
        return Ranges(self.left_out.gaps(0, self.planned))

    @property
    def in_words(self) -> str:
        """As in `40 excluded and 12 pending`; "" of a whole data set."""
        parts = {"excluded": self.excluded.count, "pending": self.pending.count}
        return " and ".join(f"{count:,} {why}" for why, count in parts.items() if count)

    @property
    def canonical_json(self) -> bytes:
        """The bytes of `selection.json`: sorted keys, no white space."""
        content = {"excluded": self.excluded.pairs, "pending": self.pending.pairs}
        return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def of_document(cls, document: object, *, planned: int) -> Selection:
        """What `selection.json` says. Raises ValueError for anything that is no selection of such a plan."""
        if not isinstance(document, dict) or set(document) != {"excluded", "pending"}:
            raise ValueError("not the keys excluded and pending")
        return cls(
            planned=planned, excluded=_ranges(document["excluded"]), pending=_ranges(document["pending"])
        )


def batches_with(ranges: Ranges, layout: Layout) -> Iterator[BatchIndex]:
    """The batches that have any of these samples, ascending, each once."""
    following = 0
    for start, stop in ranges.pairs:
        first, last = batches_at(layout, start, stop)
        for batch in range(max(first, following), last + 1):
            yield BatchIndex(batch)
        following = last + 1


def batches_at(layout: Layout, start: int, stop: int) -> tuple[BatchIndex, BatchIndex]:
    """The batches of the first and of the last of the samples `[start, stop)`."""
    return layout.batch_of_sample(SampleIndex(start)), layout.batch_of_sample(SampleIndex(stop - 1))


def _ranges(pairs: object) -> Ranges:
    found: list[tuple[int, int]] = []
    for pair in pairs if isinstance(pairs, list) else [None]:
        if not isinstance(pair, list) or [type(edge) for edge in pair] != [int, int]:
            raise ValueError("not a list of pairs of whole numbers")
        found.append((pair[0], pair[1]))
    return Ranges(found)
