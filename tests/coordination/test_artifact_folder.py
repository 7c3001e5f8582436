from __future__ import annotations

import os
import shutil
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shardgen.artifacts.folder_store import FolderStore
from shardgen.artifacts.store import IDENTITY
from shardgen.coordination.artifact_folder import claim_folder, is_recognised
from shardgen.domain.identifiers import BatchIndex, Fence
from shardgen.domain.lease import NoLease
from shardgen.errors import ArtifactCorrupt, PlanConflict, StorageFailed
from shardgen.operations.doctor import Verdict, diagnose
from shardgen.operations.merge import merge_run
from shardgen.operations.rebuild import rebuild
from shardgen.operations.verify import check_run, put_back
from shardgen.settings.run_directory import RunDirectory
from shardgen.storage.atomic import publish_file
from shardgen.storage.bounded import read_regular
from tests.artifacts.attempts import WORKERS, single
from tests.conformance.conftest import identity
from tests.runs import shardgen


def start_worker(run: RunDirectory) -> None:
    """What a worker does with the artifact folder at its start."""
    with run.manifest(run.plan()) as manifest:
        claim_folder(FolderStore(run.artifacts), manifest.folder)


def store_slice(run: RunDirectory) -> list[Path]:
    """Artifacts with receipts for one slice."""
    plan = run.plan()
    paths = []
    with run.manifest(plan) as manifest:
        manifest.workers.register(identity(WORKERS["a"]))
        lease = manifest.leases.lease(WORKERS["a"], run.settings.lease_policy)
        assert not isinstance(lease, NoLease)
        for batch in manifest.receipts.pending_batches(lease):
            (receipt,) = single(batch, fence=lease.fence).publish(plan, run.artifacts)
            manifest.receipts.record(lease, receipt)
            paths.append(run.artifacts / receipt.artifact.name)
    return paths


def elsewhere(run: RunDirectory, folder: Path) -> RunDirectory:
    """The same run, seen from where another folder lies under the artifacts' name."""
    settings = run.settings
    artifacts = settings.engine.artifacts.model_copy(update={"url": str(folder)})
    engine = settings.engine.model_copy(update={"artifacts": artifacts})
    return replace(run, settings=replace(settings, engine=engine))


def test_a_folder_is_recognised_under_any_path_and_as_a_copy(run: RunDirectory, tmp_path: Path) -> None:
    start_worker(run)
    start_worker(run)
    run.artifacts.rename(tmp_path / "moved")
    start_worker(elsewhere(run, tmp_path / "moved"))
    shutil.copytree(tmp_path / "moved", tmp_path / "copied")
    start_worker(elsewhere(run, tmp_path / "copied"))


@pytest.mark.parametrize("other", ["absent", "empty", "another run's"])
def test_any_other_folder_is_refused_and_left_as_it_was(
    run: RunDirectory, tmp_path: Path, other: str
) -> None:
    start_worker(run)
    folder = tmp_path / "other"
    if other != "absent":
        folder.mkdir()
    if other == "another run's":
        FolderStore(folder).make_identity()
    before = sorted(tmp_path.rglob("*"))
    is_absent = other == "absent"  # a mount comes back; another folder does not become the right one
    kind, said = (StorageFailed, "is not there") if is_absent else (PlanConflict, "is not the folder")
    with pytest.raises(kind, match=said) as caught:
        start_worker(elsewhere(run, folder))
    assert str(folder) in str(caught.value)
    assert "set [artifacts] url" in caught.value.hint
    assert sorted(tmp_path.rglob("*")) == before
    start_worker(run)


@pytest.mark.parametrize("instead", ["nothing", "an empty mount point", "another run's"])
def test_after_the_claim_nothing_is_written_to_what_lies_there_instead(
    run: RunDirectory, tmp_path: Path, instead: str
) -> None:
    plan, attempt, store = run.plan(), single(0), FolderStore(run.artifacts)
    with run.manifest(plan) as manifest:
        claim_folder(store, manifest.folder)
    run.artifacts.rename(tmp_path / "away")
    if instead != "nothing":
        run.artifacts.mkdir()
    if instead == "another run's":
        FolderStore(run.artifacts).make_identity()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StorageFailed, match="is not there"):
        store.publish(attempt.name(plan), b"content")
    with pytest.raises(StorageFailed, match="is not there"):
        store.publish_requeued(Fence(1), b"{}")
    assert sorted(tmp_path.rglob("*")) == before
    shutil.rmtree(run.artifacts, ignore_errors=True)
    (tmp_path / "away").rename(run.artifacts)
    store.publish(attempt.name(plan), b"content")


def test_an_identity_that_nobody_has_claimed_yet_is_kept(run: RunDirectory) -> None:
    """As a kill between the two leaves it, or another run in the same folder."""
    made = FolderStore(run.artifacts).make_identity()
    start_worker(run)
    assert FolderStore(run.artifacts).identity() == made
    with run.manifest(run.plan()) as manifest:
        assert manifest.folder.identity() == made


def test_two_that_make_an_identity_at_once_get_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first: list[str] = []

    def late(path: Path, data: bytes, **options: object) -> bool:
        with monkeypatch.context() as patched:
            patched.setattr("shardgen.artifacts.folder_store.publish_file", publish_file)
            first.append(FolderStore(tmp_path / "shared").make_identity())
        return publish_file(path, data, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("shardgen.artifacts.folder_store.publish_file", late)
    assert FolderStore(tmp_path / "shared").make_identity() == first[0]
    assert len(first[0]) == 32


@pytest.mark.parametrize("content", [b"", b"0123\n", b"\xff" * 33, b"g" * 32 + b"\n"])
def test_a_damaged_identity_is_named_and_nothing_is_taken_for_it(run: RunDirectory, content: bytes) -> None:
    start_worker(run)
    path = run.artifacts / IDENTITY
    path.chmod(stat.S_IRUSR | stat.S_IWUSR)
    path.write_bytes(content)
    with pytest.raises(ArtifactCorrupt, match="does not hold") as caught:
        start_worker(run)
    assert f"rm {path}" in caught.value.hint


def test_a_folder_that_cannot_be_read_is_a_failing_disk_and_no_other_folder(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_worker(run)

    def fail(path: Path, **options: Any) -> bytes:
        if path.name == IDENTITY:
            raise OSError(5, os.strerror(5), str(path))
        return read_regular(path, **options)

    monkeypatch.setattr("shardgen.artifacts.folder_store.read_regular", fail)
    with pytest.raises(StorageFailed):
        start_worker(run)


def test_neither_it_nor_its_half_written_copy_is_a_stranger(run: RunDirectory) -> None:
    start_worker(run)
    (run.artifacts / f".{IDENTITY}.0123abcd").write_bytes(b"half")
    assert FolderStore(run.artifacts).listing(run.plan().layout).strangers == ()


def test_a_merge_from_another_folder_does_not_ask_to_have_everything_made_again(
    run: RunDirectory, tmp_path: Path
) -> None:
    start_worker(run)
    store_slice(run)
    with pytest.raises(PlanConflict, match="not the folder"):
        merge_run(elsewhere(run, tmp_path / "other"), None, allow_dead_letters=False)


def test_verify_says_first_that_the_folder_is_another(run: RunDirectory, tmp_path: Path) -> None:
    start_worker(run)
    count = len(store_slice(run))
    assert check_run(run).findings == ()
    found = check_run(elsewhere(run, tmp_path / "other")).findings
    assert len(found) == count + 1
    assert found[0].batch is None
    assert "not the folder that this run's workers" in found[0].fact


def test_after_a_requeue_of_all_that_is_lost_a_new_folder_is_the_runs(
    run: RunDirectory, tmp_path: Path
) -> None:
    start_worker(run)
    paths = store_slice(run)
    shutil.rmtree(run.artifacts)
    with pytest.raises(StorageFailed):
        start_worker(run)
    bad = check_run(run).bad_batches
    assert len(bad) == len(paths)
    assert put_back(run, bad).batches == bad
    start_worker(run)
    assert check_run(run).findings == ()


def test_a_folder_put_back_without_its_identity_is_the_runs_once_it_was_read(run: RunDirectory) -> None:
    start_worker(run)
    store_slice(run)
    (run.artifacts / IDENTITY).unlink()
    with pytest.raises(PlanConflict):
        start_worker(run)
    checked = shardgen("verify", run.path, "--requeue")
    assert checked.returncode == 21
    assert "not the folder" in checked.stdout
    assert "requeued 0 batches" in checked.stderr
    start_worker(run)
    assert shardgen("verify", run.path).returncode == 0


def test_marks_of_a_requeue_are_not_written_where_no_rebuild_would_look(
    run: RunDirectory, tmp_path: Path
) -> None:
    start_worker(run)
    store_slice(run)
    settings = run.path / "shardgen.toml"
    text = settings.read_text(encoding="utf-8").replace('url = "artifacts"', f'url = "{tmp_path}/other"')
    settings.write_text(text, encoding="utf-8")
    refused = shardgen("requeue", run.path, "--batch", "0")
    assert refused.returncode == 10, refused.stderr
    assert not (tmp_path / "other").exists()
    with run.manifest(run.plan()) as manifest:
        assert manifest.receipts.recorded_among([BatchIndex(0)]) == [BatchIndex(0)]


def test_a_rebuilt_manifest_knows_the_folder_that_it_was_made_from(run: RunDirectory, tmp_path: Path) -> None:
    start_worker(run)
    store_slice(run)
    (run.path / "manifest.sqlite").unlink()
    rebuild(run)
    (tmp_path / "other").mkdir()
    with pytest.raises(PlanConflict):
        start_worker(elsewhere(run, tmp_path / "other"))
    start_worker(run)


def test_a_folder_without_an_identity_can_be_rebuilt_from_and_is_left_as_it_is(run: RunDirectory) -> None:
    store_slice(run)
    (run.path / "manifest.sqlite").unlink()
    rebuild(run)
    assert not (run.artifacts / IDENTITY).exists()
    with run.manifest(run.plan()) as manifest:
        assert is_recognised(FolderStore(run.artifacts), manifest.folder)


def test_doctor_says_that_the_folder_is_another(run: RunDirectory) -> None:
    start_worker(run)

    def verdicts() -> list[Verdict]:
        return [line.verdict for line in diagnose(run.path) if "not the folder" in line.fact]

    assert verdicts() == []
    shutil.rmtree(run.artifacts)
    assert verdicts() == [Verdict.FAILS]
