from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from shardgen.coordination.folder import notices
from shardgen.coordination.folder.index import SegmentIndex
from shardgen.coordination.folder.notices import Kind, NoticeName
from shardgen.coordination.folder.view import FolderView
from shardgen.domain.claims import GENERATION, Claim, next_fence, next_generation, undone_up_to
from shardgen.domain.identifiers import BatchIndex, Fence, ShardIndex, SliceIndex
from tests.plans import make_plan
from tests.shared_folder.double import Cloud, Eyes, Faults
from tests.shared_folder.machines import MEMORY
from tests.shared_folder.playing import POLICY, SMALL, World

SILENT = POLICY.silent.total_seconds()
PLACE = (ShardIndex(0), SliceIndex(1))
ONE_SLICE = make_plan(backgrounds=1, foregrounds=1, grid=(4, 2), shard_size=8, slice_batches=4, batch=2)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        yield Path(name)


class Scene:
    """A folder that shows everything at once, notices written by hand, and one machine that looks."""

    def __init__(self, folder: Path) -> None:
        self.now = 0.0
        self._cloud = Cloud(now=lambda: self.now, seed=0, faults=Faults())
        self._index = SegmentIndex(folder / "segments.sqlite")
        self.view = FolderView(
            SMALL, Eyes(self._cloud, "observer"), self._index, monotonic=lambda: self.now, wall=lambda: 0.0
        )

    def close(self) -> None:
        self._index.close()

    def claim(self, worker: str, fence: int = 1) -> Claim:
        return Claim(shard=PLACE[0], slice=PLACE[1], fence=Fence(fence), worker=worker, written_at=5.0)

    def write(self, worker: str, number: int, kind: Kind, *, fence: int = 1) -> None:
        about = NoticeName(number=number, kind=kind, shard=PLACE[0], slice=PLACE[1], fence=Fence(fence))
        content: notices.Notice | notices.Done = notices.Notice(fingerprint=SMALL.fingerprint, written_at=5.0)
        if kind is Kind.DONE:
            content = notices.Done(fingerprint=SMALL.fingerprint, written_at=5.0, segments=())
        self._put(worker, about, notices.encoded(content))

    def beat(
        self, worker: str, number: int, *, claims: tuple[Claim, ...] | None, state: str = "working"
    ) -> None:
        beat = notices.Beat(
            fingerprint=SMALL.fingerprint,
            written_at=5.0,
            worker=worker,
            host="elsewhere",
            pid=1,
            process_started=0.0,
            started_at=0.0,
            state=state,
            claims=None if claims is None else tuple((one.shard, one.slice, one.fence) for one in claims),
        )
        self._put(worker, NoticeName(number=number, kind=Kind.BEAT), notices.encoded(beat))

    def requeue(self, generation: int, batches: tuple[int, ...]) -> None:
        mark = notices.Requeue(fingerprint=SMALL.fingerprint, generation=generation, batches=batches)
        Eyes(self._cloud, "operator").write(
            notices.requeue_path(generation, "abcd1234"), notices.encoded(mark)
        )

    def _put(self, worker: str, name: NoticeName, data: bytes) -> None:
        Eyes(self._cloud, worker).write(name.path(worker), data)

    def rivals(self) -> set[str]:
        self.view.gather()
        return {seen.claim.worker for seen in self.view.rivals(PLACE, "observer", SILENT)}


@pytest.fixture
def scene(folder: Path) -> Iterator[Scene]:
    scene = Scene(folder)
    yield scene
    scene.close()


def test_a_claim_stands_until_a_later_beat_does_not_name_it(scene: Scene) -> None:
    scene.beat("one", 0, claims=())
    scene.write("one", 1, Kind.CLAIM)
    assert scene.rivals() == {"one"}
    scene.beat("one", 2, claims=(scene.claim("one"),))
    assert scene.rivals() == {"one"}
    scene.beat("one", 4, claims=(scene.claim("one", fence=7),))
    assert scene.rivals() == set()


def test_a_claim_ends_with_its_end_and_stays_ended(scene: Scene) -> None:
    scene.write("one", 1, Kind.CLAIM)
    scene.write("one", 2, Kind.ENDED)
    scene.beat("one", 3, claims=(scene.claim("one"),))
    assert scene.rivals() == set()


def test_what_is_done_is_awaited_also_of_a_worker_that_has_stopped(scene: Scene) -> None:
    scene.write("one", 1, Kind.CLAIM)
    scene.write("one", 2, Kind.DONE)
    scene.beat("one", 3, claims=(), state="stopped")
    assert scene.rivals() == {"one"}
    scene.now = SILENT - 1
    assert scene.rivals() == {"one"}
    scene.now = SILENT
    assert scene.rivals() == set()


def test_what_was_done_before_a_requeue_keeps_nobody_from_doing_it_again(scene: Scene) -> None:
    scene.write("one", 1, Kind.CLAIM)
    scene.write("one", 2, Kind.DONE)
    assert scene.rivals() == {"one"}
    scene.requeue(1, (BatchIndex(4),))
    assert scene.rivals() == set()
    scene.write("one", 3, Kind.CLAIM, fence=GENERATION + 1)
    assert scene.rivals() == {"one"}


def test_a_silent_worker_holds_nothing(scene: Scene) -> None:
    scene.write("one", 1, Kind.CLAIM)
    assert scene.rivals() == {"one"}
    scene.now = SILENT - 1
    assert scene.rivals() == {"one"}
    scene.beat("one", 2, claims=(scene.claim("one"),))
    assert scene.rivals() == {"one"}
    scene.now += SILENT
    assert scene.rivals() == set()


class TearingWorld(World):
    """Every machine's first claim is half written and reported as failed."""

    def eyes_of(self, machine: str) -> Eyes:
        return TearingEyes(self.cloud, machine)


class TearingEyes(Eyes):
    """Its first claim fails, and is seen by others all the same."""

    has_torn = False

    def write(self, path: str, data: bytes) -> None:
        if ".claim." in path and not self.has_torn:
            self.has_torn = True
            super().write(path, data[: len(data) // 2])
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        super().write(path, data)


def test_claims_that_nobody_holds_do_not_keep_everybody_waiting(folder: Path) -> None:
    world = TearingWorld(
        seed=1, faults=Faults(median_lag=30.0), folder=folder, plan=ONE_SLICE, longest=2 * 3600.0
    )
    for _ in range(2):
        world.start_worker(world.add_machine())
    world.play()
    world.now += world.faults.longest_lag  # until a machine that was not there sees it, too
    assert world.is_whole()


def test_a_requeue_goes_above_attempts_whose_own_requeue_is_not_seen_yet() -> None:
    assert next_generation([], 0) == 1
    assert next_generation([7], 2) == 3
    fence = next_fence([7], 3)
    assert fence > undone_up_to(3)
    generation = next_generation([7, fence], 1)
    assert undone_up_to(generation) >= fence
    assert next_fence([7, fence], generation) > undone_up_to(generation)


def test_of_two_claims_the_lower_fence_the_earlier_and_the_smaller_name_goes_first() -> None:
    claim = Claim(shard=PLACE[0], slice=PLACE[1], fence=Fence(3), worker="m", written_at=9.0)
    for later in (
        replace(claim, fence=Fence(4), written_at=0.0, worker="a"),
        replace(claim, written_at=9.5, worker="a"),
        replace(claim, worker="n"),
    ):
        assert claim.goes_before(later)
        assert not later.goes_before(claim)
