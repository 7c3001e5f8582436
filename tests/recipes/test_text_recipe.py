from __future__ import annotations

import csv
import io
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.runs import sha256_of
from tests.text_recipe import IMPORTED

ROOT = Path(__file__).resolve().parents[2]
ENGINE = ("worker", "coordination", "manifest", "artifacts", "domain")
TIMES = 3
LINES = [f"line {number}" for number in range(24)]
LINES[7], LINES[12] = "kill", "raise"
DEAD = {7 * TIMES: "killed-process", 12 * TIMES + 1: "non-finite"}
SETTINGS = f"""
[recipe]
kind = "text"
[text]
lines = "lines"
times = {TIMES}
[shards]
size = 40
slice_batches = 2
batch = 4
[lease]
seconds = 6
heartbeat_seconds = 1
max_attempts = 20
"""


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "lines").mkdir(parents=True)
    (folder / "lines" / "lines.txt").write_text("\n".join(LINES), encoding="utf-8")
    (folder / "shardgen.toml").write_text(SETTINGS, encoding="utf-8")
    return folder


def started(*arguments: object, imported: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.text_recipe", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {IMPORTED: str(imported)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def commanded(*arguments: object, imported: Path) -> str:
    with started(*arguments, imported=imported) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    return out


def worked(run_dir: Path, imported: Path) -> list[int]:
    """Two workers at a time until nothing is left; returns how they ended."""
    ends: list[int] = []
    while not ends or -signal.SIGKILL in ends[-2:]:
        pair = [started("worker", run_dir, "--id", f"w{number}", imported=imported) for number in range(2)]
        for process in pair:
            with process:
                _, err = process.communicate(timeout=120)
            ends.append(process.returncode)
            assert process.returncode in (0, -signal.SIGKILL), err
        assert len(ends) < 40, "the killing line is not found"
    return ends


@pytest.mark.slow
def test_text_goes_the_whole_way_past_a_killing_line_without_a_picture_library(
    run_dir: Path, tmp_path: Path
) -> None:
    imported = tmp_path / "imported"
    imported.mkdir()
    assert "24 lines x 3 times" in commanded("plan", run_dir, imported=imported)
    ends = worked(run_dir, imported)
    assert ends.count(-signal.SIGKILL) >= 4  # one in the crowd, three alone
    commanded("merge", run_dir, "--allow-dead-letters", imported=imported)
    assert '"pending": 0' in commanded("status", run_dir, "--json", imported=imported)
    page = tmp_path / "page.html"
    commanded("status", run_dir, "--html", page, imported=imported)
    assert "killed-process" in page.read_text(encoding="utf-8")
    assert "<img" not in page.read_text(encoding="utf-8")
    commanded("verify", run_dir, imported=imported)
    commanded("verify", run_dir / "dataset.zip", imported=imported)
    check_zip(run_dir / "dataset.zip")
    before = sha256_of(run_dir / "dataset.zip")
    excluding = ("--exclude", "lines/3", "--exclude", "lines/23", "--allow-dead-letters")  # inside batches
    commanded("merge", run_dir, *excluding, imported=imported)
    commanded("verify", run_dir / "dataset.excluded.zip", imported=imported)
    check_zip(run_dir / "dataset.excluded.zip", without=(3, 23))

    (run_dir / "manifest.sqlite").unlink()
    (run_dir / "dataset.zip").unlink()
    commanded("rebuild", run_dir, imported=imported)
    commanded("merge", run_dir, "--allow-dead-letters", imported=imported)
    assert sha256_of(run_dir / "dataset.zip") == before

    assert sorted(path.name for path in imported.iterdir()) == []


def check_zip(path: Path, *, without: tuple[int, ...] = ()) -> None:
    """Every line but these, with the facts of each sample."""
    with zipfile.ZipFile(path) as archive:
        rows = list(csv.DictReader(io.StringIO(archive.read("labels.csv").decode())))
        dead = archive.read("dead_letters.csv").decode().splitlines()[1:]
        assert dead == [f"{sample},{reason}" for sample, reason in DEAD.items()]
        assert [int(row["sample"]) for row in rows] == [
            sample
            for sample in range(len(LINES) * TIMES)
            if sample not in DEAD and sample // TIMES not in without
        ]
        for row in rows:
            sample = int(row["sample"])
            said = f"{LINES[sample // TIMES]} ({sample % TIMES})"
            assert archive.read(f"said/00000/{sample:07d}.txt").decode() == said
            assert archive.read(f"back/00000/{sample:07d}.txt").decode() == said[::-1]
            assert int(row["characters"]) == len(said)
        assert archive.read("stats.json") == b"{}\n"
        assert "contact_sheet.png" not in archive.namelist()


@pytest.mark.parametrize("folder", ENGINE)
def test_the_engine_knows_no_picture(folder: str) -> None:
    for path in (ROOT / "shardgen" / folder).rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for word in ("cv2", "tensorflow", "ImageKind"):
            assert word not in text, f"{path}: {word}"
