"""The functions of `shardgen`, on whole small runs."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

import shardgen
from shardgen.domain.worker import ShownState
from shardgen.errors import ArtifactCorrupt, RunIncomplete, WrongOption
from tests.photographs import write_photographs
from tests.runs import make_run, sha256_of

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "examples" / "whole_run.py"


class Enough(Exception):
    """Of a caller who wants to stop."""


@contextmanager
def another_thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(threading.current_thread).result() is not threading.main_thread()
        yield pool


def at_work(run_dir: Path) -> list[str]:
    ended = (ShownState.STOPPED, ShownState.DEAD)
    return [one.row.identity.id for one in shardgen.status(run_dir).workers if one.state not in ended]


def test_a_notebook_shows_a_result_in_one_line(tmp_path: Path) -> None:
    path = make_run(tmp_path).path
    planned, found = shardgen.plan(path), shardgen.status(path)
    samples = planned.plan.samples
    assert repr(planned) == f"<Planned: {samples} samples, new, {len(planned.warnings)} warnings>"
    assert repr(found) == f"<Report: 0 of {samples} samples stored, 0 dead letters, {samples} pending>"


@pytest.mark.slow
def test_the_example_makes_a_data_set_and_nothing_else_prints(tmp_path: Path) -> None:
    foregrounds, backgrounds = write_photographs(tmp_path)
    foregrounds.rename(tmp_path / "portraits")
    backgrounds.rename(tmp_path / "scenes")
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    doing = ("cutting out ", "reading the sources ", "starting the workers ", "making samples ", "merging ")
    assert [line for line in lines if not line.startswith(doing)] == [
        "0 masks written, 2 kept",
        "16 samples planned, look at people/preview.png",
        "16 of 16 samples are pending (1 of 1 batches, the first is 0)",
        "16 samples stored, 0 dead letters",
        "0 pending",
        "16 (64, 64, 3) background-000.jpg",
    ]
    assert all(any(line.startswith(word) for line in lines) for word in doing)
    again = subprocess.run(
        [sys.executable, str(EXAMPLE)], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert again.returncode == 10, again.stderr
    *_, code, message, hint = again.stdout.splitlines()
    assert code == "PlanConflict"
    assert message == "people/shardgen.toml: there are settings here already"
    assert "shardgen plan people" in hint


@pytest.mark.slow
def test_a_thread_can_be_stopped_and_the_same_call_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    path = make_run(tmp_path).path
    seen: list[shardgen.Progress] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop_early(progress: shardgen.Progress) -> None:
        seen.append(progress)
        if progress.doing == "making samples" and progress.done:
            raise Enough

    with another_thread() as pool, caplog.at_level(logging.INFO, "shardgen"):
        with pytest.raises(Enough):
            pool.submit(shardgen.run, path, workers=1, on_progress=stop_early, limit=40).result()
        assert at_work(path) == []
        stored = shardgen.status(path).stored
        assert 0 < stored < 48
        _use_a_part(path, stored)
        enough = pool.submit(shardgen.run, path, limit=4).result()
        assert (enough.report.pending, enough.merged) == (52 - stored, None)
        made = pool.submit(shardgen.run, path, workers=1, on_progress=seen.append).result()
        drawn: list[shardgen.Progress] = []
        shardgen.preview(path, samples=1, on_progress=drawn.append)
    assert [one.doing for one in drawn] == ["loading the network, up to a minute", *["making samples"] * 2]
    assert {number: signal.getsignal(number) for number in handlers} == handlers
    assert made.report.pending == 0
    assert made.merged is not None
    assert made.merged.samples_stored == 48
    assert sha256_of(made.merged.path) == made.merged.sha256
    said = ["reading the sources", "starting the workers", "making samples"]
    assert list(dict.fromkeys(one.doing for one in seen)) == [*said, "merging"]
    assert {one.done for one in seen if one.doing == said[1]} == {0, stored - 4}
    assert any("[worker-0] ready" in record.message for record in caplog.records)
    assert capfd.readouterr() == ("", "")


def _use_a_part(path: Path, stored: int) -> None:
    """Merge and export what is stored, damage an artifact, and put it back: 4 samples are pending again."""
    with pytest.raises(RunIncomplete) as incomplete:
        shardgen.merge(path)
    assert f"shardgen run {path}" in incomplete.value.hint
    part = shardgen.merge(path, partial=True)
    assert part.samples_stored == stored
    with pytest.raises(WrongOption, match=r"foregrounds/nobody\.png"):  # one name is not its letters
        shardgen.merge(path, partial=True, exclude="foregrounds/nobody.png")
    assert shardgen.verify(part.path, quick=True).samples == stored
    exported = shardgen.export(part.path, path.parent / "out", format="files")
    assert [one.samples for one in exported.splits] == [stored]
    (artifact, *_) = sorted((path / "artifacts").rglob("*.zip"))
    os.truncate(artifact, artifact.stat().st_size - 1)
    with pytest.raises(ArtifactCorrupt) as corrupt:
        shardgen.verify(path)
    assert [artifact.name in problem for problem in corrupt.value.problems] == [True]
    assert corrupt.value.hint.startswith(f"shardgen verify {path} --requeue")
    with pytest.raises(ArtifactCorrupt):
        shardgen.verify(path, requeue=True)
    assert shardgen.verify(path).pending == 52 - stored


@pytest.mark.slow
def test_a_signal_lets_the_workers_finish_and_then_does_what_it_always_does(tmp_path: Path) -> None:
    path = make_run(tmp_path, changes={"compose.grid": "[30, 20]"}).path
    script = (
        "import sys, signal, shardgen\n"
        "before = [0]\n"
        "def show(progress):\n"
        "    if progress.doing == 'making samples' and progress.done > before[0]:\n"
        "        print('making', flush=True)\n"
        "        before[0] = sys.maxsize\n"
        "try:\n"
        "    shardgen.run(sys.argv[1], workers=1, on_progress=show)\n"
        "except KeyboardInterrupt:\n"
        "    assert sys.exc_info()[1].__context__ is None\n"
        "    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
        "    before[0] = shardgen.status(sys.argv[1]).stored\n"
        "    print('interrupted', flush=True)\n"
        "shardgen.run(sys.argv[1], workers=1, on_progress=show)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True
    ) as caller:
        try:
            assert caller.stdout is not None
            assert next(caller.stdout) == "making\n"
            caller.send_signal(signal.SIGINT)
            assert next(caller.stdout) == "interrupted\n"
            assert next(caller.stdout) == "making\n"
            caller.send_signal(signal.SIGTERM)
            assert caller.wait(60) == -signal.SIGTERM
        finally:
            caller.kill()
    assert at_work(path) == []
    assert shardgen.status(path).pending > 0
