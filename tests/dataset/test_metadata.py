from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from shardgen.dataset.card import dataset_card
from shardgen.dataset.labels import label_rows, planned_rows
from shardgen.dataset.merge import MergeInputs, merge
from shardgen.dataset.metadata import LabelFields, Metadata, first_wrong_metadata
from shardgen.dataset.verify import verify_zip
from shardgen.domain.identifiers import BatchIndex, SampleIndex
from shardgen.domain.plan import Plan
from shardgen.domain.selection import Selection
from shardgen.recipes.composites.recipe import CompositesRecipe
from shardgen.settings.settings import CardTable
from tests.dataset import made_runs
from tests.dataset.made_runs import MadeRecipe, make_run
from tests.dataset.test_labels_with_facts import FACTS, QuotingRecipe, recipe_with
from tests.dataset.test_verify_zip import facts, merged, replaced, rewritten
from tests.plans import at_random, changed, make_plan

ONE = make_plan(shard_size=50, batch=8, slice_batches=4)
CROWD = changed(make_plan(backgrounds=2, foregrounds=4), compose=at_random(3, people=(1, 3), seed=5))


def picture(name: str, sample: int) -> bytes:
    """An image of one colour, which tells output and sample."""
    level = (sample * 2 + len(name)) % 256
    suffix, shape = (".png", (200, 200)) if name in ("mask", "instances") else (".jpg", (200, 200, 3))
    if name == "depth":
        shape = (200, 200)
    encoded, data = cv2.imencode(suffix, np.full(shape, level, np.uint8))
    assert encoded
    return data.tobytes()


def zipped(plan: Plan, folder: Path, *, dead: tuple[int, ...] = ()) -> Path:
    run = make_run(plan, folder / "artifacts", dead=dead, per_artifact=3)
    inputs = MergeInputs(recipe=MadeRecipe(plan), source=run, store=run.store, allow_dead_letters=True)
    return merge(inputs, folder / "people.zip").path


def rows_in(path: Path, name: str) -> list[dict[str, str]]:
    with zipfile.ZipFile(path) as archive:
        return list(csv.DictReader(io.StringIO(archive.read(name).decode())))


def test_each_row_names_the_samples_files_and_repeats_its_labels(tmp_path: Path) -> None:
    path = zipped(ONE, tmp_path, dead=(3, 60))
    with zipfile.ZipFile(path) as archive:
        members = set(archive.namelist())
    labels, metadata = rows_in(path, "labels.csv"), rows_in(path, "metadata.csv")
    assert len(labels) == len(metadata) == ONE.samples - 2
    for row, label in zip(metadata, labels, strict=True):
        number = int(label["sample"])
        names = {
            f"{one.name}_file_name": f"{one.name}/00000/{number:07d}.{one.suffix}" for one in ONE.outputs
        }
        assert members.issuperset(names.values())
        del label["shard"], label["batch"]
        assert row == names | label


def test_several_people_are_lists_in_one_row(tmp_path: Path) -> None:
    path = zipped(CROWD, tmp_path)
    labels, metadata = rows_in(path, "labels.csv"), rows_in(path, "metadata.csv")
    values = Metadata(CompositesRecipe(CROWD))
    with zipfile.ZipFile(path) as archive:
        lines = archive.read("metadata.csv").splitlines(keepends=True)[1:]
    assert len(metadata) == len(lines) == CROWD.samples
    counts = set()
    for row, line in zip(metadata, lines, strict=True):
        people = [label for label in labels if label["sample"] == row["sample"]]
        counts.add(len(people))
        read = values.values(line)
        assert read["background"] == row["background"] == people[0]["background"]
        assert json.loads(row["foreground"]) == read["foreground"] == [one["foreground"] for one in people]
        assert read["column"] == [None] * len(people)  # of places on a grid
        for name in ("person", "flip", "frame_x", "x", "area", "output_area"):
            assert read[name] == [int(one[name]) for one in people]
    assert counts == {1, 2, 3}


def test_names_with_commas_quotes_and_line_ends_come_through() -> None:
    recipe = QuotingRecipe(recipe_with().plan)
    recipe.text_columns = frozenset({"line"})  # type: ignore[misc]
    metadata = Metadata(recipe)
    labels = label_rows(recipe, BatchIndex(1), without={2}, facts=FACTS)
    labels += label_rows(recipe, BatchIndex(2), without=(), facts=FACTS)
    row, *others = metadata.rows(labels.encode()).split(b"\nsaid/")
    assert row.startswith(b"said/00000/0000003.txt,back/00000/0000003.txt,3,13,")
    assert metadata.values(row) == {
        "sample": 3,
        "characters": 13,
        "line": recipe.line(SampleIndex(3)),
        "half": 6.5,
    }
    assert recipe.line(SampleIndex(5)) == "four\nfive"
    assert metadata.values(b"said/" + others[-1])["line"] == "four\nfive"


@pytest.mark.parametrize("size", [1, 7, 100, 1 << 20])
@pytest.mark.parametrize("plan", [ONE, CROWD], ids=["one", "crowd"])
def test_the_pieces_do_not_matter(plan: Plan, size: int) -> None:
    recipe = CompositesRecipe(plan)
    whole = "".join(planned_rows(recipe, without=())).encode()

    def pieces(data: bytes) -> Iterator[bytes]:
        return (data[start : start + size] for start in range(0, len(data), size))

    made = b"".join(Metadata(recipe).file(pieces(whole)))
    assert made.startswith(Metadata(recipe).header)
    assert made.count(b"\n") == plan.samples + 1
    assert first_wrong_metadata(recipe, [whole], pieces(made)) is None


@pytest.mark.parametrize("row", [b"", b"a,b\n", b'"a\n', b"1," * 200])
def test_what_is_no_row_is_refused(row: bytes) -> None:
    with pytest.raises(ValueError, match="row"):
        Metadata(CompositesRecipe(ONE)).values(row)


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (
            lambda data: data.replace(b"fgbg/00000/0000005.jpg", b"fgbg/00000/0000006.jpg"),
            "has a row 'fgbg/00000/0000006",
        ),
        (lambda data: data[:-9], "metadata.csv: has a row"),
        (lambda data: data + b"more\n", "metadata.csv: has bytes behind its last row"),
        (lambda data: data.replace(b"sample", b"number", 1), "metadata.csv: has a row 'fgbg_file_name"),
        (lambda data: data.rpartition(b"\nfgbg")[0] + b"\n", "metadata.csv: ends before its last row"),
    ],
)
def test_verify_compares_it_with_the_labels(tmp_path: Path, change: Any, fact: str) -> None:
    path = merged(tmp_path)
    assert facts(verify_zip(path)) == ""
    rewritten(path, replaced("metadata.csv", change))
    assert fact in facts(verify_zip(path))


@pytest.mark.parametrize("plan", [ONE, CROWD], ids=["one", "crowd"])
def test_hugging_face_reads_the_zip_as_a_folder_of_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: Plan
) -> None:
    import datasets  # noqa: PLC0415 - a second, in each process that collects tests

    monkeypatch.setattr(made_runs, "image", picture)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    dead = (4,)
    path = zipped(plan, tmp_path, dead=dead)
    datasets.disable_progress_bars()
    read = datasets.load_dataset(
        "imagefolder", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
    )
    rows = rows_in(path, "metadata.csv")
    names = [output.name for output in plan.outputs]
    assert read.num_rows == len(rows) == plan.samples - len(dead)
    assert [name for name, kind in read.features.items() if isinstance(kind, datasets.Image)] == names
    with zipfile.ZipFile(path) as archive:
        for number in (0, 4, len(rows) - 1):
            sample, row = read[number], rows[number]
            assert (sample["sample"], sample["background"]) == (int(row["sample"]), row["background"])
            assert sample["foreground"] == row["foreground"]
            for name in names:
                stored = np.frombuffer(archive.read(row[f"{name}_file_name"]), np.uint8)
                pixels = cv2.imdecode(stored, cv2.IMREAD_UNCHANGED)
                assert pixels is not None
                assert np.array_equal(np.asarray(sample[name]), pixels), name  # grey in every channel


def card(plan: Plan, own: CardTable | None = None, *, samples: int | None = None) -> str:
    selection = Selection(planned=plan.samples)
    dead = 0 if samples is None else plan.samples - samples
    recipe = CompositesRecipe(plan)
    return dataset_card(recipe, {}, selection=selection, dead_letters=dead, has_sheet=False, own=own).decode()


def hub(text: str) -> Any:
    """What the Hub reads of a card."""
    from huggingface_hub import DatasetCard  # noqa: PLC0415

    return DatasetCard(text)


def test_the_cards_head_is_what_the_hub_reads() -> None:
    title = 'Ann\'s "people": 100 % --- # é & \U0001f600'
    read = hub(card(ONE, CardTable(title=title)))
    assert read.data.pretty_name == title
    assert read.data.task_categories == ["image-segmentation", "depth-estimation"]
    assert read.data.size_categories == ["n<1K"]
    assert read.data.license is None
    assert "licence" not in read.text


@pytest.mark.parametrize(
    ("licence", "found"),
    [
        ("cc-by-4.0", {"license": "cc-by-4.0"}),
        (" CC-BY-4.0 ", {"license": "cc-by-4.0"}),
        ("ask the museum", {"license": "other", "license_name": "ask the museum"}),
    ],
)
def test_the_licence_is_the_users_words(licence: str, found: dict[str, str]) -> None:
    text = "# Who is in it\n\nNobody without *asking*.\n"
    read = hub(card(ONE, CardTable(title="People", licence=licence, text=text)))
    assert {key: value for key, value in read.data.to_dict().items() if key.startswith("license")} == found
    assert read.text.startswith("\n# People: 120 samples\n")
    assert text in read.text
    assert f"- licence: {licence.strip()}\n" in read.text


@pytest.mark.parametrize(
    ("samples", "size"),
    [(999, "n<1K"), (1000, "1K<n<10K"), (408_040, "100K<n<1M"), (10**9, "1B<n<10B"), (2 * 10**12, "n>1T")],
)
def test_sizes_are_the_hubs_categories(samples: int, size: str) -> None:
    block = replace(ONE.blocks[0], samples=samples)
    assert f'size_categories: ["{size}"]\n' in card(replace(ONE, blocks=(block,)))


@pytest.mark.parametrize("title", ["two\nlines", "\x7f", "\u2028", "x" * 201])
def test_a_title_is_one_line(title: str) -> None:
    with pytest.raises(ValidationError, match=r"title|200"):
        CardTable(title=title)


WHOLE = LabelFields(name="x", is_text=False, is_list=False, is_decimal=False)
DECIMAL = replace(WHOLE, is_decimal=True)
NUMBERS, DECIMALS = replace(WHOLE, is_list=True), replace(DECIMAL, is_list=True)
TEXTS = replace(NUMBERS, is_text=True)
HUGE = "1" * 400 + ".5"


@pytest.mark.parametrize(
    ("kind", "values", "refused"),
    [
        (
            WHOLE,
            {"0": 0, "17": 17, "-3": -3, "": None, "9" * 30: int("9" * 30)},
            ["1.5", "1e3", "NaN", "true", "[1]", "1,2", '"1"', "007", "{}", "1" * 5000],
        ),
        (
            DECIMAL,
            {"1.5": 1.5, "2": 2, "": None, "9" * 400: int("9" * 400)},
            ["1E3", "-Infinity", "false", HUGE],
        ),
        (NUMBERS, {"[1,null]": [1, None], "[]": []}, ["", "1", "[1.5]", "[NaN]", "[true]", "[[1]]", '["1"]']),
        (DECIMALS, {"[1.5,2]": [1.5, 2]}, ["[1e3]", "[NaN]", f"[{HUGE}]", "[" * 100_000]),
        (TEXTS, {'["a","b,c"]': ["a", "b,c"], '["],\\n["]': ["],\n["]}, ["[1]", "[null]", "a", '["a']),
    ],
)
def test_many_fields_are_read_by_the_rule_of_one(
    kind: LabelFields, values: dict[str, object], refused: list[str]
) -> None:
    assert list(kind.values(list(values))) == list(map(kind.value, values)) == list(values.values())
    right = list(values)
    for field in refused:
        for fields in ([field], [*right, field], [field, *right]):
            with pytest.raises(ValueError, match="x has a field that is no "):
                kind.values(fields)
        with pytest.raises(ValueError, match="x has a field that is no "):
            kind.value(field)


@pytest.mark.parametrize(
    "cut",
    [
        ["[1", "2],[3]"],
        ["[1],[2]", "[3,[4]", "[5]]"],
        ["[1", "2]", "[3],[4]"],
        ["[1],\n[2]", "[3", "4]"],
    ],
)
def test_a_list_does_not_end_in_the_next_field(cut: list[str]) -> None:
    with pytest.raises(ValueError, match="no list of whole numbers"):
        NUMBERS.values(cut)
    with pytest.raises(ValueError, match="no list of texts"):
        TEXTS.values(['["a]', '[b"]', '["c"],["d"]'])
