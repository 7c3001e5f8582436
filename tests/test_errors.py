"""What an error tells whoever catches it."""

from __future__ import annotations

import pickle
import traceback
from pathlib import Path

import pytest

from shardgen.errors import (
    InputMissing,
    MachineUnfit,
    PlanConflict,
    explained,
)


def _raise_in(run_dir: Path | str, error: BaseException) -> BaseException:
    with pytest.raises(Exception) as caught, explained(run_dir):  # noqa: PT011 - whatever it becomes
        raise error
    return caught.value


def test_a_hint_names_the_run_directory_as_it_is_typed_into_a_shell() -> None:
    error = InputMissing("nothing is planned", hint="shardgen plan RUN_DIR; then shardgen run RUN_DIR")
    assert error.hint == "shardgen plan RUN_DIR; then shardgen run RUN_DIR"
    assert _raise_in(Path("my people"), error) is error
    assert error.hint == "shardgen plan 'my people'; then shardgen run 'my people'"


@pytest.mark.parametrize(
    ("run_dir", "shown"),
    [("people/", "people"), (Path("./people"), "people"), ("s3://bucket/people", "s3://bucket/people")],
)
def test_a_hint_names_a_folder_or_a_bucket(run_dir: Path | str, shown: str) -> None:
    error = InputMissing("nothing is planned", hint="shardgen plan RUN_DIR")
    _raise_in(run_dir, error)
    assert error.hint == f"shardgen plan {shown}"


def test_the_innermost_name_stays_and_a_hint_that_is_changed_is_named_too() -> None:
    error = PlanConflict("changed", hint="undo that")
    _raise_in("inner", error)
    error.hint = f"shardgen plan RUN_DIR; or {error.hint}"
    _raise_in("outer", error)
    assert error.hint == "shardgen plan inner; or undo that"


def test_a_traceback_shows_the_hint_once_and_as_it_is_now() -> None:
    error = InputMissing("nothing is planned", hint="shardgen plan RUN_DIR")
    error.add_note("another note")
    _raise_in("people", error)
    shown = "".join(traceback.format_exception(error))
    assert shown.count("hint:") == 1
    assert "\nhint: shardgen plan people\n" in shown
    assert "another note" in shown
    assert "hint:" not in "".join(traceback.format_exception(InputMissing("no hint")))


def test_an_error_is_the_same_in_another_process() -> None:
    error = InputMissing("nothing is planned", hint="shardgen plan RUN_DIR", problems=("one",))
    _raise_in("people", error)
    there = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert (str(there), there.hint, there.problems) == (str(error), error.hint, error.problems)


def test_a_library_that_is_missing_and_memory_that_is_not_there_are_deliberate_errors() -> None:
    missing = _raise_in("people", ModuleNotFoundError("no", name="cv2"))
    assert isinstance(missing, MachineUnfit)
    assert missing.hint == "python -m pip install opencv-python"
    short = _raise_in("people", MemoryError("Unable to allocate\n3 GiB"))
    assert isinstance(short, MachineUnfit)
    assert str(short) == "this machine has too little memory: Unable to allocate 3 GiB"
    other = ModuleNotFoundError("no", name="shardgen.nowhere")
    assert _raise_in("people", other) is other


def test_the_code_is_the_name_of_the_class_and_the_exit_code_is_its_number() -> None:
    error = InputMissing("nothing is planned")
    assert (error.code, error.exit_code) == ("InputMissing", 11)
