from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from shardgen.cli import render
from shardgen.cli.progress import Line
from shardgen.cli.run import showing
from shardgen.cli.status_view import mixture_lines, next_step, status_view
from shardgen.coordination.report import Report, ShownWorker
from shardgen.domain.identifiers import ShardIndex, WorkerId
from shardgen.domain.overview import SLICE_WORDS, Overview, ShardState, SliceCounts
from shardgen.domain.receipt import Provenance
from shardgen.domain.remarks import Remark
from shardgen.domain.worker import WORKER_WORDS, ShownState, WorkerIdentity, WorkerRow, WorkerState
from shardgen.operations.forecast import Forecast, forecast_line
from shardgen.operations.merged import Merged
from tests.plans import make_plan

PLAN = make_plan(backgrounds=1, foregrounds=1, grid=(5, 4), shard_size=100)
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def report(*workers: tuple[ShownState, float], stored: int = 5) -> Report:
    """A run of one shard, with workers in these states at these rates."""
    slices = SliceCounts(never_leased=0, open=1, leased=0, expired=0, done=0, blocked=0)
    shard = ShardState(shard=ShardIndex(0), stored=stored, dead=0, slices=slices)
    return Report(
        plan=PLAN,
        overview=Overview(
            fingerprint=PLAN.fingerprint, taken_at=NOW, shards=(shard,), blocked=(), workers=(), mixture=()
        ),
        workers=tuple(
            ShownWorker(
                row=WorkerRow(
                    identity=WorkerIdentity(id=WorkerId("w"), host="here", pid=7, process_started=1.0),
                    state=WorkerState.WORKING,
                    shard=None,
                    slice=None,
                    lease_expires_at=None,
                    started_at=NOW,
                    last_beat_at=NOW,
                    last_progress_at=NOW,
                    samples_done=0,
                    samples_per_second=rate,
                    note="",
                ),
                state=state,
                last_beat_seconds=0.0,
            )
            for state, rate in workers
        ),
    )


def on_nodes(*workers: tuple[str, str, ShownState, float]) -> Report:
    """A run of workers: host (or only its name), id, state and rate of each."""
    found = report(*(worker[2:] for worker in workers))
    shown = []
    for one, (host, name, _, _) in zip(found.workers, workers, strict=True):
        whole = host if "/" in host else f"boot-of-{host}/pid:[1]/{host}"
        identity = replace(one.row.identity, id=WorkerId(name), host=whole)
        shown.append(replace(one, row=replace(one.row, identity=identity)))
    return replace(found, workers=tuple(shown))


def lines(found: Report, *, width: int = 110, finished: Merged | None = None) -> list[str]:
    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        console.print(status_view(found, finished=finished))
    return [line.rstrip() for line in capture.get().splitlines()]


def test_a_long_note_of_a_worker_is_cut_short() -> None:
    found = report((ShownState.STOPPED, 0.0))
    one = found.workers[0]
    noted = replace(one, row=replace(one.row, note="the start; " + "a.png: gone; " * 40))
    shown = " ".join(lines(replace(found, workers=(noted,)), width=250))
    assert "stopped (the start; a.png" in shown
    assert "…)" in shown
    assert shown.count("a.png") < 7


def block(found: Report, head: str, *, width: int = 110) -> list[list[str]]:
    """The words of the table whose head begins so, a list a line."""
    shown = lines(found, width=width)
    start = next(
        number for number, line in enumerate(shown) if line.split()[: len(head.split())] == head.split()
    )
    return [line.split() for line in [*shown, ""][start : [*shown, ""].index("", start)]]


def pace(found: Report) -> str:
    return lines(found)[1]


LOST = (
    ("gpu-2", "d", ShownState.WORKING, 1.5),
    ("gpu-1", "c", ShownState.EXPIRED, 9.0),
    ("gpu-2", "b", ShownState.SUSPECT, 0.25),
    ("gpu-1", "a", ShownState.WORKING, 2.0),
    ("gpu-3", "e", ShownState.DEAD, 9.0),
)


def test_the_workers_of_several_nodes_stand_together_under_the_nodes_name() -> None:
    found = on_nodes(*LOST)
    rows = block(found, "node worker")
    assert [row[:2] for row in rows[1:]] == [
        ["gpu-1", "a"],
        ["c", "-"],
        ["gpu-2", "b"],
        ["d", "-"],
        ["gpu-3", "e"],
    ]
    assert block(found, "node samples/s") == [
        ["node", "samples/s", "workers"],
        ["gpu-1", "2.00", "1", "working,", "1", "silent"],
        ["gpu-2", "1.75", "1", "working,", "1", "careful"],
        ["gpu-3", "0.00", "1", "dead"],
    ]


def test_of_one_worker_a_node_no_totals_are_shown() -> None:
    one_each = [line.split()[:2] for line in lines(on_nodes(*LOST[:2])) if line.startswith("node")]
    assert one_each == [["node", "worker"]]


def test_on_one_node_the_table_has_no_word_of_it_and_the_oldest_worker_first() -> None:
    shown = lines(on_nodes(LOST[0], LOST[2]))
    assert not [line for line in shown if "node" in line or "gpu" in line]
    assert [line[0] for line in shown[-2:]] == ["d", "b"]


def test_two_machines_of_one_name_are_two_nodes() -> None:
    twins = [
        ("1/pid:[1]/gpu", "a", ShownState.WORKING, 1.0),
        ("2/pid:[1]/gpu", "b", ShownState.WORKING, 2.0),
        ("2/pid:[2]/gpu", "c", ShownState.WORKING, 4.0),
        ("2/pid:[2]/gpu", "d", ShownState.WORKING, 8.0),
        ("2/pid:[2]/other", "e", ShownState.WORKING, 8.0),
    ]
    rows = block(on_nodes(*twins), "node samples/s")[1:]
    assert [(row[0], row[-3:]) for row in rows[:3]] == [
        ("gpu", ["1.00", "1", "working"]),
        ("gpu", ["2.00", "1", "working"]),
        ("gpu", ["12.00", "2", "working"]),
    ]
    marks = {row[1] for row in rows[:3]}
    assert len(marks) == 3
    assert all(re.fullmatch(r"\([0-9a-f]{4}\)", mark) for mark in marks)
    assert rows[3][:2] == ["other", "8.00"]
    documents = on_nodes(*twins).as_json()["workers"]
    assert isinstance(documents, list)
    assert [(one["node"], one["host"]) for one in documents[1:3]] == [
        ("gpu", "2/pid:[1]/gpu"),
        ("gpu", "2/pid:[2]/gpu"),
    ]


@pytest.mark.parametrize("width", [66, 80, 110])
def test_forty_workers_on_ten_nodes_have_a_line_each(width: int) -> None:
    name = "compute-{:02}"
    workers = [
        (name.format(node), f"{name.format(node)}-12345-{number:08x}", ShownState.WORKING, 1.6)
        for node in range(10)
        for number in range(4)
    ]
    found = on_nodes(*workers)
    shown = lines(found, width=width)
    assert max(map(len, shown)) <= width
    for _, worker, _, _ in workers:
        assert sum(worker in line for line in shown) == 1
    named = [line.split()[0] for line in shown if line.startswith("compute")]
    assert named == [name.format(node) for node in range(10)] * 2


def test_a_nodes_name_gives_no_orders_and_breaks_no_line() -> None:
    evil = ("boot/ns/a/b\x1b[2J\nc", "a", ShownState.WORKING, 1.0)
    assert [row[:3] for row in block(on_nodes(evil, LOST[0]), "node worker")[1:]] == [
        [r"a/b\x1b[2J", "c", "a"],
        ["gpu-2", "d", "-"],
    ]


@pytest.mark.parametrize("state", [ShownState.WORKING, ShownState.SUSPECT])
def test_who_makes_samples_counts_for_the_rate(state: ShownState) -> None:
    line = "25 %  5/20 samples · 2.5/s · 0:06 left · 1 worker"
    assert pace(report((state, 2.5), (ShownState.DEAD, 9.0))) == line


@pytest.mark.parametrize(
    "state", [ShownState.STARTING, ShownState.WORKING, ShownState.SUSPECT, ShownState.WAITING]
)
def test_who_is_at_work_is_not_nothing(state: ShownState) -> None:
    found = report((state, 0.0))
    assert pace(found) == "25 %  5/20 samples · 1 worker"
    assert next_step(found) == ""


def test_a_run_is_at_0_percent_only_once_a_worker_is_ready() -> None:
    since = report(stored=5)
    line = Line()
    show = showing(line, since=since)
    for state in (ShownState.STARTING, ShownState.STOPPED):
        show(report((state, 0.0)))
        assert not line.shows_progress
    show(report((ShownState.WAITING, 0.0)))
    assert line.shows_progress
    ended_between_two_looks = report((ShownState.STOPPED, 0.0), stored=6)
    assert ended_between_two_looks.is_under_way(since=since)


@pytest.mark.parametrize("state", [ShownState.DEAD, ShownState.STOPPED, ShownState.EXPIRED])
def test_where_nobody_is_at_work_it_says_what_to_type(state: ShownState) -> None:
    found = report((state, 0.0))
    assert pace(found) == "25 %  5/20 samples · no workers"
    assert next_step(found) == "to continue: shardgen run RUN_DIR"
    done = report((state, 0.0), stored=PLAN.samples)
    assert pace(done) == "nothing is pending"
    assert next_step(done).endswith("shardgen merge RUN_DIR")


@pytest.mark.parametrize("dead", [0, 2])
def test_of_a_finished_zip_it_says_where_it_is_and_how_to_check_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dead: int
) -> None:
    monkeypatch.chdir(tmp_path)
    found = report(stored=PLAN.samples - dead)
    shard = replace(found.overview.shards[0], dead=dead)
    found = replace(found, overview=replace(found.overview, shards=(shard,)))
    finished = Merged(
        path=str(tmp_path / "our people.zip"),
        size_bytes=2_600_000,
        sha256="0" * 64,
        fingerprint=PLAN.fingerprint,
        samples_stored=found.stored,
        dead_letters=dead,
        excluded=0,
        pending=0,
    )
    assert lines(found, finished=finished)[1] == "finished: our people.zip, 2.6 MB"
    said = "to check every byte of the zip: shardgen verify 'our people.zip'"
    assert next_step(found, finished) == said


def test_every_state_has_one_name_that_a_person_understands() -> None:
    assert set(WORKER_WORDS) == set(ShownState)
    assert set(SLICE_WORDS) == set(SliceCounts.__dataclass_fields__)
    shown = "\n".join(lines(on_nodes(*LOST)))
    assert all(word in shown for word in (*SLICE_WORDS.values(), "last seen", "silent", "careful"))
    assert not re.search(r"\b(expired|leased|suspect|beat|open)\b", shown)


def test_a_mixture_is_shown_whatever_the_recipe_says_of_its_making() -> None:
    found = report()
    mixture = tuple((Provenance.of({"device_model": name}), 3) for name in ("tongue", "lips"))
    mixed = replace(found, overview=replace(found.overview, mixture=mixture))
    assert mixture_lines(found) == []
    assert mixture_lines(mixed)[1:] == [
        "  3 batches: device-model tongue",
        "  3 batches: device-model lips",
    ]


def test_a_remark_names_ten_files_and_counts_the_rest() -> None:
    many = Remark(
        folder="foregrounds",
        reason="black everywhere",
        hint="draw it white",
        names=tuple(f"{number}\n.jpg" for number in range(1347)),
    )
    assert render.remark_text(many).splitlines() == [
        "1,347 files in foregrounds: black everywhere",
        "  0 .jpg, 1 .jpg, 2 .jpg, 3 .jpg, 4 .jpg, 5 .jpg, 6 .jpg, 7 .jpg, 8 .jpg, 9 .jpg, and 1,337 more",
        "  hint: draw it white",
    ]
    details = tuple(str(number) for number in range(1347))
    assert "  0 .jpg (0), 1 .jpg (1), " in render.remark_text(replace(many, details=details))


@pytest.mark.parametrize(
    ("remark", "line"),
    [
        (Remark(folder="scenes", names=("a",), reason="empty", hint="copy it"), "scenes/a: empty (copy it)"),
        (Remark(folder="scenes", names=("a",), reason="as …", details=("b",)), "scenes/a: as b"),
        (Remark(folder="scenes", names=("a",), reason="twice", details=("b, c",)), "scenes/a: twice (b, c)"),
        (Remark(folder="scenes", reason="3 files left out"), "scenes: 3 files left out"),
    ],
)
def test_a_remark_about_one_file_is_one_line(remark: Remark, line: str) -> None:
    assert render.remark_text(remark) == line


def test_a_forecast_is_compared_with_what_the_workers_make_now() -> None:
    forecast = Forecast(
        fingerprint=PLAN.fingerprint,
        made_at=NOW,
        device_model="",
        threads=0,
        micro_batch=0,
        rate=0.5,
        rate_spread=0.0,
        batches=2,
        seconds=1.0,
        bytes={},
        bytes_spread=0.0,
        artifact_bytes=0.0,
        samples=1,
    )
    line = "forecast 0.50 samples/s a worker, 40 s for one"  # of 20 samples
    assert forecast_line(forecast, report((ShownState.STOPPED, 7.0), (ShownState.WAITING, 0.0))) == line
    busy = report((ShownState.WORKING, 0.3), (ShownState.SUSPECT, 0.2), (ShownState.DEAD, 7.0))
    assert forecast_line(forecast, busy) == f"{line}; measured 0.50 by 2 workers"
    assert forecast_line(forecast, report((ShownState.WORKING, 7.0))) == f"{line}; measured 7.0 by 1 worker"
    console = Console(width=110, highlight=False)
    with console.capture() as capture:
        console.print(status_view(busy, forecast=forecast))
    assert capture.get().splitlines()[2].rstrip() == f"{line}; measured 0.50 by 2 workers"
