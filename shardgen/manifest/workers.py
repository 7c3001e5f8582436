"""The workers' rows: which workers there are, what state they report, and their devices' micro-batches."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ColumnElement, Connection, RowMapping, delete, or_, select, union, update

from shardgen.domain.identifiers import ShardIndex, SliceIndex, WorkerId
from shardgen.domain.worker import (
    ENDED_STATES,
    LISTED_AFTER_END,
    WorkerIdentity,
    WorkerReport,
    WorkerRow,
    WorkerState,
)
from shardgen.manifest.session import Part, reading, writing
from shardgen.manifest.slices import from_seconds, insert_unless_there, to_seconds
from shardgen.manifest.tables import MICRO_BATCH, RECEIPT, SLICE, WORKER, decoding

_FORGOTTEN_AFTER = 24 * 3600.0  # ended workers' rows, in seconds: the table stays small however long the run


class Workers(Part):
    """Who is there, and how it says it does."""

    @writing
    def register(self, connection: Connection, identity: WorkerIdentity) -> None:
        """Add a worker that starts, and forget those that ended long ago; twice is harmless."""
        seconds = to_seconds(self.session.now(connection))
        connection.execute(
            delete(WORKER).where(
                WORKER.c.last_beat_at < seconds - _FORGOTTEN_AFTER, WORKER.c.lease_expires_at.is_(None)
            )
        )
        insert_unless_there(
            connection,
            WORKER,
            {
                "id": identity.id,
                "host": identity.host,
                "pid": identity.pid,
                "process_started": identity.process_started,
                "device": identity.device,
                "state": WorkerState.STARTING.value,
                "started_at": seconds,
                "last_beat_at": seconds,
                "last_progress_at": seconds,
                "samples_done": 0,
                "samples_per_second": 0.0,
                "note": "",
            },
        )

    @writing
    def beat(self, connection: Connection, worker: WorkerId, report: WorkerReport) -> None:
        """Write down what a worker says of itself; the first word of its end stands."""
        seconds = to_seconds(self.session.now(connection))
        values: dict[str, object] = {
            "state": report.state.value,
            "last_beat_at": seconds,
            "samples_done": report.samples_done,
            "samples_per_second": report.samples_per_second,
            "note": report.note,
        }
        if report.progressed:
            values["last_progress_at"] = seconds
        connection.execute(update(WORKER).where(WORKER.c.id == worker, not_ended()).values(values))

    @writing
    def set_device(self, connection: Connection, worker: WorkerId, device: str) -> None:
        """Say which device a worker found."""
        connection.execute(update(WORKER).where(WORKER.c.id == worker).values(device=device))

    @reading
    def alive_on_host(self, connection: Connection, host: str) -> list[WorkerIdentity]:
        """The workers of one host that have not said that they ended, or hold a slice all the same."""
        unfinished = or_(not_ended(), WORKER.c.lease_expires_at.is_not(None))
        rows = connection.execute(select(WORKER).where(WORKER.c.host == host, unfinished))
        return [_identity(row) for row in rows.mappings()]

    @reading
    def known(self, connection: Connection) -> set[WorkerId]:
        """Those that hold a slice, have a receipt, or have a row."""
        columns = (WORKER.c.id, SLICE.c.worker, RECEIPT.c.worker)
        rows = connection.execute(union(*(select(column) for column in columns))).scalars()
        return {WorkerId(worker) for worker in rows if worker is not None}


class MicroBatches(Part):
    """How many images the network takes at once on each model of device."""

    @writing
    def agreed(self, connection: Connection, device_model: str, proposed: int) -> int:
        """The micro-batch of this device model: the first worker's proposal, kept for all later ones."""
        self.session.hold_plan(connection)  # another plan may have another network
        return _agreed(connection, device_model, proposed)

    @reading
    def settled(self, connection: Connection, device_model: str) -> int | None:
        """The micro-batch that was agreed on for this device model; None: none was."""
        return _settled(connection, device_model)

    @reading
    def shrunk(self, connection: Connection, device_model: str) -> int | None:
        """What memory sufficed for when it last ran out on this device model; None: it never did."""
        query = select(MICRO_BATCH.c.shrunk_to).where(MICRO_BATCH.c.device_model == device_model)
        found = connection.execute(query).scalar_one_or_none()
        return None if found is None else int(found)

    @writing
    def shrink(self, connection: Connection, device_model: str, micro_batch: int) -> None:
        """Remember that this device model has no memory for more."""
        self.session.hold_plan(connection)
        _agreed(connection, device_model, micro_batch)
        same = MICRO_BATCH.c.device_model == device_model
        larger = or_(MICRO_BATCH.c.shrunk_to.is_(None), MICRO_BATCH.c.shrunk_to > micro_batch)
        connection.execute(update(MICRO_BATCH).where(same, larger).values(shrunk_to=micro_batch))
        connection.execute(
            update(MICRO_BATCH)
            .where(same, MICRO_BATCH.c.micro_batch > micro_batch)
            .values(micro_batch=micro_batch)
        )


def not_ended() -> ColumnElement[bool]:
    """Of workers whose row does not say that they ended."""
    return WORKER.c.state.not_in([state.value for state in ENDED_STATES])


def listed(connection: Connection, now: datetime) -> tuple[WorkerRow, ...]:
    """Workers that hold a slice or were heard of within the hour, oldest first."""
    since = to_seconds(now - LISTED_AFTER_END)
    rows = connection.execute(
        select(WORKER)
        .where(or_(WORKER.c.last_beat_at >= since, WORKER.c.lease_expires_at.is_not(None)))
        .order_by(WORKER.c.started_at, WORKER.c.id)
    )
    return tuple(_row(row) for row in rows.mappings())


def _settled(connection: Connection, device_model: str) -> int | None:
    query = select(MICRO_BATCH.c.micro_batch).where(MICRO_BATCH.c.device_model == device_model)
    found = connection.execute(query).scalar_one_or_none()
    return None if found is None else int(found)


def _agreed(connection: Connection, device_model: str, proposed: int) -> int:
    found = _settled(connection, device_model)
    if found is None:
        values = {"device_model": device_model, "micro_batch": proposed}
        insert_unless_there(connection, MICRO_BATCH, values)
        return _agreed(connection, device_model, proposed)
    return found


def _identity(row: RowMapping) -> WorkerIdentity:
    return WorkerIdentity(
        id=WorkerId(row["id"]),
        host=row["host"],
        pid=row["pid"],
        process_started=row["process_started"],
        device=row["device"],
    )


def _row(row: RowMapping) -> WorkerRow:
    with decoding(f"the row of worker {row['id']}"):
        return _decoded(row)


def _decoded(row: RowMapping) -> WorkerRow:
    expires = row["lease_expires_at"]
    return WorkerRow(
        identity=_identity(row),
        state=WorkerState(row["state"]),
        shard=None if row["shard"] is None else ShardIndex(row["shard"]),
        slice=None if row["slice"] is None else SliceIndex(row["slice"]),
        lease_expires_at=None if expires is None else from_seconds(expires),
        started_at=from_seconds(row["started_at"]),
        last_beat_at=from_seconds(row["last_beat_at"]),
        last_progress_at=from_seconds(row["last_progress_at"]),
        samples_done=row["samples_done"],
        samples_per_second=row["samples_per_second"],
        note=row["note"],
    )
