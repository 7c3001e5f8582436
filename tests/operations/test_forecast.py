"""`plan --calibrate`: what it measures by, what it leaves, and who reads it."""

from __future__ import annotations

import fcntl
import json
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from shardgen.domain.identifiers import SampleIndex
from shardgen.domain.steps import BatchStep
from shardgen.errors import ManifestBusy, RunIncomplete, SourceUndecodable
from shardgen.launch import calibration
from shardgen.launch.calibration import Estimated, _Clock, _spread_fractions
from shardgen.operations.forecast import Forecast, make_forecast, read_forecast
from shardgen.recipes.base import Encoded
from shardgen.recipes.composites.maker import CompositesMaker
from shardgen.settings.run_directory import RunDirectory
from tests.pictures import make_pictures_run
from tests.plans import make_plan
from tests.runs import make_run, plan_run, sha256_of, shardgen

MASKS_ONLY: dict[str, str | None] = {
    "depth.model": '"none"',
    **dict.fromkeys(("depth.input", "depth.micro_batch"), None),
}
FOUND = Forecast(
    fingerprint="f" * 64,
    made_at=datetime(2026, 1, 1, tzinfo=UTC),
    device_model="AMD EPYC (avx2, 2 threads)",
    threads=0,
    micro_batch=2,
    rate=14.2,
    rate_spread=0.05,
    batches=5,
    seconds=11.0,
    bytes={"fgbg": 700.5, "mask": 200.0},
    bytes_spread=0.01,
    artifact_bytes=600.0,
    samples=64,
)


def masks_only(folder: Path, **changes: str) -> RunDirectory:
    """No network, so that no test waits for one: 48 samples in batches of 4 unless changed."""
    return plan_run(make_run(folder, changes=MASKS_ONLY | changes))


def listing(folder: Path) -> dict[str, str]:
    """Every file of a run but the forecast, with its digest."""
    return {
        str(path.relative_to(folder)): sha256_of(path) if path.is_file() else ""
        for path in folder.rglob("*")
        if path.name != "forecast.json"
    }


class Slowed:
    """Makes computing take some seconds; notes what is encoded, and what of it while a batch is computed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, compute: float = 0.0) -> None:
        self.made: list[int] = []
        self.overlapped: list[int] = []  # places in `made`
        lock, computing = threading.Lock(), threading.Event()
        real_compute, real_encode = CompositesMaker.compute, CompositesMaker.encode

        def slow_compute(maker: CompositesMaker, batch: Sequence[Any], **options: Any) -> Any:
            computing.set()
            time.sleep(compute)
            computing.clear()
            return real_compute(maker, batch, **options)

        def noted_encode(maker: CompositesMaker, sample: SampleIndex, *parts: Any) -> Encoded:
            with lock:
                if computing.is_set():
                    self.overlapped.append(len(self.made))
                self.made.append(sample)
            return real_encode(maker, sample, *parts)

        monkeypatch.setattr(CompositesMaker, "compute", slow_compute)
        monkeypatch.setattr(CompositesMaker, "encode", noted_encode)


def test_the_rate_is_that_of_stages_that_overlap_and_nothing_is_left_but_the_forecast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"compose.grid": "[20, 20]", "shards.slice_batches": "8", "shards.size": "800"}
    run = masks_only(tmp_path, **changes)
    before = listing(run.path)
    slowed = Slowed(monkeypatch, compute=0.06)
    monkeypatch.setattr(calibration, "_SECONDS", 0.8)
    monkeypatch.setattr(calibration, "_PROBING_SECONDS", 0.2)
    monkeypatch.setenv("SHARDGEN_THREADS", "2")
    found = make_forecast(run, {}, say=lambda _line: None)
    assert listing(run.path) == before
    assert read_forecast(run) == read_forecast(RunDirectory.open(run.path)) == found
    assert 0 < found.rate < 4 / 0.06  # a batch of 4 is computed in 0.06 s
    assert (found.threads, found.micro_batch) == (2, 0)
    assert found.batches >= 2
    assert found.seconds >= 0.8
    assert set(found.bytes) == {"fgbg", "mask"}
    # The samples whose bytes count come from all four pairs of photographs, which have 800 samples each; of
    # the slices that are timed the first is in the middle. Only there stages overlap.
    probed, timed = slowed.made[: found.samples], slowed.made[found.samples :]
    assert [sample // 800 for sample in sorted(probed[:4])] == [0, 1, 2, 3]
    assert sorted(timed[:8]) == list(range(1600, 1608))
    assert slowed.overlapped
    assert not set(slowed.overlapped) & set(range(found.samples))


def test_a_plan_smaller_than_the_measurement_is_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowed = Slowed(monkeypatch)
    run = masks_only(tmp_path)
    found = make_forecast(run, {}, say=lambda _line: None)
    assert (found.samples, found.batches) == (48, 12)
    assert sorted(slowed.made[:48]) == list(range(48))
    assert len(slowed.made) == 96


def test_the_bytes_are_those_of_samples_that_were_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, real = masks_only(tmp_path), CompositesMaker.encode

    def encode(maker: CompositesMaker, sample: SampleIndex, *parts: Any) -> Encoded:
        made = real(maker, sample, *parts)
        padded = {name: data.ljust(1000 + 10 * sample, b"\0") for name, data in made.files.items()}
        return Encoded(files=padded, sums=made.sums, facts=made.facts)

    monkeypatch.setattr(CompositesMaker, "encode", encode)
    found = make_forecast(run, {}, say=lambda _line: None)
    assert found.bytes == {"fgbg": 1235.0, "mask": 1235.0}  # 1000 + 10 * the mean of 0 to 47
    assert 0.02 < found.bytes_spread < 0.04  # two standard errors of 48 equal steps
    # Local and directory entries of two files, and the receipt's part.
    assert 2 * (30 + 46 + 2 * len("fgbg/00000/0000000.jpeg")) < found.artifact_bytes < 2000


def test_samples_that_cannot_be_made_are_left_out_unless_none_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, real = masks_only(tmp_path), CompositesMaker.prepare
    bad = set(range(10))

    def prepare(maker: CompositesMaker, sample: SampleIndex) -> Any:
        if sample in bad:
            raise SourceUndecodable("made to fail")
        return real(maker, sample)

    monkeypatch.setattr(CompositesMaker, "prepare", prepare)
    assert make_forecast(run, {}, say=lambda _line: None).samples == 38
    bad |= set(range(48))
    (run.path / "forecast.json").unlink()
    with pytest.raises(RunIncomplete, match="no sample could be made"):
        make_forecast(run, {}, say=lambda _line: None)
    assert not (run.path / "forecast.json").exists()
    assert not (run.path / ".forecast").exists()


def test_a_slice_is_reckoned_with_what_it_takes_beside_its_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    clock = _Clock()

    def slice_of(batches: int, *, prepare: float, compute: float, finish: float) -> None:
        clock.begin_slice()
        now[0] += prepare
        clock.note(BatchStep.PREPARED)
        for _ in range(batches):
            clock.note(BatchStep.PREPARED)  # of the next one
            now[0] += compute
            clock.note(BatchStep.COMPUTED)
        now[0] += finish
        clock.end_slice()

    assert clock.may_begin()
    slice_of(1, prepare=1.0, compute=3.0, finish=2.0)
    assert clock.may_begin()  # six seconds are too few
    slice_of(3, prepare=2.0, compute=3.0, finish=1.0)
    assert not clock.may_begin()
    assert (clock.batches, clock.seconds) == (4, 18.0)
    # A slice of 16 batches of 32 takes 3 s + 16 * 3 s; the plan has 6,400 samples in 200 batches.
    found = clock.rate(make_plan(backgrounds=16, foregrounds=20))
    assert found.mean == pytest.approx(512 / 51)
    assert found.spread == 0.0


def test_a_slow_network_is_timed_by_two_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    clock = _Clock()
    clock.begin_slice()
    clock.note(BatchStep.PREPARED)
    for may_begin in (True, True, False):
        assert clock.may_begin() is may_begin
        now[0] += 40.0
        clock.note(BatchStep.COMPUTED)


def test_what_varies_has_a_spread_of_two_standard_errors() -> None:
    assert Estimated.of([3.0]) == Estimated(mean=3.0, spread=0.0)
    assert Estimated.of([1.0, 3.0]).spread == pytest.approx(2 * 2**0.5 / 2**0.5 / 2)
    assert list(islice(_spread_fractions(), 7)) == [0.5, 0.25, 0.75, 0.125, 0.625, 0.375, 0.875]


def test_what_a_killed_command_left_goes_and_a_running_one_is_not_disturbed(tmp_path: Path) -> None:
    run = masks_only(tmp_path)
    left = run.path / ".forecast"
    (left / "artifacts").mkdir(parents=True)
    (left / "manifest.sqlite").write_bytes(b"half a page")
    held = os.open(left, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(ManifestBusy, match="another `plan --calibrate` is measuring"):
        make_forecast(run, {}, say=lambda _line: None)
    assert (left / "manifest.sqlite").exists()
    os.close(held)
    make_forecast(run, {}, say=lambda _line: None)
    assert not left.exists()


def test_a_forecast_of_another_plan_or_a_damaged_one_is_none(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run.path / "forecast.json"
    assert read_forecast(run) is None
    whole = FOUND.model_copy(update={"fingerprint": run.plan().fingerprint})
    path.write_text(whole.model_dump_json())
    assert read_forecast(run) == whole
    document = json.loads(path.read_text())
    wrong: list[Callable[[dict[str, Any]], Any]] = [
        lambda one: one | {"fingerprint": "0" * 64},
        lambda one: one | {"rate": 0},
        lambda one: one | {"rate": "14.2"},
        lambda one: one | {"version": 2},
        lambda one: one | {"made_at": "yesterday"},
        lambda one: one | {"bytes": {"fgbg": -1}},
        lambda one: one | {"more": 1},
        lambda one: {name: value for name, value in one.items() if name != "threads"},
        lambda one: [one],
    ]
    for change in wrong:
        path.write_text(json.dumps(change(document)))
        assert read_forecast(run) is None, change(document)
    for data in (b"", b"{", b"\xff", path.read_bytes() + b" " * (1 << 16), b'{"rate": NaN}'):
        path.write_bytes(data)
        assert read_forecast(run) is None, data[:20]
    path.unlink()
    path.mkdir()
    assert read_forecast(run) is None


@pytest.mark.slow
def test_a_machine_that_is_unfit_is_told_after_the_plan_is_written(tmp_path: Path) -> None:
    run = make_run(tmp_path, changes=MASKS_ONLY)
    done = shardgen("plan", run.path, "--calibrate", environment={"SHARDGEN_THREADS": "many"})
    assert done.returncode == 12, done.stderr
    assert "'many', not a number of threads" in done.stderr.splitlines()[-2]
    assert re.search(r"^fingerprint +[0-9a-f]{64}", done.stdout, re.MULTILINE), done.stdout
    assert "bytes expected   about" in done.stdout
    assert (run.path / "plan.json").exists()
    assert not (run.path / "forecast.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["composites", "pictures", "shared folder"])
def test_a_begun_run_of_any_kind_is_calibrated_and_its_status_compares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("SHARDGEN_CACHE", str(tmp_path / "cache"))
    if kind == "pictures":
        run = plan_run(make_pictures_run(tmp_path))
    else:
        changes: dict[str, str | None] = {"depth.micro_batch": '"auto"'}
        if kind == "shared folder":
            changes = MASKS_ONLY | {"manifest.url": '"folder:"'}
        run = plan_run(make_run(tmp_path, changes=changes))
    if kind == "composites":
        first = shardgen("plan", run.path, "--calibrate")
        assert first.returncode == 0, first.stderr
        with run.manifest(run.plan()) as manifest:
            device = read_forecast(run).device_model  # type: ignore[union-attr]
            assert manifest.micro_batches.settled(device) is None  # not agreed on by a look
            assert manifest.micro_batches.agreed(device, 1) == 1
    made = shardgen("worker", run.path, "--max-batches", "1")
    assert made.returncode == 0, made.stderr
    before = listing(run.path)
    done = shardgen("plan", run.path, "--calibrate")
    assert done.returncode == 0, done.stderr
    assert listing(run.path) == before
    found = read_forecast(RunDirectory.open(run.path))
    assert found is not None
    assert found.micro_batch == {"composites": 1, "pictures": 2, "shared folder": 0}[kind]
    pending = run.plan().samples - 4
    assert f"workers  {pending} pending samples take" in done.stdout
    assert re.search(r"^8 +\d+ s +20\d\d-\d\d-\d\d \d\d:\d\d$", done.stdout, re.MULTILINE), done.stdout
    assert f"{found.samples} encoded)" in " ".join(done.stdout.split())
    assert "depth is a guess" not in done.stdout
    assert "on one CPU share its cores" in done.stdout
    assert f"forecast {found.rate:.1f} samples/s a worker" in shardgen("status", run.path).stdout
    shown = json.loads(shardgen("status", run.path, "--json").stdout)
    assert shown["forecast"] == found.as_json()
    assert shown["forecast"]["bytes_per_sample"].keys() == {output.name for output in run.plan().outputs}
