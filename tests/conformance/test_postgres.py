from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, create_engine, make_url, text

from shardgen.domain.identifiers import BatchIndex, SampleIndex, WorkerId
from shardgen.domain.lease import Lease, NoLease
from shardgen.domain.plan import Plan
from shardgen.domain.worker import WorkerReport, WorkerState
from shardgen.errors import (
    InputMissing,
    InvalidSettings,
    ManifestBusy,
    ManifestMismatch,
    ShardgenError,
)
from shardgen.manifest import lookups, postgres
from shardgen.manifest.database_url import DatabaseUrl
from shardgen.manifest.manifest import Manifest, create_manifest
from shardgen.manifest.tables import RECEIPT
from tests import warm
from tests.conformance.conftest import POLICY, MovableClock, Servers, identity, new_place, receipt_for
from tests.conformance.proxy import Cut, Proxy
from tests.conformance.storm import (
    PATIENT,
    PLAN,
    Storm,
    contradictions,
    keep_a_diary,
    read_diary,
    read_told,
    select_all,
    take_part,
)
from tests.invariants import counter_faults
from tests.plans import make_plan
from tests.postgres import Server, new_schema

TABLES = ("run", "shard", "slice", "suspect_sample", "dead_letter", "worker", "micro_batch")
_RECEIPT = [column.name for column in RECEIPT.columns if column.name != "provenance"]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server of this module's own: it may be stopped."""
    started = Server()
    yield started
    started.remove()


@pytest.fixture
def own_place(server: Server, tmp_path: Path) -> Iterator[DatabaseUrl]:
    with new_schema(server.loopback_url) as url:
        yield DatabaseUrl(url=url, run_dir=tmp_path)


def _contents(database: DatabaseUrl) -> list[Any]:
    found = [select_all(database, f"SELECT * FROM {table} ORDER BY 1, 2") for table in TABLES]  # noqa: S608
    # Numbers of rolled back inserts are lost, so that provenances are compared without theirs.
    return [
        *found,
        select_all(database, "SELECT document, batches FROM provenance ORDER BY 1"),
    ]


Deed = tuple[str, Callable[["_History"], object]]


class _History:
    """A manifest, and what happened to it before."""

    def __init__(self, manifest: Manifest, plan: Plan, clock: MovableClock) -> None:
        self.manifest = manifest
        self.plan = plan
        self.clock = clock
        self.leases: list[Lease] = []
        self.marks: list[object] = []

    def lease(self, worker: str, **options: object) -> object:
        granted = self.manifest.leases.lease(WorkerId(worker), POLICY, **options)  # type: ignore[arg-type]
        if isinstance(granted, Lease):
            self.leases.append(granted)
        return granted

    def record(self, number: int, batch: int, *, dead: tuple[int, ...] = ()) -> object:
        lease = self.leases[number]
        return self.manifest.receipts.record(
            lease, receipt_for(self.plan, lease, BatchIndex(batch), dead=dead)
        )

    def die_alone(self, sample: int, heir: str) -> object:
        self.manifest.suspicion.note_sample(self.leases[-1], SampleIndex(sample))
        return self.outlived(heir)

    def outlived(self, worker: str) -> object:
        self.clock.forward(120)
        return self.lease(worker)


def _deeds() -> list[Deed]:
    """Everything that writes, in one history; after each the manifest is another."""
    return [
        ("register", lambda h: h.manifest.workers.register(identity("a"))),
        ("device", lambda h: h.manifest.workers.set_device(WorkerId("a"), "gpu")),
        ("agree", lambda h: h.manifest.micro_batches.agreed("gpu", 8)),
        ("shrink", lambda h: h.manifest.micro_batches.shrink("gpu", 4)),
        ("lease a new slice", lambda h: h.lease("a")),
        ("beat", lambda h: h.manifest.workers.beat(WorkerId("a"), WorkerReport(state=WorkerState.WORKING))),
        ("renew", lambda h: h.manifest.leases.renew(h.leases[0], POLICY)),
        ("record", lambda h: h.record(0, 0)),
        ("record with dead letters", lambda h: h.record(0, 1, dead=(9, 10))),
        ("record the last", lambda h: h.record(0, 2)),
        ("lease the next", lambda h: h.lease("a")),
        ("release", lambda h: h.manifest.leases.release(h.leases[1])),
        ("lease an open one", lambda h: h.lease("b")),
        ("fail", lambda h: h.manifest.leases.fail(h.leases[2], "no", POLICY)),
        ("lease a failed one", lambda h: h.lease("b")),
        ("take over an expired one", lambda h: h.outlived("a")),
        ("note a batch", lambda h: h.manifest.suspicion.note_batch(h.leases[4], BatchIndex(3))),
        ("note a sample", lambda h: h.manifest.suspicion.note_sample(h.leases[4], SampleIndex(24))),
        ("note its pass", lambda h: h.manifest.suspicion.note_pass(h.leases[4], SampleIndex(24), made=True)),
        ("die alone once", lambda h: h.die_alone(25, "b")),
        ("die alone twice", lambda h: h.die_alone(25, "a")),
        ("die alone three times", lambda h: h.die_alone(25, "b")),
        ("note another sample", lambda h: h.manifest.suspicion.note_sample(h.leases[-1], SampleIndex(26))),
        (
            "note the pass that proves it",
            lambda h: h.manifest.suspicion.note_pass(h.leases[-1], SampleIndex(26), made=True),
        ),
        ("free", lambda h: h.manifest.leases.free_slices_of([WorkerId("b")], POLICY)),
        ("lease what was freed", lambda h: h.lease("c")),
        ("block", lambda h: h.manifest.leases.block(h.leases[-1], "look at it")),
        ("unblock", lambda h: h.manifest.operator.unblock()),
        (
            "undo",
            lambda h: h.manifest.operator.undo_receipts([BatchIndex(1), BatchIndex(2)], mark=h.marks.append),
        ),
        ("lease what was undone", lambda h: h.lease("d")),
    ]


DEEDS = [name for name, _ in _deeds()]


def _live(
    database: DatabaseUrl, plan: Plan, *, before: Callable[[str], None] = lambda _name: None
) -> list[list[Any]]:
    create_manifest(database, plan)
    clock = MovableClock()
    with Manifest(database, plan, clock=clock) as manifest:
        history = _History(manifest, plan, clock)
        told = []
        for name, deed in _deeds():
            before(name)
            told.append((name, deed(history)))
    return [told, _contents(database)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, postgres_servers: Servers) -> list[list[Any]]:
    """What everybody is told, and what the manifest holds, on SQLite, where no wire is cut."""
    plan = make_small_plan()
    with new_place("sqlite", tmp_path_factory.mktemp("undisturbed"), postgres_servers) as database:
        return _live(database, plan)


def make_small_plan() -> Plan:
    return make_plan(shard_size=50, batch=8, slice_batches=3)


@pytest.mark.slow
@pytest.mark.parametrize("cut", list(Cut))
def test_a_wire_cut_around_any_commit_changes_nothing_of_what_follows(
    server: Server, own_place: DatabaseUrl, undisturbed: list[list[Any]], cut: Cut
) -> None:
    with Proxy(server.port) as proxy:
        database = dataclasses.replace(own_place, url=_through(own_place, proxy))
        create_manifest(own_place, make_small_plan())

        def before(_name: str) -> None:
            proxy.cut = cut

        told, contents = _live(database, make_small_plan(), before=before)
        assert told == undisturbed[0]
        assert contents == undisturbed[1]
        assert proxy.cuts == len(DEEDS)
        assert proxy.commits > 2 * len(DEEDS)


def _through(database: DatabaseUrl, proxy: Proxy) -> str:
    return make_url(database.url).set(port=proxy.port).render_as_string(hide_password=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "question", ["is_granted", "is_recorded", "has_ended", "are_given_up", "are_free", "are_unblocked"]
)
def test_without_looking_a_lost_commit_up_the_same_history_goes_wrong(
    server: Server,
    own_place: DatabaseUrl,
    undisturbed: list[list[Any]],
    monkeypatch: pytest.MonkeyPatch,
    question: str,
) -> None:
    """That the test above would notice; a proof that gave nobody up needs no looking up in this history."""
    monkeypatch.setattr(lookups, question, lambda *_: False)
    with Proxy(server.port) as proxy:
        database = dataclasses.replace(own_place, url=_through(own_place, proxy))

        def before(_name: str) -> None:
            proxy.cut = Cut.AFTER

        create_manifest(own_place, make_small_plan())
        try:
            outcome = _live(database, make_small_plan(), before=before)
        except ShardgenError as error:
            outcome = [[error]]
        assert outcome != undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["terminated", "restarted", "crashed"])
def test_a_storm_survives_a_server_that_ends_sessions(server: Server, tmp_path: Path, trouble: str) -> None:
    """Eight processes, and a server that cuts them off in the middle of whatever they do."""
    with new_schema(server.url) as url:
        database = DatabaseUrl(url=url, run_dir=tmp_path)
        create_manifest(database, PLAN)
        keep_a_diary(database)
        storms = [
            Storm(database=database, name=f"w{n}", told=tmp_path / f"w{n}.told", end=tmp_path / "end")
            for n in range(8)
        ]
        context = warm.context()
        processes: list[BaseProcess] = [context.Process(target=take_part, args=(storm,)) for storm in storms]
        for process in processes:
            process.start()
        for _ in range(20 if trouble == "terminated" else 3):
            _wait_for_change(database, processes)
            _make_trouble(server, trouble)
        _wait_for_change(database, processes)
        (tmp_path / "end").touch()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * len(processes)
        told = [one for storm in storms for one in read_told(storm.told)]
        assert sum(one.event == "recorded" for one in told) > 2
        assert contradictions(read_diary(database), told) == []
        assert counter_faults(database, PLAN) == []


def _wait_for_change(database: DatabaseUrl, processes: list[BaseProcess]) -> None:
    """Until somebody has recorded a batch since now."""
    query = "SELECT count(*) FROM receipt"
    before = select_all(database, query)
    while select_all(database, query) == before and all(process.is_alive() for process in processes):
        time.sleep(0.01)


def _make_trouble(server: Server, trouble: str) -> None:
    if trouble == "terminated":
        _terminate_one(server.url)
    else:
        server.stop("fast" if trouble == "restarted" else "immediate")
        server.start()


def _terminate_one(url: URL) -> None:
    query = text(
        "SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity"
        " WHERE state <> 'idle' AND application_name LIKE 'shardgen%' ORDER BY random() LIMIT 1) AS one"
    )
    engine = create_engine(url)
    with engine.connect() as connection:
        connection.execute(query)
    engine.dispose()


@pytest.mark.slow
def test_thirty_two_workers_stay_under_a_servers_usual_hundred_connections(
    server: Server, own_place: DatabaseUrl
) -> None:
    create_manifest(own_place, PLAN)
    manifests = [Manifest(own_place, PLAN) for _ in range(32)]
    granted: list[Lease | NoLease] = []
    errors: list[ShardgenError] = []

    def work(manifest: Manifest, name: str) -> None:
        try:
            for number in range(4):
                lease = manifest.leases.lease(WorkerId(f"{name}-{number}"), PATIENT)
                granted.append(lease)
                assert isinstance(lease, Lease)
                manifest.receipts.record(
                    lease, receipt_for(PLAN, lease, manifest.receipts.pending_batches(lease)[0])
                )
                manifest.overview()
        except ShardgenError as error:
            errors.append(error)

    # A worker's beat runs beside its work.
    threads = [
        threading.Thread(target=work, args=(manifest, f"{number}{part}"))
        for number, manifest in enumerate(manifests)
        for part in "ab"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    idle = select_all(
        own_place, "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'shardgen%'"
    )
    for manifest in manifests:
        manifest.close()
    assert errors == []
    taken = [(one.shard, one.slice) for one in granted if isinstance(one, Lease)]
    assert len(taken) == len(set(taken)) == 32 * 2 * 4
    assert idle[0][0] <= 2 * 32


def test_the_servers_clock_decides_whatever_a_worker_believes(
    own_place: DatabaseUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_manifest(own_place, PLAN)
    real = time.time
    with Manifest(own_place, PLAN) as manifest:
        for hours in (1, -1):
            monkeypatch.setattr(time, "time", lambda shift=3600 * hours: real() + shift)
            lease = manifest.leases.lease(WorkerId(f"w{hours}"), PATIENT)
            assert isinstance(lease, Lease)
            ahead = lease.expires_at - PATIENT.duration - manifest.now()
            assert abs(ahead) < timedelta(minutes=5)
            assert abs(manifest.now().timestamp() - real()) < 300


def _refusal(database: DatabaseUrl, kind: type[ShardgenError]) -> str:
    with pytest.raises(kind) as caught:
        create_manifest(database, PLAN)
    assert caught.value.hint
    return str(caught.value)


def test_a_database_that_is_not_utf8_is_refused(server: Server, tmp_path: Path) -> None:
    engine = create_engine(server.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(
            text("CREATE DATABASE old TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'")
        )
    engine.dispose()
    database = DatabaseUrl(url=_text(server.url.set(database="old")), run_dir=tmp_path)
    assert "SQL_ASCII" in _refusal(database, ManifestMismatch)


def _text(url: URL) -> str:
    return url.render_as_string(hide_password=False)


def test_wrong_addresses_are_said_as_what_they_are(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def database(url: URL) -> DatabaseUrl:
        return DatabaseUrl(url=_text(url), run_dir=tmp_path)

    url = server.loopback_url
    assert "no such database" in _refusal(database(url.set(database="nowhere")), InputMissing)
    assert "refuses this user" in _refusal(database(url.set(password="wrong")), InvalidSettings)  # noqa: S106
    monkeypatch.setattr(postgres, "_OPEN_SECONDS", 0.3)
    assert "no connection" in _refusal(database(url.set(port=9)), ManifestBusy)


def test_another_programs_tables_are_refused(own_place: DatabaseUrl) -> None:
    engine = create_engine(own_place.url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE songs (title text)"))
    engine.dispose()
    assert "not a shardgen manifest" in _refusal(own_place, ManifestMismatch)


def test_an_empty_database_has_no_manifest_and_one_can_be_planned_there(own_place: DatabaseUrl) -> None:
    with pytest.raises(InputMissing, match="there is no manifest"):
        Manifest(own_place, PLAN)
    assert create_manifest(own_place, PLAN)
    assert not create_manifest(own_place, PLAN)
