"""The search for deadly samples, with the real manifest and a process whose death is an exception."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from shardgen.domain.identifiers import BatchIndex, SampleIndex, WorkerId
from shardgen.domain.lease import Lease, NoLease
from shardgen.domain.plan import Plan
from shardgen.errors import ComposeFailed, LeaseLost, SampleError
from shardgen.manifest.database_url import DatabaseUrl
from shardgen.manifest.manifest import Manifest, create_manifest
from shardgen.recipes.base import Encoded
from shardgen.recipes.registry import recipe_of
from shardgen.worker.batch import BatchMaker
from shardgen.worker.publish import Made, MadeBatch
from shardgen.worker.suspect import SuspectMaker
from tests.conformance.conftest import POLICY, identity, receipt_for
from tests.plans import make_plan

PATIENT = replace(POLICY, max_attempts=6)


class Death(BaseException):
    """The end of a process."""


@dataclass(slots=True, kw_only=True)
class Found:
    """How it ended: dead letters, the blocked slices, deaths by the sample made alone (None: in a batch)."""

    dead: list[int] = field(default_factory=list)
    blocked: list[tuple[int, int]] = field(default_factory=list)
    deaths: Counter[int | None] = field(default_factory=Counter)
    stored: int = 0


class Maker:
    """Makes nothing, but dies of what it is told to; `dies` is asked for each sample made."""

    def __init__(self, plan: Plan, manifest: Manifest, dies: Callable[[int, bool], bool]) -> None:
        self._plan, self._manifest, self._dies = plan, manifest, dies
        self.raises: set[int] = set()
        self.dying: int | None = None
        self.stages = SimpleNamespace(
            recipe=recipe_of(plan),
            plan=plan,
            manifest=manifest,
            heartbeat=SimpleNamespace(check_lease=lambda: None, progress=lambda: None),
            retry=lambda call: call(),
            on_step=lambda _step: None,
            is_stopping=lambda: False,
        )

    def prepare(self, batch: BatchIndex) -> BatchIndex:
        for sample in self._plan.layout.batch_samples(batch):
            self._live(sample, alone=False)
        return batch

    def compute(self, batch: BatchIndex) -> BatchIndex:
        return batch

    def finish(self, lease: Lease, batch: BatchIndex) -> None:
        dead = tuple(sample for sample in self._plan.layout.batch_samples(batch) if sample in self.raises)
        self._manifest.receipts.record(lease, receipt_for(self._plan, lease, batch, dead=dead))

    def make_alone(self, sample: SampleIndex) -> Made:
        self._live(sample, alone=True)
        return ComposeFailed("…") if sample in self.raises else Encoded(files={}, sums={})

    def _live(self, sample: int, *, alone: bool) -> None:
        if self._dies(sample, alone):
            self.dying = sample if alone else None
            raise Death

    def refuse_if_device_is_broken(self, _batch: BatchIndex, _made: Sequence[Made]) -> None:
        pass

    def provenance(self) -> None:
        pass

    def keep(self, lease: Lease, made: MadeBatch, *, seconds: float) -> None:
        samples = self._plan.layout.batch_samples(made.batch)
        both = zip(samples, made.samples, strict=True)
        dead = tuple(sample for sample, one in both if isinstance(one, SampleError))
        self._manifest.receipts.record(lease, receipt_for(self._plan, lease, made.batch, dead=dead))


def search(
    folder: Path, plan: Plan, dies: Callable[[int, bool], bool], *, raises: Sequence[int] = ()
) -> Found:
    """Work, one process after another, until nothing is left to lease."""
    database = DatabaseUrl(url="sqlite:///manifest.sqlite", run_dir=folder)
    create_manifest(database, plan)
    found = Found()
    with Manifest(database, plan) as manifest:
        maker = Maker(plan, manifest, dies)
        maker.raises |= set(raises)
        suspect = SuspectMaker(cast("BatchMaker", maker), begin_batch=lambda: True)
        gone: list[WorkerId] = []
        for number in range(2000):
            worker = WorkerId(f"w{number}")
            manifest.workers.register(identity(worker, pid=number))
            try:
                _work(manifest, worker, gone, maker=maker, suspect=suspect)
            except Death:
                found.deaths[maker.dying] += 1
                gone = [worker]
            else:
                overview = manifest.overview()
                found.dead = [letter.sample for letter in manifest.receipts.dead_letters()]
                found.blocked = [(one.shard, one.slice) for one in overview.blocked]
                found.stored = overview.stored
                return found
    raise AssertionError("it never ended")


def _work(
    manifest: Manifest, worker: WorkerId, gone: list[WorkerId], *, maker: Maker, suspect: SuspectMaker
) -> None:
    while not isinstance(lease := manifest.leases.lease(worker, PATIENT, gone=gone), NoLease):
        batches, suspicion = manifest.receipts.pending_batches(lease), manifest.suspicion.read(lease)
        try:
            if suspicion.is_suspect:
                suspect.make(lease, batches, suspicion)
            else:
                for batch in batches:
                    maker.finish(lease, maker.prepare(batch))
        except LeaseLost:
            continue


# 3 foregrounds and 2 backgrounds at 20 places: 120 samples in shards of 60, slices of 24, batches of 8.
PLAN = make_plan(shard_size=60, batch=8, slice_batches=3)


@pytest.mark.parametrize(
    ("deadly", "deaths"),
    [
        ({12}, 5),
        ({8}, 5),  # the first of its batch
        ({119}, 5),  # the last of all, in a short batch
        ({8, 9, 10}, 11),
        ({0, 23}, 10),  # the first and the last of a slice
        pytest.param(  # a whole foreground: three batches
            set(range(20)), 5 + 7 * 3 + 2 + 8 * 3 + 2 + 4 * 3, marks=pytest.mark.slow
        ),
        (set(range(56, 60)), 14),  # a whole batch, at the end of a shard
        (set(range(48, 60)), 5 + 7 * 3 + 2 + 4 * 3),  # a whole slice
    ],
)
def test_exactly_the_deadly_samples_are_given_up_in_bounded_attempts(
    tmp_path: Path, deadly: set[int], deaths: int
) -> None:
    found = search(tmp_path, PLAN, lambda sample, _alone: sample in deadly)
    assert found.dead == sorted(deadly)
    assert found.blocked == []
    assert found.stored == 120 - len(deadly)
    assert found.deaths.total() <= deaths


def test_a_kill_from_outside_during_the_proof_blocks_nothing(tmp_path: Path) -> None:
    blows = iter([True])

    def dies(sample: int, alone: bool) -> bool:  # noqa: FBT001
        return sample == 8 or (alone and sample != 8 and next(blows, False))

    found = search(tmp_path, PLAN, dies)
    assert (found.dead, found.blocked) == ([8], [])


def test_a_sample_that_kills_every_second_time_ends_somewhere(tmp_path: Path) -> None:
    visits: Counter[int] = Counter()

    def dies(sample: int, alone: bool) -> bool:  # noqa: FBT001
        visits[sample] += alone
        return sample == 14 or (sample == 9 and alone and visits[9] % 2 == 0)

    found = search(tmp_path, PLAN, dies)
    assert found.deaths.total() <= 20
    assert set(found.dead) <= {9, 14}


@pytest.mark.slow
def test_processes_that_end_after_so_much_work_make_no_innocent_dead_letter(tmp_path: Path) -> None:
    made = 0

    def dies(_sample: int, alone: bool) -> bool:  # noqa: FBT001
        nonlocal made
        made += 1
        if made <= 5:
            return False
        made = 0
        return True

    found = search(tmp_path, PLAN, dies)
    assert found.dead == []


def test_neighbours_that_raise_do_not_stand_in_the_way_of_a_proof(tmp_path: Path) -> None:
    found = search(tmp_path, PLAN, lambda sample, _alone: sample in range(9, 16), raises=[8])
    assert found.dead == list(range(8, 16))
    assert found.blocked == []


@pytest.mark.slow
def test_a_machine_on_which_everything_dies_blocks_slices_and_blames_no_more_than_it_must(
    tmp_path: Path,
) -> None:
    found = search(tmp_path, PLAN, lambda _sample, _alone: True)
    assert found.dead == []
    assert len(found.blocked) == 6
    assert found.deaths.total() <= 6 * 11


def test_a_wish_to_stop_is_heard_between_two_samples_and_is_no_death(tmp_path: Path) -> None:
    database = DatabaseUrl(url="sqlite:///manifest.sqlite", run_dir=tmp_path)
    create_manifest(database, PLAN)
    with Manifest(database, PLAN) as manifest:
        for number in range(3):
            manifest.workers.register(identity(WorkerId(f"w{number}"), pid=number))
        for number in range(2):
            held = manifest.leases.lease(WorkerId(f"w{number}"), PATIENT, gone=[WorkerId(f"w{number - 1}")])
            assert isinstance(held, Lease)
            manifest.suspicion.note_batch(held, BatchIndex(0))
        held = manifest.leases.lease(WorkerId("w2"), PATIENT, gone=[WorkerId("w1")])
        assert isinstance(held, Lease)
        maker = Maker(PLAN, manifest, lambda _sample, _alone: False)
        asked = iter([False, False, True])
        maker.stages.is_stopping = lambda: next(asked)
        suspect = SuspectMaker(cast("BatchMaker", maker), begin_batch=lambda: True)
        suspicion = manifest.suspicion.read(held)
        assert not suspect.make(held, manifest.receipts.pending_batches(held), suspicion)
        assert manifest.leases.release(held)
        again = manifest.leases.lease(WorkerId("w2"), PATIENT)
        assert isinstance(again, Lease)
        assert manifest.suspicion.read(again).deaths == 0
        assert sorted(manifest.suspicion.read(again).samples) == [0, 1]
