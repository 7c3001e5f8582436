from __future__ import annotations

import errno
import fcntl
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from shardgen.artifacts.folder_store import FolderStore
from shardgen.coordination.database import undo_marked
from shardgen.domain.identifiers import BatchIndex
from shardgen.domain.lease import Lease, NoLease
from shardgen.domain.receipt import Receipt
from shardgen.domain.steps import SweepStep
from shardgen.errors import InputMissing, ManifestBusy, StorageFailed
from shardgen.manifest.manifest import Manifest
from shardgen.manifest.sqlite_building import alone_in
from shardgen.operations.sweep import Swept, sweep
from shardgen.settings.run_directory import RunDirectory
from shardgen.storage.bounded import read_regular
from tests.artifacts.attempts import WORKERS, single
from tests.artifacts.recorded_files import RecordedFiles
from tests.conformance.conftest import MovableClock, identity
from tests.plans import changed, depth_in
from tests.runs import shardgen


def lease_of(run: RunDirectory, worker: str, clock: MovableClock) -> Lease:
    with Manifest(run.database, run.plan(), clock=clock) as manifest:
        manifest.workers.register(identity(WORKERS[worker]))
        granted = manifest.leases.lease(WORKERS[worker], run.settings.lease_policy)
    assert not isinstance(granted, NoLease)
    return granted


def publish(run: RunDirectory, lease: Lease, batch: int, **more: object) -> Receipt:
    attempt = single(batch, fence=lease.fence, worker=lease.worker[-1], **more)
    (receipt,) = attempt.publish(run.plan(), run.artifacts)
    return receipt


def record(run: RunDirectory, lease: Lease, receipt: Receipt) -> None:
    with run.manifest(run.plan()) as manifest:
        manifest.receipts.record(lease, receipt)


def stage(run: RunDirectory, lease: Lease, batch: int, content: bytes = b"half") -> str:
    name = single(batch, fence=lease.fence, worker=lease.worker[-1]).name(run.plan())
    path = f".staging/{str(name).rpartition('/')[2]}.deadbeef"
    (run.artifacts / ".staging").mkdir(parents=True, exist_ok=True)
    (run.artifacts / path).write_bytes(content)
    return path


def orphans(swept: Swept) -> list[str]:
    return [orphan.path for orphan in swept.orphans]


def files(run: RunDirectory) -> list[str]:
    found = (path for path in run.artifacts.rglob("*") if path.is_file())
    return sorted(str(path.relative_to(run.artifacts)) for path in found)


def test_what_a_dead_attempt_left_is_listed_and_taken_only_when_told_to(run: RunDirectory) -> None:
    clock = MovableClock()
    old = lease_of(run, "a", clock)
    lost, staged = publish(run, old, 0), stage(run, old, 1)
    clock.forward(1000)
    new = lease_of(run, "b", clock)
    kept = publish(run, new, 0)
    record(run, new, kept)
    second = publish(run, old, 1)
    before = files(run)
    listed = sweep(run, remove=False)
    assert orphans(listed) == [staged, lost.artifact.name, second.artifact.name]
    assert [orphan.is_pending for orphan in listed.orphans] == [True, False, True]
    assert listed.orphans[1].size_bytes == lost.artifact.size_bytes
    assert files(run) == before
    assert sweep(run, remove=True) == listed
    assert files(run) == [kept.artifact.name]
    assert orphans(sweep(run, remove=True)) == []


@pytest.mark.parametrize("seconds", [0, 10_000])
def test_what_a_lease_could_still_publish_is_never_taken_even_if_it_has_expired(
    run: RunDirectory, seconds: float
) -> None:
    clock = MovableClock()
    lease = lease_of(run, "a", clock)
    staged, receipt = stage(run, lease, 1), publish(run, lease, 0)
    clock.forward(seconds)
    found = sweep(run, remove=True)
    assert (orphans(found), found.live) == ([], [staged, receipt.artifact.name])
    record(run, lease, receipt)
    assert FolderStore(run.artifacts).read(receipt.artifact)
    assert (run.artifacts / staged).read_bytes() == b"half"


@pytest.mark.parametrize("difference", ["worker", "fence", "slice", "shard"])
def test_only_the_very_grant_that_holds_the_slice_protects_a_file(run: RunDirectory, difference: str) -> None:
    lease = lease_of(run, "a", MovableClock())
    match difference:
        case "worker":
            other = publish(run, replace(lease, worker=WORKERS["b"]), 0)
        case "fence":
            other = publish(run, replace(lease, fence=lease.fence + 1), 0)  # type: ignore[arg-type]
        case "slice":
            other = publish(run, lease, 2)
        case "shard":
            other = publish(run, lease, 5)
    assert orphans(sweep(run, remove=True)) == [other.artifact.name]


def test_released_freed_and_requeued_attempts_are_orphans(run: RunDirectory) -> None:
    clock = MovableClock()
    plan = run.plan()
    released, freed, undone = (lease_of(run, worker, clock) for worker in "abc")
    first, second = publish(run, released, 0), publish(run, freed, 2)
    third = publish(run, undone, 4)
    record(run, undone, third)
    with Manifest(run.database, plan, clock=clock) as manifest:
        manifest.leases.release(released)
        manifest.leases.free_slices_of([freed.worker], run.settings.lease_policy)
        undo_marked(plan, manifest, FolderStore(run.artifacts), [BatchIndex(4)])
    expected = [receipt.artifact.name for receipt in (first, second, third)]
    assert orphans(sweep(run, remove=True)) == expected
    assert [name for name in files(run) if not name.startswith("requeued/")] == []
    assert len(files(run)) == 1


def test_what_is_not_ours_is_named_and_left(run: RunDirectory) -> None:
    clock = MovableClock()
    lease = lease_of(run, "a", clock)
    ours = publish(run, lease, 0)
    record(run, lease, ours)
    plan = run.plan()
    other_plan = changed(plan, depth=replace(depth_in(plan), quality=61))
    foreign = publish(run, replace(lease, worker=WORKERS["b"]), 1, claims=other_plan)
    whole, _ = single(1, worker="d", claims=other_plan).content(plan)
    staged = stage(run, replace(lease, worker=WORKERS["d"]), 1, whole)
    elsewhere = "shard-00000/batch-00000007.f0001.aaaaaaaa.00000000.zip"  # a batch of shard 1
    shutil.copy(run.artifacts / ours.artifact.name, run.artifacts / elsewhere)
    names = ["notes.txt", "shard-00000/notes.txt", ".staging/notes.txt", "shard-mine"]
    for name in names:
        (run.artifacts / name).write_text("mine")
    (run.artifacts / "requeued").mkdir()
    (run.artifacts / "requeued" / "0001-deadbeef.json").write_text("{}")
    (run.artifacts / "mine").mkdir()
    (run.artifacts / "shard-00000" / "mine").mkdir()
    before = files(run)
    found = sweep(run, remove=True)
    assert found.orphans == []
    assert sorted(found.strangers) == sorted(
        [*names, "mine", "shard-00000/mine/", foreign.artifact.name, staged, elsewhere]
    )
    assert files(run) == before


@pytest.mark.parametrize("known_by", ["row", "receipt", "slice", ""])
def test_what_says_nothing_of_its_plan_is_taken_only_of_a_worker_that_this_run_knows(
    run: RunDirectory, known_by: str
) -> None:
    """Two runs may share one artifact folder, with equal fences of equal slices."""
    clock = MovableClock()
    lease = lease_of(run, "a", clock)
    owner = replace(lease, worker=WORKERS["b"])
    staged, damaged, empty = stage(run, owner, 1), publish(run, owner, 0), publish(run, owner, 5)
    for receipt, size in ((damaged, 100), (empty, 0)):
        os.truncate(run.artifacts / receipt.artifact.name, size)
    victims = [staged, damaged.artifact.name, empty.artifact.name]
    with Manifest(run.database, run.plan(), clock=clock) as manifest:
        match known_by:
            case "row":
                manifest.workers.register(identity(WORKERS["b"]))
            case "receipt" | "slice":
                other = manifest.leases.lease(WORKERS["b"], run.settings.lease_policy)
                assert not isinstance(other, NoLease)
                if known_by == "receipt":
                    manifest.receipts.record(other, publish(run, other, 2))
                    manifest.leases.release(other)
        before = files(run)
        found = sweep(run, remove=True)
        if known_by:
            assert (orphans(found), found.strangers) == (victims, [])
            assert files(run) == [name for name in before if name not in victims]
        else:
            assert (orphans(found), found.strangers) == ([], victims)
            assert files(run) == before


def test_a_file_that_may_not_be_read_is_no_trouble_and_left(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = lease_of(run, "a", MovableClock())
    other = publish(run, replace(lease, worker=WORKERS["b"]), 0)

    def refuse(path: Path, *, limit: int, follow: bool) -> bytes:
        if path.name == Path(other.artifact.name).name:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return read_regular(path, limit=limit, follow=follow)

    monkeypatch.setattr("shardgen.artifacts.folder_store.read_regular", refuse)
    found = sweep(run, remove=True)
    assert (orphans(found), found.strangers) == ([], [other.artifact.name])


def test_without_a_manifest_nothing_is_an_orphan(run: RunDirectory) -> None:
    publish(run, lease_of(run, "a", MovableClock()), 0)
    (run.path / "manifest.sqlite").unlink()
    before = files(run)
    for remove in (False, True):
        with pytest.raises(InputMissing) as raised:
            sweep(run, remove=remove)
        assert "shardgen rebuild RUN_DIR" in raised.value.hint
    assert files(run) == before


def test_a_sweep_waits_for_no_rebuild(run: RunDirectory) -> None:
    with alone_in(run.path):
        assert orphans(sweep(run, remove=False)) == []
        with pytest.raises(ManifestBusy):
            sweep(run, remove=True)


def test_zips_of_dead_merges_are_taken_and_those_of_running_ones_are_not(run: RunDirectory) -> None:
    dead, running, mine = (
        run.path / name
        for name in (".dataset.zip.0123abcd.part", ".out.zip.89abcdef.part", ".out.zip.mine.part")
    )
    for path in (dead, running, mine):
        path.write_bytes(b"half")
    with running.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert sweep(run, remove=False).unfinished == [dead]
        assert dead.exists()
        assert sweep(run, remove=True).unfinished == [dead]
    assert [path.exists() for path in (dead, running, mine)] == [False, True, True]


def test_a_part_that_is_no_staged_zip_is_left_and_no_trouble(run: RunDirectory) -> None:
    for name in (".movie.mkv.12345678.part", ".data.12345678.part", ".zip.12345678.part"):
        (run.path / name).write_bytes(b"mine")
    (run.path / ".folder.zip.12345678.part").mkdir()
    (run.path / ".link.zip.12345678.part").symlink_to("shardgen.toml")
    before = sorted(run.path.iterdir())
    assert sweep(run, remove=True).unfinished == []
    assert sorted(run.path.iterdir()) == before


@pytest.mark.parametrize(
    ("victim", "remove"),
    [(".dataset.zip.0123abcd.part", False), (".dataset.zip.0123abcd.part", True), ("run", True)],
)
def test_what_may_not_be_opened_is_one_clear_error(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, victim: str, *, remove: bool
) -> None:
    (run.path / ".dataset.zip.0123abcd.part").write_bytes(b"half")
    original = os.open

    def refuse(path: Path | str, *args: int, **options: int) -> int:
        if Path(path).name == victim:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return original(path, *args, **options)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StorageFailed, match=f"{victim}: .*[Pp]ermission denied") as raised:
        sweep(run, remove=remove)
    assert raised.value.hint


def test_a_file_that_went_away_by_itself_is_no_trouble(run: RunDirectory) -> None:
    lease = lease_of(run, "a", MovableClock())
    stray = publish(run, replace(lease, worker=WORKERS["b"]), 0)
    path = run.artifacts / stray.artifact.name
    sweep(run, remove=True, on_step=lambda step: path.unlink() if step is SweepStep.LISTED else None)
    assert not path.exists()


def test_the_folder_is_synced_after_files_are_removed(tmp_path: Path) -> None:
    recorded = RecordedFiles()
    store = FolderStore(tmp_path, files=recorded)
    (tmp_path / "one").mkdir()
    for name in ("one/a", "one/b"):
        (tmp_path / name).write_text("x")
    store.remove(["one/a", "one/gone", "one/b"], on_removed=lambda: recorded.calls.append("removed"))
    assert recorded.calls == [
        "unlink a",
        "removed",
        "unlink gone",
        "removed",
        "unlink b",
        "removed",
        "fsync_folder one",
    ]


def test_the_command_lists_and_removes_only_with_yes(run: RunDirectory) -> None:
    clock = MovableClock()
    lease = lease_of(run, "a", clock)
    stray = publish(run, replace(lease, worker=WORKERS["b"]), 0)
    live = publish(run, lease, 0)
    (run.artifacts / "notes.txt").write_text("mine")
    (run.path / ".dataset.zip.0123abcd.part").write_bytes(b"half")
    size = stray.artifact.size_bytes
    listed = shardgen("sweep", run.path)
    assert listed.returncode == 0, listed.stderr
    expected = [
        f"would remove 1 orphan, {size / 1000:.1f} kB",
        f"  {stray.artifact.name}",
        "  1 of them holds batches that are still pending; those are made again anyway",
        "would remove 1 unfinished file of killed merges and backups",
        "  .dataset.zip.0123abcd.part",
        "kept 1 file that a lease could still publish",
        "left 1 file that may be somebody else's",
        "  notes.txt",
    ]
    assert listed.stdout.splitlines() == expected
    assert f"shardgen sweep {run.path} --yes" in listed.stderr
    assert files(run) == sorted([stray.artifact.name, live.artifact.name, "notes.txt"])
    removed = shardgen("sweep", run.path, "--yes")
    assert removed.stdout.splitlines()[0] == f"removed 1 orphan, {size / 1000:.1f} kB"
    assert files(run) == sorted([live.artifact.name, "notes.txt"])
    assert not (run.path / ".dataset.zip.0123abcd.part").exists()
