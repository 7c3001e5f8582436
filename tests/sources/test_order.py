"""The order of a folder's listing, of its making, or of the locale is no part of a plan."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import pytest

from shardgen.operations.plan import make_plan
from shardgen.settings.run_directory import RunDirectory
from shardgen.settings.template import settings_text
from shardgen.sources.folder import Listing, list_folder
from tests.runs import SETTINGS, make_run

NAMES = (
    *("b.jpg", "B.jpg", "a10.jpg", "a2.jpg", "é.png", "e\u0301.png", "Ä.jpg", "z.png", "日.jpg"),
    *("in/a.jpg", "in.jpg", "In/é.jpg", "in/deep/1.jpg", "in/deep/1.mask.png", "b.mask.png", "notes.txt"),
)
_SCANDIR = os.scandir


class _Shuffled:
    """What os.scandir gives, in an order that a seed decides."""

    def __init__(self, path: str, seed: int) -> None:
        with _SCANDIR(path) as found:
            self._entries = sorted(found, key=lambda entry: entry.name)
        random.Random(f"{seed} {path}").shuffle(self._entries)  # noqa: S311
        self._left = iter(self._entries)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> Iterator[os.DirEntry[str]]:
        return self._left

    def __next__(self) -> os.DirEntry[str]:
        return next(self._left)

    def close(self) -> None:
        pass


@contextmanager
def shuffled(monkeypatch: pytest.MonkeyPatch, seed: int) -> Iterator[None]:
    """Let every folder be listed in another order: os.walk asks the module's scandir."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", lambda path: _Shuffled(os.fspath(path), seed))
        yield


@pytest.fixture
def many(tmp_path: Path) -> Path:
    root = tmp_path / "many"
    for name in NAMES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    (root / "alias").symlink_to(root / "in")
    return root


def _listed(root: Path) -> Listing:
    return list_folder(root, what="foregrounds", with_masks=True)


def test_a_listing_is_the_same_in_whatever_order_the_file_system_gives_it(
    many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = _listed(many)
    assert list(plain.photographs) == sorted(plain.photographs, key=str.encode)
    assert "alias/deep/1.jpg" in plain.photographs  # one folder under two names: the first of them
    orders = set()
    for seed in range(12):
        with shuffled(monkeypatch, seed):
            orders.add(tuple(next(os.walk(many))[2]))
            assert _listed(many) == plain
    assert len(orders) > 1, "nothing was shuffled"


def test_copies_made_in_another_order_are_listed_alike(many: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    for name in sorted(NAMES, reverse=True):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(many / name, copy / name)
    (copy / "alias").symlink_to(copy / "in")
    assert _listed(copy) == _listed(many)


_PRINT = """
import sys
from pathlib import Path
from shardgen.sources.folder import list_folder
found = list_folder(Path(sys.argv[1]), what="foregrounds", with_masks=True)
sys.stdout.buffer.write("\\n".join(found.photographs + found.masks).encode())
"""


@pytest.mark.parametrize("locale", ["C", "POSIX", "C.UTF-8", "de_DE.UTF-8", "tr_TR.UTF-8"])
def test_the_locale_changes_no_name_and_no_order(many: Path, locale: str) -> None:
    there = {**os.environ, "LC_ALL": locale, "LANG": locale}
    done = subprocess.run([sys.executable, "-c", _PRINT, many], env=there, capture_output=True, check=True)
    found = _listed(many)
    assert done.stdout.decode().split("\n") == [*found.photographs, *found.masks]


def test_a_locale_that_would_misread_names_is_refused(many: Path) -> None:
    there = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", _PRINT, many], env=there, capture_output=True, check=False)
    assert b"this locale reads file names as ascii, not as UTF-8" in done.stderr


def test_a_plan_is_the_same_in_every_order_of_files_and_of_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, foregrounds=3, backgrounds=3)
    first = make_plan(run, {}).plan
    text = settings_text(
        foregrounds=run.folders({})["foregrounds"],
        backgrounds=run.folders({})["backgrounds"],
        weights="small",
        changes=SETTINGS,
    )
    head, *tables = text.split("\n[")
    other = tmp_path / "other"
    other.mkdir()
    (other / "shardgen.toml").write_text("\n".join([head, *(f"[{one}" for one in reversed(tables))]) + "\n")
    with shuffled(monkeypatch, 3):
        again = make_plan(RunDirectory.open(other), {}).plan
    assert again.fingerprint == first.fingerprint
