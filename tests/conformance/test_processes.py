from __future__ import annotations

from multiprocessing.process import BaseProcess

import pytest

from shardgen.domain.identifiers import WorkerId
from shardgen.domain.lease import Lease
from shardgen.manifest import manifest as databases
from shardgen.manifest.database_url import DatabaseUrl
from shardgen.manifest.manifest import create_manifest
from tests import warm
from tests.conformance.storm import (
    PATIENT,
    PLAN,
    Change,
    Storm,
    Told,
    be_a_zombie,
    contradictions,
    keep_a_diary,
    meet_between_reading_and_writing,
    read_diary,
    read_told,
    select_all,
    take_part,
)
from tests.invariants import counter_faults

PROCESSES, LEASES = 8, 50
PLACES = ("sqlite", "postgresql")  # what a machine knows of a shared folder is in SQLite, too

pytestmark = pytest.mark.slow  # each test starts commands


@pytest.fixture(autouse=True)
def _diary(database: DatabaseUrl) -> None:
    create_manifest(database, PLAN)
    keep_a_diary(database)


def part(database: DatabaseUrl, name: str, *, leases: int = LEASES, broken: str = "") -> Storm:
    return Storm(
        database=database, name=name, told=database.run_dir / f"{name}.told", leases=leases, broken=broken
    )


def end(processes: list[BaseProcess]) -> None:
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * len(processes)


@pytest.mark.slow
def test_in_a_storm_of_short_leases_every_fence_is_unique_and_no_slice_is_held_twice(
    database: DatabaseUrl,
) -> None:
    storms = [part(database, f"w{number}") for number in range(PROCESSES)]
    processes: list[BaseProcess] = [
        warm.context().Process(target=take_part, args=(storm,)) for storm in storms
    ]
    for process in processes:
        process.start()
    end(processes)
    told = [one for storm in storms for one in read_told(storm.told)]
    granted = [one for one in told if one.event == "granted"]
    assert len(granted) > PROCESSES * LEASES / 2
    assert max(one.fence for one in granted) > 5  # slices did change hands
    assert sum(one.event == "recorded" for one in told) > PROCESSES * LEASES / 10
    assert contradictions(read_diary(database), told) == []
    assert counter_faults(database, PLAN) == []


@pytest.mark.parametrize("broken", ["", "unguarded"])
def test_between_reading_what_is_free_and_taking_it_nobody_else_may_read(
    database: DatabaseUrl, broken: str
) -> None:
    with databases.Manifest(database, PLAN) as manifest:
        lease = manifest.leases.lease(WorkerId("first"), PATIENT)
        assert isinstance(lease, Lease)
        manifest.leases.release(lease)  # an open slice: whoever reads now finds this one
    # On SQLite, without BEGIN IMMEDIATE both get to the barrier; with it the first waits there in vain, for a
    # while. On a server the second passes over the locked row; without the lock it takes the same one.
    barrier = warm.context().Barrier(2, timeout=60 if broken else 1)
    storms = [part(database, name, broken=broken) for name in ("a", "b")]
    processes: list[BaseProcess] = [
        warm.context().Process(target=meet_between_reading_and_writing, args=(storm, barrier))
        for storm in storms
    ]
    for process in processes:
        process.start()
    end(processes)
    failures = [storm.told.with_suffix(".error").read_text() for storm in storms if _failed(storm)]
    told = [Told("granted", 0, 0, lease.fence, "first")]
    told += [one for storm in storms for one in read_told(storm.told)]
    wrong = contradictions(read_diary(database), told)
    if broken:
        assert failures or wrong
    else:
        assert (failures, wrong) == ([], [])
        assert {(one.slice, one.fence) for one in told} == {(0, 1), (0, 2), (1, 1)}


def _failed(storm: Storm) -> bool:
    return storm.told.with_suffix(".error").exists()


@pytest.mark.parametrize("broken", ["", "unfenced"])
def test_the_fence_in_the_statement_is_what_keeps_a_zombie_out(database: DatabaseUrl, broken: str) -> None:
    storm = part(database, "zombie", broken=broken)
    leased, taken_over = warm.context().Event(), warm.context().Event()
    process = warm.context().Process(target=be_a_zombie, args=(storm, leased, taken_over))
    process.start()
    assert leased.wait(60)
    with databases.Manifest(database, PLAN) as manifest:
        heir = manifest.leases.lease(WorkerId("heir"), PATIENT, gone=[WorkerId("zombie")])
        assert isinstance(heir, Lease)
        before = _dump(database)
        taken_over.set()
        end([process])
    told = [*read_told(storm.told), Told("granted", heir.shard, heir.slice, heir.fence, "heir")]
    wrong = contradictions(read_diary(database), told)
    if broken:
        assert any("batches were recorded while it was held" in one for one in wrong)
        assert _dump(database) != before
    else:
        assert [one.event for one in read_told(storm.told)] == ["granted", "refused"]
        assert wrong == []
        assert _dump(database) == before


def _dump(database: DatabaseUrl) -> list[object]:
    tables = ("slice", "shard", "receipt", "dead_letter", "provenance", "worker")
    return [select_all(database, f"SELECT * FROM {table} ORDER BY 1, 2") for table in tables]  # noqa: S608


def test_the_check_of_this_module_finds_what_it_should() -> None:
    def change(fence: int, worker: str | None, *, left: int = 4, before: int = 4, old: int) -> Change:
        return Change(0, 0, fence, "leased" if worker else "open", worker, left, before, old)

    sound = [change(0, None, old=0), change(1, "a", old=0), change(1, "a", left=3, old=1)]
    told = [Told("granted", 0, 0, 1, "a"), Told("recorded", 0, 0, 1, "a")]
    assert contradictions(sound, told) == []
    assert contradictions(sound, told[:1])
    assert contradictions(sound, [*told, Told("granted", 0, 0, 1, "b")])
    assert contradictions(
        [*sound, change(3, "b", left=3, before=3, old=1)], [*told, Told("granted", 0, 0, 3, "b")]
    )
    assert contradictions([*sound, change(1, "b", left=3, before=3, old=1)], told)
    assert contradictions(sound[:1], told[:1])
