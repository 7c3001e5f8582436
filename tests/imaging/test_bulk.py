"""Files of other projects, and all generated ones, through decode and through independent readers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.imaging.bulk import (
    MUTATED,
    Row,
    compare,
    compare_generated,
    compare_mutated,
    fetch_archive,
    files_of,
    generated,
    packaged_folders,
    table,
)

# So many are decoded, and not refused, of what other projects carry.
AT_LEAST = {"JPEG": 60, "PNG": 380, "WebP": 13, "BMP": 40, "TIFF": 60}
# Damage that nothing in a file tells is accepted in no more than this share of the files that have it.
UNTOLD = 0.6


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of Pillow's source archive; without a package index the test fails."""
    return fetch_archive(tmp_path_factory.mktemp("archive"))


def assert_nothing_is_wrong(rows: dict[str, Row]) -> None:
    wrong = [line for row in rows.values() for line in row.differences + row.printed]
    assert not wrong, table(rows)


@pytest.mark.slow
def test_every_image_of_other_projects_is_right_or_refused(archive: Path) -> None:
    rows = compare(files_of([archive, *packaged_folders()]))
    assert_nothing_is_wrong(rows)
    for container, count in AT_LEAST.items():
        assert sum(rows[container].agree.values()) + len(rows[container].judged) >= count, table(rows)


@pytest.mark.slow
def test_every_generated_file_is_right_or_refused() -> None:
    rows = compare_generated(generated())
    assert_nothing_is_wrong(rows)
    measured = [item for row in rows.values() for item in row.measured.items()]
    differ = sum(count for (_damage, verdict), count in measured if verdict == "differs")
    assert differ <= UNTOLD * sum(count for _case, count in measured)


@pytest.mark.slow
def test_no_bytes_crash_hang_or_print() -> None:
    assert_nothing_is_wrong(compare_mutated(generated(), MUTATED))
