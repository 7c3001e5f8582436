from __future__ import annotations

import errno
import gc
import sys
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from shardgen.dataset.export.base import ExportSample
from shardgen.dataset.export.parquet import ParquetWriter
from shardgen.domain.identifiers import SampleIndex
from shardgen.domain.plan import Block, Plan, Shards
from shardgen.errors import InputMissing
from shardgen.recipes.base import Recipe
from tests.dataset.export.made_samples import Made, pictures
from tests.text_recipe import TextDocument, TextRecipe, TextSources


class Measured(TextRecipe):
    """Lines of which several things are told, one of them in decimals."""

    decimal_columns: ClassVar[frozenset[str]] = frozenset({"characters"})
    text_columns: ClassVar[frozenset[str]] = frozenset({"time"})


@pytest.fixture(scope="module")
def of_pictures(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return pictures(tmp_path_factory.mktemp("pictures"))


def written(recipe: Recipe, samples: Sequence[ExportSample], path: Path) -> Path:
    writer = ParquetWriter(recipe, path)
    for sample in samples:
        writer.add(sample)
    writer.finish()
    return path


def repeated(samples: Sequence[ExportSample], count: int) -> list[ExportSample]:
    """So many, in turn, with numbers of their own."""
    return [replace(samples[number % len(samples)], number=SampleIndex(number)) for number in range(count)]


@pytest.mark.parametrize("which", ["one_person", "people", "of_pictures"])
@pytest.mark.parametrize("streaming", [False, True], ids=["loaded", "streamed"])
def test_datasets_gives_the_pixels_and_labels(
    which: str, *, streaming: bool, request: pytest.FixtureRequest, datasets: ModuleType, tmp_path: Path
) -> None:
    recipe, samples = request.getfixturevalue(which)
    shards = [samples[:7], samples[7:]]
    files = [
        str(written(recipe, shard, tmp_path / f"data-{number:06}.parquet"))
        for number, shard in enumerate(shards)
    ]
    found = datasets.load_dataset(
        "parquet",
        data_files=files,
        split="train",
        streaming=streaming,
        cache_dir=str(tmp_path / "cache"),
    )
    names = [output.name for output in recipe.plan.outputs]
    assert list(found.features) == [*names, *recipe.label_columns]
    for row, sample in zip(found, samples, strict=True):
        for output in recipe.plan.outputs:
            data, shown = sample.files[output.name], np.asarray(row.pop(output.name))
            # Decoders of JPEG differ by a level or two: only the same one gives the same pixels.
            is_exact = output.suffix == "png"
            expected = recipe.decoded(output, data) if is_exact else np.asarray(Image.open(BytesIO(data)))
            assert shown.dtype == expected.dtype
            assert np.array_equal(shown, expected)
        assert row == sample.labels


def test_the_stored_bytes_are_there_with_the_names_of_their_files(
    people: Made, of_pictures: Made, tmp_path: Path
) -> None:
    for recipe, samples in (people, of_pictures):
        found = pq.read_table(written(recipe, samples, tmp_path / "data.parquet")).to_pylist()
        for row, sample in zip(found, samples, strict=True):
            assert row == dict(sample.labels) | {
                output.name: {
                    "bytes": sample.files[output.name],
                    "path": f"{sample.number:07}.{output.suffix}",
                }
                for output in recipe.plan.outputs
            }


def test_row_groups_are_small_and_one_row_can_be_found_in_them(people: Made, tmp_path: Path) -> None:
    recipe, samples = people
    path = tmp_path / "data.parquet"
    writer = ParquetWriter(recipe, path)
    samples = repeated(samples, 250)
    size = sum(len(data) for sample in samples[:200] for data in sample.files.values())
    for sample in samples:
        writer.add(sample)
    assert path.stat().st_size > size - (64 << 10)  # memory holds the last row group
    writer.finish()
    with pq.ParquetFile(path) as file:
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    assert [group.num_rows for group in groups] == [100, 100, 50]
    for group in groups:
        columns = [group.column(number) for number in range(group.num_columns)]
        assert all(column.has_offset_index for column in columns)
        for column in columns:
            is_label = column.path_in_schema.partition(".")[0] in recipe.label_columns
            assert column.has_column_index == is_label  # of an image it would hold two whole files
            assert (column.statistics is not None) == is_label
            is_file = column.path_in_schema.endswith(".bytes")
            assert column.compression == ("UNCOMPRESSED" if is_file else "ZSTD")
            assert column.has_dictionary_page == is_label


def test_a_row_group_of_large_files_is_closed_by_its_bytes(one_person: Made, tmp_path: Path) -> None:
    recipe, samples = one_person
    large = [replace(sample, files=dict.fromkeys(sample.files, bytes(1500 << 10))) for sample in samples[:7]]
    with pq.ParquetFile(written(recipe, large, tmp_path / "data.parquet")) as file:
        rows = [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]
    assert rows == [3, 3, 1]  # three have 9 MB


def test_the_same_samples_give_the_same_bytes(people: Made, tmp_path: Path) -> None:
    recipe, samples = people
    first = written(recipe, samples, tmp_path / "1.parquet").read_bytes()
    assert written(recipe, samples, tmp_path / "2.parquet").read_bytes() == first


def test_all_files_of_a_data_set_have_one_schema(people: Made, tmp_path: Path) -> None:
    recipe, samples = people
    empty = {
        name: [None] * len(value) if isinstance(value, list) else None
        for name, value in samples[0].labels.items()
    }
    schemas = [
        pq.read_schema(written(recipe, [sample], tmp_path / f"{number}.parquet"))
        for number, sample in enumerate([samples[0], samples[5], replace(samples[0], labels=empty)])
    ]
    assert all(schema.equals(schemas[0], check_metadata=True) for schema in schemas)
    types = {field.name: field.type for field in schemas[0]}
    assert types["background"] == pa.string()
    assert types["sample"] == pa.int64()
    assert types["column"].value_type == types["area"].value_type == pa.int64()
    assert types["foreground"].value_type == pa.string()


def test_files_that_are_no_images_decimals_and_nothing_are_kept(datasets: ModuleType, tmp_path: Path) -> None:
    document, sources = TextDocument(times=2), TextSources(lines=("one", "two"), sha256="0" * 64)
    plan = Plan(
        recipe=document,
        outputs=document.outputs,
        shards=Shards(size=8, slice_batches=2, batch=3),
        blocks=(Block(samples=4, sources=sources),),
    )
    values: list[dict[str, Any]] = [
        {"sample": 0, "time": "", "characters": 3},
        {"sample": 1, "time": 'a "b"', "characters": None},
        {"sample": 2, "time": None, "characters": 0.5},
    ]
    samples = [
        ExportSample(number=SampleIndex(number), files={"said": b"\0\xff", "back": b""}, labels=labels)
        for number, labels in enumerate(values)
    ]
    path = written(Measured(plan), samples, tmp_path / "data.parquet")
    found = datasets.load_dataset(
        "parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert list(found) == [{"said": b"\0\xff", "back": b"", **labels} for labels in values]
    assert [found.features[name].dtype for name in ("said", "time", "characters")] == [
        *("large_binary", "string", "float64")
    ]
    writer = ParquetWriter(TextRecipe(plan), path)  # of a recipe that did not say so
    writer.add(samples[2])
    with pytest.raises(pa.ArrowInvalid, match="truncated"):
        writer.finish()
    writer.abandon()


def test_an_abandoned_file_has_no_footer(people: Made, tmp_path: Path) -> None:
    recipe, samples = people
    path = tmp_path / "data.parquet"
    writer = ParquetWriter(recipe, path)
    for sample in repeated(samples, 101):
        writer.add(sample)
    writer.abandon()
    del writer
    gc.collect()
    with pytest.raises(pa.ArrowInvalid, match="magic bytes not found in footer"):
        pq.read_schema(path)


def test_a_file_that_was_cut_off_is_not_whole(people: Made, tmp_path: Path) -> None:
    path = written(*people, tmp_path / "data.parquet")
    assert ParquetWriter.is_whole(path)
    data = path.read_bytes()
    damaged = (b"", data[:4], data[:-1], data[:1000], data[:1000] + data[-8:], data[4:], bytes(len(data)))
    for one in damaged:
        path.write_bytes(one)
        assert not ParquetWriter.is_whole(path)


def test_a_full_disk_is_an_error_of_the_disk(people: Made, tmp_path: Path) -> None:
    recipe, samples = people
    path = tmp_path / "data.parquet"
    path.symlink_to("/dev/full")
    writer = ParquetWriter(recipe, path)
    *kept, last = repeated(samples, 100)
    for sample in kept:
        writer.add(sample)
    with pytest.raises(OSError, match="No space left") as full:
        writer.add(last)
    assert full.value.errno == errno.ENOSPC
    writer.abandon()
    del writer
    gc.collect()  # and what pyarrow then does is heard of by nobody


def test_without_pyarrow_the_extra_is_named(
    people: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "pyarrow.parquet")
    with pytest.raises(InputMissing) as missing:
        ParquetWriter(people[0], tmp_path / "data.parquet")
    assert missing.value.hint == 'python -m pip install "shardgen[export]"'
    assert list(tmp_path.iterdir()) == []
