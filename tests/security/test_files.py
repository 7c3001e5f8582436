"""What is created, with which permissions, and that nothing planted in the way is followed."""

from __future__ import annotations

import os
import stat
import urllib.request
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

import pytest

from shardgen.artifacts.folder_store import FolderStore
from shardgen.dataset.merge import MergeInputs, merge
from shardgen.depth.densedepth.weights_file import read_weights
from shardgen.domain.identifiers import Fence
from shardgen.errors import ArtifactCorrupt, DownloadFailed, PlanConflict, StorageFailed
from shardgen.operations.demo import extract_contact_sheet
from shardgen.operations.init import initialise
from shardgen.operations.merge import ZIP_NAME
from shardgen.operations.rebuild import rebuild
from shardgen.settings.run_directory import RunDirectory
from shardgen.storage import fetch
from shardgen.storage.atomic import publish_file, random_part
from shardgen.storage.released import Released, cached_path
from tests.artifacts.attempts import single
from tests.dataset.made_runs import MadeRecipe, MadeRun, publish_run
from tests.plans import make_plan
from tests.runs import make_run, plan_run
from tests.storage.test_fetch import Server, content, server

__all__ = ["content", "server"]  # fixtures


def inputs_of(made: MadeRun) -> MergeInputs:
    return MergeInputs(recipe=MadeRecipe(made.plan), source=made, store=made.store)


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022, 0o027, 0o077], ids=oct, indirect=True)
def test_everything_that_is_created_obeys_the_umask_and_is_never_for_everybody_to_write(
    tmp_path: Path, umask: int, monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    before = set(tmp_path.rglob("*"))
    monkeypatch.setenv("SHARDGEN_CACHE", str(tmp_path / "deep" / "cache"))
    run = make_run(tmp_path)
    others = {run.path, run.path / "shardgen.toml", *(tmp_path / "sources").rglob("*"), tmp_path / "sources"}
    run = plan_run(run)
    plan = run.plan()
    single(0).publish(plan, run.artifacts)
    FolderStore(run.artifacts).publish_requeued(Fence(1), b"{}")
    (run.path / "manifest.sqlite").unlink()
    (run.artifacts / "requeued").rename(tmp_path / "away")
    rebuild(run)
    sources = tmp_path / "sources"
    initialise(
        tmp_path / "far" / "new",
        {"foregrounds": sources / "foregrounds", "backgrounds": sources / "backgrounds"},
        weights="small",
    )
    small = make_plan(backgrounds=1, foregrounds=1, grid=(2, 2), batch=2)
    made = publish_run(small, tmp_path / "other")
    inputs = MergeInputs(recipe=MadeRecipe(small), source=made, store=made.store)
    zipped = merge(inputs, tmp_path / ZIP_NAME).path
    extract_contact_sheet(zipped, tmp_path)
    fetch.fetch(server.released(len(server.content)), read_weights)
    created = set(tmp_path.rglob("*")) - before - others
    names = {path.name for path in created}
    assert {"plan.json", "manifest.sqlite", ".staging", "shard-00000", ZIP_NAME, "nyu.h5", "deep"} <= names
    assert {"away", "far", "shardgen.toml", "contact_sheet.png"} <= names
    for path in created:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert not mode & (umask | stat.S_IWOTH), f"{path}: {mode:o}"
        needed = stat.S_IRWXU if path.is_dir() else stat.S_IRUSR | stat.S_IWUSR
        assert mode & needed == needed, f"{path}: {mode:o}"
        assert path.is_dir() or not mode & 0o111, f"{path}: {mode:o}"


def test_a_link_planted_for_a_staged_file_is_not_written_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name has 32 random bits; somebody who guessed them stops the write, and no more."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for module in ("artifacts.folder_store", "storage.atomic"):
        monkeypatch.setattr(f"shardgen.{module}.random_part", lambda: "00000000")
    plan, root = make_plan(), tmp_path / "artifacts"
    staged = f"{single(0).name(plan)}".rpartition("/")[2] + ".00000000"
    (root / ".staging").mkdir(parents=True)
    (root / ".staging" / staged).symlink_to(victim)
    with pytest.raises(StorageFailed, match="exists"):
        single(0).publish(plan, root)
    (tmp_path / ".plan.json.00000000").symlink_to(victim)
    with pytest.raises(StorageFailed, match="exists"):
        publish_file(tmp_path / "plan.json", b"planted")
    assert victim.read_text() == "mine"


def test_names_of_staged_files_are_drawn_anew_each_time(tmp_path: Path) -> None:
    assert len({random_part() for _ in range(1000)}) > 990


@pytest.mark.parametrize("folder", [".staging", "shard-00000", "requeued"])
def test_a_folder_of_the_artifacts_that_is_a_link_is_not_written_into(tmp_path: Path, folder: str) -> None:
    root, elsewhere = tmp_path / "artifacts", tmp_path / "elsewhere"
    root.mkdir()
    elsewhere.mkdir()
    (root / folder).symlink_to(elsewhere)
    publish = (
        (lambda: FolderStore(root).publish_requeued(Fence(1), b"{}"))
        if folder == "requeued"
        else (lambda: single(0).publish(make_plan(), root))
    )
    with pytest.raises(ArtifactCorrupt, match="is a link") as caught:
        publish()
    assert caught.value.hint
    assert list(elsewhere.iterdir()) == []


def test_a_link_in_the_place_of_the_zip_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    plan = make_plan(backgrounds=1, foregrounds=1, grid=(2, 2), batch=2)
    made = publish_run(plan, tmp_path / "artifacts")
    output = tmp_path / "out.zip"
    output.symlink_to(victim)
    inputs = inputs_of(made)
    with pytest.raises(PlanConflict, match="not replaced"):
        merge(inputs, output)
    output.unlink()
    output.symlink_to(tmp_path / "nowhere")
    merge(inputs, output)
    assert not output.is_symlink()
    assert not (tmp_path / "nowhere").exists()
    assert victim.read_text() == "mine"


def test_a_link_in_the_place_of_a_rebuilds_new_manifest_is_not_written_through(
    run: RunDirectory, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (run.path / "manifest.sqlite").unlink()
    (run.path / ".manifest.sqlite.rebuild").symlink_to(victim)
    rebuild(run)
    assert victim.read_text() == "mine"


def test_a_link_in_the_place_of_an_unfinished_download_is_not_written_through(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim, cache = tmp_path / "victim", tmp_path / "cache"
    victim.write_text("mine")
    cache.mkdir()
    monkeypatch.setenv("SHARDGEN_CACHE", str(cache))
    whole = tmp_path / "whole"
    whole.write_bytes(server.content)
    for target, size_bytes in ((victim, None), (tmp_path / "nowhere", None), (whole, len(server.content))):
        (cache / "nyu.h5.part").symlink_to(target)
        with pytest.raises(StorageFailed, match="link"):
            fetch.fetch(server.released(size_bytes), read_weights)
        (cache / "nyu.h5.part").unlink()
    assert victim.read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("length", ["\xb2", "9" * 5000, "-5", "1_0", " "])
def test_a_length_that_is_no_number_is_no_length(length: str) -> None:
    class Response:
        status = 200
        headers = Message()

    Response.headers["Content-Length"] = length
    released = Released(name="nyu", url="http://127.0.0.1/", size_bytes=None, otherwise="")
    assert fetch._where_it_starts(released, Response, 0) == (0, None)  # type: ignore[arg-type]


def test_a_server_that_never_stops_sending_is_left_soon_after_the_size_that_was_published(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHARDGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "PIECE_BYTES", 4096)
    released = server.released(10_000)
    with pytest.raises(DownloadFailed, match="more than 10,000 bytes"):
        fetch.fetch(released, read_weights)
    assert cached_path(released).with_name("nyu.h5.part").stat().st_size < 20_000


@pytest.mark.parametrize(
    ("start", "end", "is_followed"),
    [
        ("https://example.org/a", "https://example.org/b", True),
        ("https://example.org/a", "http://example.org/b", False),
        ("https://example.org/a", "ftp://example.org/b", False),
        ("http://example.org/a", "http://example.org/b", True),
    ],
)
def test_a_redirection_never_leaves_https(start: str, end: str, *, is_followed: bool) -> None:
    handler, request = fetch._NoDowngrade(), urllib.request.Request(start)  # noqa: S310 - never opened
    if is_followed:
        assert handler.redirect_request(request, None, 302, "", Message(), end) is not None
    else:
        with pytest.raises(OSError, match="redirected from https"):
            handler.redirect_request(request, None, 302, "", Message(), end)


def test_workers_import_nothing_from_the_folder_that_the_command_was_typed_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from shardgen.launch import local  # noqa: PLC0415 - its Popen is replaced

    started: list[list[str]] = []

    class Popen:
        def __init__(self, command: list[str], **_options: object) -> None:
            started.append(command)

    monkeypatch.setattr("shardgen.launch.local.subprocess.Popen", Popen)
    local.start_process(["worker"], {})
    assert started[0][1] == "-P"
