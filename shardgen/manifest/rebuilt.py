"""A new manifest from receipts found in artifacts: filled under another name, there all at once or not."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path

from sqlalchemy import Connection, Engine, insert, select, update

from shardgen.domain.identifiers import Fence, ShardIndex, SliceIndex
from shardgen.domain.layout import Layout
from shardgen.domain.plan import Plan
from shardgen.domain.receipt import Receipt
from shardgen.domain.steps import OnStep, RebuildStep, ignore_step
from shardgen.errors import ManifestBusy, ManifestMismatch, StorageFailed
from shardgen.manifest import schema
from shardgen.manifest.engine import open_engine, transaction
from shardgen.manifest.filesystem import refuse_untrusted
from shardgen.manifest.manifest import Place
from shardgen.manifest.receipts import insert_receipt
from shardgen.manifest.tables import MICRO_BATCH, PROVENANCE, RUN, SHARD, SLICE

_JOURNALS = ("-journal", "-wal", "-shm")


def rebuild_manifest(
    place: Place,
    plan: Plan,
    receipts: Iterable[Receipt],
    *,
    highest_fence: Callable[[], Fence],
    on_step: OnStep = ignore_step,
) -> None:
    """Make the manifest of a plan from these receipts, batches ascending, one per batch.

    `highest_fence` is asked once the receipts have run out: every grant of the new manifest is above it.
    Raises ManifestMismatch when a manifest is there, ManifestBusy while another rebuild is at work.
    """
    path = place.path
    staged = _staged(path)
    refuse_existing(place)
    refuse_untrusted(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with alone_in(path.parent):
            _remove_staged(staged)
            engine = open_engine(staged, create=True)
            try:
                _fill(engine, plan, receipts, highest_fence=highest_fence, on_step=on_step)
            finally:
                engine.dispose()
            _sync(staged)
            on_step(RebuildStep.FILLED)
            _give_name(staged, place)
            on_step(RebuildStep.LINKED)
            staged.unlink(missing_ok=True)
            _sync(path.parent)
            on_step(RebuildStep.SYNCED)
    except OSError as error:
        raise StorageFailed(
            f"{path}: cannot be rebuilt ({error.strerror})",
            hint="check the folder's permissions and free space, then run the command again",
        ) from error


def refuse_existing(place: Place) -> None:
    """Raise ManifestMismatch when a manifest, or what a commit on the lost one left, is under its name.

    A rebuild that was killed when it had given the manifest its name left it the hidden one, too: that goes.
    An empty file is none: it is what SQLite leaves of a command that was killed or refused. A journal is
    the other half of a commit that was under way when the manifest was lost: SQLite would apply it to the
    new file, and a process that is still in that commit would remove the journal of a newer one.
    """
    path = place.path
    if path.exists() and path.stat().st_size > 0:
        _remove_second_name(path)
        raise ManifestMismatch(
            f"{path}: there is a manifest already, and a rebuild replaces none",
            hint=f"shardgen status RUN_DIR shows it; to give it up: mv {path} {path}.old",
        )
    for suffix in _JOURNALS:
        journal = path.with_name(path.name + suffix)
        if journal.exists():
            raise ManifestMismatch(
                f"{journal}: half a commit on the lost manifest; it must not meet the new one",
                hint=f"stop every worker of this run, then: mv {journal} {journal}.old",
            )


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Neither two rebuilds nor a rebuild and a sweep at once: what one takes, the other may remove."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise StorageFailed(
            f"{folder}: cannot be opened ({error.strerror})", hint="check the folder's permissions"
        ) from error
    try:
        _flock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _flock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ManifestBusy(
            f"{folder}: another rebuild or sweep is at work", hint="wait until it has ended"
        ) from error
    except OSError as error:
        raise StorageFailed(
            f"{folder}: cannot be held for one command alone ({error.strerror})",
            hint="put the manifest on this machine's own disk",
        ) from error


def _staged(path: Path) -> Path:
    return path.with_name(f".{path.name}.rebuild")


def _remove_second_name(path: Path) -> None:
    staged = _staged(path)
    with suppress(OSError):  # only tidiness: the manifest is whole with it, too
        if staged.samefile(path):
            staged.unlink()


def _remove_staged(staged: Path) -> None:
    for suffix in ("", *_JOURNALS):
        staged.with_name(staged.name + suffix).unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _give_name(staged: Path, place: Place) -> None:
    """Give the whole file its name; one that appeared meanwhile is refused, not replaced."""
    refuse_existing(place)
    path = place.path
    path.unlink(missing_ok=True)  # empty, as was just seen
    try:
        os.link(staged, path)
    except FileExistsError:
        refuse_existing(place)
        raise
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        staged.rename(path)


def _fill(
    engine: Engine,
    plan: Plan,
    receipts: Iterable[Receipt],
    *,
    highest_fence: Callable[[], Fence],
    on_step: OnStep,
) -> None:
    schema.create_or_upgrade(engine, plan)
    on_step(RebuildStep.STAGED)
    with transaction(engine) as connection:
        for (shard, slice_), group in groupby(receipts, lambda found: (found.shard, found.slice)):
            _add_slice(connection, plan.layout, shard, slice_)
            count = 0
            for receipt in group:
                insert_receipt(connection, plan.layout, receipt)
                count += 1
            _count_done(connection, shard, slice_, count)
        _agree_again(connection)
        # What the lost manifest granted is not known; what it granted and was used, is.
        fence = highest_fence()
        connection.execute(update(RUN).values(fence_floor=fence))
        connection.execute(update(SLICE).values(fence=fence))


def _agree_again(connection: Connection) -> None:
    """Keep each device model at the micro-batch that made most of its batches: it decides depth's bytes."""
    made: dict[tuple[str, int], int] = {}
    rows = connection.execute(
        select(PROVENANCE.c.device_model, PROVENANCE.c.micro_batch, PROVENANCE.c.batches)
    )
    for device_model, micro_batch, batches in rows:
        made[device_model, micro_batch] = made.get((device_model, micro_batch), 0) + batches
    for device_model in sorted({device_model for device_model, _ in made}):
        ranked = [(count, -size) for (model, size), count in made.items() if model == device_model]
        values = {"device_model": device_model, "micro_batch": -max(ranked)[1]}
        connection.execute(insert(MICRO_BATCH), values)


def _add_slice(connection: Connection, layout: Layout, shard: ShardIndex, slice_: SliceIndex) -> None:
    """Add this slice's row, and those of the slices before it that have none: all of them open."""
    query = select(SHARD.c.next_slice).where(SHARD.c.shard == shard)
    missing = range(connection.execute(query).scalar_one(), slice_ + 1)
    rows = [
        {
            "shard": shard,
            "slice": number,
            "state": "open",
            "fence": 0,
            "batches_left": len(layout.slice_batch_range(shard, SliceIndex(number))),
            "deaths": 0,
        }
        for number in missing
    ]
    connection.execute(insert(SLICE), rows)
    connection.execute(
        update(SHARD)
        .where(SHARD.c.shard == shard)
        .values(next_slice=SHARD.c.next_slice + len(missing), slices_open=SHARD.c.slices_open + len(missing))
    )


def _count_done(connection: Connection, shard: ShardIndex, slice_: SliceIndex, batches: int) -> None:
    same = (SLICE.c.shard == shard, SLICE.c.slice == slice_)
    left = connection.execute(select(SLICE.c.batches_left).where(*same)).scalar_one() - batches
    state = "done" if left == 0 else "open"
    connection.execute(update(SLICE).where(*same).values(batches_left=left, state=state))
    if state == "done":
        connection.execute(
            update(SHARD)
            .where(SHARD.c.shard == shard)
            .values(slices_open=SHARD.c.slices_open - 1, slices_done=SHARD.c.slices_done + 1)
        )
