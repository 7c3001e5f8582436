from __future__ import annotations

import csv
import errno
import fcntl
import io
import json
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from shlex import quote
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardgen.artifacts.folder_store import FolderStore
from shardgen.dataset.export import driver, sources
from shardgen.dataset.export.base import ExportSample
from shardgen.dataset.export.destination import Destination, Target
from shardgen.dataset.export.driver import ExportRequest, ExportResult, export
from shardgen.dataset.export.files import FileNames
from shardgen.dataset.export.sources import Found, RunSource, SampleSource, ZipSource
from shardgen.dataset.export.splits import Split
from shardgen.dataset.export.webdataset import TarWriter
from shardgen.dataset.labels import rows_of
from shardgen.dataset.merge import MergeInputs, merge
from shardgen.dataset.metadata import Metadata
from shardgen.domain.identifiers import SampleIndex
from shardgen.domain.plan import Block, Plan
from shardgen.domain.receipt import Facts
from shardgen.domain.steps import ExportStep, OnStep, Step, ignore_step
from shardgen.errors import (
    ArtifactCorrupt,
    InvalidSettings,
    PlanConflict,
    ReceiptConflict,
    RunHasHoles,
    RunIncomplete,
    ShardgenError,
    StorageFailed,
    TransientError,
)
from shardgen.recipes.base import csv_field
from shardgen.recipes.composites.plan import Flips
from shardgen.settings.settings import CardTable
from shardgen.storage.files import DiskFiles, make_folders
from tests.artifacts.recorded_files import RecordedFiles
from tests.dataset.made_runs import MadeRecipe, MadeRun, image, make_run
from tests.plans import at_random, changed, grown, make_plan
from tests.text_recipe import TextDocument, TextRecipe, TextSources

PLAN = make_plan(backgrounds=5, foregrounds=6, grid=(2, 2), shard_size=50, batch=8, slice_batches=4)
DEAD = (3, 17)
TARS, FILES = ExportRequest(format="webdataset", shard_size=20), ExportRequest(format="files")
SPLIT = Split(parts=(60, 20, 20))
REQUESTS = {
    "tars": TARS,
    "split tars": replace(TARS, split=SPLIT),
    "files": FILES,
    "split files": replace(FILES, split=replace(SPLIT, by="foregrounds")),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeRun:
    return make_run(PLAN, tmp_path_factory.mktemp("made") / "artifacts", dead=DEAD, per_artifact=3)


@pytest.fixture(scope="module")
def merged(made: MadeRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return merge(inputs_of(made), tmp_path_factory.mktemp("merged") / "made.zip").path


def inputs_of(run: MadeRun, **options: object) -> MergeInputs:
    inputs = MergeInputs(recipe=MadeRecipe(run.plan), source=run, store=run.store, allow_dead_letters=True)
    return replace(inputs, **options)  # type: ignore[arg-type]


def exported(
    subject: MadeRun | SampleSource,
    out: Path,
    request: ExportRequest = TARS,
    *,
    files: DiskFiles | None = None,
    on_step: OnStep = ignore_step,
    on_progress: Callable[[int, int | None, int], None] = lambda _done, _planned, _there: None,
) -> ExportResult:
    source = RunSource(inputs_of(subject)) if isinstance(subject, MadeRun) else subject
    return export(source, out, request, files=files, on_step=on_step, on_progress=on_progress)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def members(*tars: Path) -> list[tuple[str, bytes]]:
    found = []
    for path in tars:
        with tarfile.open(path) as archive:
            for info in archive:
                content = archive.extractfile(info)
                assert content is not None
                assert (info.mtime, info.uid, info.gid, info.mode) == (0, 0, 0, 0o644)
                found.append((info.name, content.read()))
    return found


def test_tars_hold_every_stored_sample_with_its_labels_and_are_what_tarfile_writes(
    made: MadeRun, tmp_path: Path
) -> None:
    result = exported(made, tmp_path / "out")
    tars = sorted((tmp_path / "out").glob("*.tar"))
    assert [path.name for path in tars] == [f"data-{number:06d}.tar" for number in range(6)]
    stored = [sample for sample in range(PLAN.samples) if sample not in DEAD]
    found = members(*tars)
    assert [name for name, _ in found] == [
        f"{sample:07d}.{kind}" for sample in stored for kind in ("fgbg.jpg", "mask.png", "depth.jpg", "json")
    ]
    files = dict(found)
    for sample in stored:
        assert files[f"{sample:07d}.mask.png"] == image("mask", sample)
        assert json.loads(files[f"{sample:07d}.json"])["sample"] == sample
    labels = json.loads(files["0000005.json"])
    assert labels["background"] == "bg_000.jpg"
    assert labels["foreground"] == "fg_001.png"
    assert list(labels) == list(MadeRecipe.label_columns)
    by_tarfile = io.BytesIO()
    with tarfile.open(fileobj=by_tarfile, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members(tars[0]):
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o644
            archive.addfile(info, io.BytesIO(content))
    assert by_tarfile.getvalue() == tars[0].read_bytes()
    (split,) = result.splits
    assert (split.name, split.samples, split.photographs, split.files) == ("data", 118, 11, 6)
    assert split.size_bytes == sum(path.stat().st_size for path in tars)
    assert (result.dropped, result.there, result.dead_letters) == (0, 0, 2)


def test_files_are_those_of_the_zip_with_its_metadata(made: MadeRun, merged: Path, tmp_path: Path) -> None:
    exported(made, tmp_path / "out", FILES)
    found = tree(tmp_path / "out")
    with zipfile.ZipFile(merged) as archive:
        expected = {
            name: archive.read(name) for name in archive.namelist() if "/" in name or name == "metadata.csv"
        }
        stats = archive.read("stats.json")
    assert found.pop("stats.json") == stats
    assert b"# Composites, masks and depth: 118 samples" in found.pop("README.md")
    assert json.loads(found.pop("export.json"))["format"] == "files"
    assert found == expected


@pytest.mark.parametrize("name", REQUESTS)
def test_a_run_and_its_zip_give_the_same_bytes_twice(
    made: MadeRun, merged: Path, tmp_path: Path, name: str
) -> None:
    exported(made, tmp_path / "run", REQUESTS[name])
    with ZipSource(merged) as source:
        exported(source, tmp_path / "zip", REQUESTS[name])
    expected = tree(tmp_path / "run")
    assert tree(tmp_path / "zip") == expected
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*0*.*")}
    again = exported(made, tmp_path / "run", REQUESTS[name])
    assert again.there == sum(split.samples for split in again.splits)
    assert tree(tmp_path / "run") == expected
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.parametrize("name", ["split tars", "split files"])
def test_no_photograph_is_in_two_splits_and_what_mixes_them_is_dropped(
    made: MadeRun, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "out"
    result = exported(made, out, REQUESTS[name])
    found: dict[str, set[int]] = {}
    for split in ("train", "validation", "test"):
        if name == "split tars":
            names = [one for one, _ in members(*out.glob(f"{split}-*.tar"))]
        else:
            names = [path.name for path in (out / split).rglob("*.png")]
        found[split] = {int(one.partition(".")[0]) for one in names}
    recipe, by = MadeRecipe(PLAN), ("foregrounds" if name == "split files" else "")
    seen = {
        split: {one for sample in samples for one in recipe.sources_of(sample) if one.startswith(by)}  # type: ignore[arg-type]
        for split, samples in found.items()
    }
    table = [line.rsplit(",", 2) for line in (out / "splits.csv").read_text().splitlines()[1:]]
    assert {one: split for one, _, split in table}.items() >= {
        (one, split) for split, names_ in seen.items() for one in names_
    }
    assert not seen["train"] & seen["validation"]
    assert not (seen["train"] | seen["validation"]) & seen["test"]
    counts = {split.name: split.samples for split in result.splits}
    assert counts == {split: len(samples) for split, samples in found.items()}
    assert sum(counts.values()) + result.dropped == PLAN.samples - len(DEAD)
    assert (result.dropped == 0) == (name == "split files")
    assert (f"| train | {counts['train']} |") in (out / "README.md").read_text()


def test_shards_that_are_there_are_not_read_again(made: MadeRun, tmp_path: Path) -> None:
    exported(made, tmp_path / "out")
    expected = tree(tmp_path / "out")
    (tmp_path / "out" / "data-000002.tar").unlink()
    (tmp_path / "out" / "README.md").unlink()
    (tmp_path / "out" / ".data-000002.tar.0123abcd.part").write_bytes(b"half")
    read: list[str] = []

    class Watched(type(made.store)):  # type: ignore[misc]
        def fill(self, ref, buffer):  # type: ignore[no-untyped-def]
            read.append(ref.name)
            super().fill(ref, buffer)

    told: list[tuple[int, int | None, int]] = []
    source = RunSource(inputs_of(made, store=Watched(made.store.root)))
    result = exported(source, tmp_path / "out", on_progress=lambda *numbers: told.append(numbers))
    assert tree(tmp_path / "out") == expected
    assert result.there == 98
    assert told[1] == (98, 118, 98)
    assert told[-1] == (118, 118, 98)
    assert 1 <= len(read) <= 3


def test_plain_files_are_compared_and_replaced(made: MadeRun, tmp_path: Path) -> None:
    exported(made, tmp_path / "out", FILES)
    expected = tree(tmp_path / "out")
    name = "mask/00000/0000030.png"
    size = len(expected[name])
    (tmp_path / "out" / name).write_bytes(bytes(size))  # what a power cut may leave
    (tmp_path / "out" / "depth/00000/0000031.jpg").unlink()
    link = tmp_path / "out" / "fgbg/00000/0000032.jpg"
    link.rename(tmp_path / "elsewhere")
    link.symlink_to(tmp_path / "elsewhere")
    result = exported(made, tmp_path / "out", FILES)
    assert tree(tmp_path / "out") == expected
    assert result.there == 118 - 3
    assert not link.is_symlink()


def test_samples_are_passed_on_before_the_next_artifacts_are_read(
    made: MadeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardgen.dataset.bodies.PIECE_BYTES", 10_000)
    read: list[str] = []

    class Watched(type(made.store)):  # type: ignore[misc]
        def fill(self, ref, buffer):  # type: ignore[no-untyped-def]
            read.append(ref.name)
            super().fill(ref, buffer)

    source = RunSource(inputs_of(made, store=Watched(made.store.root)))
    found = source.samples(lambda numbers: numbers >= 0)
    assert next(found).number == 0
    assert len(read) == 2
    assert sum(1 for _ in found) == 117


@contextmanager
def stopped_at(step: Step, nth: int) -> Iterator[OnStep]:
    passed = 0

    def on_step(one: Step) -> None:
        nonlocal passed
        passed += one is step
        if one is step and passed == nth:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        yield on_step


@pytest.mark.parametrize("name", ["split tars", "split files"])
@pytest.mark.parametrize("step", ExportStep, ids=str)
def test_an_export_that_was_stopped_anywhere_goes_on_to_the_same_bytes(
    made: MadeRun, tmp_path: Path, name: str, step: ExportStep
) -> None:
    request = REQUESTS[name]
    steps: list[Step] = []
    exported(made, tmp_path / "whole", request, on_step=steps.append)
    if step not in steps:
        assert step in (ExportStep.SYNCED, ExportStep.PUBLISHED, ExportStep.FILES_WRITTEN)
        return
    expected = tree(tmp_path / "whole")
    with stopped_at(step, 1 + steps.count(step) // 2) as on_step:
        exported(made, tmp_path / "out", request, on_step=on_step)
    left = tree(tmp_path / "out")
    assert left.items() <= expected.items()
    assert ("README.md" in left) == (step is ExportStep.DESCRIBED)
    exported(made, tmp_path / "out", request)
    assert tree(tmp_path / "out") == expected


@pytest.mark.parametrize("request_", [TARS, FILES], ids=["tars", "files"])
@pytest.mark.parametrize("call", ["create", "write", "fsync", "rename"])
def test_a_disk_that_fails_leaves_nothing_half_done(
    made: MadeRun, tmp_path: Path, request_: ExportRequest, call: str
) -> None:
    exported(made, tmp_path / "whole", request_)
    expected = tree(tmp_path / "whole")
    for after in (0, 2):
        with pytest.raises(StorageFailed):
            exported(
                made,
                tmp_path / "out",
                request_,
                files=RecordedFiles(fail=call, errno=errno.ENOSPC, after=after),
            )
        if (tmp_path / "out").exists():
            assert tree(tmp_path / "out").items() <= expected.items()
    exported(made, tmp_path / "out", request_)
    assert tree(tmp_path / "out") == expected


def test_a_tar_that_cannot_be_written_on_is_removed(
    made: MadeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = TarWriter.add

    def full(self: TarWriter, sample: ExportSample) -> None:
        if sample.number == 47:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        add(self, sample)

    monkeypatch.setattr(TarWriter, "add", full)
    with pytest.raises(StorageFailed, match=r"data-000002\.tar.*No space left"):
        exported(made, tmp_path / "out")
    assert set(tree(tmp_path / "out")) == {"export.json", "data-000000.tar", "data-000001.tar"}


def test_every_shard_is_synced_before_it_has_its_name(made: MadeRun, tmp_path: Path) -> None:
    files = RecordedFiles()
    exported(made, tmp_path / "out", replace(TARS, shard_size=100), files=files)
    calls = [call for call in files.calls if call.split(" ")[0] in ("fsync", "rename", "fsync_folder")]
    first = calls.index("rename data-000000.tar")
    assert calls[first - 1].startswith("fsync ")
    assert calls[first + 1] == "fsync_folder out"
    assert calls[-2:] == ["rename README.md", "fsync_folder out"]


@pytest.mark.parametrize("request_", [TARS, FILES], ids=["tars", "files"])
def test_too_little_disk_is_said_before_anything_is_written(
    made: MadeRun, tmp_path: Path, request_: ExportRequest
) -> None:
    class FullDisk(RecordedFiles):
        free = 5000

        def free_bytes(self, folder: Path) -> int:
            assert folder in (tmp_path, tmp_path / "out")
            return self.free

    with pytest.raises(
        StorageFailed, match=r"needs [\d,]+ bytes free on its disk, there are 5,000"
    ) as raised:
        exported(made, tmp_path / "out", request_, files=FullDisk())
    assert not (tmp_path / "out").exists()
    needed = int(str(raised.value).split("needs ")[1].split(" ")[0].replace(",", ""))
    result = exported(made, tmp_path / "out", request_)
    taken = sum(path.stat().st_blocks * 512 for path in (tmp_path / "out").rglob("*"))
    assert sum(split.size_bytes for split in result.splits) <= taken <= needed
    almost = FullDisk()
    almost.free = needed - taken // 2  # what is there needs no room any more
    exported(made, tmp_path / "out", request_, files=almost)


FOREIGN: dict[str, Callable[[Path], object]] = {
    "a holiday": lambda out: (out / "holiday.jpg").write_bytes(b"sun"),
    "another program's export.json": lambda out: (out / "export.json").write_text('{"mine": 1}'),
    "no JSON": lambda out: (out / "export.json").write_bytes(b"{"),
    "a list": lambda out: (out / "export.json").write_bytes(b"[1]"),
    "a large one": lambda out: (out / "export.json").write_bytes(b" " * 100_000),
    "a link": lambda out: (out / "export.json").symlink_to("/etc/hostname"),
    "a hidden file": lambda out: (out / ".export.json.mine").write_bytes(b"mine"),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_folder_of_somebody_else_is_not_written_to(made: MadeRun, tmp_path: Path, what: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    FOREIGN[what](out)
    before = {path.name for path in out.iterdir()}
    with pytest.raises(ShardgenError, match=str(out)) as raised:
        exported(made, out)
    assert raised.value.exit_code in (10, 21)
    assert raised.value.hint
    assert {path.name for path in out.iterdir()} == before


@pytest.mark.parametrize("what", ["file", "no folder", "link to nothing"])
def test_a_path_that_is_no_folder_is_refused(made: MadeRun, tmp_path: Path, what: str) -> None:
    out = tmp_path / "out"
    if what == "file":
        out.write_bytes(b"mine")
    elif what == "link to nothing":
        out.symlink_to(tmp_path / "gone")
    else:
        out = tmp_path / "no" / "such" / "out"
    with pytest.raises(ShardgenError, match=str(tmp_path)) as raised:
        exported(made, out)
    assert raised.value.exit_code == 11
    assert not (tmp_path / "no").exists()


def test_another_export_is_not_mixed_with_this_one(made: MadeRun, tmp_path: Path) -> None:
    exported(made, tmp_path / "out")
    expected = tree(tmp_path / "out")
    others: dict[str, tuple[MadeRun | SampleSource, ExportRequest]] = {
        r"format \"webdataset\", not \"files\"": (made, FILES),
        "shard_size 20, not 30": (made, replace(TARS, shard_size=30)),
        "split none, not": (made, replace(TARS, split=SPLIT)),
        "with other samples left out": (
            RunSource(inputs_of(made, exclude=frozenset({"foregrounds/fg_000.png"}))),
            TARS,
        ),
    }
    for says, (subject, request) in others.items():
        with pytest.raises(PlanConflict, match=f"out: holds another export: .*{says}") as raised:
            exported(subject, tmp_path / "out", request)
        assert f"rm -r {tmp_path / 'out'}" in raised.value.hint
        assert ("--partial goes on only until" in raised.value.hint) == ("left out" in says)
    other = make_run(replace(PLAN, shards=replace(PLAN.shards, batch=9)), tmp_path / "others", dead=DEAD)
    with pytest.raises(PlanConflict, match="of another plan"):
        exported(other, tmp_path / "out")
    alive = make_run(PLAN, tmp_path / "alive", dead=DEAD[:1])
    with pytest.raises(PlanConflict, match="with other dead letters"):
        exported(alive, tmp_path / "out")
    assert tree(tmp_path / "out") == expected
    request = json.loads(expected["export.json"])
    for more, says in (
        ({"extra": None}, "with extra none, not none"),
        ({"version": 2, "extra": 1}, "of another version"),
    ):
        (tmp_path / "out" / "export.json").write_text(json.dumps(request | more))
        with pytest.raises(PlanConflict, match=f"out: holds another export: {says}"):
            exported(made, tmp_path / "out")


def test_a_photograph_that_is_excluded_is_not_named_and_moves_no_other(made: MadeRun, tmp_path: Path) -> None:
    gone = "foregrounds/fg_001.png"
    request = replace(TARS, split=Split(parts=(1, 1), by="foregrounds"))
    whole = exported(made, tmp_path / "whole", request)
    result = exported(RunSource(inputs_of(made, exclude=frozenset({gone}))), tmp_path / "out", request)
    before, after = ((tmp_path / one / "splits.csv").read_text() for one in ("whole", "out"))
    assert gone in before
    assert after == "".join(line for line in before.splitlines(keepends=True) if gone not in line)
    assert sum(split.photographs for split in whole.splits) == 6
    assert sum(split.photographs for split in result.splits) == 5
    unsplit = exported(RunSource(inputs_of(made, exclude=frozenset({gone}))), tmp_path / "unsplit")
    assert unsplit.splits[0].photographs == 11 - 1
    assert not [name for name, data in tree(tmp_path / "out").items() if b"fg_001" in data]


def test_the_users_own_words_stay_as_they_are_and_the_title_comes_first(
    made: MadeRun, tmp_path: Path
) -> None:
    headings = ("Layout", "Counts", "Reading it in Python")
    own = "".join(f"## {one}\n\nMine.\n\n" for one in headings) + "- `contact_sheet.png`: mine"
    exported(RunSource(inputs_of(made, card=CardTable(text=own))), tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    _, body = text.removeprefix("---\n").split("\n---\n", 1)
    assert body.startswith("\n# Composites, masks and depth: 118 samples\n")
    front, rest = body.split("\n## Files of this export\n")
    assert front.endswith(f"\n{own}\n")
    assert rest.index("\n## Counts\n") < rest.index("\n## Layout of the zip that `shardgen merge` writes\n")
    assert "## Reading it" not in rest


def test_what_lies_in_the_place_of_a_shard_is_not_replaced(made: MadeRun, tmp_path: Path) -> None:
    exported(made, tmp_path / "out")
    (tmp_path / "out" / "data-000001.tar").unlink()
    (tmp_path / "out" / "data-000001.tar").mkdir()
    with pytest.raises(PlanConflict, match=r"data-000001\.tar: is in the way"):
        exported(made, tmp_path / "out")


IN_THE_WAY = {
    "a link to a folder": "mask",
    "a link below": "depth/00000",
    "a file": "mask",
    "an empty folder": "fgbg/00000/0000030.jpg",
    "a full folder": "fgbg/00000/0000031.jpg",
    "a folder of the table's name": "metadata.csv",
    "a staged folder": ".files.0123abcd.part",
}


@pytest.mark.parametrize("what", IN_THE_WAY)
def test_what_lies_in_the_place_of_a_plain_file_or_its_folder_is_not_touched(
    made: MadeRun, tmp_path: Path, what: str
) -> None:
    out, others = tmp_path / "out", tmp_path / "others"
    exported(made, out, FILES)
    path = out / IN_THE_WAY[what]
    if path.exists():
        path.rename(others)
    if what.startswith("a link"):
        path.symlink_to(others)
        for one in filter(Path.is_file, others.rglob("*")):
            one.write_bytes(b"somebody else's")
    elif what == "a file":
        path.write_bytes(b"mine")
    else:
        path.mkdir()
    if what == "a full folder":
        (path / "mine").write_bytes(b"mine")
    before = tree(tmp_path)
    with pytest.raises(PlanConflict) as raised:
        exported(made, out, FILES)
    assert str(raised.value) == f"{path}: is in the way of this export"
    assert raised.value.hint == f"move {path} away, and export again"
    assert tree(tmp_path) == before


def test_the_folder_of_a_split_is_not_followed_as_a_link(made: MadeRun, tmp_path: Path) -> None:
    out, others = tmp_path / "out", tmp_path / "others"
    exported(made, out, REQUESTS["split files"])
    (out / "train").rename(others)
    (out / "train").symlink_to(others)
    (others / ".metadata.csv.0123abcd.part").write_bytes(b"mine")
    before = tree(others)
    with pytest.raises(PlanConflict, match="train: is in the way"):
        exported(made, out, REQUESTS["split files"])
    assert tree(others) == before


def test_too_few_inodes_are_said_before_anything_is_written(made: MadeRun, tmp_path: Path) -> None:
    class FewFiles(RecordedFiles):
        free: int | None = 353

        def free_files(self, folder: Path) -> int | None:
            assert folder in (tmp_path, tmp_path / "out")
            return self.free

    few = FewFiles()
    with pytest.raises(StorageFailed, match="needs 354 more files on its disk, which has room for 353"):
        exported(made, tmp_path / "out", FILES, files=few)
    assert not (tmp_path / "out").exists()
    exported(made, tmp_path / "tars", files=few)
    few.free = 354
    exported(made, tmp_path / "out", FILES, files=few)
    few.free = 1  # what is there needs none any more
    exported(made, tmp_path / "out", FILES, files=few)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:1000],
        lambda data: data[:10_240],
        lambda data: data[:-512],
        lambda data: bytes(len(data)),
        lambda data: data[:0],
    ],
    ids=["cut in a block", "cut behind a record", "cut in its end", "zeros", "nothing"],
)
def test_a_shard_that_was_cut_off_is_made_again(
    made: MadeRun, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    exported(made, tmp_path / "out")
    expected = tree(tmp_path / "out")
    path = tmp_path / "out" / "data-000003.tar"
    path.write_bytes(damage(path.read_bytes()))
    result = exported(made, tmp_path / "out")
    assert tree(tmp_path / "out") == expected
    assert result.there == 118 - 20


@pytest.mark.parametrize(
    "stray", ["data-000777.tar", "data-0000001.tar", "data-000001 (copy).tar", "data-.tar", "data-a\nb.tar"]
)
def test_what_readers_would_take_for_a_shard_is_refused(made: MadeRun, tmp_path: Path, stray: str) -> None:
    out = tmp_path / "out"
    exported(made, out)
    (out / "data-000001.tar").unlink()
    (out / stray).write_bytes(b"x")
    with pytest.raises(PlanConflict, match="is in the way of this export") as raised:
        exported(made, out)
    assert raised.value.hint == f"move {quote(str(out / stray))} away, and export again"
    assert not (out / "data-000001.tar").exists()


def test_a_link_in_the_place_of_a_shard_is_not_believed(made: MadeRun, tmp_path: Path) -> None:
    exported(made, tmp_path / "out")
    link = tmp_path / "out" / "data-000001.tar"
    link.rename(tmp_path / "elsewhere")
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PlanConflict, match=r"data-000001\.tar: is in the way"):
        exported(made, tmp_path / "out")


@pytest.mark.parametrize("name", ["README.md", "stats.json", "splits.csv"])
def test_a_folder_in_the_place_of_a_file_is_seen_before_the_work(
    made: MadeRun, tmp_path: Path, name: str
) -> None:
    out, request = tmp_path / "out", REQUESTS["split tars"]
    exported(made, out, request)
    (out / "train-000000.tar").unlink()
    (out / name).unlink()
    (out / name).mkdir()
    with pytest.raises(PlanConflict, match=f"{name}: is in the way") as raised:
        exported(made, out, request)
    assert raised.value.hint == f"move {out / name} away, and export again"
    assert not (out / "train-000000.tar").exists()


@pytest.mark.parametrize("call", ["create", "write", "fsync", "link"])
def test_of_two_exports_that_begin_at_once_none_blames_the_disk(
    made: MadeRun, tmp_path: Path, call: str
) -> None:
    class Overtaken(RecordedFiles):
        is_overtaken = False

        def _note(self, one: str, subject: object) -> None:
            super()._note(one, subject)
            # Of the first call, before anything is done, and for a new file when it is there.
            if one == call and not self.is_overtaken:
                self.is_overtaken = True
                exported(made, tmp_path / "out")

    result = exported(made, tmp_path / "out", files=Overtaken())
    assert result.there == 118
    assert not [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_a_folder_is_looked_through_once(
    made: MadeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[Path] = []
    kind = driver.FORMATS["webdataset"]

    def look(target: Target) -> Destination:
        looked.append(target.out)
        return kind.destination(target)

    monkeypatch.setitem(driver.FORMATS, "webdataset", replace(kind, destination=look))
    for times in (1, 2):
        exported(made, tmp_path / "out")
        assert len(looked) == times


def test_files_are_synced_before_the_tables_that_name_them(
    made: MadeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = RecordedFiles()
    monkeypatch.setattr("os.sync", lambda: files.calls.append("sync"))
    exported(made, tmp_path / "out", FILES, files=files)
    last = max(place for place, call in enumerate(files.calls) if call.endswith((".jpg", ".png")))
    assert last < files.calls.index("sync") < files.calls.index("rename metadata.csv")


def test_two_exports_to_one_folder_do_not_write_at_once(made: MadeRun, tmp_path: Path) -> None:
    exported(made, tmp_path / "out")
    with (tmp_path / "out" / "export.json").open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(TransientError, match="another command is exporting"):
            exported(made, tmp_path / "out")
    exported(made, tmp_path / "out")


def test_a_split_that_would_be_empty_is_refused(made: MadeRun, tmp_path: Path) -> None:
    request = replace(TARS, split=Split(parts=(98, 1, 1)))
    says = r"\(backgrounds: 5 train, 0 validation, 0 test; foregrounds: 6 train, 0 validation, 0 test\)"
    with pytest.raises(
        InvalidSettings, match=f"no sample would be in validation or test: .*{says}"
    ) as raised:
        exported(made, tmp_path / "out", request)
    assert "--split" in raised.value.hint
    assert not (tmp_path / "out").exists()


def test_pending_samples_and_dead_letters_are_refused_as_by_a_merge(made: MadeRun, tmp_path: Path) -> None:
    with pytest.raises(RunHasHoles, match="2 of 120 samples are dead letters"):
        RunSource(inputs_of(made, allow_dead_letters=False))
    half = MadeRun(PLAN, made.store, made.rows[:7])
    with pytest.raises(RunIncomplete, match="samples are pending"):
        RunSource(inputs_of(half))
    exclude = frozenset({"foregrounds/fg_001.png"})
    inputs = inputs_of(half, partial=True, exclude=exclude)
    merged = merge(inputs, tmp_path / "half.zip").path
    request = replace(TARS, split=Split(parts=(1, 1), by="foregrounds"))
    exported(RunSource(inputs), tmp_path / "run", request)
    with ZipSource(merged) as source:
        assert source.selection.kinds == {"pending", "excluded"}
        result = exported(source, tmp_path / "zip", request)
    assert tree(tmp_path / "run") == tree(tmp_path / "zip")
    recipe = MadeRecipe(PLAN)
    names = members(*(tmp_path / "run").glob("*.tar"))
    assert not any(exclude & recipe.sources_of(int(one.partition(".")[0])) for one, _ in names)  # type: ignore[arg-type]
    assert sum(split.samples for split in result.splits) == len(names) // 4


PLANS: dict[str, Plan] = {
    "people": changed(PLAN, compose=at_random(2, people=(1, 3))),
    "mirrored": make_plan(
        backgrounds=2, foregrounds=2, grid=(2, 1), flips=Flips.BACKGROUNDS, batch=8, slice_batches=4
    ),
    "grown": grown(PLAN, (2, 1)),
    "no depth": changed(PLAN, depth=None),
}


@pytest.mark.parametrize(("name", "request_"), [*((name, TARS) for name in PLANS), ("people", FILES)])
def test_every_recipe_is_exported_from_run_and_zip_alike(
    tmp_path: Path, name: str, request_: ExportRequest
) -> None:
    run = make_run(PLANS[name], tmp_path / "artifacts", dead=[5], per_artifact=2)
    merged = merge(inputs_of(run), tmp_path / "made.zip").path
    request = replace(request_, split=Split(parts=(1, 1), by="backgrounds"))
    exported(run, tmp_path / "run", request)
    with ZipSource(merged) as source:
        exported(source, tmp_path / "zip", request)
    found = tree(tmp_path / "run")
    assert found == tree(tmp_path / "zip")
    assert len(found) >= 6
    if name == "people" and request_ is TARS:
        labels = [
            json.loads(data) for one, data in members(tmp_path / "run" / "train-000000.tar") if "json" in one
        ]
        assert {type(one["foreground"]) for one in labels} == {list}
        assert len({len(one["output_x"]) for one in labels}) > 1


@pytest.mark.parametrize("size", [1, 1000])
def test_pieces_of_any_size_give_the_same_bytes(
    made: MadeRun, merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    exported(made, tmp_path / "whole")
    monkeypatch.setattr(sources, "_BYTES_AT_ONCE", size)
    monkeypatch.setattr(sources, "_NUMBERS_AT_ONCE", size)
    with monkeypatch.context() as patched:
        patched.setattr("shardgen.dataset.bodies.PIECE_BYTES", size)
        exported(made, tmp_path / "run")
    with ZipSource(merged) as source:
        exported(source, tmp_path / "zip")
    assert tree(tmp_path / "run") == tree(tmp_path / "zip") == tree(tmp_path / "whole")


def test_a_damaged_artifact_stops_the_export_before_its_shard_has_a_name(
    made: MadeRun, tmp_path: Path
) -> None:
    run = make_run(PLAN, tmp_path / "artifacts", dead=DEAD)
    path = run.store.root / run.rows[5].artifact.name
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactCorrupt, match=run.rows[5].artifact.name):
        exported(run, tmp_path / "out")
    exported(made, tmp_path / "whole")
    left, expected = tree(tmp_path / "out"), tree(tmp_path / "whole")
    assert left.items() <= expected.items()
    assert "data-000001.tar" not in left


@pytest.mark.parametrize("where", ["fgbg/00000/0000050.jpg", "metadata.csv"])
def test_a_damaged_zip_is_named(merged: Path, tmp_path: Path, where: str) -> None:
    data = bytearray(merged.read_bytes())
    with zipfile.ZipFile(merged) as archive:
        info = archive.getinfo(where)
        data[info.header_offset + 80 + info.file_size // 3] ^= 1
    damaged = tmp_path / "damaged.zip"
    damaged.write_bytes(data)
    with pytest.raises(ArtifactCorrupt, match=r"damaged\.zip") as raised, ZipSource(damaged) as source:
        exported(source, tmp_path / "out")
    assert "shardgen verify" in raised.value.hint
    assert "README.md" not in tree(tmp_path / "out")


def with_metadata(merged: Path, changed: Path, change: Callable[[bytes], bytes]) -> Path:
    """A copy of a zip with another `metadata.csv` as long as its own, of which the CRC is right."""
    with zipfile.ZipFile(merged) as archive:
        info, content = archive.getinfo("metadata.csv"), archive.read("metadata.csv")
    other = change(content)
    assert other != content
    assert len(other) == len(content)
    data = bytearray(merged.read_bytes())
    data[info.header_offset + 42 : info.header_offset + 42 + len(other)] = other
    before, after = (number.to_bytes(4, "little") for number in (info.CRC, zlib.crc32(other)))
    changed.write_bytes(bytes(data).replace(before, after))
    with zipfile.ZipFile(changed) as archive:
        assert archive.read("metadata.csv") == other
    return changed


FOREIGN_ROWS: dict[str, tuple[bytes, bytes]] = {
    "another file": (b"\nfgbg/00000/0000005.jpg,", b"\nfgbg/../../../fgbg.jpg,"),
    "another sample": (b"0000005.jpg,5,", b"0000005.jpg,6,"),
}


@pytest.mark.parametrize("what", FOREIGN_ROWS)
@pytest.mark.parametrize("request_", [TARS, FILES], ids=["tars", "files"])
def test_a_row_of_a_zip_that_names_other_files_is_refused(
    merged: Path, tmp_path: Path, request_: ExportRequest, what: str
) -> None:
    changed = with_metadata(merged, tmp_path / "it.zip", lambda data: data.replace(*FOREIGN_ROWS[what], 1))
    with ZipSource(changed) as source, pytest.raises(ArtifactCorrupt, match="its row of sample 5 ") as raised:
        exported(source, tmp_path / "out", request_)
    assert raised.value.hint == f"shardgen verify {changed}"


def test_a_zip_with_more_rows_than_samples_is_refused(merged: Path, tmp_path: Path) -> None:
    changed = with_metadata(merged, tmp_path / "it.zip", lambda data: data[:-2] + b"\n\n")
    with ZipSource(changed) as source, pytest.raises(ArtifactCorrupt, match="has too many rows"):
        exported(source, tmp_path / "out")


@pytest.mark.parametrize("request_", [TARS, FILES], ids=["tars", "files"])
def test_receipts_that_change_meanwhile_are_noticed(tmp_path: Path, request_: ExportRequest) -> None:
    run = make_run(PLAN, tmp_path / "artifacts")
    source = RunSource(inputs_of(run))

    def requeue(step: Step) -> None:
        if step is ExportStep.REQUESTED:
            del run.rows[4]

    with pytest.raises(ReceiptConflict, match="changed during the export"):
        exported(source, tmp_path / "out", request_, on_step=requeue)
    found = tree(tmp_path / "out")
    assert "README.md" not in found
    assert {one for one in found if one.endswith(".tar")} <= {"data-000000.tar"}


class NamedRecipe(TextRecipe):
    """Lines that are names of pictures."""

    label_columns: ClassVar[tuple[str, ...]] = ("sample", "name")
    fact_columns: ClassVar[tuple[str, ...]] = ()
    text_columns: ClassVar[frozenset[str]] = frozenset({"name"})
    name_column: ClassVar[str] = "name"

    def label_rows(self, samples: range, *, tail: str, without: Container[int], facts: Facts | None) -> str:
        del facts
        rows = (
            f"{one},{csv_field(self.line(SampleIndex(one)))}{tail}" for one in samples if one not in without
        )
        return "".join(rows)


NAMES = {
    "a/plain.jpg": "a/plain",
    'a/with, "comma".png': 'a/with, "comma"',
    "b/twice.jpg": "b/twice.jpg",
    "b/twice.png": "b/twice.png",
    "b/twice.jpg.webp": "b/twice.jpg.webp",  # without its suffix it would be the first one
    "b/twice.b.webp": "b/twice.b",
    "c/twice.png": "c/twice",
    ".hidden.png": ".hidden",
    "Ž.jpeg": "Ž",
}


def named_plan(names: Sequence[str]) -> Plan:
    document = TextDocument(times=1)
    sources = TextSources(lines=tuple(names), sha256="0" * 64)
    return replace(
        PLAN, recipe=document, outputs=document.outputs, blocks=(Block(samples=len(names), sources=sources),)
    )


def file_names(names: Sequence[str]) -> list[str]:
    """Of the first output, by the sample."""
    recipe = NamedRecipe(named_plan(names))
    found = FileNames(recipe, metadata := Metadata(recipe))
    rows = metadata.rows(recipe.label_rows(range(len(names)), tail=",0,0\n", without=(), facts=None).encode())
    of_each = []
    for number, row in enumerate(rows_of([rows])):
        of_it, there = found.of(Found(number, [], row))
        fields = next(csv.reader(io.StringIO(there.decode(), newline="")))
        assert fields == [*of_it, str(number), names[number]]
        of_each.append(of_it[0])
    return of_each


LONG = "l" * 251
RULES: dict[str, dict[str, str]] = {
    "line ends": {
        f"a{end}b.{suffix}": f"a{end}b.{suffix}" if end in "\n\u2028" else f"a{end}b"
        for end in "\n\r\v\x1c\x85\u2028"
        for suffix in (("jpg", "png") if end in "\n\u2028" else ("jpg",))
    },
    "a folder": {"a.txt/x.png": "a.txt/x", "a.png": "a.png", "b/a.png": "b/a"},
    "a folder of folders": {
        "a.txt/b.txt/x.png": "a.txt/b.txt/x",
        "a.jpg": "a.jpg",
        "a.txt/b.jpg": "a.txt/b.jpg",
    },
    "folders for both": {
        "a.txt/x.png": "a.txt/x",
        "a.png.txt/x.png": "a.png.txt/x",
        "a.png": "numbered/00000/0000002",
    },
    "too long": {
        f"{LONG}.jpg": "numbered/00000/0000000",
        f"{LONG}.png": "numbered/00000/0000001",
        f"b/{LONG}.jpg": f"b/{LONG}",
        f"{'Ž' * 126}.b": "numbered/00000/0000003",
        f"{LONG}mmmmm/x.jpg": "numbered/00000/0000004",
    },
    "numbered": {
        f"{LONG}mm.jpg": "numbered--/00000/0000000",
        "numbered/00000/0000000.jpg": "numbered/00000/0000000",
        "numbered-/00000/0000000.jpg": "numbered-/00000/0000000",
        "numbered---.jpg": "numbered---",
    },
    "a suffix alone": {"a/.png": "a/.png", "..png": ".", "b.c/none": "b.c/none", "b.txt": "b"},
}


@pytest.mark.parametrize("what", RULES)
def test_the_names_of_files_follow_these_rules(what: str) -> None:
    rules = RULES[what]
    assert file_names(list(rules)) == [f"said/{name}.txt" for name in rules.values()]


PARTS = st.sampled_from(
    [
        "a",
        "a.txt",
        "a.png",
        "a.txt.txt",
        "a.png.txt",
        "a\u2028b",
        "numbered",
        "numbered-",
        "numbered.txt",
        LONG,
    ]
)


@given(names=st.lists(st.lists(PARTS, min_size=1, max_size=3).map("/".join), min_size=1, max_size=12))
def test_no_file_has_anothers_name_or_a_folders_whatever_the_names(names: list[str]) -> None:
    found = file_names(names)
    assert len(set(found)) == len(found)
    folders = {str(folder) for name in found for folder in PurePosixPath(name).parents}
    assert not folders & set(found)
    assert all(len(part.encode()) <= 255 for name in found for part in name.split("/"))


def test_files_of_named_samples_lie_under_their_names_and_none_under_anothers(tmp_path: Path) -> None:
    plan = named_plan(list(NAMES))
    make_folders(tmp_path / "artifacts")
    run = MadeRun(plan, FolderStore(tmp_path / "artifacts"))
    for batch in range(plan.layout.batch_count):
        run.publish(range(batch, batch + 1), dead=[0], facts={})
    inputs = MergeInputs(recipe=NamedRecipe(plan), source=run, store=run.store, allow_dead_letters=True)
    for out in ("one", "one", "two"):
        exported(RunSource(inputs), tmp_path / out, FILES)
    found = tree(tmp_path / "one")
    assert found == tree(tmp_path / "two")
    for sample, name in enumerate(NAMES.values()):
        for output in ("said", "back"):
            assert found.get(f"{output}/{name}.txt") == (image(output, sample) if sample else None)
    rows = list(csv.DictReader(io.StringIO(found["metadata.csv"].decode(), newline="")))
    assert [(row["name"], row["said_path"]) for row in rows] == [
        (own, f"said/{name}.txt") for own, name in list(NAMES.items())[1:]
    ]
