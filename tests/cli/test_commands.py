from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
import zipfile
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from shardgen.settings.run_directory import RunDirectory
from tests.runs import make_run, shardgen


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run made by the one-machine main job."""
    run = make_run(tmp_path_factory.mktemp("finished"))
    done = shardgen("run", run.path, "-o", run.path / "set.zip")
    assert done.returncode == 0, done.stderr
    return run


def test_run_plans_works_and_merges(finished: RunDirectory) -> None:
    document = json.loads(shardgen("status", finished.path, "--json").stdout)
    assert document["samples"] == {"planned": 48, "stored": 48, "dead_letters": 0, "pending": 0}
    assert document["eta_seconds"] == 0
    assert document["mixture"] == []
    assert [shard["slices"]["done"] for shard in document["shards"]] == [3, 3, 1]
    assert set(document) == {
        "plan",
        "samples",
        "shards",
        "blocked",
        "workers",
        "mixture",
        "rate_samples_per_second",
        "eta_seconds",
        "taken_at",
    }


def test_the_zips_statistics_are_those_of_its_decoded_pixels(finished: RunDirectory) -> None:
    with zipfile.ZipFile(finished.path / "set.zip") as archive:
        stats = json.loads(archive.read("stats.json"))
        for kind, flag in (
            ("fgbg", cv2.IMREAD_COLOR),
            ("mask", cv2.IMREAD_GRAYSCALE),
            ("depth", cv2.IMREAD_GRAYSCALE),
        ):
            names = [name for name in archive.namelist() if name.startswith(f"{kind}/")]
            images = [cv2.imdecode(np.frombuffer(archive.read(name), np.uint8), flag) for name in names]
            pixels = np.stack([image for image in images if image is not None]).astype(np.int64)
            pixels = pixels[..., ::-1].reshape(-1, 3) if kind == "fgbg" else pixels.reshape(-1, 1)
            for channel in range(pixels.shape[1]):
                values = pixels[:, channel]
                mean = Fraction(int(values.sum()), len(values))
                variance = Fraction(int((values * values).sum()), len(values)) - mean * mean
                assert stats[kind]["mean"][channel] == pytest.approx(float(mean / 255), abs=1e-15)
                assert stats[kind]["std"][channel] == pytest.approx(float(variance) ** 0.5 / 255, abs=1e-12)
            assert stats[kind]["images"] == 48


def test_every_planned_sample_is_in_the_labels(finished: RunDirectory) -> None:
    with zipfile.ZipFile(finished.path / "set.zip") as archive:
        rows = list(csv.DictReader(io.StringIO(archive.read("labels.csv").decode())))
        assert [int(row["sample"]) for row in rows] == list(range(48))
        assert len([name for name in archive.namelist() if "/" in name]) == 3 * 48


@pytest.mark.slow
def test_verify_names_a_flipped_bit_and_requeue_makes_the_same_bytes_again(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert shardgen("run", run.path).returncode == 0
    before = (run.path / "dataset.zip").read_bytes()
    victim = sorted(run.artifacts.glob("shard-00001/*.zip"))[2]
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 0x10
    victim.write_bytes(content)
    found = shardgen("verify", run.path)
    assert 20 <= found.returncode < 30
    assert victim.name in found.stdout
    assert "hint: shardgen verify" in found.stderr
    merged = shardgen("merge", run.path)
    assert 20 <= merged.returncode < 30
    assert (run.path / "dataset.zip").read_bytes() == before
    assert "requeued 1 batch, 4 samples" in shardgen("verify", run.path, "--requeue").stderr
    assert len(list((run.artifacts / "requeued").glob("*.json"))) == 1
    incomplete = shardgen("merge", run.path)
    assert incomplete.returncode == 14
    assert "4 of 48 samples are pending" in incomplete.stderr
    assert f"hint: shardgen run {run.path}" in incomplete.stderr
    assert shardgen("run", run.path).returncode == 0
    assert (run.path / "dataset.zip").read_bytes() == before


@pytest.mark.slow
def test_preview_draws_a_contact_sheet(finished: RunDirectory, tmp_path: Path) -> None:
    picture = tmp_path / "sheet.png"
    done = shardgen("preview", finished.path, "--samples", "4", "-o", picture)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(picture)
    assert cv2.imread(str(picture)) is not None


@pytest.mark.slow
def test_preview_comes_before_the_plan_and_writes_nothing_but_the_picture(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    before = {path.name for path in run.path.iterdir()}
    one = shardgen("preview", run.path, "--all-foregrounds")
    assert one.returncode == 0, one.stderr
    assert one.stderr.endswith("2 samples drawn\n")
    assert {path.name for path in run.path.iterdir()} == {*before, "preview.png"}
    first = (run.path / "preview.png").read_bytes()
    assert shardgen("plan", run.path).returncode == 0
    assert shardgen("preview", run.path, "--all-foregrounds").returncode == 0
    assert (run.path / "preview.png").read_bytes() == first


@pytest.mark.slow
def test_planning_twice_is_harmless_and_a_changed_setting_is_refused_with_the_difference(
    finished: RunDirectory,
) -> None:
    again = shardgen("plan", finished.path)
    assert again.returncode == 0, again.stderr
    assert "unchanged" in again.stdout
    settings = finished.path / "shardgen.toml"
    text = settings.read_text()
    try:
        settings.write_text(text.replace("grid = [3, 2]", "grid = [4, 4]"))
        for command in ("plan", "status", "worker", "merge"):
            refused = shardgen(command, finished.path)
            assert refused.returncode == 10, command
            assert "grid: 3x2 -> 4x4" in refused.stderr
            assert "hint: " in refused.stderr
    finally:
        settings.write_text(text)


@pytest.mark.slow
def test_a_machine_with_only_settings_gets_its_plan_from_the_manifest(
    finished: RunDirectory, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    text = (finished.path / "shardgen.toml").read_text()
    manifest = finished.path / "manifest.sqlite"
    text = text.replace("sqlite:///manifest.sqlite", f"sqlite:///{manifest}")
    text = text.replace('url = "artifacts"', f'url = "{finished.artifacts}"')
    (other / "shardgen.toml").write_text(text)
    done = shardgen("worker", other)
    assert done.returncode == 0, done.stderr
    assert (other / "plan.json").read_bytes() == (finished.path / "plan.json").read_bytes()


def test_changed_sources_are_refused_by_name_before_work_starts(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert shardgen("plan", run.path).returncode == 0
    photo = min((tmp_path / "sources" / "backgrounds").iterdir())
    photo.write_bytes(photo.read_bytes() + b"\0")
    refused = shardgen("worker", run.path)
    assert refused.returncode == 10
    assert photo.name in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["status", "nowhere"], 11, "nowhere"),
        (["status", "--no-such-option"], 2, "no-such-option"),
        (["no-such-command"], 2, "no-such-command"),
        (["init", "x", "--foregrounds", "missing-folder", "--backgrounds", "."], 11, "missing-folder"),
        (["init", "x", "--set", "compose.grid"], 2, "compose.grid"),
        (["requeue", "."], 2, "--batch"),
        (["weights", "check", "missing.h5"], 11, "missing.h5"),
        (["weights", "fetch", "other"], 2, "other"),
        (["worker", ".", "--deadline", "soon"], 2, "soon"),
        (["verify", "nowhere"], 11, "nowhere"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_misuse_is_one_error_line_and_one_hint_line(
    arguments: list[str], code: int, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = shardgen(*arguments)
    assert done.returncode == code, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 2, done.stderr
    assert re.match(r"error: \S.*", lines[0])
    assert expected in lines[0]
    assert re.match(r"hint: \S.*", lines[1])


@pytest.mark.slow
def test_run_goes_on_after_a_kill_in_the_middle_of_making_the_manifest(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert shardgen("plan", run.path).returncode == 0
    (run.path / "manifest.sqlite").write_bytes(b"")  # what such a kill leaves
    done = shardgen("run", run.path)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_lost_manifest_beside_artifacts_is_no_fresh_start(finished: RunDirectory) -> None:
    manifest = finished.path / "manifest.sqlite"
    kept = manifest.read_bytes()
    try:
        for content in (None, b""):
            manifest.unlink()
            if content is not None:
                manifest.write_bytes(content)
            for command in ("plan", "run"):
                refused = shardgen(command, finished.path)
                assert refused.returncode == 10, refused.stderr
                assert "there are artifacts" in refused.stderr
                assert f"hint: shardgen rebuild {finished.path}" in refused.stderr
    finally:
        manifest.write_bytes(kept)


def test_run_refuses_a_foreign_output_before_it_works(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    foreign = tmp_path / "holiday.zip"
    foreign.write_bytes(b"not ours")
    refused = shardgen("run", run.path, "-o", foreign)
    assert refused.returncode == 10, refused.stderr
    assert foreign.read_bytes() == b"not ours"
    assert not list(run.artifacts.glob("shard-*/*.zip"))


def test_a_reader_that_goes_away_is_no_bug(finished: RunDirectory) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m shardgen status {finished.path} | true"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "error" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_status_shows_that_workers_had_other_switches(run: RunDirectory) -> None:
    """Those that change bytes; a default that is stated, and a word that nobody knows, change none."""
    usual = {"TF_USE_DEEP_CONV2D": "0", "ONEDNN_MAX_CPU_ISA": "ALL", "OPENCV_IPP": "maybe"}
    other = {"TF_ENABLE_ONEDNN_OPTS": "0", "OPENCV_IPP": "disabled"}
    for environment in (None, usual):
        done = shardgen("worker", run.path, "--max-batches", "3", environment=environment)
        assert done.returncode == 0, done.stderr
    assert json.loads(shardgen("status", run.path, "--json").stdout)["mixture"] == []
    assert shardgen("worker", run.path, environment=other).returncode == 0
    document = json.loads(shardgen("status", run.path, "--json").stdout)
    mixture = sorted(document["mixture"], key=len)
    assert [part["batches"] for part in mixture] == [6, 6]
    assert mixture[1] == mixture[0] | {
        "opencv_switches": "OPENCV_IPP=disabled",
        "tensorflow_switches": "TF_ENABLE_ONEDNN_OPTS=0",
    }
    shown = " ".join(shardgen("status", run.path).stdout.split())
    assert "opencv-switches OPENCV_IPP=disabled" in shown
    assert "tensorflow-switches TF_ENABLE_ONEDNN_OPTS=0" in shown


@pytest.mark.slow
def test_a_photograph_too_large_for_the_memory_is_no_bug(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    large = run.folders({})["backgrounds"] / "large.png"
    assert cv2.imwrite(str(large), np.zeros((9000, 9000), np.uint8))
    script = (
        "import pathlib, resource, sys\n"
        "from shardgen.cli import app\n"
        "from shardgen.imaging import codec\n"
        "import shardgen.operations.plan, shardgen.sources.scanning\n"
        "pages = int(pathlib.Path('/proc/self/statm').read_text().split()[0])\n"
        "limit = pages * resource.getpagesize() + (150 << 20)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        f"sys.argv = ['shardgen', 'plan', {str(run.path)!r}]\n"
        "app.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 16, done.stderr
    assert "backgrounds/large.png: too large for the memory that this machine has left" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (run.path / "plan.json").exists()
