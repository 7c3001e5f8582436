from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from shardgen.artifacts.folder_store import FolderStore
from shardgen.artifacts.names import ArtifactName
from shardgen.domain.identifiers import Fence, ShardIndex
from shardgen.domain.receipt import ArtifactRef
from shardgen.domain.steps import BatchStep, OnStep, Step
from shardgen.errors import (
    ArtifactCorrupt,
    ArtifactMissing,
    LeaseLost,
    ReceiptConflict,
    ShardgenError,
    StorageFailed,
)
from shardgen.storage.atomic import publish_file
from tests.artifacts.recorded_files import RecordedFiles

NAME = ArtifactName(
    shard=ShardIndex(1), batches=range(9, 10), fence=Fence(1), worker="0abc1234", random="deadbeef"
)


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_published_artifact_reads_back_and_is_listed(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    ref = store.publish(NAME, b"content")
    assert ref == ArtifactRef(name=str(NAME), size_bytes=7, sha256=hashlib.sha256(b"content").hexdigest())
    assert store.read(ref) == b"content"
    assert list(store.names()) == [NAME]
    assert files_below(tmp_path) == [str(NAME)]


def test_publishing_writes_syncs_links_and_syncs_the_folder_in_this_order(tmp_path: Path) -> None:
    files, steps = RecordedFiles(), list[Step]()
    store = FolderStore(tmp_path / "artifacts", files=files)
    store.make_identity()
    assert files.calls[:2] == ["make_folder artifacts", f"fsync_folder {tmp_path.name}"]
    files.calls.clear()

    def on_step(step: Step) -> None:
        steps.append(step)
        files.calls.append(f"step {step.value}")

    store.publish(NAME, b"content", on_step=on_step)
    final = str(NAME).rpartition("/")[2]
    staged = next(call.removeprefix("create ") for call in files.calls if call.startswith("create "))
    assert files.calls == [
        "make_folder shard-00001",
        "fsync_folder artifacts",
        "make_folder .staging",
        "fsync_folder artifacts",
        f"create {staged}",
        f"write {staged}",
        f"fsync {staged}",
        "step staged",
        f"link {final}",
        "step linked",
        f"unlink {staged}",
        "fsync_folder shard-00001",
        "step published",
    ]
    assert steps == [BatchStep.STAGED, BatchStep.LINKED, BatchStep.PUBLISHED]


def test_publishing_refuses_a_name_that_exists_and_leaves_it_as_it_is(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    ref = store.publish(NAME, b"first")
    with pytest.raises(ReceiptConflict, match=r"deadbeef\.zip"):
        store.publish(NAME, b"second")
    assert store.read(ref) == b"first"
    assert files_below(tmp_path) == [str(NAME)]


@pytest.mark.parametrize("unsupported", [errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_links_an_artifact_is_renamed_and_an_existing_one_still_refused(
    tmp_path: Path, unsupported: int
) -> None:
    files = RecordedFiles(fail="link", errno=unsupported)
    store = FolderStore(tmp_path, files=files)
    ref = store.publish(NAME, b"first")
    assert store.read(ref) == b"first"
    assert any(call.startswith("rename") for call in files.calls)
    with pytest.raises(ReceiptConflict):
        store.publish(NAME, b"second")
    assert store.read(ref) == b"first"
    assert files_below(tmp_path) == [str(NAME)]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT])
@pytest.mark.parametrize("call", ["create", "write", "fsync", "link"])
def test_a_failing_disk_is_one_clear_error_and_leaves_nothing(tmp_path: Path, call: str, number: int) -> None:
    store = FolderStore(tmp_path, files=RecordedFiles(fail=call, errno=number))
    with pytest.raises(StorageFailed, match=r"deadbeef\.zip") as raised:
        store.publish(NAME, b"content")
    assert raised.value.hint
    assert files_below(tmp_path) == []
    FolderStore(tmp_path).publish(NAME, b"content")


def without_staged_files(folder: Path, at: BatchStep) -> OnStep:
    def sweep(step: Step) -> None:
        if step is at:
            for path in (folder / ".staging").iterdir():
                path.unlink()

    return sweep


@pytest.mark.parametrize("unsupported", [0, errno.EPERM])
def test_a_staged_file_that_a_sweep_took_is_a_lost_lease(tmp_path: Path, unsupported: int) -> None:
    store = FolderStore(tmp_path, files=RecordedFiles(fail="link" if unsupported else "", errno=unsupported))
    with pytest.raises(LeaseLost, match="swept away"):
        store.publish(NAME, b"content", on_step=without_staged_files(tmp_path, BatchStep.STAGED))
    assert files_below(tmp_path) == []
    ref = store.publish(NAME, b"content")
    assert store.read(ref) == b"content"


def test_a_staged_file_that_is_swept_once_it_is_linked_is_no_trouble(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    ref = store.publish(NAME, b"content", on_step=without_staged_files(tmp_path, BatchStep.LINKED))
    assert store.read(ref) == b"content"


@pytest.mark.parametrize("folder", [".staging", "shard-00001"])
def test_a_folder_that_is_gone_is_no_lost_lease(tmp_path: Path, folder: str) -> None:
    def remove(step: Step) -> None:
        if step is BatchStep.STAGED:
            shutil.rmtree(tmp_path / folder)

    with pytest.raises(StorageFailed, match=r"deadbeef\.zip"):
        FolderStore(tmp_path).publish(NAME, b"content", on_step=remove)


def test_a_missing_artifact_is_named(tmp_path: Path) -> None:
    ref = ArtifactRef(name=str(NAME), size_bytes=1, sha256="0" * 64)
    with pytest.raises(ArtifactMissing, match=r"deadbeef\.zip"):
        FolderStore(tmp_path).read(ref)


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data[:-1] + bytes([data[-1] ^ 1])])
def test_changed_bytes_are_named(tmp_path: Path, change: object) -> None:
    store = FolderStore(tmp_path)
    ref = store.publish(NAME, b"content")
    (tmp_path / ref.name).write_bytes(change(b"content"))  # type: ignore[operator]
    with pytest.raises(ArtifactCorrupt, match=r"deadbeef\.zip"):
        store.read(ref)


def test_a_name_that_points_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"content")
    ref = ArtifactRef(name="../secret", size_bytes=7, sha256=hashlib.sha256(b"content").hexdigest())
    (tmp_path / "artifacts").mkdir()
    with pytest.raises(ArtifactCorrupt, match="not an artifact's name"):
        FolderStore(tmp_path / "artifacts").read(ref)


def test_staged_files_and_strangers_are_not_listed(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.publish(NAME, b"content")
    (tmp_path / "shard-00001" / "notes.txt").write_text("mine")
    (tmp_path / ".staging" / "left.zip").write_text("half")
    assert list(store.names()) == [NAME]


def test_artifacts_are_listed_shard_by_shard_and_sorted(tmp_path: Path) -> None:
    names = [
        replace(NAME, shard=ShardIndex(shard), random=f"{number:08x}")
        for shard in (2, 10)
        for number in range(20)
    ]
    store = FolderStore(tmp_path)
    for name in reversed(names):
        store.publish(name, b"content")
    assert list(store.names()) == names


def test_a_requeued_mark_is_durable_and_reads_back(tmp_path: Path) -> None:
    files = RecordedFiles()
    store = FolderStore(tmp_path, files=files)
    name = store.publish_requeued(Fence(12), b"{}")
    assert name.startswith("requeued/0012-")
    (tmp_path / "requeued" / "notes.json").write_text("mine")
    assert list(store.requeued()) == [(name, b"{}")]
    assert [call.partition(" ")[0] for call in files.calls[-6:]] == [
        "create",
        "write",
        "fsync",
        "link",
        "unlink",
        "fsync_folder",
    ]


def test_a_small_file_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    assert publish_file(path, b"first")
    assert not publish_file(path, b"second")
    assert path.read_bytes() == b"first"
    assert files_below(tmp_path) == ["plan.json"]


@pytest.mark.parametrize("number", [errno.ENOTCONN, errno.ESTALE, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("listing", ["names", "requeued", "refuse_unreadable"])
def test_a_folder_that_cannot_be_listed_is_a_clear_error_and_not_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listing: str, number: int
) -> None:
    store = FolderStore(tmp_path)
    store.publish(NAME, b"content")
    store.publish_requeued(Fence(1), b"{}")

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(StorageFailed, match=re.escape(os.strerror(number))):
        list(getattr(store, listing)() or ())


def test_a_folder_that_does_not_exist_is_empty(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "artifacts")
    store.refuse_unreadable()
    assert (list(store.names()), list(store.requeued())) == ([], [])


@pytest.mark.parametrize("instead", ["link", "pipe", "socket", "folder"])
def test_what_is_no_regular_file_is_named_with_what_to_type(tmp_path: Path, instead: str) -> None:
    store = FolderStore(tmp_path)
    ref = store.publish(NAME, b"content")
    path = tmp_path / ref.name
    path.rename(tmp_path / "away")
    if instead == "link":
        path.symlink_to(tmp_path / "away")
    elif instead == "pipe":
        os.mkfifo(path)
    elif instead == "socket":
        os.mknod(path, stat.S_IFSOCK | 0o600)
    else:
        path.mkdir()
    for read in (partial(store.read, ref), partial(store.read_unrecorded, NAME)):
        with pytest.raises(ShardgenError, match=r"deadbeef\.zip") as raised:
            read()
        if isinstance(raised.value, StorageFailed):  # a rebuild leaves such a folder out
            assert isinstance(raised.value.__cause__, IsADirectoryError)
        else:
            assert isinstance(raised.value, ArtifactCorrupt)
            assert raised.value.hint == "shardgen verify RUN_DIR --requeue"
