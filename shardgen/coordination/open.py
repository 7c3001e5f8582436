"""Open a run according to its settings' URL: a bucket, a shared folder, another backend, else a database."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from shardgen.coordination.base import OpenedRun
from shardgen.coordination.database import DatabaseRun
from shardgen.domain.plan import Plan
from shardgen.domain.receipt import Receipt
from shardgen.manifest.port import Manifest
from shardgen.manifest.urls import (
    BUCKET_SCHEMES,
    OWN_INDEX,
    SHARED_FOLDER,
    check_bucket_url,
    is_bucket,
    is_meant_as_bucket,
    refuse_mistyped_url,
)
from shardgen.settings.run_directory import ELSEWHERE, RunDirectory

if TYPE_CHECKING:
    from shardgen.coordination.bucket.probe import Probed

Backend = Callable[[RunDirectory], OpenedRun]
_BACKENDS: dict[str, Backend] = {}


def register(url: str, backend: Backend) -> None:
    """Make a backend known to this process: what `[manifest] url` says, and each machine has its index."""
    OWN_INDEX.add(url)
    _BACKENDS[url] = backend


def open_run(run: RunDirectory) -> OpenedRun:
    """Raises as `RunDirectory.plan` does."""
    if run.url.startswith(BUCKET_SCHEMES):
        from shardgen.coordination.bucket.run import BucketRun  # noqa: PLC0415 - an extra

        return BucketRun(run)
    return _BACKENDS.get(run.url, DatabaseRun)(run)


def open_directory(argument: str | Path) -> RunDirectory:
    """Open what RUN_DIR names: a run directory, or the url of a bucket, which is all that a machine needs.

    Of a run in a bucket the plan is fetched from there. Raises as `RunDirectory.open` does; InputMissing
    also when the store does not let this machine in, or nothing is planned there.
    """
    if isinstance(argument, str) and is_meant_as_bucket(argument):
        check_bucket_url(argument, where="RUN_DIR")
        from shardgen.coordination.bucket.run import fetched  # noqa: PLC0415 - an extra

        return fetched(argument)
    refuse_mistyped_url(str(argument))
    run = RunDirectory.open(Path(argument))
    if not is_bucket(run.url):
        return run
    from shardgen.coordination.bucket.run import refreshed  # noqa: PLC0415 - an extra

    return refreshed(run)


def probed(url: str) -> Probed:
    """What a bucket's store does with the requests that a run rests on."""
    check_bucket_url(url, where="RUN_DIR")
    from shardgen.coordination.bucket.probe import probe  # noqa: PLC0415 - an extra
    from shardgen.coordination.bucket.run import objects_of  # noqa: PLC0415 - an extra

    return probe(objects_of(url, is_patient=False))


def _shared_folder(run: RunDirectory) -> OpenedRun:
    from shardgen.coordination.folder.run import FolderRun  # noqa: PLC0415 - numpy and more, which no other status needs

    return FolderRun(run)


class _Bucket:
    """A ManifestElsewhere."""

    def open(self, run: RunDirectory, plan: Plan) -> Manifest:
        from shardgen.coordination.bucket.run import open_manifest  # noqa: PLC0415 - an extra

        return open_manifest(run, plan)

    def is_begun(self, run: RunDirectory) -> bool:
        from shardgen.coordination.bucket.run import is_begun  # noqa: PLC0415 - an extra

        return is_begun(run)

    def check(self, run: RunDirectory) -> None:
        from shardgen.coordination.bucket.run import check  # noqa: PLC0415 - an extra

        check(run)

    def rebuild(self, run: RunDirectory, plan: Plan, receipts: Iterable[Receipt]) -> None:
        from shardgen.coordination.bucket.run import rebuild  # noqa: PLC0415 - an extra

        rebuild(run, plan, receipts)


register(SHARED_FOLDER, _shared_folder)
ELSEWHERE.update({scheme.removesuffix("://"): _Bucket() for scheme in BUCKET_SCHEMES})
