from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from shardgen.operations.merge import merge_run
from shardgen.operations.merged import FILE_NAME, finished_zip, read_merged
from shardgen.operations.status import report
from shardgen.settings.run_directory import RunDirectory
from tests.cli.test_merge import named
from tests.runs import sha256_of


@pytest.fixture
def merged(finished_run: RunDirectory) -> RunDirectory:
    merge_run(finished_run, None, allow_dead_letters=False)
    return finished_run


def finished(run: RunDirectory) -> str | None:
    found = finished_zip(run, report(run))
    return None if found is None else Path(found.path).name


def test_a_merge_notes_the_zip_as_it_is(merged: RunDirectory) -> None:
    (note,) = read_merged(merged)
    path = merged.path / "dataset.zip"
    assert Path(note.path) == path.resolve()
    assert (note.size_bytes, note.sha256) == (path.stat().st_size, sha256_of(path))
    assert (note.fingerprint, note.samples_stored) == (merged.plan().fingerprint, 48)
    assert (note.dead_letters, note.excluded, note.pending) == (0, 0, 0)
    assert finished(merged) == "dataset.zip"


def test_what_leaves_samples_out_is_noted_and_is_not_finished(finished_run: RunDirectory) -> None:
    run = finished_run
    person = named(run, "foregrounds")
    merge_run(run, None, allow_dead_letters=False, exclude=[person])
    assert [(one.excluded, one.samples_stored) for one in read_merged(run)] == [(24, 24)]
    assert finished(run) is None
    merge_run(run, None, allow_dead_letters=False)
    merge_run(run, None, allow_dead_letters=False, exclude=[person])
    assert [Path(one.path).name for one in read_merged(run)] == ["dataset.excluded.zip", "dataset.zip"]
    assert finished(run) == "dataset.zip"


def test_a_zip_that_is_gone_or_changed_is_not_finished(merged: RunDirectory) -> None:
    path = merged.path / "dataset.zip"
    aside = path.rename(merged.path / "aside.zip")
    assert finished(merged) is None
    shutil.copyfile(aside, path)
    assert finished(merged) == "dataset.zip"
    os.truncate(path, path.stat().st_size - 1)
    assert finished(merged) is None


@pytest.mark.parametrize(("key", "value"), [("fingerprint", "0" * 64), ("samples_stored", 47)])
def test_a_zip_of_another_plan_or_of_less_is_not_finished(
    merged: RunDirectory, key: str, value: object
) -> None:
    path = merged.notes / FILE_NAME
    document = json.loads(path.read_text(encoding="utf-8"))
    document["zips"][0][key] = value
    path.write_text(json.dumps(document), encoding="utf-8")
    assert read_merged(merged)
    assert finished(merged) is None


@pytest.mark.parametrize(
    "content", ["", "[]", '{"zips": 1}', '{"zips": [{}]}', '{"zips": [{"path": 1}]}', "[" * 100_000]
)
def test_a_note_that_cannot_be_read_is_none_and_the_next_merge_replaces_it(
    merged: RunDirectory, content: str
) -> None:
    path = merged.notes / FILE_NAME
    document = path.read_text(encoding="utf-8")
    path.write_text(content, encoding="utf-8")
    assert read_merged(merged) == []
    path.write_text(document.replace('"size_bytes": ', '"size_bytes": "1", "x": '), encoding="utf-8")
    assert read_merged(merged) == []
    merge_run(merged, None, allow_dead_letters=False)
    assert finished(merged) == "dataset.zip"


def test_a_note_that_cannot_be_written_costs_no_zip(finished_run: RunDirectory) -> None:
    (finished_run.notes / FILE_NAME).mkdir()
    result = merge_run(finished_run, None, allow_dead_letters=False)
    assert result.path.is_file()
    assert finished(finished_run) is None
    assert not list(finished_run.path.glob(f".{FILE_NAME}*"))


def test_a_run_that_has_work_left_is_not_finished(merged: RunDirectory) -> None:
    from shardgen.coordination.open import open_run  # noqa: PLC0415 - for this alone
    from shardgen.domain.identifiers import BatchIndex  # noqa: PLC0415

    open_run(merged).undo([BatchIndex(1)])
    assert finished(merged) is None
