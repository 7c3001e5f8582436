"""Rebuild: make a new manifest from plan, artifacts and requeue marks; read every byte that counts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter

from shardgen.artifacts.archive import read_artifact, read_whole
from shardgen.artifacts.check import OnProgress, examine
from shardgen.artifacts.marks import UndoneAttempts, read_marks
from shardgen.artifacts.names import ArtifactName
from shardgen.artifacts.store import ArtifactStore
from shardgen.coordination.artifact_folder import open_store
from shardgen.coordination.folder.index import SEGMENTS_NAME
from shardgen.domain.identifiers import BatchIndex, Fence, SliceIndex
from shardgen.domain.plan import Plan
from shardgen.domain.receipt import Receipt
from shardgen.domain.steps import OnStep, ignore_step
from shardgen.errors import ArtifactCorrupt, InputMissing, PlanConflict, StorageFailed
from shardgen.manifest.rebuilt import rebuild_manifest
from shardgen.settings.plan_file import FILE_NAME, NEXT, read_plan
from shardgen.settings.run_directory import RunDirectory


@dataclass(slots=True, kw_only=True)
class Rebuilt:
    """What a rebuild took and what it left: `refused` are (artifact, why), the counts are artifacts.

    `unread` of the refused ones could not be read: what they hold is not known.
    """

    batches: int = 0
    stored: int = 0
    dead_letters: int = 0
    superseded: int = 0
    undone: int = 0
    unread: int = 0
    refused: list[tuple[str, str]] = field(default_factory=list)


def rebuild(
    run: RunDirectory,
    *,
    on_progress: OnProgress = lambda _done, _planned: None,
    on_step: OnStep = ignore_step,
) -> tuple[Plan, Rebuilt]:
    """Make a new manifest of the run directory's plan and artifacts; there all at once, or not.

    Of two plans, one of them `plan.json.next`, it takes the one of which more batches are whole. Per batch
    the highest whole fence wins that no requeue has undone. Raises InputMissing without `plan.json`,
    ManifestMismatch when a manifest is there, ArtifactCorrupt for a mark that cannot be read, StorageFailed
    when the disk gives not one artifact although it has some.
    """
    # On a shared folder, whose machines have an index each, only `plan.json` ever counts.
    following = None if run.index is not None else read_plan(run.path, NEXT)
    candidates = [one for one in (run.plan_here(), following) if one is not None]
    if not candidates:
        raise InputMissing(
            f"{run.path / FILE_NAME}: is gone, and a manifest cannot be rebuilt without the plan",
            hint="put it back from a copy; or, with the same photographs: shardgen plan RUN_DIR",
        )
    elsewhere = run.manifest_elsewhere
    if elsewhere is None:
        run.database.backend.refuse_existing()
    plan = candidates[0]
    if candidates[1:]:  # a command was killed that changed the plan: before its transaction, or after it
        plan = max(candidates, key=lambda one: _count_whole(one, open_store(run)))
    run = run.planned(plan)
    run.check_settings(plan)
    if run.index is not None:  # what others have published is read again, too
        (run.index / SEGMENTS_NAME).unlink(missing_ok=True)
    store = open_store(run)
    search = _Search(plan, store, read_marks(plan, store), on_progress=on_progress)
    search.known = frozenset(one for candidate in candidates for one in candidate.fingerprints)
    if elsewhere is not None:
        elsewhere.rebuild(run, plan, search.receipts())
        return plan, search.result
    rebuild_manifest(
        run.database,
        candidates[: candidates.index(plan) + 1],
        search.receipts(),
        highest_fence=lambda: search.highest_fence,
        on_step=on_step,
    )
    identity = store.identity()
    if identity is not None:  # a folder that may only be read can be rebuilt from, too
        with run.manifest(plan) as manifest:
            manifest.folder.claim(identity)
    return plan, search.result


def _count_whole(plan: Plan, store: ArtifactStore) -> int:
    """How many batches of this plan could be taken."""
    search = _Search(plan, store, read_marks(plan, store), on_progress=lambda _done, _planned: None)
    return sum(1 for _ in search.receipts())


class _Search:
    """Looks at every artifact's name, and at one artifact's bytes at a time, slice by slice."""

    def __init__(
        self, plan: Plan, store: ArtifactStore, undone: UndoneAttempts, *, on_progress: OnProgress
    ) -> None:
        self._plan = plan
        self._store = store
        self._undone = undone
        self._on_progress = on_progress
        self.highest_fence = undone.highest_fence
        self.known = frozenset[
            str
        ]()  # fingerprints; if there are any, no artifact behind the plan is others'
        self.result = Rebuilt()
        self._read = 0
        self._disk_failure: StorageFailed | None = None

    def receipts(self) -> Iterator[Receipt]:
        """One receipt for each batch that has a whole artifact; the batches of a slice together."""
        for name in self._store.staged(self._plan.layout):
            self._saw(name.fence)  # nothing is taken that is only staged, but its fence was granted
        for _, names in groupby(self._store.names(), attrgetter("shard")):
            slices: dict[SliceIndex, list[ArtifactName]] = {}
            for name in names:
                self._saw(name.fence)
                slice_ = name.slice_in(self._plan.layout)
                if slice_ is None:
                    self._refuse_smaller_plan(name)
                    self.result.refused.append((str(name), "the plan has no such batches in one slice"))
                else:
                    slices.setdefault(slice_, []).append(name)
            for slice_ in sorted(slices):
                yield from self._take(self._winners(slices[slice_]))
        if self._disk_failure is not None and not self._read:
            raise self._disk_failure  # an empty manifest would have everything made again

    def _refuse_smaller_plan(self, name: ArtifactName) -> None:
        """Raise PlanConflict for a whole artifact behind the plan's end: samples would be lost with it."""
        if not self.known or name.batches.start < self._plan.layout.batch_count:
            return
        with suppress(ArtifactCorrupt, StorageFailed):
            _, inside = read_artifact(self._store.read_unrecorded(name), name=str(name))
            if inside.fingerprint not in self.known:
                raise PlanConflict(
                    f"{self._store.place(name)}: belongs to a plan with more batches than {FILE_NAME} has",
                    hint=f"take {FILE_NAME} from where the run was extended, or move that file away; then: "
                    "shardgen rebuild RUN_DIR",
                )

    def _saw(self, fence: Fence) -> None:
        self.highest_fence = max(self.highest_fence, fence)

    def _take(self, winners: dict[BatchIndex, Receipt]) -> Iterator[Receipt]:
        for batch in sorted(winners):
            receipt = winners[batch]
            dead = len(receipt.record.dead_letters)
            self.result.batches += 1
            self.result.dead_letters += dead
            self.result.stored += len(self._plan.layout.batch_samples(batch)) - dead
            yield receipt
        self._on_progress(self.result.stored + self.result.dead_letters, self._plan.samples)

    def _winners(self, names: Iterable[ArtifactName]) -> dict[BatchIndex, Receipt]:
        """Of each batch the whole attempt with the highest fence; equal ones go by worker, then random."""
        winners: dict[BatchIndex, Receipt] = {}
        by_fence = sorted(names, key=lambda name: (-name.fence, str(name)))
        for _, tied in groupby(by_fence, attrgetter("fence")):
            wholes = [whole for name in tied if (whole := self._whole(name, winners)) is not None]
            wholes.sort(key=lambda whole: (whole.worker, whole.name.random))
            for whole in wholes:
                mine = [
                    receipt
                    for receipt in whole.receipts
                    if receipt.record.batch not in winners
                    and not self._undone.includes(receipt.record.batch, receipt.fence)
                ]
                winners |= {receipt.record.batch: receipt for receipt in mine}
                self.result.superseded += not mine
        return winners

    def _whole(self, name: ArtifactName, winners: dict[BatchIndex, Receipt]) -> _Whole | None:
        """The artifact's receipts, if it could still win a batch and is whole; else None, and counted."""
        open_batches = [batch for batch in map(BatchIndex, name.batches) if batch not in winners]
        if not open_batches:
            self.result.superseded += 1
            return None
        if all(self._undone.includes(batch, name.fence) for batch in open_batches):
            self.result.undone += 1
            return None
        try:
            data = self._store.read_unrecorded(name)
        except StorageFailed as error:
            self._leave_unread(name, error)
            return None
        except ArtifactCorrupt as error:
            self._refuse(name, error)
            return None
        self._read += 1
        try:
            receipts = examine(self._plan, name, data)
        except ArtifactCorrupt as error:
            self._refuse(name, error)
            with suppress(ArtifactCorrupt):  # what contradicts its name may name a higher fence inside
                _, inside = read_artifact(data, name=str(name))
                fingerprint = self._plan.fingerprint_of(inside.batches[0].batch)
                self._saw(read_whole(data, name=str(name), fingerprint=fingerprint)[1].fence)
            return None
        return _Whole(name=name, worker=receipts[0].worker, receipts=receipts)

    def _refuse(self, name: ArtifactName, error: ArtifactCorrupt) -> None:
        self.result.refused.append((str(name), str(error).removeprefix(f"{name}: ")))

    def _leave_unread(self, name: ArtifactName, error: StorageFailed) -> None:
        self.result.unread += 1
        self.result.refused.append((str(name), str(error).removeprefix(f"{self._store.place(name)}: ")))
        if not isinstance(error.__cause__, FileNotFoundError | IsADirectoryError):
            self._disk_failure = error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Whole:
    name: ArtifactName
    worker: str
    receipts: list[Receipt]
