"""A run is watched whatever becomes of it: planned anew, removed and made again, away for a moment."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from shardgen.coordination.base import OpenedRun
from shardgen.coordination.bucket import manifest as bucket_manifest
from shardgen.coordination.bucket.objects import Objects
from shardgen.coordination.open import open_run
from shardgen.domain.identifiers import BatchIndex, WorkerId
from shardgen.domain.lease import Lease
from shardgen.domain.plan import Plan
from shardgen.errors import StorageFailed, TransientError
from shardgen.manifest import sqlite
from shardgen.settings.run_directory import RunDirectory
from tests.bucket.memory import Buckets, in_memory
from tests.conformance.conftest import POLICY, identity, receipt_for
from tests.plans import make_plan

URL = "s3://bucket/people"
OLD, NEW = make_plan(batch=8), make_plan(backgrounds=4, batch=8)
DATABASE = "manifest.sqlite"
BACKENDS = {"database": f"sqlite:///{DATABASE}", "bucket": URL, "folder": "folder:"}
# In a shared folder what is not seen any more is not known to be gone; tests/shared_folder/test_looks.py.
FORGETFUL = ["database", "bucket"]
W = WorkerId("w")


@dataclass
class Place:
    """A run directory, and the buckets that its url may name."""

    path: Path
    url: str
    buckets: Buckets

    def plan(self, plan: Plan) -> OpenedRun:
        """Plan it, as another process does."""
        opened = open_run(RunDirectory.open(self.path).planned(plan))
        opened.put_plan()
        return opened

    def remove(self) -> None:
        """All but the settings."""
        settings = (self.path / "shardgen.toml").read_bytes()
        shutil.rmtree(self.path)
        self.path.mkdir()
        (self.path / "shardgen.toml").write_bytes(settings)
        objects = self.buckets.objects(self.url)
        objects.remove(self.buckets.keys(self.url))

    def record(self, opened: OpenedRun, batch: int) -> None:
        with opened.run.manifest(opened.plan) as manifest:
            manifest.workers.register(identity("w"))
            lease = manifest.leases.lease(W, POLICY)
            assert isinstance(lease, Lease)
            manifest.receipts.record(lease, receipt_for(opened.plan, lease, BatchIndex(batch)))
            manifest.leases.release(lease)

    @contextmanager
    def away(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Another process has the database for itself, or the store answers nothing."""

        def fail(*_: object, **__: object) -> list[str]:
            raise StorageFailed("it is away")

        with monkeypatch.context() as patched, closing(sqlite3.connect(self.path / DATABASE)) as other:
            patched.setattr(sqlite, "_BUSY_TIMEOUT_SECONDS", 0.05)
            other.execute("BEGIN EXCLUSIVE")
            patched.setattr(Objects, "pages", fail)
            yield


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setenv("SHARDGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(RunDirectory, "check_settings", lambda *_: None)
    monkeypatch.setattr(bucket_manifest, "_LOOK_SECONDS", 0.0)
    path, url = tmp_path / "run", BACKENDS[request.param]
    path.mkdir()
    settings = f'[manifest]\nurl = "{url}"\n[folder]\nscan_seconds = 0.001\n'
    (path / "shardgen.toml").write_text(settings, encoding="utf-8")
    with in_memory() as buckets:
        yield Place(path, url, buckets)


@pytest.mark.parametrize("place", BACKENDS, indirect=True)
def test_a_run_that_is_planned_anew_is_watched_on(place: Place) -> None:
    with place.plan(OLD).watching() as watcher:
        assert watcher.report().plan == OLD
        place.plan(NEW)
        with pytest.raises(TransientError, match="plan has changed"):  # these would not go with that report
            watcher.details(newest=1)
        found = watcher.report()
        assert (found.plan, found.overview.fingerprint) == (NEW, NEW.fingerprint)
        slices = sum(NEW.layout.slice_count(one.shard) for one in found.overview.shards)
        assert len(watcher.details(newest=1).slices) == slices


@pytest.mark.parametrize("place", FORGETFUL, indirect=True)
def test_a_run_that_is_removed_and_made_again_is_seen_as_it_is_now(place: Place) -> None:
    opened = place.plan(OLD)
    place.record(opened, 0)
    with opened.watching() as watcher:
        assert watcher.report().stored == len(watcher.details(newest=9).newest) * 8 == 8
        place.remove()
        place.plan(OLD)
        assert watcher.report().stored == len(watcher.details(newest=9).newest) == 0
        place.record(opened, 1)
        assert watcher.report().stored == 8
        assert [one.record.batch for one in watcher.details(newest=9).newest] == [1]


@pytest.mark.parametrize("place", FORGETFUL, indirect=True)
def test_a_manifest_that_is_away_for_a_moment_is_asked_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = place.plan(OLD)
    place.record(opened, 0)
    with opened.watching() as watcher:
        for _ in range(2):  # before and after the first look that works
            with place.away(monkeypatch):
                for ask in (watcher.report, lambda: watcher.details(newest=1)):
                    with pytest.raises(TransientError):
                        ask()
            assert watcher.report().stored == 8
            assert len(watcher.details(newest=1).newest) == 1
