"""A run whose record and artifacts are the objects under one prefix of a bucket."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime
from functools import lru_cache

from shardgen.artifacts.store import ArtifactReader
from shardgen.coordination.artifact_folder import open_store
from shardgen.coordination.base import PutPlan, Seat
from shardgen.coordination.bucket import plan as planning
from shardgen.coordination.bucket.manifest import BucketManifest
from shardgen.coordination.bucket.objects import ENDPOINTS, Objects
from shardgen.coordination.bucket.probe import at_the_door, probe_before
from shardgen.coordination.database import ManifestCoordinator, ManifestRun
from shardgen.coordination.report import Report, make_report
from shardgen.domain.lease import Lease, LeasePolicy, NoLease
from shardgen.domain.overview import Details
from shardgen.domain.plan import Plan
from shardgen.domain.receipt import Receipt
from shardgen.domain.steps import OnStep, ignore_step
from shardgen.errors import ManifestMismatch, ShardgenError, StoreRefuses, TransientError
from shardgen.manifest.backend import Backend, StillAlone
from shardgen.manifest.session import planned_anew
from shardgen.settings.run_directory import RunDirectory
from shardgen.storage.cache import cache_folder

_BEATS_BETWEEN_OVERVIEWS = 4
_OF_STORES = ("AWS_", "GOOGLE_", "AZURE_")  # how the variables begin that say where a store is, and its keys


def objects_of(url: str, *, is_patient: bool = True) -> Objects:
    """The objects of a url, opened once in this process as long as its environment names the same store."""
    environment = {name: value for name, value in os.environ.items() if name.startswith(_OF_STORES)}
    return _opened(url, frozenset(environment.items()), os.getpid(), is_patient)


@lru_cache(maxsize=8)
def _opened(
    url: str,
    _environment: frozenset[tuple[str, str]],
    _process: int,
    is_patient: bool,  # noqa: FBT001
) -> Objects:
    return Objects.open(url, is_patient=is_patient)


@contextmanager
def _first_contact(url: str) -> Iterator[Objects]:
    """For the first requests of a command, when most of what fails is to be set right by somebody."""
    try:
        yield objects_of(url, is_patient=False)
    except StoreRefuses as error:
        raise at_the_door(error) from None


def fetched(url: str) -> RunDirectory:
    """A run directory of a url, in this machine's cache; what was fetched earlier is brought up to date."""
    endpoints = [os.environ.get(name, "") for name in ENDPOINTS]  # the same url elsewhere is another run
    digest = hashlib.sha256("\n".join([url, *endpoints]).encode()).hexdigest()
    with _first_contact(url) as objects:
        return planning.fetch(objects, cache_folder() / "buckets" / digest[:16])


def refreshed(run: RunDirectory) -> RunDirectory:
    """A run directory whose settings name a bucket, with the plan that counts there."""
    with _first_contact(run.url) as objects:
        return planning.refresh(objects, run)


def check(run: RunDirectory) -> None:
    """Refuse a store that a run must not rest on, before anything is planned."""
    probe_before(objects_of(run.url, is_patient=False))


def open_manifest(run: RunDirectory, plan: Plan) -> BucketManifest:
    """Open the manifest of a run in a bucket."""
    return BucketManifest(objects_of(run.url), plan, policy=run.settings.lease_policy)


def is_begun(run: RunDirectory) -> bool:
    """Whether a worker has claimed a slice, or was about to."""
    return planning.is_begun(objects_of(run.url))


def rebuild(run: RunDirectory, plan: Plan, receipts: Iterable[Receipt]) -> None:
    """Let the receipts in the bucket be these, of whole artifacts; slices whose rows are damaged are open."""
    with open_manifest(run, plan) as manifest:
        manifest.operator.restore(receipts, open_store(run))


class BucketCoordinator(ManifestCoordinator):
    """One worker's part in a run whose every look is some requests."""

    def __init__(self, run: RunDirectory, plan: Plan, seat: Seat) -> None:
        super().__init__(open_manifest(run, plan), open_store(run), seat)
        self._objects = objects_of(run.url)
        self._plan = plan
        self._has_begun = False

    def lease(self, policy: LeasePolicy) -> Lease | NoLease:
        """The first one settles the plan: raises PlanConflict when another counts by now."""
        if not self._has_begun:
            planning.begin(self._objects, self._plan)
            self._has_begun = True
        return super().lease(policy)

    def seconds_to_ask_again(self, policy: LeasePolicy) -> float:
        """A heartbeat: to ask is to list what is new, in half a dozen requests."""
        return policy.heartbeat.total_seconds()

    def seconds_between_overviews(self, policy: LeasePolicy) -> float:
        """Some heartbeats: with many workers each reads the signs of life of all others."""
        return _BEATS_BETWEEN_OVERVIEWS * policy.heartbeat.total_seconds()

    @property
    def may_plan_anew(self) -> bool:
        """While nobody has claimed."""
        return not planning.is_begun(self._objects)


class BucketLooks:
    """One manifest for all looks, which remembers what it saw of the bucket."""

    def __init__(self, opened: BucketRun) -> None:
        self._run, self._plan = opened.run, opened.plan
        self._kept: BucketManifest | None = None
        self._planned: set[tuple[str, str, datetime]] = set()

    def report(self) -> Report:
        """As the manifest counts."""
        with self._manifest() as manifest:
            return make_report(self._run, self._plan, manifest.overview())

    def details(self, *, newest: int) -> Details:
        """As it knows them."""
        with self._manifest() as manifest:
            return manifest.details(newest=newest)

    @property
    def store(self) -> ArtifactReader:
        """Where the settings say, mostly in the bucket, too."""
        return open_store(self._run)

    def close(self) -> None:
        """Forget what was seen."""
        if self._kept is not None:
            self._kept.close()
        self._kept, self._planned = None, set()

    @contextmanager
    def _manifest(self) -> Iterator[BucketManifest]:
        try:
            if self._kept is None:
                self._kept = open_manifest(self._run, self._plan)
            if self._kept.is_look_due:
                self._refuse_other_plan(self._kept.objects)
            yield self._kept
        except TransientError:
            raise
        except ShardgenError:  # a rebuild may have removed what was seen
            self.close()
            raise

    def _refuse_other_plan(self, objects: Objects) -> None:
        """One listing. What was there once stays, unless all of the run was removed."""
        found = {(one.key, one.e_tag, one.modified) for one in objects.listed(planning.PLAN)}
        if self._planned == found:
            return
        if not self._planned <= found or not planning.find(objects).is_counting(self._plan):
            raise planned_anew(objects.shown)
        self._planned = found


class BucketRun(ManifestRun):
    """Its manifest is no database, and decides as one does."""

    def looks(self) -> BucketLooks:
        """To open it takes a third of a second, and to see all of the bucket many listings."""
        return BucketLooks(self)

    def ensure_manifest(self) -> bool:
        """There is nothing to create but the plan."""
        return False

    def put_plan(self, *, grows: bool = False, on_step: OnStep = ignore_step) -> PutPlan:
        """In the bucket, until somebody has begun to make it; then in the run directory."""
        return planning.put_plan(objects_of(self.run.url), self.run, self.plan, grows=grows, on_step=on_step)

    def coordinator(self, seat: Seat) -> BucketCoordinator:
        """Try the store in a few requests, then open the manifest. The first lease settles the plan."""
        probe_before(objects_of(self.run.url, is_patient=False), is_short=True)
        return BucketCoordinator(self.run, self.plan, seat)

    def to_sweep(self) -> Callable[[], AbstractContextManager[StillAlone]]:
        """Nothing needs to be kept away: what is removed is outranked, or undone, for ever."""
        return lambda: nullcontext(lambda: None)

    def to_back_up(self) -> Backend:
        """There is no database."""
        raise ManifestMismatch(
            f"{self.run.url}: has no manifest file to back up: the objects in it are the record",
            hint="copy the whole prefix with your store's own tool",
        )
