from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from shardgen.dataset.verify import verify_run
from shardgen.domain.identifiers import Fence, WorkerId
from tests.dataset.made_runs import MadeRun, make_run
from tests.plans import changed, depth_in, make_plan

PLAN = make_plan(shard_size=50, batch=8, slice_batches=4)


@pytest.fixture
def run(tmp_path: Path) -> MadeRun:
    return make_run(PLAN, tmp_path / "artifacts", dead=[3, *range(16, 24)])


@pytest.mark.parametrize("per_artifact", [1, 3])
def test_a_sound_run_has_no_findings(tmp_path: Path, per_artifact: int) -> None:
    run = make_run(PLAN, tmp_path, dead=[3, *range(16, 24)], per_artifact=per_artifact)
    result = verify_run(PLAN, run, run.store)
    assert result.findings == ()
    assert result.samples == 111


def test_a_half_done_run_is_sound(run: MadeRun) -> None:
    del run.rows[4:9]
    assert verify_run(PLAN, run, run.store).findings == ()


@pytest.mark.parametrize("what", ["flip", "truncate", "swap", "delete", "double"])
def test_a_damaged_artifact_is_named_with_its_batch_and_nothing_else(run: MadeRun, what: str) -> None:
    name, other = run.rows[5].artifact.name, run.rows[4].artifact.name
    path = run.store.root / name
    data = bytearray(path.read_bytes())
    match what:
        case "flip":
            data[100] ^= 1
            path.write_bytes(data)
        case "truncate":
            path.write_bytes(data[:-1])
        case "swap":
            path.write_bytes((run.store.root / other).read_bytes())
            (run.store.root / other).write_bytes(data)
        case "delete":
            path.unlink()
        case "double":
            path.write_bytes(bytes(data) * 2)
    result = verify_run(PLAN, run, run.store)
    expected = [other, name] if what == "swap" else [name]
    assert [found.subject for found in result.findings] == expected
    assert result.bad_batches == ((4, 5) if what == "swap" else (5,))


def test_every_batch_of_a_broken_artifact_is_put_back(tmp_path: Path) -> None:
    run = make_run(PLAN, tmp_path, per_artifact=3)
    path = run.store.root / run.rows[4].artifact.name
    path.write_bytes(path.read_bytes()[:-1])
    assert verify_run(PLAN, run, run.store).bad_batches == (3, 4, 5)


def test_a_stale_receipt_is_found(run: MadeRun) -> None:
    run.rows[5] = replace(run.rows[5], fence=Fence(9))
    run.rows[6] = replace(run.rows[6], worker=WorkerId("other-1-00000000"))
    record = run.rows[7].record
    mask = replace(record.sums["mask"], sum=(1,))
    record = replace(record, sums={**record.sums, "mask": mask})
    run.rows[7] = replace(run.rows[7], record=record)
    run.rows[8] = replace(run.rows[8], artifact=run.rows[9].artifact)
    result = verify_run(PLAN, run, run.store)
    assert result.bad_batches == (5, 6, 7, 8)
    assert "fence 1, the manifest 9" in result.findings[0].fact


def test_a_second_receipt_of_a_batch_is_found(run: MadeRun) -> None:
    run.rows.append(run.rows[2])
    assert verify_run(PLAN, run, run.store).bad_batches == (2,)


def test_an_artifact_of_another_plan_is_found(run: MadeRun) -> None:
    other = changed(PLAN, depth=replace(depth_in(PLAN), quality=61))
    result = verify_run(other, run, run.store)
    assert len(result.bad_batches) == PLAN.layout.batch_count
    assert "another plan" in result.findings[0].fact
