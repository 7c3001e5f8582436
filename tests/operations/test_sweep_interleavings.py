"""Every way in which a sweep can fall between what workers do, on the real manifest and real files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from itertools import combinations_with_replacement
from pathlib import Path
from typing import TypeVar

import pytest

from shardgen.artifacts.folder_store import FolderStore
from shardgen.artifacts.store import Listing
from shardgen.coordination.database import undo_marked
from shardgen.domain.identifiers import BatchIndex
from shardgen.domain.layout import Layout
from shardgen.domain.lease import Lease, NoLease
from shardgen.domain.plan import Plan
from shardgen.domain.receipt import Receipt
from shardgen.errors import LeaseLost
from shardgen.manifest.database_url import DatabaseUrl
from shardgen.manifest.leases import Leases
from shardgen.manifest.manifest import Manifest, create_manifest
from shardgen.operations.sweep import find_orphans
from tests.artifacts.attempts import WORKERS, Attempt, single
from tests.conformance.conftest import POLICY, MovableClock
from tests.plans import make_plan

Found = TypeVar("Found")
PLAN = make_plan(backgrounds=1, foregrounds=1, grid=(2, 2), batch=2, slice_batches=2)  # batches 0 and 1

HISTORIES = {
    "a slice is made": "lease-a stage-a0 link-a0 record-a0 publish-a1 record-a1",
    "a late write after the expiry": "lease-a stage-a0 expire link-a0 record-a0",
    "a takeover between file and row": "lease-a publish-a0 expire lease-b record-a0 publish-b0 record-b0",
    "a takeover before the file": "lease-a stage-a0 expire lease-b link-a0 publish-b0 record-a0 record-b0",
    "a release": "lease-a publish-a0 record-a0 release-a lease-b publish-b1 record-b1",
    "a requeue": "lease-a publish-a0 record-a0 release-a requeue lease-b publish-b0 record-b0",
    "a late write after a requeue": "lease-a publish-a0 record-a0 stage-a1 expire requeue link-a1 record-a1",
}


class World:
    """Two workers on one slice; each event is one durable step of one of them."""

    def __init__(self, folder: Path, history: str) -> None:
        self._clock = MovableClock()
        database = DatabaseUrl(url="sqlite:///manifest.sqlite", run_dir=folder)
        self.manifest = WatchedManifest(database, PLAN, clock=self._clock)
        with closing(self.manifest._session.database.engine.raw_connection()) as connection:
            # A thousand small runs: only the order of events matters here, not what a disk has.
            connection.cursor().execute("PRAGMA synchronous=OFF")
        self.store = FolderStore(folder / "artifacts")
        (folder / "artifacts" / ".staging").mkdir(parents=True)
        (folder / "artifacts" / "shard-00000").mkdir()
        self._leases: dict[str, Lease] = {}
        self._published: dict[str, Receipt] = {}
        self._events = history.split()
        self._happened = 0

    def go_to(self, count: int) -> None:
        """Let everything happen up to the event of that number."""
        while self._happened < count:
            self._happen(self._events[self._happened])
            self._happened += 1

    def go_to_the_end(self) -> None:
        self.go_to(len(self._events))

    def _happen(self, event: str) -> None:
        verb, _, subject = event.partition("-")
        match verb:
            case "lease":
                granted = self.manifest.leases.lease(WORKERS[subject], POLICY)
                assert not isinstance(granted, NoLease)
                self._leases[subject] = granted
            case "expire":
                self._clock.forward(10_000)
            case "release":
                self.manifest.leases.release(self._leases[subject])
            case "requeue":
                undo_marked(PLAN, self.manifest, self.store, [BatchIndex(0)])
            case "publish":
                self._happen(f"stage-{subject}")
                self._happen(f"link-{subject}")
            case "stage":
                self._staged(subject).write_bytes(self._attempt(subject).content(PLAN)[0])
            case "link":
                self._link(subject)
            case "record":
                self._record(subject)
            case _:
                raise AssertionError(event)

    def _attempt(self, subject: str) -> Attempt:
        return single(int(subject[1]), fence=self._leases[subject[0]].fence, worker=subject[0])

    def _staged(self, subject: str) -> Path:
        name = str(self._attempt(subject).name(PLAN)).rpartition("/")[2]
        return self.store.root / ".staging" / f"{name}.deadbeef"

    def _link(self, subject: str) -> None:
        """As publishing does; only a worker that has lost its slice may find that its file is gone."""
        try:
            os.link(self._staged(subject), self.store.root / str(self._attempt(subject).name(PLAN)))
        except FileNotFoundError:
            assert not self._holds(subject), "a staged file of a live lease was taken"
            return
        self._staged(subject).unlink()
        (self._published[subject],) = self._attempt(subject).content(PLAN)[1]

    def _record(self, subject: str) -> None:
        if subject in self._published:
            with suppress(LeaseLost):
                self.manifest.receipts.record(self._leases[subject[0]], self._published[subject])

    def _holds(self, subject: str) -> bool:
        lease = self._leases[subject[0]]
        grant = (lease.shard, lease.slice, lease.fence, lease.worker)
        return grant in Leases.holders(self.manifest.leases)

    def assert_nothing_recorded_is_gone(self) -> None:
        for receipt in self.manifest.receipts.receipts():
            assert (self.store.root / receipt.artifact.name).is_file(), receipt.artifact.name


class WatchedManifest(Manifest):
    """Lets the world move on before each of the sweep's reads."""

    cuts: Iterator[int] | None = None
    world: World

    def __init__(self, database: DatabaseUrl, plan: Plan, *, clock: MovableClock) -> None:
        super().__init__(database, plan, clock=clock)
        self.leases.holders = self._after_a_move(self.leases.holders)  # type: ignore[method-assign]
        self.receipts.artifacts = self._after_a_move(self.receipts.artifacts)  # type: ignore[method-assign]

    def _after_a_move(self, read: Callable[[], Found]) -> Callable[[], Found]:
        def moved() -> Found:
            if self.cuts is not None:
                self.world.go_to(next(self.cuts))
            return read()

        return moved


@pytest.mark.slow
@pytest.mark.parametrize("name", HISTORIES)
def test_a_sweep_at_any_moment_takes_nothing_that_is_or_gets_recorded(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)
    create_manifest(DatabaseUrl(url="sqlite:///manifest.sqlite", run_dir=tmp_path), PLAN)
    events = len(HISTORIES[name].split())
    taken = 0
    for number, cuts in enumerate(combinations_with_replacement(range(events + 1), 3)):
        folder = tmp_path / str(number)
        folder.mkdir()
        shutil.copy(tmp_path / "manifest.sqlite", folder)
        world = World(folder, HISTORIES[name])
        moments = iter(cuts)

        def listed(layout: Layout, *, world: World = world, at: Iterator[int] = moments) -> Listing:
            world.go_to(next(at))
            return FolderStore.listing(world.store, layout)

        monkeypatch.setattr(world.store, "listing", listed)
        world.manifest.world, world.manifest.cuts = world, moments
        found = find_orphans(PLAN, world.manifest, world.store)
        world.manifest.cuts = None
        world.store.remove(orphan.path for orphan in found.orphans)
        taken += len(found.orphans)
        world.go_to_the_end()
        world.assert_nothing_recorded_is_gone()
        world.manifest.close()
        shutil.rmtree(folder)
    # A history without a lost attempt has no orphan at any moment, and the others have some.
    assert bool(taken) == ("takeover" in name or "requeue" in name)
