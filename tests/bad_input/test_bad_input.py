"""Every row of the table, through the real command."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bad_input import of_records, of_settings, of_sources, of_usage, of_weights, of_work, on_disks
from tests.bad_input.case import Case, Stage, boxes, judge

CASES: list[Case] = [
    *of_usage.CASES,
    *of_sources.CASES,
    *of_records.CASES,
    *of_weights.CASES,
    *of_work.CASES,
    *on_disks.CASES,
    *of_settings.CASES,
]


_MANY = 12  # rows of a table that the fast suite takes


def is_slow(case: Case) -> bool:
    """Whether it takes seconds (a whole run, a network, much memory), or is one of very many alike."""
    is_one_of_many = case in [*of_settings.CASES[_MANY:], *on_disks.CASES[_MANY:]]
    is_large = not case.code or bool(case.peak_bytes) or bool(case.allowed)
    loads_the_network = case.arguments[0] == "preview" and case.start == "planned"
    return is_large or loads_the_network or is_one_of_many


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.close()


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return boxes(tmp_path_factory.mktemp("boxes") / "made")


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.name, marks=[pytest.mark.slow] if is_slow(case) else []) for case in CASES],
)
def test_the_command_says_what_is_wrong_what_to_type_and_changes_nothing(
    case: Case, stage: Stage, templates: dict[str, Path], tmp_path: Path
) -> None:
    box = tmp_path / "box"
    shutil.copytree(templates[case.start], box, symlinks=True)
    case.arrange(box)
    outcome = stage.run(case, box)
    if isinstance(outcome, str):
        pytest.skip(outcome)
    judge(case, outcome)


def test_the_table_has_sixty_rows_and_more_and_each_once() -> None:
    names = Counter(case.name for case in CASES)
    assert len(names) >= 60
    assert names.most_common(1)[0][1] == 1
