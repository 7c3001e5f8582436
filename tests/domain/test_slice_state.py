"""The table of a slice's transitions against the code, the database's rules and the page that shows it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, NullPool, create_engine, inspect, select, update

from shardgen.domain.identifiers import Fence, ShardIndex, SliceIndex, WorkerId
from shardgen.domain.lease import Lease
from shardgen.domain.slice_state import (
    EMPTY_IN,
    ONLY_IN,
    TRANSITIONS,
    Event,
    Guard,
    SliceState,
    Transition,
    transitions,
)
from shardgen.errors import LeaseLost, ManifestBusy
from shardgen.manifest.database_url import DatabaseUrl
from shardgen.manifest.manifest import create_manifest
from shardgen.manifest.slices import lock_slice, transition
from shardgen.manifest.tables import SHARD, SLICE, SUSPECT_SAMPLE, WORKER
from tests.plans import make_plan

ROOT = Path(__file__).parent.parent.parent
PACKAGE = ROOT / "shardgen"
PLACE = (ShardIndex(0), SliceIndex(0))
LEASE = Lease(
    shard=PLACE[0],
    slice=PLACE[1],
    worker=WorkerId("w"),
    fence=Fence(3),
    expires_at=datetime(2026, 1, 1, tzinfo=UTC),
)
NOT_SLICES = {  # other things that have the same name
    ("worker/worker.py", "blocked"),  # how a worker ended
    ("coordination/folder/notices.py", "done"),  # a kind of file
    ("coordination/report.py", "blocked"),  # a key of `status --json`
    ("domain/overview.py", "done"),  # what people read of a slice
    ("domain/overview.py", "blocked"),
    ("operations/page/render.py", "blocked"),  # a part of the page
    ("operations/page/render.py", "done"),  # how far the whole run is
}
REPAIRS = {Event.RESTORE, Event.MEND}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("manifest")
    url = DatabaseUrl(url="sqlite:///manifest.sqlite", run_dir=folder)
    create_manifest(url, make_plan(shard_size=50, batch=8, slice_batches=3))
    return create_engine(f"sqlite:///{url.path}", poolclass=NullPool)


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    with engine.connect() as connection:
        yield connection  # never committed


# the table and what the database allows


def test_the_migrations_allow_what_the_table_says(connection: Connection) -> None:
    states = ", ".join(f"'{state}'" for state in SliceState)
    expected = {f"state IN ({states})"}
    expected |= {f"(state = '{state}') = ({column} IS NOT NULL)" for column, state in ONLY_IN.items()}
    expected |= {f"(state = '{state}') = ({column} = 0)" for column, state in EMPTY_IN.items()}
    checks = [one["sqltext"] for one in inspect(connection).get_check_constraints("slice")]
    assert {one for one in checks if re.search(r"\bstate\b", one)} == expected
    of_shards = [one["sqltext"] for one in inspect(connection).get_check_constraints("shard")]
    assert " + ".join(f"slices_{state}" for state in SliceState) + " = next_slice" in of_shards
    counters = {name for name in SHARD.c.keys() if name.startswith("slices_")}  # noqa: SIM118
    assert counters == {f"slices_{state}" for state in SliceState}


def _put(connection: Connection, state: SliceState) -> None:
    """One slice in this state, counted, with a note, a suspected batch and sample; and its worker."""
    has = {"worker": LEASE.worker, "expires_at": 1.0, "reason": "why"}
    values = {name: value if ONLY_IN[name] is state else None for name, value in has.items()}
    left = 0 if state is SliceState.DONE else 2
    notes = {"noted_batch": 1, "noted_sample": 9, "suspect_batch": 1}
    keys = {"shard": PLACE[0], "slice": PLACE[1]}
    row = {**keys, "state": state, "fence": LEASE.fence, "batches_left": left, "deaths": 2}
    connection.execute(SLICE.insert(), row | values | notes)
    counted = {"next_slice": 1, f"slices_{state}": 1}
    connection.execute(update(SHARD).where(SHARD.c.shard == PLACE[0]).values(counted))
    suspect = {"sample": 9, "deaths": 1, "state": "suspect", "detail": ""}
    connection.execute(SUSPECT_SAMPLE.insert(), keys | suspect)
    seconds = dict.fromkeys(("process_started", "started_at", "last_beat_at", "last_progress_at"), 1.0)
    worker = {"id": LEASE.worker, "host": "", "pid": 1, "device": "", "state": "working", "note": ""}
    counters = {"samples_done": 0, "samples_per_second": 0.0, "lease_expires_at": 1.0}
    connection.execute(WORKER.insert(), worker | keys | seconds | counters)


def _values(one: Transition) -> dict[str, Any]:
    """What a caller adds to a transition."""
    match one.event:
        case Event.GRANT:
            return {"worker": "x", "fence": 4, "expires_at": 2.0}
        case Event.RENEW:
            return {"expires_at": 2.0}
        case Event.RECORD | Event.ADOPT:
            return {"batches_left": SLICE.c.batches_left - (2 if one.after is SliceState.DONE else 1)}
        case Event.UNDO:
            return {"batches_left": SLICE.c.batches_left + 1}
        case Event.MEND:
            return {"batches_left": 0 if one.after is SliceState.DONE else 1}
    return {"reason": "because"} if one.after is SliceState.BLOCKED else {}


def _id(one: Transition) -> str:
    return f"{one.before}-{one.event}-{one.after}"


WITH_ROW = [one for one in TRANSITIONS if one.before is not None]


@pytest.mark.parametrize("one", WITH_ROW, ids=_id)
def test_a_transition_takes_along_what_hangs_on_the_slice(connection: Connection, one: Transition) -> None:
    assert one.before is not None
    _put(connection, one.before)
    of = LEASE if one.guard is Guard.HELD else lock_slice(connection, *PLACE)
    decides = {Event.FAIL, Event.DIE, Event.MEND}  # the caller, not the batches left
    to = one.after if one.event in decides else None
    assert transition(connection, one.event, of, to=to, **_values(one)) is one.after
    row = connection.execute(select(SLICE)).mappings().one()
    assert {name for name in ONLY_IN if row[name] is not None} == {
        name for name, state in ONLY_IN.items() if state is one.after
    }
    shard = connection.execute(select(SHARD).where(SHARD.c.shard == PLACE[0])).mappings().one()
    assert {state: shard[f"slices_{state}"] for state in SliceState} == {
        state: int(state is one.after) for state in SliceState
    }
    changed, ended = one.after is not one.before, one.after is SliceState.DONE or one.event is Event.UNBLOCK
    shown = connection.execute(select(WORKER.c.slice)).scalar_one()
    assert (shown is None) == (changed and one.before is SliceState.LEASED)
    assert (row["noted_batch"], row["noted_sample"]) == ((None, None) if changed else (1, 9))
    suspected = (row["suspect_batch"], row["deaths"], len(connection.execute(select(SUSPECT_SAMPLE)).all()))
    assert suspected == ((None, 0, 0) if changed and ended else (1, 2, 1))


@pytest.mark.parametrize("one", WITH_ROW, ids=_id)
def test_a_slice_that_changed_meanwhile_stays_as_it_is(connection: Connection, one: Transition) -> None:
    assert one.before is not None
    _put(connection, one.before)
    of = LEASE if one.guard is Guard.HELD else lock_slice(connection, *PLACE)
    connection.execute(update(SLICE).values(fence=LEASE.fence + 1))
    tables = (SLICE, SHARD, WORKER, SUSPECT_SAMPLE)
    before = [connection.execute(select(table)).all() for table in tables]
    with pytest.raises(LeaseLost if one.guard is Guard.HELD else ManifestBusy):
        transition(connection, one.event, of, to=one.after, **_values(one))
    assert [connection.execute(select(table)).all() for table in tables] == before


def test_what_the_table_does_not_have_is_refused() -> None:
    assert len(set(map(_id, TRANSITIONS))) == len(TRANSITIONS)
    known = {(one.before, one.event, one.after) for one in TRANSITIONS}
    for before, event, after in set(product((None, *SliceState), Event, SliceState)) - known:
        with pytest.raises(ValueError, match="no slice that is"):
            transitions(event, before, after)


def test_only_its_holder_ends_a_lease_for_itself(connection: Connection) -> None:
    _put(connection, SliceState.LEASED)
    with pytest.raises(ValueError, match="release: the lease's"):
        transition(connection, Event.RELEASE, lock_slice(connection, *PLACE))
    with pytest.raises(ValueError, match="die: state, worker and fence"):
        transition(connection, Event.DIE, LEASE, to=SliceState.OPEN)


# the table and the code


@cache
def _trees() -> dict[str, ast.Module]:
    paths = sorted(PACKAGE.rglob("*.py"))
    return {str(one.relative_to(PACKAGE)): ast.parse(one.read_text(encoding="utf-8")) for one in paths}


@cache
def _functions() -> list[tuple[str, ast.FunctionDef]]:
    return [
        (name, node)
        for name, tree in _trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    ]


def test_states_are_spelt_in_one_module() -> None:
    quoted = re.compile(rf"'({'|'.join(SliceState)})'")
    found = set()
    for name, tree in _trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                words = {node.value} & set(SliceState) or set(quoted.findall(node.value))
                found |= {(name, word) for word in words}
    assert found - {("domain/slice_state.py", state.value) for state in SliceState} == NOT_SLICES


def test_one_function_changes_the_state_of_a_slice() -> None:
    """Who else writes to the table sets what belongs to no state."""
    writers: dict[str, set[str]] = {}
    for name, function in _functions():
        for node in ast.walk(function):
            match node:
                case ast.Call(func=ast.Name(id="update" | "insert"), args=[ast.Name(id="SLICE"), *_]):
                    writers.setdefault(name, set()).add(function.name)
                case ast.Attribute(value=ast.Name(id="SLICE"), attr="update" | "insert"):
                    writers.setdefault(name, set()).add(function.name)
    assert writers == {
        "manifest/slices.py": {"transition", "add_slices"},
        "manifest/suspicion.py": {"_note_pass", "_note", "blame_death"},
        "manifest/rebuilt.py": {"_fill"},
        "coordination/bucket/rows.py": {
            "load"
        },  # a copy of a row, which was changed by `transition` elsewhere
    }
    of_a_state = {"state", "batches_left", *ONLY_IN}
    for name in ("manifest/suspicion.py", "manifest/rebuilt.py"):
        for node in ast.walk(_trees()[name]):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith(("update(SLICE)", "_note")):
                assert not {keyword.arg for keyword in node.keywords} & of_a_state


@cache
def _places() -> dict[Event, list[str]]:
    """The functions that name each event; in a bucket they name versions by it, and call the others."""
    places: dict[Event, list[str]] = {event: [] for event in Event}
    for name, function in _functions():
        if name.startswith("coordination/bucket/"):
            continue
        for node in ast.walk(function):
            match node:
                case ast.Attribute(value=ast.Name(id="Event"), attr=attribute):
                    place = f"`{name.removeprefix('manifest/').removesuffix('.py')}.{function.name}`"
                    if place not in places[Event[attribute]]:
                        places[Event[attribute]].append(place)
    return places


# the page


def _diagram() -> list[str]:
    arrows: dict[tuple[str, str], list[str]] = {}
    for one in TRANSITIONS:
        if one.event not in REPAIRS:
            arrows.setdefault((one.before or "[*]", one.after), []).append(one.event)
    return [f"    {before} --> {after}: {', '.join(events)}" for (before, after), events in arrows.items()]


def _table() -> list[str]:
    places = _places()
    return [
        f"| {one.before or 'no row'} | {one.event}{one.when and f': {one.when}'} | {one.after} "
        f"| {'; '.join(one.actors)} | {one.guard} | {', '.join(places[one.event])} |"
        for one in TRANSITIONS
    ]


def test_the_page_shows_the_table() -> None:
    page = (ROOT / "docs" / "state-machine.md").read_text(encoding="utf-8")
    assert [line for line in page.splitlines() if "-->" in line] == _diagram()
    heading, _, *rows = (line for line in page.splitlines() if line.startswith("|"))
    assert heading == "| from | event | to | who | the statement requires | where, in `manifest/` |"
    assert rows == _table()
    assert all(_places().values())
    assert "(state-machine.md)" in (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
