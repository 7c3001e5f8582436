"""What was wrong with the readers of artifacts and zips, each defect on its own."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from shardgen.artifacts.archive import read_artifact
from shardgen.artifacts.folder_store import FolderStore
from shardgen.artifacts.names import ArtifactName, is_artifact_name, staged_artifact
from shardgen.artifacts.store import IDENTITY
from shardgen.artifacts.zip_records import Entry
from shardgen.coordination.folder.notices import NoticeName, is_requeue
from shardgen.dataset.verify import Verification, verify_zip
from shardgen.domain.identifiers import MAX_NUMBER, BatchIndex, Fence, ShardIndex
from shardgen.errors import ArtifactCorrupt, EncodeFailed
from shardgen.operations.rebuild import rebuild
from shardgen.operations.sweep import sweep
from shardgen.recipes.composites.plan import Flips
from shardgen.recipes.registry import recipe_of
from shardgen.settings.run_directory import RunDirectory
from tests.artifacts.attempts import single
from tests.dataset.made_runs import verify_made
from tests.fuzzing.guarded import time_limit
from tests.fuzzing.mutating import Member, members_of, packed
from tests.fuzzing.targets import PLAN, artifact_seeds, zip_seeds
from tests.plans import make_plan

FEW_BYTES = 64 << 20
HUGE = "shard-00000/batch-00000000-{}.f0001.aaaaaaaa.00000000.zip"
NAME = "shard-00000/batch-00000000.f0001.aaaaaaaa.00000000.zip"


def facts(found: Verification) -> str:
    return "\n".join(f"{one.subject}: {one.fact}" for one in found.findings)


def verified(folder: Path, data: bytes) -> str:
    """What verify finds, with little memory and in little time."""
    path = folder / "data.zip"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with time_limit(20):
            found = verify_made(path)
        assert tracemalloc.get_traced_memory()[1] < FEW_BYTES
    finally:
        tracemalloc.stop()
    return facts(found)


def with_member(name: str, content: bytes) -> list[Member]:
    """The sound zip's members, one with other content."""
    members = members_of(zip_seeds()[0])
    place = [member for member, _ in members].index(name)
    return [*members[:place], (name, content), *members[place + 1 :]]


def test_the_packing_of_these_tests_changes_nothing(tmp_path: Path) -> None:
    data = zip_seeds()[0]
    assert packed(members_of(data)) == data
    assert verified(tmp_path, data) == ""


@pytest.mark.parametrize("from_end", range(1, 8))  # the six members of the end, and the last image
@pytest.mark.parametrize("field", ["size", "offset"])
@pytest.mark.parametrize("value", [1 << 30, (1 << 32) - 2, 1 << 60, (1 << 64) - 1])
def test_a_directory_that_announces_any_size_takes_no_memory(
    tmp_path: Path, from_end: int, field: str, value: int
) -> None:
    def change(entries: list[Entry]) -> list[Entry]:
        place = len(entries) - from_end
        entry = replace(entries[place], **{field: value})  # type: ignore[arg-type]
        return [*entries[:place], entry, *entries[place + 1 :]]

    assert verified(tmp_path, packed(members_of(zip_seeds()[0]), change))


@pytest.mark.parametrize("images", [pytest.param(0, marks=pytest.mark.slow), 3])
def test_a_plan_of_thousands_of_millions_of_samples_in_a_small_zip_takes_no_time(
    tmp_path: Path, images: int
) -> None:
    flips = Flips.FOREGROUNDS
    huge = make_plan(backgrounds=1000, foregrounds=400, grid=(100, 100), flips=flips, batch=1024)
    assert huge.samples == 8 * 10**9
    others = [member for member in with_member("plan.json", huge.canonical_json) if "/" not in member[0]]
    first = [(f"{output.name}/00000/{0:010d}.jpg", b"x") for output in huge.outputs]
    last = ("fgbg/799999/7999999999.jpg", b"far away")
    found = verified(tmp_path, packed([*first[:images], last, *others]))
    assert "fgbg/00000/0000000001.jpg: is missing" in found
    assert len(found.splitlines()) <= 1000


@pytest.mark.parametrize(
    "content", [b"", b"sample,reason\n\xc2\xb2,compose\n", b"sample,reason\n" + b"9" * 5000 + b",compose\n"]
)
def test_dead_letters_that_hold_no_numbers_are_found(tmp_path: Path, content: bytes) -> None:
    assert "dead_letters.csv" in verified(tmp_path, packed(with_member("dead_letters.csv", content)))


@pytest.mark.parametrize("content", [b"[" * 50_000, b"{}" + b" " * (1 << 17), b"[[]]", b'{"fgbg": 9}'])
def test_statistics_that_are_no_statistics_are_found(tmp_path: Path, content: bytes) -> None:
    assert "stats.json: cannot be read" in verified(tmp_path, packed(with_member("stats.json", content)))


def test_an_image_that_does_not_decode_is_a_finding_like_any_other(tmp_path: Path) -> None:
    path = tmp_path / "data.zip"
    path.write_bytes(zip_seeds()[0])  # its images are random bytes
    found = facts(verify_zip(path, decode=True))
    assert "fgbg/00000/0000000.jpg: " in found
    assert "depth/00000/0000011.jpg: " in found


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_an_image_of_another_size_is_refused_before_it_is_decoded(
    monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    succeeded, data = cv2.imencode(suffix, np.zeros((3000, 4000, 3), np.uint8))
    assert succeeded
    monkeypatch.setattr(cv2, "imdecode", None)
    with pytest.raises(EncodeFailed, match="4000x3000 pixels"):
        recipe_of(PLAN).recount(PLAN.outputs[0], data.tobytes())


@pytest.mark.parametrize(
    "name",
    [
        HUGE.format("9" * 40),
        HUGE.format("9" * 180),
        HUGE.format("9" * 16),
        NAME.replace("f0001", "f" + "9" * 20),
        NAME.replace("shard-00000", "shard-" + "9" * 30),
        NAME.replace("00000000.f", "\u0660" * 8 + ".f"),
    ],
)
def test_a_name_with_a_number_that_nobody_wrote_is_no_artifacts(tmp_path: Path, name: str) -> None:
    assert ArtifactName.parse(name) is None
    assert not is_artifact_name(name)
    if name.startswith("shard-00000/"):
        assert staged_artifact(f"{name.partition('/')[2]}.00000000", PLAN.layout) is None
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_bytes(b"")
    assert list(FolderStore(tmp_path).names()) == []
    assert FolderStore(tmp_path).listing(PLAN.layout).files == ()


def test_the_largest_numbers_of_a_name_read_back() -> None:
    name = ArtifactName(
        shard=ShardIndex(MAX_NUMBER),
        batches=range(MAX_NUMBER, MAX_NUMBER + 1),
        fence=Fence(MAX_NUMBER),
        worker="aaaaaaaa",
        random="00000000",
    )
    assert ArtifactName.parse(str(name)) == name


@pytest.mark.parametrize("number", [b"9223372036854775808", b"1000000000000000", b"9" * 4000])
def test_a_receipt_with_a_number_that_no_database_stores_is_refused(number: bytes) -> None:
    members = members_of(artifact_seeds()[0])
    name, content = members[-1]
    data = packed([*members[:-1], (name, content.replace(b'"fence":3', b'"fence":' + number))])
    with pytest.raises(ArtifactCorrupt, match="fence"):
        read_artifact(data, name="a.zip")


def as_pipe(path: Path) -> None:
    os.mkfifo(path)


def as_link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def as_sparse_file(path: Path) -> None:
    path.write_bytes(b"")
    os.truncate(path, 1 << 42)


@pytest.mark.parametrize("make", [as_pipe, as_link, as_sparse_file], ids=["pipe", "link", "sparse"])
def test_what_is_no_file_of_ours_is_neither_waited_for_nor_followed_nor_read_whole(
    run: RunDirectory, make: Callable[[Path], None]
) -> None:
    receipt, *_ = single(0, fence=2).publish(run.plan(), run.artifacts)
    store = FolderStore(run.artifacts)
    path = run.artifacts / receipt.artifact.name
    path.unlink()
    make(path)
    with time_limit(20):
        with pytest.raises(ArtifactCorrupt):
            store.read(receipt.artifact)
        name = ArtifactName.parse(receipt.artifact.name)
        assert name is not None
        with pytest.raises(ArtifactCorrupt):
            store.read_unrecorded(name)
        assert sweep(run, remove=True).strangers == [receipt.artifact.name]
        (run.path / "manifest.sqlite").unlink()
        _, found = rebuild(run)
    assert [refused for refused, _ in found.refused] == [receipt.artifact.name]
    assert path.is_symlink() or path.exists()


def test_the_folder_of_a_shard_that_is_a_link_is_neither_written_nor_read(
    run: RunDirectory, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run.artifacts.mkdir(exist_ok=True)
    (run.artifacts / "shard-00000").symlink_to(elsewhere)
    with pytest.raises(ArtifactCorrupt, match="is a link"):
        single(0).publish(run.plan(), run.artifacts)
    assert list(elsewhere.iterdir()) == []
    with pytest.raises(ArtifactCorrupt, match="is a link") as caught:
        list(FolderStore(run.artifacts).names())
    assert caught.value.hint


def test_the_artifact_folder_itself_may_be_a_link(run: RunDirectory, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    if run.artifacts.exists():
        run.artifacts.rmdir()
    run.artifacts.symlink_to(elsewhere)
    receipt, *_ = single(0).publish(run.plan(), run.artifacts)
    assert receipt.record.batch == BatchIndex(0)
    assert FolderStore(run.artifacts).read(receipt.artifact)


@pytest.mark.parametrize(
    "name",
    [
        "000001.claim.00000-00000.f" + "9" * 16 + ".json",
        "000001.claim.00000-" + "9" * 100 + ".f0001.json",
        "9" * 200 + ".beat.json",
        "\u0660" * 6 + ".beat.json",
    ],
)
def test_a_notice_with_a_number_that_nobody_wrote_is_a_strangers(name: str) -> None:
    assert NoticeName.parse(name) is None


def test_a_requeue_of_a_generation_that_nobody_wrote_is_a_strangers() -> None:
    assert not is_requeue("9" * 16 + "-00000000.json")


@pytest.mark.parametrize("make", [as_pipe, as_sparse_file], ids=["pipe", "sparse"])
def test_the_name_of_an_artifact_folder_is_neither_waited_for_nor_read_whole(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / IDENTITY)
    with time_limit(10), pytest.raises(ArtifactCorrupt, match="folder-id") as caught:
        FolderStore(tmp_path).identity()
    assert caught.value.hint
