"""Text from outside gives no orders to the terminal that shows it: commands run on a real pseudo terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import unicodedata
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardgen.domain.identifiers import WorkerId
from shardgen.domain.wording import printable, printable_json
from shardgen.domain.worker import WorkerIdentity, WorkerReport, WorkerState
from shardgen.machine.processes import host_id
from shardgen.settings.run_directory import RunDirectory
from tests.conformance.conftest import MovableClock
from tests.fuzzing.mutating import members_of, packed
from tests.fuzzing.targets import zip_seeds
from tests.operations.test_sweep import lease_of, publish, record
from tests.runs import make_run

TITLE = "\x1b]0;PWNED\x07"
CLEAR, C1, BIDI = "\x1b[2J", "\x9b2J", "\u202e"
EVIL = f"{TITLE}{CLEAR}{C1}{BIDI}"

pytestmark = pytest.mark.slow  # each test starts commands


def on_a_terminal(*words: str | Path) -> tuple[int, str]:
    """Exit code and everything that a terminal would get of a command, but its own line that moves.

    The terminal knows no colours: that line is drawn behind carriage returns, and wiped out by blanks.
    """
    master, slave = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "shardgen", *map(str, words)],
        stdin=subprocess.DEVNULL,
        stdout=slave,
        stderr=slave,
        env={**os.environ, "TERM": "dumb", "COLUMNS": "400"},
    ) as process:
        os.close(slave)
        found = b""
        with suppress(OSError):  # the other end is closed
            while part := os.read(master, 65_536):
                found += part
    os.close(master)
    text = found.decode("utf-8", "replace").replace("\r\n", "\n")
    return process.returncode, re.sub(r"(?:\r[\w %/,.·:-]+)+\r +\r", "", text)


def gives_no_orders(text: str) -> bool:
    return printable(text) == text


def test_the_problems_of_photographs_with_evil_names(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (tmp_path / "sources" / "backgrounds" / f"{EVIL}.jpg").write_bytes(b"no picture")
    code, said = on_a_terminal("plan", run.path)
    assert code == 16
    assert "PWNED" in said
    assert r"\x1b]0;PWNED\x07\x1b[2J\x9b2J\u202e" in said
    assert gives_no_orders(said), ascii(said)


@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["table", "json"])
def test_the_findings_of_a_zip_with_evil_names(tmp_path: Path, flags: list[str]) -> None:
    path = tmp_path / "evil.zip"
    path.write_bytes(packed([(f"fgbg/{EVIL}", b"x"), *members_of(zip_seeds()[0])]))
    code, said = on_a_terminal("verify", path, "--quick", *flags)
    assert code == 21
    assert "PWNED" in said
    assert gives_no_orders(said), ascii(said)
    if flags:
        document = json.loads(said[: said.index("\n}") + 2])
        assert f"fgbg/{EVIL}" in {found["subject"] for found in document["findings"]}


@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["table", "json"])
def test_the_workers_of_a_status_with_evil_names(run: RunDirectory, flags: list[str]) -> None:
    with run.manifest(run.plan()) as manifest:
        worker = WorkerId(f"{EVIL}-0abc1234")
        manifest.workers.register(
            WorkerIdentity(id=worker, host=f"{host_id()}{EVIL}", pid=1, process_started=1.0, device=EVIL)
        )
        manifest.workers.beat(worker, WorkerReport(state=WorkerState.SUSPECT, note=f"a note {EVIL}"))
    code, said = on_a_terminal("status", run.path, *flags)
    assert code == 0, said
    assert "PWNED" in said
    assert gives_no_orders(said), ascii(said)


@pytest.mark.slow
def test_the_details_of_dead_letters(run: RunDirectory) -> None:
    lease = lease_of(run, "a", MovableClock())
    receipt = publish(run, lease, 0, dead=(1,))
    letters = tuple(
        replace(letter, detail=f"first {EVIL}\nsecond {EVIL}") for letter in receipt.record.dead_letters
    )
    record(run, lease, replace(receipt, record=replace(receipt.record, dead_letters=letters)))
    for flags in (["--details"], ["--json"]):
        code, said = on_a_terminal("dead-letters", run.path, *flags)
        assert code == 0, said
        assert "PWNED" in said
        assert gives_no_orders(said), ascii(said)


def test_an_evil_setting_and_an_evil_argument(tmp_path: Path) -> None:
    folder = tmp_path / EVIL.replace("/", "")
    folder.mkdir()
    for text in (f"{json.dumps(CLEAR)} = 1\n[sources]\nmask = {json.dumps(TITLE)}\n", ""):
        (folder / "shardgen.toml").write_text(text, encoding="utf-8")
        code, said = on_a_terminal("status", folder)
        assert code in (11, 12)
        assert "error: " in said
        assert "hint: " in said
        assert gives_no_orders(said), ascii(said)
    code, said = on_a_terminal("status", tmp_path, f"--{EVIL}")
    assert code == 2
    assert gives_no_orders(said), ascii(said)


def test_the_traceback_of_a_bug(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom shardgen.cli import app\nfrom shardgen.settings import settings\n"
        f"def bug(*_):\n    raise RuntimeError({EVIL!r})\n"
        "settings.read_settings = bug\nimport shardgen.settings.run_directory as r\nr.read_settings = bug\n"
        "sys.argv = ['shardgen', 'status', '.']\napp.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "RuntimeError: \\x1b]0;PWNED" in done.stderr
    assert gives_no_orders(done.stderr), ascii(done.stderr)


def test_a_name_that_is_no_utf_8_is_printed_and_ends_nothing(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff\xfe.zip")
    shutil.copy(_zip(tmp_path), path)
    code, said = on_a_terminal("verify", path, "--quick")
    assert code == 21
    assert r"\udcff\udcfe.zip" in said


def _zip(folder: Path) -> Path:
    path = folder / "sound.zip"
    path.write_bytes(zip_seeds()[0][:-1])
    return path


@given(st.text())
def test_what_is_printed_holds_no_control_character_but_tab_and_newline(text: str) -> None:
    shown = printable(text)
    kinds = {unicodedata.category(character) for character in shown if character not in "\t\n"}
    assert not kinds & {"Cc", "Cs", "Zl", "Zp"}
    assert printable(shown) == shown
    shown.encode()


@given(st.dictionaries(st.text(), st.text()))
def test_a_json_document_keeps_its_values(document: dict[str, str]) -> None:
    shown = printable_json(json.dumps(document, ensure_ascii=False, indent=2))
    assert json.loads(shown) == document
    assert gives_no_orders(shown)


def test_what_people_write_stays_as_it_is() -> None:
    text = "café 東京 Привет 👩‍👩‍👧 مرحبا\ttab\nline"
    assert printable(text) == text
