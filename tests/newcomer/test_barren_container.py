"""A container of `docker run --read-only --user 12345`: no temporary folder, no home, a nameless user."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shardgen.manifest.backend import Access
from shardgen.manifest.sqlite import open_engine, transaction
from tests.runs import make_run, sha256_of

ROOT = Path(__file__).parents[2]
# A root that nobody may write to, nor to the folders that programs look for, nor to the one they start in;
# /mnt is the volume.
NAMESPACE = """
mount -t tmpfs volume /mnt && cp -r "$1" /mnt/box || exit 99
for at in / /tmp /var/tmp /dev/shm; do
  if mountpoint -q $at; then mount -o remount,bind,ro $at || exit 99; fi
done
cd / && shift && "$@" && rm -rf /mnt/box/sources && exec tar -C /mnt/box -c .
"""
LINE = """
set -e
shardgen() {{ {python} -m shardgen "$@" >&2; }}
shardgen plan {box}/run
shardgen preview {box}/run --samples 2
shardgen run {box}/run -o {box}/set.zip
shardgen status {box}/run
shardgen verify {box}/set.zip
shardgen backup {box}/run
export HOME=/nonexistent
shardgen requeue {box}/run --batch 1
shardgen sweep {box}/run --yes
rm {box}/run/manifest.sqlite
shardgen rebuild {box}/run
shardgen run {box}/run -o {box}/again.zip
shardgen doctor {box}/run
"""


def environment(box: Path) -> dict[str, str]:
    """What a process there finds."""
    kept = {name: value for name, value in os.environ.items() if name not in {"HOME", "SHARDGEN_CACHE"}}
    given = {name: value for name, value in kept.items() if not name.startswith(("XDG_", "PG", "TMP"))}
    return given | {"PYTHONPATH": f"{ROOT / 'tests' / 'barren'}:{ROOT}"}


def make_box(folder: Path, *, lies_at: Path) -> Path:
    """A run directory and its photographs, in a folder that will lie elsewhere."""
    box = folder / "box"
    box.mkdir()
    path = make_run(box).path / "shardgen.toml"
    path.write_text(path.read_text("utf-8").replace(str(box), str(lies_at)), "utf-8")
    return box


def shardgen_in(box: Path, *words: str | Path, more: dict[str, str] | None = None) -> tuple[int, str]:
    """Exit code, and all that is said, of a command."""
    done = subprocess.run(
        [sys.executable, "-m", "shardgen", *map(str, words)],
        cwd=box,
        env=environment(box) | (more or {}),
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def _may_mount() -> bool:
    done = subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False)
    return os.geteuid() == 0 and done.returncode == 0


@pytest.mark.slow
def test_everything_works_without_a_temporary_folder_and_without_a_home(tmp_path: Path) -> None:
    """On a root that is read-only, where we may mount: there the kernel refuses, libraries in C as well."""
    place = Path("/mnt/box") if _may_mount() else tmp_path / "box"
    box = make_box(tmp_path, lies_at=place)
    command = ["bash", "-c", LINE.format(box=place, python=sys.executable)]
    if _may_mount():
        command = ["unshare", "-m", "bash", "-c", NAMESPACE, "bash", str(box), *command]
    done = subprocess.run(command, cwd=box, env=environment(box), capture_output=True, check=False)
    said = done.stderr.decode()
    assert done.returncode == 0, said
    assert "Warning" not in said
    if _may_mount():
        box = tmp_path / "out"
        box.mkdir()
        subprocess.run(["tar", "-C", box, "-x"], input=done.stdout, check=True)
    assert sha256_of(box / "again.zip") == sha256_of(box / "set.zip")
    assert not (box / "~").exists()


DATABASE = 'url = "sqlite:///manifest.sqlite"'
SHARED = 'url = "folder:"'
SERVER = 'url = "postgresql+psycopg://127.0.0.1:9/x"'


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "command", "code", "says"),
    [
        ("", "", "weights fetch", 18, "export SHARDGEN_CACHE=DIR"),
        ('weights = "small"', 'weights = "nyu"', "plan run", 18, "export SHARDGEN_CACHE=DIR"),
        (DATABASE, SHARED, "plan run", 18, "export SHARDGEN_CACHE=DIR"),
        (DATABASE, SHARED, "doctor run", 19, "export SHARDGEN_CACHE=DIR"),
        ('url = "artifacts"', 'url = "~/made"', "plan run", 12, "write the whole path"),
        (DATABASE, SERVER, "plan run", 18, "export PGUSER=NAME"),
    ],
    ids=["fetch", "plan-nyu", "shared-folder", "doctor", "tilde", "postgres"],
)
def test_what_needs_a_home_or_a_name_says_what_to_type(
    tmp_path: Path, old: str, new: str, command: str, code: int, says: str
) -> None:
    box = make_box(tmp_path, lies_at=tmp_path / "box")
    path = box / "run" / "shardgen.toml"
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new), "utf-8")
    found, said = shardgen_in(box, *command.split())
    assert found == code, said
    assert says in said
    assert "Traceback" not in said
    assert sorted(one.name for one in box.iterdir()) == ["run", "sources"]


@pytest.mark.slow
def test_a_cache_that_is_named_is_all_that_a_shared_folder_needs(tmp_path: Path) -> None:
    box = make_box(tmp_path, lies_at=tmp_path / "box")
    path = box / "run" / "shardgen.toml"
    path.write_text(path.read_text("utf-8").replace('"sqlite:///manifest.sqlite"', '"folder:"'), "utf-8")
    for command in ("plan", "status"):
        code, said = shardgen_in(box, command, "run", more={"SHARDGEN_CACHE": str(tmp_path / "cache")})
        assert code == 0, said


def test_sqlite_keeps_what_is_temporary_in_memory(tmp_path: Path) -> None:
    """A statement that changes many rows keeps a journal of its own, for which there may be no folder."""
    engine = open_engine(tmp_path / "new.sqlite", Access.CREATE)
    with transaction(engine) as connection:
        assert connection.exec_driver_sql("PRAGMA temp_store").scalar_one() == 2
    engine.dispose()
