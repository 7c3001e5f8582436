"""What a selection means for a recipe's sources, and for many samples at once."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Container, Iterator, Sequence
from collections.abc import Set as AbstractSet

import numpy as np
from numpy.typing import NDArray

from shardgen.artifacts.archive import read_artifact
from shardgen.artifacts.check import ReceiptSource, stored_samples, wrong_members
from shardgen.artifacts.store import ArtifactReader
from shardgen.domain.identifiers import SampleIndex
from shardgen.domain.plan import Plan
from shardgen.domain.receipt import Receipt, Sums, total_sums
from shardgen.domain.sample import spread_samples
from shardgen.domain.selection import Ranges, Selection, batches_at
from shardgen.domain.wording import nearest
from shardgen.errors import ArtifactCorrupt, InvalidSettings, SampleError
from shardgen.recipes.base import Recipe

_GROUPS_MAX = 2_000_000  # that verify compares with the sources; a plan may claim any number of samples
_TOTALS_PAGE = 1024
_SHEETS_MAX = 64  # how many sheets of samples are looked through to fill one


class LeftOut(Container[int]):
    """The numbers of samples that have no images: dead ones, and those that a selection leaves out."""

    def __init__(self, dead: Container[int], left_out: Ranges) -> None:
        self._dead, self._ranges = dead, left_out

    def __contains__(self, sample: object) -> bool:
        return sample in self._dead or sample in self._ranges


def excluded_by(recipe: Recipe, names: Collection[str]) -> Ranges:
    """The samples that are made of any of these sources, as a person typed their names.

    Raises InvalidSettings for a name that is no source's, or several sources'.
    """
    if not names:
        return Ranges()
    meant = _meant(names, recipe.all_sources())
    groups = recipe.groups(0, recipe.plan.samples)
    return Ranges.of((start, stop) for start, stop, sources in groups if not meant.isdisjoint(sources))


def _meant(names: Collection[str], known: AbstractSet[str]) -> frozenset[str]:
    """The sources of these names, which may lack their folder, or be composed otherwise in Unicode."""
    meant = {name for name in names if name in known}
    by_name: dict[str, list[str]] = {}
    if len(meant) < len(names):
        for one in sorted(known):
            text = unicodedata.normalize("NFC", one)
            for written in (text, text.partition("/")[2]):
                by_name.setdefault(written, []).append(one)
    for name in sorted(set(names) - meant):
        found = by_name.get(unicodedata.normalize("NFC", name), [])
        if not found:
            raise _unknown(name, known)
        if len(found) > 1:
            raise InvalidSettings(
                f"--exclude {name}: may be {' or '.join(found)}",
                hint=f"type the whole name: --exclude {found[0]}",
            )
        meant.add(found[0])
    return frozenset(meant)


def _unknown(name: str, known: AbstractSet[str]) -> InvalidSettings:
    folders = sorted({one.partition("/")[0] for one in known})
    own = {one.rpartition("/")[2]: one for one in sorted(known)}
    near = nearest(name, sorted(known)) or own.get(nearest(name.rpartition("/")[2], own), "")
    names = " or ".join(f"{folder}/NAME" for folder in folders)
    hint = f"did you mean --exclude {near}?" if near else f"sources are named {names}, as in plan.json"
    return InvalidSettings(f"--exclude {name}: the plan has no such source", hint=hint)


def strays_in(recipe: Recipe, selection: Selection) -> str | None:
    """Why no choice of sources and no run can have left out these samples; None when one can.

    Sources are excluded whole, and batches are pending whole. Of a plan that is very large only batches are
    looked at.
    """
    layout, pending = recipe.plan.layout, selection.pending
    ends = (batches_at(layout, *pair) for pair in pending.pairs)
    whole = Ranges.of(
        (layout.batch_samples(first).start, layout.batch_samples(last).stop) for first, last in ends
    )
    if whole - selection.excluded != pending:
        return "lists a part of a batch as pending"
    if not selection.excluded or selection.planned > _GROUPS_MAX * recipe.alike:
        return None
    others = Ranges(selection.excluded.gaps(0, selection.planned))
    there: set[str] = set()
    for pair in others.pairs:
        for _, _, sources in recipe.groups(*pair):
            there |= sources
    for pair in selection.excluded.pairs:
        for start, _, sources in recipe.groups(*pair):
            if sources <= there:
                return f"lists sample {start} as excluded, but samples of all its sources are there"
    return None


def which_in(ranges: Ranges, samples: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of these ascending samples lie in the ranges: bool (samples,)."""
    if not len(samples):
        return np.zeros(0, np.bool_)
    edges = np.array(ranges.within(int(samples[0]), int(samples[-1]) + 1), np.int64).ravel()
    places: NDArray[np.int64] = np.searchsorted(edges, samples, side="right")
    return (places & 1).astype(np.bool_)


def sums_of_kept(
    recipe: Recipe, store: ArtifactReader, receipts: Sequence[Receipt], left_out: Ranges
) -> list[Sums]:
    """The sums of what is kept of consecutive batches in one artifact, whose every byte is checked.

    Where a batch is kept in part, the fewer files are decoded: those that stay, or those that go. Raises
    ArtifactCorrupt for bytes that are not those of the receipts.
    """
    plan, ref = recipe.plan, receipts[0].artifact
    data = store.read(ref)
    entries, _ = read_artifact(data, name=ref.name)
    found = []
    for receipt in receipts:
        record = receipt.record
        if wrong := wrong_members(plan, record, entries, data):
            raise ArtifactCorrupt(f"{ref.name}: {wrong}")
        goes = which_in(left_out, stored_samples(plan, [receipt]))
        is_rest = 2 * int(goes.sum()) <= len(goes)
        rows = np.flatnonzero(goes if is_rest else ~goes).tolist()
        sums = total_sums(plan.outputs, [])
        for row in rows:
            first = record.members_start + len(plan.outputs) * row
            for output, entry in zip(plan.outputs, entries[first:], strict=False):
                try:
                    counted = recipe.recount(output, data[entry.data_offset : entry.stop])
                except SampleError as error:
                    raise ArtifactCorrupt(f"{ref.name}: {entry.name}: {error}") from error
                sums[output.name] += counted
        found.append({name: record.sums[name] - sums[name] for name in sums} if is_rest else sums)
    return found


def kept_receipts(plan: Plan, source: ReceiptSource, left_out: Ranges) -> Iterator[list[Receipt]]:
    """Receipts of consecutive batches in one artifact, without batches of which nothing is kept."""
    found: list[Receipt] = []
    for receipt in source.receipts():
        batch, name = receipt.record.batch, receipt.artifact.name
        if left_out:
            samples = plan.layout.batch_samples(batch)
            if left_out.next_gap(samples.start) >= samples.stop:
                continue
        if found and (found[-1].artifact.name, found[-1].record.batch + 1) != (name, batch):
            yield found
            found = []
        found.append(receipt)
    if found:
        yield found


class KeptSums:
    """The sums of all images that are kept, added up in little memory."""

    def __init__(self, recipe: Recipe, store: ArtifactReader, left_out: Ranges) -> None:
        self._recipe, self._store, self._left_out = recipe, store, left_out
        self._parts: list[Sums] = []

    def add(self, receipts: Sequence[Receipt], *, is_whole: bool) -> None:
        """Add those of consecutive batches in one artifact; unless it is kept whole, files are decoded."""
        if is_whole:
            self._parts += [receipt.record.sums for receipt in receipts]
        else:
            self._parts += sums_of_kept(self._recipe, self._store, receipts, self._left_out)
        if len(self._parts) >= _TOTALS_PAGE:
            self._parts = [self.total()]

    def total(self) -> Sums:
        """Those of all that were added."""
        return total_sums(self._recipe.plan.outputs, self._parts)


def kept_to_look_at(recipe: Recipe, selection: Selection, wanted: int) -> list[SampleIndex]:
    """At most so many samples, ascending, that show what there is; none that is left out."""
    if not selection.left_out:
        return sorted(recipe.to_look_at(wanted))
    kept, chosen = selection.kept, list[SampleIndex]()
    asked = wanted
    while len(chosen) < wanted and asked <= min(_SHEETS_MAX * wanted, 2 * selection.planned):
        chosen = [one for one in recipe.to_look_at(asked) if one in kept][:wanted]
        asked *= 2
    spread = (SampleIndex(kept.nth(place)) for place in spread_samples(kept.count, wanted))
    rest = [one for one in spread if one not in chosen]
    return sorted((chosen + rest)[:wanted])
