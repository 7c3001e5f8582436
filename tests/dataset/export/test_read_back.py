"""Exports of real composites and pictures, read back by the libraries that they are made for."""

from __future__ import annotations

import csv
import gc
import io
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from shardgen.artifacts.archive import BatchContent
from shardgen.artifacts.folder_store import FolderStore
from shardgen.dataset.export.base import ExportSample
from shardgen.dataset.export.driver import ExportRequest, ExportResult, export
from shardgen.dataset.export.sources import RunSource, ZipSource
from shardgen.dataset.export.splits import Split
from shardgen.dataset.merge import MergeInputs, merge
from shardgen.dataset.reader import DataSet
from shardgen.domain.identifiers import BatchIndex, SampleIndex
from shardgen.domain.plan import Plan
from shardgen.domain.receipt import DeadLetter, DeadLetterReason, Facts, total_sums
from shardgen.domain.sample import member_name
from shardgen.errors import ArtifactCorrupt, PlanConflict
from shardgen.recipes.base import Recipe
from shardgen.storage.files import make_folders
from tests.dataset.export.made_samples import SEVERAL, composites, pictures
from tests.dataset.export.test_export import with_metadata
from tests.dataset.made_runs import PROVENANCE, MadeRun

SPLITS = ("train", "validation")

# These libraries leave files open, and one has an `__array__` of before numpy 2.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _their_files_are_closed() -> Iterator[None]:
    yield
    gc.collect()


@dataclass
class RealRun(MadeRun):
    """Real samples in artifacts."""

    recipe: Recipe | None = None
    samples: Mapping[int, ExportSample] = field(default_factory=dict)

    def content(self, batch: int, *, dead: Sequence[int], facts: Facts | None) -> BatchContent:
        del facts
        assert self.recipe is not None
        mine = [one for one in self.plan.layout.batch_samples(BatchIndex(batch)) if one not in dead]
        members, parts = [], []
        for number in mine:
            files = self.samples[number].files
            for output in self.plan.outputs:
                name = member_name(output, SampleIndex(number), digits=self.plan.name_digits)
                members.append((name, files[output.name]))
            parts.append({one.name: self.recipe.recount(one, files[one.name]) for one in self.plan.outputs})
        return BatchContent(
            batch=BatchIndex(batch),
            members=members,
            sums=total_sums(self.plan.outputs, parts),
            dead_letters=tuple(
                DeadLetter(sample=SampleIndex(one), reason=DeadLetterReason.COMPOSE, detail="")
                for one in self.plan.layout.batch_samples(BatchIndex(batch))
                if one in dead
            ),
            provenance=PROVENANCE,
            facts={SampleIndex(one): self._facts(one) for one in mine} if self.recipe.fact_columns else {},
        )

    def _facts(self, number: int) -> tuple[int, ...]:
        assert self.recipe is not None
        columns = [self.samples[number].labels[name] for name in self.recipe.fact_columns]
        if not self.recipe.has_several_rows:
            return tuple(columns)
        return tuple(chain.from_iterable(zip(*columns, strict=True)))


@dataclass
class Made:
    """A run, the zip of a merge, and what lies in it: by sample, the files by output, and the labels."""

    run: RealRun
    zip: Path
    files: dict[int, dict[str, bytes]]
    labels: dict[int, dict[str, str]]

    @property
    def plan(self) -> Plan:
        return self.run.plan

    def exported(self, out: Path, name: str, *, by: str | None = "backgrounds") -> ExportResult:
        split = None if by is None else Split(parts=(1, 1), by=by)
        request = ExportRequest(format=name, shard_size=7, split=split)
        source = RunSource(_inputs(self.run))
        return export(source, out, request)


def _inputs(run: RealRun) -> MergeInputs:
    assert run.recipe is not None
    return MergeInputs(recipe=run.recipe, source=run, store=run.store, allow_dead_letters=True)


def made(recipe: Recipe, samples: Sequence[ExportSample], folder: Path) -> Made:
    plan, dead = recipe.plan, [2]
    artifacts = folder / "artifacts"
    make_folders(artifacts)
    by_number = {int(one.number): one for one in samples}
    run = RealRun(plan=plan, store=FolderStore(artifacts), recipe=recipe, samples=by_number)
    for batch in range(plan.layout.batch_count):
        run.publish(range(batch, batch + 1), dead=dead)
    path = merge(_inputs(run), folder / "made.zip").path
    with zipfile.ZipFile(path) as archive:
        rows = list(csv.DictReader(io.StringIO(archive.read("metadata.csv").decode(), newline="")))
        files = {
            int(row["sample"]): {
                output.name: archive.read(row[f"{output.name}_file_name"]) for output in plan.outputs
            }
            for row in rows
        }
    assert sorted(files) == [number for number in range(plan.samples) if number not in dead]
    return Made(run=run, zip=path, files=files, labels={int(row["sample"]): row for row in rows})


@pytest.fixture(scope="module")
def one_person(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("one")
    return made(*composites(folder), folder)


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("several")
    return made(*composites(folder, SEVERAL), folder)


@pytest.fixture(scope="module")
def of_pictures(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("pictures")
    return made(*pictures(folder), folder)


@pytest.fixture(params=["one_person", "people", "of_pictures"])
def of_each(request: pytest.FixtureRequest) -> Made:
    found: Made = request.getfixturevalue(request.param)
    return found


def by_of(data: Made) -> str:
    return "pictures" if data.plan.recipe.kind == "depth" else "backgrounds"


def assert_says(found: Mapping[str, Any], label: str, text: str) -> None:
    """A label as a library gives it, and as `metadata.csv` of the zip has it."""
    value = found[label]
    if text.startswith("["):
        assert list(value) == json.loads(text)
    else:
        assert ("" if value is None else str(value)) == text


def test_webdataset_reads_tars_back(of_each: Made, tmp_path: Path) -> None:
    import webdataset  # noqa: PLC0415

    result = of_each.exported(tmp_path / "out", "webdataset", by=by_of(of_each))
    seen: set[int] = set()
    for split in result.splits:
        tars = sorted(map(str, (tmp_path / "out").glob(f"{split.name}-*.tar")))
        assert len(tars) == split.files == -(-split.samples // 7)
        read = list(webdataset.WebDataset(tars, shardshuffle=False))
        assert len(read) == split.samples
        for one in read:
            number = int(one["__key__"])
            for output in of_each.plan.outputs:
                assert one[f"{output.name}.{output.suffix}"] == of_each.files[number][output.name]
            labels = json.loads(one["json"])
            for name in of_each.run.samples[number].labels:
                assert_says(labels, name, of_each.labels[number][name])
            seen.add(number)
    assert seen == set(of_each.files)


def undecoded(rows: Any, columns: Iterable[str], datasets: ModuleType) -> Any:
    """The rows with files in the place of images."""
    for column in columns:
        rows = rows.cast_column(column, datasets.Image(decode=False))
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("name", ["webdataset", "parquet", "files", "coco"])
@pytest.mark.parametrize("is_split", [False, True])
def test_datasets_reads_every_format_back_as_the_card_says(
    one_person: Made, tmp_path: Path, datasets: ModuleType, name: str, *, is_split: bool
) -> None:
    result = one_person.exported(tmp_path / "out", name, by="backgrounds" if is_split else None)
    found = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert sorted(found) == (sorted(SPLITS) if is_split else ["train"])
    seen: set[int] = set()
    counts = {("train" if split.name == "data" else split.name): split.samples for split in result.splits}
    for split, rows in found.items():
        assert len(rows) == counts[split]
        columns = {
            one.name: f"{one.name}.{one.suffix}" if name == "webdataset" else one.name
            for one in one_person.plan.outputs
        }
        for row in undecoded(rows, columns.values(), datasets):
            labels = row["json"] if name == "webdataset" else row
            number = labels["sample"]
            for output in one_person.plan.outputs:
                image = row[columns[output.name]]
                data = image["bytes"] or Path(image["path"]).read_bytes()
                assert data == one_person.files[number][output.name]
            for label in one_person.run.samples[number].labels:
                assert_says(labels, label, one_person.labels[number][label])
            seen.add(number)
    assert seen == set(one_person.files)


@pytest.mark.slow
def test_imagefolder_reads_plain_folders_back(of_each: Made, tmp_path: Path, datasets: ModuleType) -> None:
    of_each.exported(tmp_path / "out", "files", by=by_of(of_each))
    (tmp_path / "out" / "README.md").unlink()
    found = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path / "out"), cache_dir=str(tmp_path / "cache")
    )
    seen: set[int] = set()
    for split in SPLITS:
        names = [output.name for output in of_each.plan.outputs]
        for row in undecoded(found[split], names, datasets):
            for output in of_each.plan.outputs:
                data = Path(row[output.name]["path"]).read_bytes()
                assert data == of_each.files[row["sample"]][output.name]
            seen.add(row["sample"])
    assert seen == set(of_each.files)


def test_pictures_keep_their_own_names(of_pictures: Made, tmp_path: Path) -> None:
    out = tmp_path / "out"
    of_pictures.exported(out, "files", by=None)
    for number, row in of_pictures.labels.items():
        stem = row["picture"].rpartition(".")[0]
        for output in of_pictures.plan.outputs:
            path = out / output.name / f"{stem}.{output.suffix}"
            assert path.read_bytes() == of_pictures.files[number][output.name]
    with (out / "metadata.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["picture"] for row in rows] == [row["picture"] for row in of_pictures.labels.values()]
    assert all((out / row["depth_file_name"]).is_file() for row in rows)


def test_a_zip_in_which_a_picture_is_called_otherwise_writes_nothing_elsewhere(
    of_pictures: Made, tmp_path: Path
) -> None:
    """Names come from the plan, which was checked, not from rows that anybody may have written."""
    changed = with_metadata(
        of_pictures.zip, tmp_path / "it.zip", lambda data: data.replace(b",a/plain.jpg,", b",../../p.jpg,")
    )
    (tmp_path / "in").mkdir()
    with ZipSource(changed) as source:
        export(source, tmp_path / "in/out", ExportRequest(format="files"))
    assert (tmp_path / "in/out/image/a/plain.jpg").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"in", "it.zip"}
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["out"]


def test_labels_that_do_not_read_are_told_with_a_hint(of_pictures: Made, tmp_path: Path) -> None:
    changed = with_metadata(of_pictures.zip, tmp_path / "it.zip", lambda data: data[:-2] + b"x\n")
    with ZipSource(changed) as source, pytest.raises(ArtifactCorrupt, match="height has a field") as raised:
        export(source, tmp_path / "out", ExportRequest(format="webdataset"))
    assert raised.value.hint == "shardgen verify RUN_DIR"


def test_a_list_of_pictures_that_is_damaged_is_told_with_a_hint(of_pictures: Made, tmp_path: Path) -> None:
    changed = tmp_path / "it.zip"
    data = of_pictures.zip.read_bytes()
    assert data.count(b'["a/plain.jpg"') == 1
    changed.write_bytes(data.replace(b'["a/plain.jpg"', b'["a/blain.jpg"'))
    with DataSet(changed) as opened, pytest.raises(ArtifactCorrupt, match="its bytes are not") as raised:
        opened.recipe.all_sources()
    assert raised.value.hint == f"shardgen verify {changed}"


def test_pycocotools_reads_the_annotations_of_each_split(
    of_each: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pycocotools.coco import COCO  # noqa: PLC0415

    from shardgen.errors import InvalidSettings  # noqa: PLC0415

    out = tmp_path / "out"
    if of_each.plan.recipe.kind == "depth":
        with pytest.raises(InvalidSettings, match="no objects to annotate"):
            of_each.exported(out, "coco", by=None)
        assert not out.exists()
        return
    result = of_each.exported(out, "coco")
    for split in result.splits:
        coco = COCO(str(out / "annotations" / f"instances_{split.name}.json"))
        assert len(coco.imgs) == split.samples
        for number, one in coco.imgs.items():
            assert (out / split.name / one["file_name"]).read_bytes() == of_each.files[number]["fgbg"]
        for one in coco.anns.values():
            assert coco.annToMask(one).sum() > 0
        assert {one["image_id"] for one in coco.anns.values()} <= set(coco.imgs)
    capsys.readouterr()


def test_annotations_are_not_written_behind_a_link(one_person: Made, tmp_path: Path) -> None:
    out, others = tmp_path / "out", tmp_path / "others"
    one_person.exported(out, "coco")
    (out / "annotations").rename(others)
    (out / "annotations").symlink_to(others)
    mine = others / "instances_train.json"
    mine.write_bytes(b"mine")
    with pytest.raises(PlanConflict, match="annotations: is in the way"):
        one_person.exported(out, "coco")
    assert mine.read_bytes() == b"mine"
