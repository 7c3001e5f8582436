from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from shardgen.errors import InputMissing, InvalidSettings, PlanConflict, ShardgenError
from shardgen.operations.page.file import refuse_page, write_page
from shardgen.settings.run_directory import RunDirectory
from tests.page.looks import look_at
from tests.runs import shardgen


def test_the_file_is_written_and_replaces_an_earlier_one(run: RunDirectory, tmp_path: Path) -> None:
    path = tmp_path / "status.html"
    for stored in (0, 6):
        refuse_page(run, path)
        size = write_page(path, look_at(stored=stored))
        assert path.stat().st_size == size
        assert f"{100 * stored // 120} %" in path.read_text(encoding="utf-8")
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o664 & ~umask
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "status.html"]


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("nowhere/status.html", InputMissing, "nowhere"),
        ("folder.html", InputMissing, "a folder, not a file"),
        ("mine.html", PlanConflict, "is not a page of shardgen"),
        ("link.html", PlanConflict, "is not a page of shardgen"),
        ("run/shardgen.toml", InvalidSettings, "must end in .html"),
        ("run/artifacts/status.html", PlanConflict, "in the artifact folder"),
    ],
)
def test_what_is_refused_before_a_look(
    run: RunDirectory, tmp_path: Path, name: str, error: type[ShardgenError], words: str
) -> None:
    (tmp_path / "folder.html").mkdir()
    (run.path / "artifacts").mkdir(exist_ok=True)
    (tmp_path / "mine.html").write_text("<!doctype html><p>mine")
    (tmp_path / "link.html").symlink_to(tmp_path / "mine.html")
    with pytest.raises(error, match=words) as caught:
        refuse_page(run, tmp_path / name)
    assert caught.value.hint
    assert (tmp_path / "mine.html").read_text() == "<!doctype html><p>mine"


def test_the_command_writes_a_page_with_pictures(finished_run: RunDirectory, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    done = shardgen("status", finished_run.path, "--html", path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{path}   ")
    html = path.read_text(encoding="utf-8")
    assert html.count('src="data:image/') == 18
    assert f"shardgen merge {finished_run.path}" in html
    assert len(html) < 1_000_000


def test_of_the_ways_to_show_it_only_one(run: RunDirectory, tmp_path: Path) -> None:
    done = shardgen("status", run.path, "--json", "--html", tmp_path / "x.html")
    assert done.returncode == 2
    assert "choose one of --json, --watch, --serve and --html" in done.stderr
    assert not (tmp_path / "x.html").exists()
