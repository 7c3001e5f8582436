"""A run whose record and artifacts are the objects under one prefix of a bucket."""

from __future__ import annotations

import os
from functools import lru_cache

from shardgen.coordination.bucket import protocol
from shardgen.coordination.bucket.manifest import BucketManifest
from shardgen.coordination.bucket.objects import Objects
from shardgen.coordination.database import DatabaseRun
from shardgen.domain.plan import Plan
from shardgen.errors import ManifestMismatch
from shardgen.manifest.backend import Backend
from shardgen.settings.run_directory import RunDirectory

_OF_STORES = ("AWS_", "GOOGLE_", "AZURE_")  # how the variables begin that say where a store is, and its keys


def objects_of(url: str) -> Objects:
    """The objects of a url, opened once in this process as long as its environment names the same store."""
    environment = {name: value for name, value in os.environ.items() if name.startswith(_OF_STORES)}
    return _opened(url, frozenset(environment.items()), os.getpid())


@lru_cache(maxsize=8)
def _opened(url: str, _environment: frozenset[tuple[str, str]], _process: int) -> Objects:
    return Objects.open(url)


def open_manifest(run: RunDirectory, plan: Plan) -> BucketManifest:
    """Open the manifest of a run in a bucket."""
    return BucketManifest(objects_of(run.url), plan, policy=run.settings.lease_policy)


def is_begun(run: RunDirectory) -> bool:
    """Whether a worker has claimed a slice."""
    return bool(next(objects_of(run.url).pages(protocol.CLAIMS), []))


class BucketRun(DatabaseRun):
    """Its manifest is no database, and decides as one does."""

    def ensure_manifest(self) -> bool:
        """There is nothing to create but the plan."""
        return False

    def to_sweep(self) -> Backend:
        """There is no database."""
        raise ManifestMismatch(
            f"{self.run.url}: cannot be swept yet", hint="when the merged zip is verified, remove the prefix"
        )

    def to_back_up(self) -> Backend:
        """There is no database."""
        raise ManifestMismatch(
            f"{self.run.url}: has no manifest file to back up: the objects in it are the record",
            hint="copy the whole prefix with your store's own tool",
        )
