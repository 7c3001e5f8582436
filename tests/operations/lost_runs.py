"""Runs whose manifest is gone: what is published in them, and what a rebuild finds."""

from __future__ import annotations

from shardgen.artifacts.folder_store import FolderStore
from shardgen.dataset.verify import verify_run
from shardgen.domain.receipt import Receipt
from shardgen.operations.rebuild import Rebuilt, rebuild
from shardgen.settings.run_directory import RunDirectory
from tests.artifacts.attempts import Attempt


def publish(run: RunDirectory, *attempts: Attempt) -> list[Receipt]:
    plan = run.plan()
    return [receipt for attempt in attempts for receipt in attempt.publish(plan, run.artifacts)]


def receipts_of(run: RunDirectory) -> list[Receipt]:
    with run.manifest(run.plan()) as manifest:
        return list(manifest.receipts.receipts())


def found_by(run: RunDirectory) -> Rebuilt:
    plan, found = rebuild(run)
    with run.manifest(plan) as manifest:
        verified = verify_run(plan, manifest.receipts, FolderStore(run.artifacts))
        overview = manifest.overview()
    assert verified.findings == ()
    assert (overview.stored, overview.dead) == (found.stored, found.dead_letters)
    return found
