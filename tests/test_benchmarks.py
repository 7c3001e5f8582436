from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import exporting, gpu
from benchmarks.__main__ import PAGE, Table, printed_by, renew, tables
from benchmarks.filled import Scale, fill, manifest_bytes, slice_count, write_artifacts
from benchmarks.makespan import GOAL, Scene, Setting, ideal_makespan, policy_of, simulate
from benchmarks.manifest_scale import HUGE, LARGE, SMALL, TENTH
from benchmarks.pictures import FEW, measure, write_pictures
from benchmarks.reading import open_anew, read_in_turns, write_hollow
from benchmarks.shared_folder import Case, play
from benchmarks.status import simulated_receipt
from shardgen.dataset.export.driver import FORMATS
from shardgen.dataset.merge import survey_receipts
from shardgen.domain.identifiers import WorkerId
from shardgen.domain.lease import NoLease
from shardgen.domain.plan import Plan
from shardgen.domain.worker import WorkerIdentity
from shardgen.manifest.database_url import DatabaseUrl
from shardgen.manifest.manifest import Manifest, create_manifest
from shardgen.operations.rebuild import rebuild
from shardgen.settings.plan_file import parse_plan
from shardgen.settings.run_directory import RunDirectory
from shardgen.settings.settings import parse_settings
from shardgen.sources.scanning import scan_pictures
from tests.invariants import counter_faults
from tests.plans import make_plan

# 1,200 samples in 5 shards: 300 batches of a minute or so, in 75 slices of 4.
PLAN = make_plan(backgrounds=6, foregrounds=10, shard_size=240, batch=4, slice_batches=4)


# With these seeds the dying worker dies after four fifths of the run: a slice that came free late would show.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("scene", "seed"),
    [
        (Scene(crew=1, one_joins=True), 1),
        (Scene(crew=4, dying=1), 5),
        (Scene(crew=4, dying=1, one_joins=True), 6),
    ],
    ids=str,
)
def test_workers_that_come_and_go_take_hardly_longer_than_they_must(scene: Scene, seed: int) -> None:
    setting = Setting(plan=PLAN, policy=policy_of(120, 30), batch_seconds=60, seed=seed)
    outcome = simulate(scene, setting)
    assert 1 <= outcome.ratio <= GOAL, outcome
    assert (outcome.lost > 0) == (scene.dying > 0)


def test_the_same_seed_gives_the_same_run() -> None:
    plan = make_plan(backgrounds=2, foregrounds=2, shard_size=40, batch=4, slice_batches=2)
    setting = Setting(plan=plan, policy=policy_of(120, 30), batch_seconds=5, seed=1)
    scene = Scene(crew=3, dying=1)
    assert simulate(scene, setting) == simulate(scene, setting)


@pytest.mark.parametrize(
    ("presence", "expected"),
    [
        ([(0, math.inf), (0, math.inf)], 6),
        ([(0, math.inf), (0, 2)], 10),
        ([(0, math.inf), (0, 1), (9, math.inf)], 10),
        ([(0, math.inf), (20, math.inf)], 12),
        ([(0, 4), (6, math.inf)], 14),
    ],
)
def test_the_ideal_counts_the_seconds_of_those_who_are_there(
    presence: list[tuple[float, float]], expected: float
) -> None:
    assert ideal_makespan(presence, 12) == expected


def finish_slice(manifest: Manifest, plan: Plan) -> bool:
    lease = manifest.leases.lease(WorkerId("one"), parse_settings({}, where="the defaults").lease_policy)
    if isinstance(lease, NoLease):
        return False
    for batch in manifest.receipts.pending_batches(lease):
        manifest.receipts.record(lease, simulated_receipt(plan, lease, batch))
    return True


def test_a_manifest_filled_in_bulk_is_like_one_that_workers_made(tmp_path: Path) -> None:
    plan = Scale(backgrounds=3, foregrounds=30).plan()  # 1,800 samples in 57 batches, the last one short
    plan = replace(plan, shards=replace(plan.shards, size=800))
    database = DatabaseUrl(url="sqlite:///manifest.sqlite", run_dir=tmp_path)
    create_manifest(database, plan)
    with Manifest(database, plan) as manifest:
        manifest.workers.register(WorkerIdentity(id=WorkerId("one"), host="here", pid=1, process_started=0.0))
        assert finish_slice(manifest, plan)
        fill(database, plan, range(1, slice_count(plan) - 1))
        assert not counter_faults(database, plan)
        assert finish_slice(manifest, plan)
        assert not finish_slice(manifest, plan)
        assert survey_receipts(plan, manifest.receipts).stored == plan.samples
        assert manifest.overview().mixture[0][1] == plan.layout.batch_count
    assert not counter_faults(database, plan)
    assert manifest_bytes(database) > 10_000


@pytest.mark.parametrize("scale", [TENTH, SMALL, LARGE, HUGE], ids=lambda one: f"{one.samples:,}")
def test_the_commands_read_the_plans_of_every_size(scale: Scale) -> None:
    plan = scale.plan()
    assert parse_plan(plan.canonical_json, where="here", hint="none") == plan


def test_the_artifacts_of_the_benchmark_are_whole(run: RunDirectory) -> None:
    plan = run.plan()
    run.database.path.unlink()
    assert write_artifacts(run.artifacts, plan) > 0
    found = rebuild(run)[1]
    assert (found.stored, found.refused) == (plan.samples, [])


@pytest.mark.slow
@pytest.mark.parametrize("scene", ["undisturbed", "lost"])
def test_workers_that_see_each_other_late_make_little_twice(scene: str) -> None:
    plan = make_plan(backgrounds=3, foregrounds=6, grid=(5, 4), shard_size=120, slice_batches=15, batch=2)
    outcome = play(Case(drive="60s", scene=scene, skew=3600, seed=1, workers=3, plan=plan))
    assert outcome.batches == 180
    assert outcome.again - outcome.lost <= 8, outcome
    assert (outcome.lost > 0) == (scene == "lost"), outcome
    assert outcome.lost <= 3 + 3, outcome


def test_pictures_of_the_benchmark_are_as_many_different_ones(tmp_path: Path) -> None:
    write_pictures(tmp_path, 1001)
    found = scan_pictures(tmp_path, threads=2)
    assert (found.sources.count, found.sources.largest_pixels) == (1001, (64 * 48,) * 4)
    assert found.warnings == ()


@pytest.mark.slow
def test_an_export_of_every_format_is_measured(tmp_path: Path) -> None:
    folder, samples = tmp_path / "few", 2020
    assert exporting.prepare(folder, samples) == samples
    for number, name in enumerate(FORMATS):
        found = exporting.measure(folder, samples, name, of_zip=number % 2 == 0, split=False)
        assert found.samples == samples
        assert found.seconds > 0


@pytest.mark.slow
def test_every_step_of_few_pictures_is_measured(tmp_path: Path) -> None:
    costs = measure(tmp_path, FEW)
    assert all(cost.seconds > 0 and cost.peak_bytes > 1 << 20 for cost in costs.values())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset closes no file
def test_a_data_set_is_read_faster_than_zipfile_reads_it(tmp_path: Path) -> None:
    found = read_in_turns(tmp_path, 2020, rounds=3)
    ratios = [
        ours.bytes_per_second / theirs.bytes_per_second
        for ours, theirs in zip(found["DataSet.encoded, random"], found["zipfile, random"], strict=True)
    ]
    assert sorted(ratios)[1] > 1.3
    assert {rate.samples for rate in found["DataSet[i], random, decoded, labels"]} == {505}
    assert all(rate.bytes > 0 for rates in found.values() for rate in rates)


@pytest.mark.slow
def test_a_data_set_is_opened_in_little_memory(tmp_path: Path) -> None:
    write_hollow(tmp_path / "hollow.zip", 40_400)
    found = open_anew(tmp_path / "hollow.zip")
    assert (found.samples, found.open_mib < 100) == (40_400, True), found


def test_only_the_tables_of_those_that_ran_are_replaced(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    names = "one", "two", "three"
    blocks = [f"<!-- python -m benchmarks.{name} --markdown -->\n| {name} |\n<!-- end -->" for name in names]
    page.write_text("# Figures\n\n" + "\n\n".join(blocks) + "\n", encoding="utf-8")

    def run(table: Table) -> str:
        if table.name == "two":
            raise RuntimeError("is not installed")
        return f"| {table.name}, anew |\n"

    assert renew(page, [], run) == ["two"]
    text = page.read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if line.startswith("|")] == [
        "| one, anew |",
        "| two |",
        "| three, anew |",
    ]
    assert renew(page, ["one"], lambda _table: "| one, once more |") == []
    assert page.read_text(encoding="utf-8") == text.replace("one, anew", "one, once more")


def test_every_table_of_the_page_has_a_command_that_can_be_typed() -> None:
    found = list(tables(PAGE.read_text(encoding="utf-8")))
    assert len({table.command for table in found}) == len(found) > 0
    for table in found:
        source = (PAGE.parent.parent / "benchmarks" / f"{table.name}.py").read_text(encoding="utf-8")
        assert "--markdown" in table.command
        for word in table.command.split():
            assert not word.startswith("--") or f'"{word}"' in source, table.command


def test_a_benchmark_that_fails_says_so() -> None:
    with pytest.raises(RuntimeError, match="exit code 2"):
        printed_by(Table(name="gpu", command="python -m benchmarks.gpu --no-such-option"))


@pytest.mark.slow
def test_a_device_with_a_queue_is_measured(tmp_path: Path) -> None:
    rows = {row[0]: row[1] for row in gpu.artificial(tmp_path, 0.1, slices=1)}
    assert 0 < float(rows["of the time the device works"]) < 1
    assert int(rows["images a second"]) > 10
