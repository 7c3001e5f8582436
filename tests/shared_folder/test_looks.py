"""What a machine that only looks is told of a run in a shared folder, in detail and again and again."""

from __future__ import annotations

import errno
import os
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from shardgen.coordination.folder import notices
from shardgen.coordination.folder.files import DiskFolder
from shardgen.coordination.folder.notices import Beat, Kind, Notice, NoticeName
from shardgen.coordination.folder.run import FolderRun
from shardgen.coordination.folder.status import FolderLooks
from shardgen.domain.claims import Claim
from shardgen.domain.identifiers import BatchIndex, Fence, ShardIndex, SliceIndex
from shardgen.domain.lease import Lease
from shardgen.domain.overview import Details, count_slices
from shardgen.domain.plan import Plan
from shardgen.domain.receipt import Receipt
from shardgen.errors import TransientError
from shardgen.manifest.manifest import create_manifest
from shardgen.settings.run_directory import RunDirectory
from tests.artifacts.attempts import WORKERS, Attempt
from tests.conformance.conftest import POLICY
from tests.plans import make_plan

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
# 120 samples: shards of 50, 50 and 20; batches of 8 (7, 7 and 3); slices of 3 batches (3, 3 and 1).
PLAN = make_plan(shard_size=50, batch=8, slice_batches=3)


class Folder:
    """A shared folder with what workers have written there."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self.files = DiskFolder(run.path)
        self._numbers = iter(range(1, 100))

    def segment(self, worker: str, batches: range, *, minute: int = 0, dead: tuple[int, ...] = ()) -> None:
        """A segment that was written so many minutes after noon."""
        made = Attempt(batches=batches, worker=WORKERS[worker], dead=dead, random=f"{batches[0]:08d}")
        (first, *_) = made.publish(PLAN, self.run.path / f"workers/{WORKERS[worker]}")
        at = NOON.timestamp() + 60 * minute + 59
        os.utime(self.run.path / f"workers/{WORKERS[worker]}" / first.artifact.name, (at, at))

    def claim(
        self, worker: str, shard: int, slice_: int, *, kind: Kind = Kind.CLAIM, ago: float = 0.0
    ) -> None:
        name = NoticeName(
            number=next(self._numbers),
            kind=kind,
            shard=ShardIndex(shard),
            slice=SliceIndex(slice_),
            fence=Fence(1),
        )
        self._write(worker, name, Notice(fingerprint=PLAN.fingerprint, written_at=time.time() - ago))

    def beat(self, worker: str, *, ago: float) -> None:
        written_at = time.time() - ago
        said = Beat(
            fingerprint=PLAN.fingerprint,
            written_at=written_at,
            worker=WORKERS[worker],
            host="there",
            pid=1,
            process_started=1.0,
            started_at=written_at,
            state="working",
        )
        self._write(worker, NoticeName(number=next(self._numbers), kind=Kind.BEAT), said)

    def _write(self, worker: str, name: NoticeName, content: Notice | Beat) -> None:
        self.files.write(name.path(WORKERS[worker]), notices.encoded(content))

    def looks(self) -> FolderLooks:
        return FolderRun(self.run).looks()

    def details(self, *, newest: int = 0) -> Details:
        with closing(self.looks()) as looks:
            return looks.details(newest=newest)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.setenv("SHARDGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(RunDirectory, "check_settings", lambda *_: None)
    path = tmp_path / "run"
    path.mkdir()
    (path / "shardgen.toml").write_text('[manifest]\nurl = "folder:"\n', encoding="utf-8")
    (path / "plan.json").write_bytes(PLAN.canonical_json)
    return Folder(RunDirectory.open(path))


def test_each_slice_is_shown_in_its_state_with_its_claims_worker(folder: Folder) -> None:
    folder.segment("a", range(3))
    folder.claim("a", 0, 0)
    folder.claim("b", 0, 1)
    folder.segment("b", range(3, 4))
    folder.beat("b", ago=10)
    folder.claim("c", 1, 0, ago=24 * 3600)
    folder.beat("c", ago=24 * 3600)
    folder.claim("b", 1, 1)
    folder.claim("b", 1, 1, kind=Kind.ENDED)
    create_manifest(folder.run.database, PLAN)
    with folder.run.database_manifest(PLAN) as manifest:
        claim = Claim(shard=ShardIndex(0), slice=SliceIndex(2), fence=Fence(1), worker=WORKERS["d"])
        lease = manifest.index.lease_claimed(WORKERS["d"], POLICY, claim)
        assert isinstance(lease, Lease)
        manifest.leases.block(lease, "no room")
    with closing(folder.looks()) as looks:
        found, counted = looks.details(newest=0), looks.report().overview
    assert [(one.shard, one.slice, one.state, one.batches_done, one.worker) for one in found.slices] == [
        (0, 0, "done", 3, ""),
        (0, 1, "leased", 1, WORKERS["b"]),
        (0, 2, "blocked", 0, ""),
        (1, 0, "expired", 0, WORKERS["c"]),
        (1, 1, "open", 0, ""),
        (1, 2, "never_leased", 0, ""),
        (2, 0, "never_leased", 0, ""),
    ]
    assert count_slices(found.slices) == {one.shard: one.slices for one in counted.shards}


def test_a_segment_counts_in_the_minute_in_which_it_was_written(folder: Folder) -> None:
    folder.segment("a", range(3), minute=5)
    folder.segment("b", range(3, 5), minute=2, dead=(24, 25))
    folder.segment("b", range(6, 7), minute=5)
    with closing(folder.looks()) as looks:
        found = looks.details(newest=4)
        for receipt in found.newest:
            assert looks.store.read(receipt.artifact).startswith(b"PK")
    assert [((at - NOON).total_seconds() / 60, samples) for at, samples in found.pace] == [
        (2, 14),
        (5, 24 + 2),
    ]
    assert found.last_stored_at == NOON.replace(minute=5, second=59)
    assert [one.record.batch for one in found.newest] == [6, 2, 1, 0]


def test_the_text_of_a_dead_letter_is_shown_on_the_machine_that_gave_it_up(folder: Folder) -> None:
    folder.segment("a", range(3), dead=(1, 9))
    (elsewhere,) = folder.details().dead_letters
    assert elsewhere.count == 2
    assert {one.detail for one in elsewhere.first} == {"the text stayed on the machine that gave it up"}
    create_manifest(folder.run.database, PLAN)
    with folder.run.database_manifest(PLAN) as manifest:
        lease = manifest.leases.lease(WORKERS["a"], POLICY)
        assert isinstance(lease, Lease)
        manifest.receipts.record(lease, _made(PLAN, lease, BatchIndex(1), dead=9))
    (here,) = folder.details().dead_letters
    assert here.count == 2
    assert [one.detail for one in here.first] == [
        "the text stayed on the machine that gave it up",
        "a traceback",
    ]


def _made(plan: Plan, lease: Lease, batch: BatchIndex, *, dead: int) -> Receipt:
    made = Attempt(batches=range(batch, batch + 1), fence=lease.fence, worker=lease.worker, dead=(dead,))
    (receipt,) = made.content(plan)[1]
    return receipt


def test_the_folder_is_looked_through_as_seldom_as_its_workers_do(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed, names = list[str](), DiskFolder.names

    def counting(files: DiskFolder, where: str) -> list[str]:
        listed.append(where)
        return names(files, where)

    monkeypatch.setattr(DiskFolder, "names", counting)
    with FolderRun(folder.run).watching() as watcher:
        assert listed == []
        assert watcher.report().stored == 0
        first = len(listed)
        assert first > 0
        folder.segment("a", range(3))
        assert watcher.report().stored == 0
        watcher.details(newest=3)
        assert len(listed) == first
        later = time.monotonic() + 60.0  # `scan_seconds`
        monkeypatch.setattr(time, "monotonic", lambda: later)
        assert watcher.report().stored == 24
        assert len(watcher.details(newest=3).newest) == 3


def test_a_folder_that_is_away_for_a_moment_is_looked_through_when_it_is_back(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.segment("a", range(3))

    def fail(_files: DiskFolder, _folder: str) -> list[str]:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    with FolderRun(folder.run).watching() as watcher:
        with monkeypatch.context() as patched:
            patched.setattr(DiskFolder, "names", fail)
            with pytest.raises(TransientError):
                watcher.report()
        assert watcher.report().stored == 24
