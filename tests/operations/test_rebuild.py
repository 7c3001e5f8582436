from __future__ import annotations

import errno
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from shardgen.artifacts.check import LOST_DETAIL
from shardgen.artifacts.folder_store import FolderStore
from shardgen.artifacts.names import ArtifactName
from shardgen.coordination.database import undo_marked
from shardgen.domain.identifiers import BatchIndex, Fence, WorkerId
from shardgen.domain.lease import Lease
from shardgen.domain.receipt import Receipt
from shardgen.domain.steps import RebuildStep, Step
from shardgen.errors import ArtifactCorrupt, InputMissing, ManifestBusy, ManifestMismatch, StorageFailed
from shardgen.manifest.sqlite import open_engine
from shardgen.manifest.sqlite_building import alone_in
from shardgen.operations.rebuild import Rebuilt, rebuild
from shardgen.settings.run_directory import RunDirectory
from shardgen.storage.bounded import read_regular
from tests.artifacts.attempts import WORKERS, Attempt, single
from tests.operations.lost_runs import found_by, publish, receipts_of
from tests.runs import shardgen

# The plan's 48 samples: shards of 20, 20 and 8; batches of 4 (0-4, 5-9, 10-11); slices of 2 batches.


def lost_text(receipt: Receipt) -> Receipt:
    letters = tuple(replace(letter, detail=LOST_DETAIL) for letter in receipt.record.dead_letters)
    return replace(receipt, record=replace(receipt.record, dead_letters=letters))


def winners(run: RunDirectory) -> dict[int, tuple[int, str, str]]:
    """By batch: the fence, the worker's letter and the attempt's random part."""
    return {
        receipt.record.batch: (receipt.fence, receipt.worker[-1], receipt.artifact.name[-12:-4])
        for receipt in receipts_of(run)
    }


def test_every_row_is_what_the_artifacts_say(lost: RunDirectory) -> None:
    plan = lost.plan()
    made = publish(
        lost,
        *(single(batch, fence=batch % 3 + 1, dead=(5, 12, 13, 14, 15)) for batch in range(4)),
        single(7),
        single(11, fence=6, worker="b"),
    )
    found = found_by(lost)
    assert receipts_of(lost) == [lost_text(receipt) for receipt in made]
    assert found == Rebuilt(batches=6, stored=19, dead_letters=5)
    with lost.database_manifest(plan) as manifest:
        slices = [shard.slices for shard in manifest.overview().shards]
        assert [(s.never_leased, s.open, s.leased, s.done, s.blocked) for s in slices] == [
            (1, 0, 0, 2, 0),
            (1, 2, 0, 0, 0),
            (0, 1, 0, 0, 0),
        ]
        letters = list(manifest.receipts.dead_letters())
    assert [(letter.sample, letter.detail) for letter in letters] == [
        (sample, LOST_DETAIL) for sample in (5, 12, 13, 14, 15)
    ]


def test_each_device_model_keeps_the_micro_batch_that_made_most_of_its_batches(lost: RunDirectory) -> None:
    sizes = {"one": [4, 2, 4], "two": [1, 2], "three": [8]}
    kinds = [(model, size) for model, used in sizes.items() for size in used]
    publish(
        lost,
        *(single(batch, provenance=(model, size)) for batch, (model, size) in enumerate(kinds)),
    )
    assert rebuild(lost)[1].batches == len(kinds)
    with lost.database_manifest(lost.plan()) as manifest:
        agreed = {model: manifest.micro_batches.agreed(model, 16) for model in (*sizes, "four")}
    assert agreed == {"one": 4, "two": 1, "three": 8, "four": 16}


def granted(run: RunDirectory) -> Iterator[Lease]:
    """Every lease that there is left, made to the end by one worker."""
    plan = run.plan()
    with run.database_manifest(plan) as manifest:
        policy = run.settings.lease_policy
        while isinstance(lease := manifest.leases.lease(WORKERS["f"], policy), Lease):
            yield lease
            for batch in manifest.receipts.pending_batches(lease):
                (receipt,) = single(batch, fence=lease.fence, worker="f").publish(plan, run.artifacts)
                manifest.receipts.record(lease, receipt)


def test_new_fences_are_above_all_that_were_seen_and_the_rest_can_be_made(lost: RunDirectory) -> None:
    publish(lost, single(0, fence=3), single(7, fence=5))
    assert rebuild(lost)[1].batches == 2
    leases = list(granted(lost))
    assert {lease.fence for lease in leases} == {6}
    assert [(lease.shard, lease.slice) for lease in leases] == [
        (0, 0),
        (1, 0),
        (1, 1),
        (0, 1),
        (0, 2),
        (1, 2),
        (2, 0),
    ]
    assert len(receipts_of(lost)) == 12


@pytest.mark.parametrize("where", ["broken artifact", "staged file", "mark", "swapped receipt"])
def test_a_fence_counts_wherever_it_was_seen(lost: RunDirectory, where: str) -> None:
    plan = lost.plan()
    publish(lost, single(0, fence=2))
    store = FolderStore(lost.artifacts)
    match where:
        case "broken artifact":
            publish(lost, single(1, fence=40))
            (lost.artifacts / str(single(1, fence=40).name(plan))).write_bytes(b"")
        case "staged file":
            name = str(single(1, fence=40).name(plan)).rpartition("/")[2]
            (lost.artifacts / ".staging" / f"{name}.deadbeef").write_bytes(b"half")
        case "mark":
            document = {"fingerprint": plan.fingerprint, "fence": 40, "batches": [9]}
            store.publish_requeued(Fence(40), json.dumps(document).encode())
        case "swapped receipt":
            publish(lost, single(1, fence=3))
            (lost.artifacts / str(single(1, fence=3).name(plan))).write_bytes(
                single(1, fence=40).content(plan)[0]
            )
    assert rebuild(lost)[1].batches == 1
    assert {lease.fence for lease in granted(lost)} == {41}


def test_the_highest_fence_wins_then_the_smallest_worker_then_the_smallest_random(lost: RunDirectory) -> None:
    publish(
        lost,
        single(0, fence=1, worker="a"),
        single(0, fence=2, worker="b"),
        single(1, fence=2, worker="c", random="00000001"),
        single(1, fence=2, worker="b", random="00000003"),
        single(1, fence=2, worker="b", random="00000002"),
        single(2, fence=9, worker="d"),
        single(2, fence=10, worker="e"),
    )
    found = found_by(lost)
    assert winners(lost) == {
        0: (2, "b", "00000000"),
        1: (2, "b", "00000002"),
        2: (10, "e", "00000000"),
    }
    assert (found.superseded, found.refused) == (4, [])


def test_the_workers_whole_id_decides_a_tie_not_its_random_part(lost: RunDirectory) -> None:
    publish(
        lost,
        Attempt(batches=range(1), worker=WorkerId("zebra-1-aaaaaaaa")),
        Attempt(batches=range(1), worker=WorkerId("apple-1-bbbbbbbb")),
    )
    found_by(lost)
    assert winners(lost)[0][1] == "b"


def test_of_segments_each_batch_has_one_attempt_and_the_best(lost: RunDirectory) -> None:
    made = publish(
        lost,
        Attempt(batches=range(2), fence=2, worker=WORKERS["b"]),
        single(1, fence=3, worker="c"),
        Attempt(batches=range(2, 4), fence=1, worker=WORKERS["b"]),
        single(3, fence=1, worker="a"),
        Attempt(batches=range(5, 7), fence=4),
    )
    found = found_by(lost)
    assert receipts_of(lost) == [made[0], made[2], made[3], made[5], made[6], made[7]]
    assert found.superseded == 0


def test_a_rebuild_does_not_undo_a_requeue(lost: RunDirectory) -> None:
    plan = lost.plan()
    publish(lost, single(0, fence=2), single(1, fence=2), single(2, fence=1), single(2, fence=3, worker="b"))
    rebuild(lost)
    store = FolderStore(lost.artifacts)
    with lost.database_manifest(plan) as manifest:
        undo_marked(plan, manifest, store, [BatchIndex(1), BatchIndex(2)])
    (lost.path / "manifest.sqlite").unlink()
    found = found_by(lost)
    assert set(winners(lost)) == {0}
    assert found.undone == 3
    (lost.path / "manifest.sqlite").unlink()
    publish(lost, single(1, fence=4, worker="c"))
    found_by(lost)
    assert winners(lost) == {0: (2, "a", "00000000"), 1: (4, "c", "00000000")}
    assert min(lease.fence for lease in granted(lost)) == 5


def test_a_requeue_whose_commit_fails_changes_nothing_until_a_rebuild(lost: RunDirectory) -> None:
    plan = lost.plan()
    made = publish(lost, single(0), single(1))
    rebuild(lost)
    store = FolderStore(lost.artifacts)
    full = sqlite3.OperationalError("database or disk is full")
    full.sqlite_errorcode = sqlite3.SQLITE_FULL
    with lost.database_manifest(plan) as manifest:

        def fail(_connection: object) -> None:
            if list(store.requeued()):
                raise OperationalError("COMMIT", None, full)

        event.listen(manifest._session.database.engine, "commit", fail)
        with pytest.raises(StorageFailed, match="full"):
            undo_marked(plan, manifest, store, [BatchIndex(1)])
    assert receipts_of(lost) == made
    assert len(list(store.requeued())) == 1
    (lost.path / "manifest.sqlite").unlink()
    assert found_by(lost).undone == 1
    assert receipts_of(lost) == made[:1]


def test_a_mark_undoes_attempts_up_to_its_fence_of_its_batches_alone(lost: RunDirectory) -> None:
    plan = lost.plan()
    store = FolderStore(lost.artifacts)
    publish(lost, *(single(batch, fence=fence) for batch in (0, 1, 2) for fence in (2, 3)))
    publish(lost, Attempt(batches=range(5, 7), fence=3))
    publish(lost, single(8, fence=10_000))
    # Of two marks of a batch the higher fence counts, in whatever order their names sort.
    for fence, batches in ((3, [0, 5]), (2, [0, 1]), (9_999, [8]), (10_000, [8])):
        document = {"fingerprint": plan.fingerprint, "fence": fence, "batches": batches}
        store.publish_requeued(Fence(fence), json.dumps(document).encode())
    document = {"fingerprint": "0" * 64, "fence": 9, "batches": [2]}
    store.publish_requeued(Fence(9), json.dumps(document).encode())
    found_by(lost)
    assert {batch: fence for batch, (fence, *_) in winners(lost).items()} == {1: 3, 2: 3, 6: 3}


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"fingerprint": "x", "fence": "y", "batches": []}'])
def test_a_mark_that_does_not_read_stops_the_rebuild(lost: RunDirectory, content: bytes) -> None:
    publish(lost, single(0))
    name = FolderStore(lost.artifacts).publish_requeued(Fence(1), content)
    with pytest.raises(ArtifactCorrupt, match=name) as raised:
        rebuild(lost)
    assert raised.value.hint
    assert not (lost.path / "manifest.sqlite").exists()


def test_a_manifest_that_is_there_is_refused_and_untouched(run: RunDirectory) -> None:
    before = (run.path / "manifest.sqlite").read_bytes()
    with pytest.raises(ManifestMismatch, match="there is already a manifest") as raised:
        rebuild(run)
    assert "mv " in raised.value.hint
    assert (run.path / "manifest.sqlite").read_bytes() == before


def test_an_empty_file_is_no_manifest(lost: RunDirectory) -> None:
    (lost.path / "manifest.sqlite").write_bytes(b"")
    publish(lost, single(0))
    assert found_by(lost).batches == 1


@pytest.mark.parametrize("suffix", ["-journal", "-wal", "-shm"])
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_half_a_commit_on_the_lost_manifest_never_meets_the_new_one(
    lost: RunDirectory, suffix: str, when: str
) -> None:
    publish(lost, single(0))
    journal = lost.path / f"manifest.sqlite{suffix}"

    def appear(step: Step) -> None:
        if step is RebuildStep.FILLED:
            journal.write_bytes(b"half a commit")

    if when == "before":
        journal.write_bytes(b"half a commit")
    with pytest.raises(ManifestMismatch, match=suffix) as raised:
        rebuild(lost, on_step=appear)
    assert f"mv {journal}" in raised.value.hint
    assert not (lost.path / "manifest.sqlite").exists()
    assert journal.read_bytes() == b"half a commit"
    journal.unlink()
    assert found_by(lost).batches == 1


def test_a_manifest_that_appears_meanwhile_is_not_replaced(lost: RunDirectory) -> None:
    def appear(step: Step) -> None:
        if step is RebuildStep.FILLED:
            (lost.path / "manifest.sqlite").write_bytes(b"somebody's")

    with pytest.raises(ManifestMismatch):
        rebuild(lost, on_step=appear)
    assert (lost.path / "manifest.sqlite").read_bytes() == b"somebody's"


def test_without_a_plan_there_is_no_rebuild(lost: RunDirectory) -> None:
    (lost.path / "plan.json").unlink()
    with pytest.raises(InputMissing, match=r"plan\.json") as raised:
        rebuild(RunDirectory.open(lost.path))
    assert "shardgen plan" in raised.value.hint


def test_two_rebuilds_or_a_rebuild_and_a_sweep_exclude_each_other(lost: RunDirectory) -> None:
    with alone_in(lost.path), pytest.raises(ManifestBusy) as raised:
        rebuild(lost)
    assert raised.value.hint
    rebuild(lost)


def test_what_a_killed_rebuild_left_is_not_in_the_way(lost: RunDirectory) -> None:
    publish(lost, single(0))
    for suffix in ("", "-journal"):
        (lost.path / f".manifest.sqlite.rebuild{suffix}").write_bytes(b"half" * 1000)
    assert found_by(lost).batches == 1
    assert sorted(path.name for path in lost.path.iterdir()) == [
        "artifacts",
        "manifest.sqlite",
        "plan.json",
        "shardgen.toml",
    ]


def test_the_hidden_name_of_a_rebuild_killed_at_its_end_goes_though_the_next_one_refuses(
    lost: RunDirectory,
) -> None:
    class Killed(BaseException):
        pass

    def die(step: Step) -> None:
        if step is RebuildStep.LINKED:
            raise Killed

    publish(lost, single(0))
    hidden, manifest = lost.path / ".manifest.sqlite.rebuild", lost.path / "manifest.sqlite"
    with pytest.raises(Killed):
        rebuild(lost, on_step=die)
    assert hidden.samefile(manifest)
    with pytest.raises(ManifestMismatch):
        rebuild(lost)
    assert not hidden.exists()
    assert len(receipts_of(lost)) == 1
    hidden.write_bytes(b"of a rebuild that is at work")
    with pytest.raises(ManifestMismatch):
        rebuild(lost)
    assert hidden.exists()


def test_a_failure_while_filling_leaves_nothing_under_the_manifests_name(
    lost: RunDirectory,
) -> None:
    def fail(done: int, _planned: int) -> None:
        if done > 8:
            raise StorageFailed("it is full")

    publish(lost, *(single(batch) for batch in range(5)))
    with pytest.raises(StorageFailed, match="it is full"):
        rebuild(lost, on_progress=fail)
    assert not (lost.path / "manifest.sqlite").exists()
    assert found_by(lost).batches == 5


class FailingReads:
    """Makes the reads of some batches' artifacts fail, or removes them at that moment."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, batches: set[int], number: int) -> None:

        def read(path: Path, *, limit: int, follow: bool = True) -> bytes:
            name = ArtifactName.parse(f"{path.parent.name}/{path.name}")
            if name is not None and name.batches[0] in batches:
                if number == errno.ENOENT:
                    path.unlink()
                elif number == errno.EISDIR:
                    path.unlink()
                    path.mkdir()
                else:
                    raise OSError(number, os.strerror(number), str(path))
            return read_regular(path, limit=limit, follow=follow)

        monkeypatch.setattr("shardgen.artifacts.folder_store.read_regular", read)


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EISDIR, errno.ENOENT])
def test_an_artifact_that_cannot_be_read_is_named_and_the_rest_is_taken(
    lost: RunDirectory, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    victim, *_ = publish(lost, *(single(batch) for batch in (0, 1, 2)))
    publish(lost, single(1, fence=2))
    with monkeypatch.context() as patched:
        FailingReads(patched, {0}, number)
        _, found = rebuild(lost)
    assert found.refused == [(victim.artifact.name, os.strerror(number))]
    assert (found.batches, found.unread) == (2, 1)
    assert set(winners(lost)) == {1, 2}


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EISDIR, errno.ENOENT])
def test_when_the_disk_gives_nothing_at_all_there_is_no_empty_manifest(
    lost: RunDirectory, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    publish(lost, *(single(batch) for batch in (0, 7)))
    with monkeypatch.context() as patched:
        FailingReads(patched, {0, 7}, number)
        if number in (errno.EISDIR, errno.ENOENT):  # that is no word about the disk
            assert rebuild(lost)[1].unread == 2
            return
        with pytest.raises(StorageFailed, match="batch-0000000") as raised:
            rebuild(lost)
    assert raised.value.hint
    assert not (lost.path / "manifest.sqlite").exists()
    assert found_by(lost).batches == 2


def test_the_command_warns_of_artifacts_that_it_could_not_read(lost: RunDirectory) -> None:
    publish(lost, single(0))
    name = str(single(3).name(lost.plan()))
    (lost.artifacts / name).mkdir()
    done = shardgen("rebuild", lost.path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[2:] == [
        "ignored 1 artifacts: they could not be read",
        f"  {name}: Is a directory",
    ]
    assert "warning: 1 artifacts could not be read" in done.stderr


def test_the_file_is_whole_and_synced_before_it_gets_its_name_and_the_folder_after(
    lost: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(lost, single(0))
    calls: list[str] = []
    fsync, link = os.fsync, os.link

    def note_fsync(descriptor: int) -> None:
        calls.append(f"fsync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    def note_link(source: Path, target: Path) -> None:
        assert not Path(target).exists()
        with closing(open_engine(Path(source)).raw_connection()) as connection:
            assert connection.cursor().execute("SELECT count(*) FROM receipt").fetchone() == (1,)
        calls.append(f"link {Path(target).name}")
        link(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "link", note_link)
    rebuild(lost, on_step=lambda step: calls.append(step.value))
    assert calls == [
        "staged",
        "fsync .manifest.sqlite.rebuild",
        "filled",
        "link manifest.sqlite",
        "linked",
        f"fsync {lost.path.name}",
        "synced",
    ]


def test_what_a_higher_fence_supersedes_is_not_even_read(
    lost: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(lost, *(single(batch) for batch in range(12)), *(single(batch, fence=2) for batch in range(12)))
    read: list[str] = []
    original = FolderStore.read_unrecorded

    def note(self: FolderStore, name: object) -> bytes:
        read.append(str(name))
        return original(self, name)  # type: ignore[arg-type]

    monkeypatch.setattr(FolderStore, "read_unrecorded", note)
    assert rebuild(lost)[1].superseded == 12
    assert len(read) == 12


@pytest.mark.slow
def test_the_command_says_what_it_found_and_what_it_ignored_and_why(lost: RunDirectory) -> None:
    publish(lost, single(0, dead=(2,)), single(0, fence=2, dead=(1,)), single(1), single(3))
    victim = lost.artifacts / str(single(3).name(lost.plan()))
    victim.write_bytes(victim.read_bytes()[:-1])
    done = shardgen("rebuild", lost.path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:4] == [
        "rebuilt from 2 of 12 batches",
        "7 samples stored, 1 dead letters, 40 of 48 pending",
        "ignored 1 artifacts: superseded by another attempt",
        "ignored 1 artifacts: damaged, or not matching their names or this plan",
    ]
    assert lines[4].startswith(f"  shard-00000/{victim.name}: ")
    letters = shardgen("dead-letters", lost.path)
    assert LOST_DETAIL in letters.stdout
    again = shardgen("rebuild", lost.path)
    assert again.returncode == 13
    assert f"mv {lost.path}/manifest.sqlite" in again.stderr
    for command in ("status", "worker", "merge", "sweep"):
        (lost.path / "manifest.sqlite").unlink(missing_ok=True)
        refused = shardgen(command, lost.path)
        assert refused.returncode == 11, refused.stderr
        assert f"shardgen rebuild {lost.path}" in refused.stderr
