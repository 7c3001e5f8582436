from __future__ import annotations

import time
from pathlib import Path

import pytest

from benchmarks.lost_machine import Size, prove, undisturbed_sha256
from shardgen.coordination.folder.files import DiskFolder
from tests.shared_folder.double import Faults
from tests.shared_folder.mounted import LateFolder, Records

SIZE = Size(segment_batches=8)
PATH = "workers/one/notices-000/000000.beat.json"


def test_a_file_is_late_for_others_and_goes_with_a_disk_that_it_has_not_left(tmp_path: Path) -> None:
    records = Records(tmp_path / "records", seed=1, faults=Faults(median_lag=1.0, spread=0.1))
    one, two = (LateFolder(tmp_path / "shared", records, name) for name in ("one", "two"))
    one.write(PATH, b"{}")
    assert one.read(PATH) == b"{}"
    assert one.is_uploaded(PATH) is False
    assert two.names("workers/one/notices-000") == []
    with pytest.raises(FileNotFoundError):
        two.read(PATH)
    deadline = time.monotonic() + 60
    while not two.names("workers/one/notices-000"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert two.read(PATH) == b"{}"
    assert one.is_uploaded(PATH) is True
    one.write(PATH.replace("000.beat", "001.beat"), b"{}")
    assert records.lose("one", tmp_path / "shared") == 1
    assert DiskFolder(tmp_path / "shared").names("workers/one/notices-000") == ["000000.beat.json"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    return undisturbed_sha256(tmp_path_factory.mktemp("undisturbed"), SIZE)


@pytest.mark.slow
@pytest.mark.parametrize("lag", [None, 0.5], ids=["plain", "late"])
def test_of_three_workers_one_is_lost_with_its_disk_and_no_sample(
    tmp_path: Path, undisturbed: str, lag: float | None
) -> None:
    proof = prove(tmp_path, lag=lag, undisturbed=undisturbed, size=SIZE)
    assert proof.lost == 0
    assert proof.is_equal
    assert proof.made >= proof.batches + proof.gone
    assert proof.gone > 0  # or the disk took nothing with it
    if lag is None:  # one slice of the twelve is 8 %; three times that when nobody heeds a claim
        assert proof.twice <= 0.1, proof
    # A late claim costs a whole slice by chance: `tests/test_benchmarks.py` bounds it, on a simulated clock.
    assert proof.gone <= SIZE.killed_after + 3 * SIZE.segment_batches
