"""Give a run another plan in one transaction, if nothing is made yet, or if the plan only grows."""

from __future__ import annotations

from contextlib import closing

from sqlalchemy import Connection, delete, func, select, update

from shardgen.domain.plan import Plan
from shardgen.domain.slice_state import SliceState
from shardgen.errors import ManifestCorrupt, PlanConflict
from shardgen.manifest import schema
from shardgen.manifest.backend import Access
from shardgen.manifest.database_url import DatabaseUrl
from shardgen.manifest.leases import refuse_live
from shardgen.manifest.session import Clock, Session, planned_anew
from shardgen.manifest.slices import insert_unless_there, lock_slices
from shardgen.manifest.tables import (
    EARLIER_PLAN,
    MICRO_BATCH,
    REBUILD,
    RUN,
    SHARD,
    SLICE,
    SUSPECT_SAMPLE,
    WORKER,
)


def replace_plan(
    url: DatabaseUrl, old: str, new: Plan, *, grows: bool = False, clock: Clock | None = None
) -> None:
    """Make `new` the plan of a manifest that holds the plan with the fingerprint `old`.

    `grows`: `new` begins with the blocks of that plan, and its further blocks are all that changes; receipts
    stay, and a plan that is not so is refused. Else nothing is left of what was begun, and every later grant
    is above every earlier fence, so that no holder of an expired lease can record anything. `clock` replaces
    the database's own.

    An older manifest is upgraded on the way. Raises PlanConflict when it holds another plan by now, or has
    receipts although the plan does not merely grow; ManifestBusy while a worker holds a live lease.
    """
    with closing(url.backend.open(Access.WRITE)) as database:
        session = Session(database, new, clock)

        def replace(connection: Connection) -> None:
            database.hold_for_upgrade(connection)
            schema.upgrade(connection, where=database.shown)
            _replace(connection, session, old, new, grows=grows)

        session.write(replace, lambda connection, _: _has_plan(connection, new))


def _has_plan(connection: Connection, plan: Plan) -> bool:
    return connection.execute(select(RUN.c.fingerprint)).scalar_one_or_none() == plan.fingerprint


def _replace(connection: Connection, session: Session, old: str, new: Plan, *, grows: bool) -> None:
    # In the order that everybody keeps. Who grants has the run's row before a slice's; who records waits
    # here for nothing, so once all slices are locked every receipt that can still come is there.
    run = connection.execute(select(RUN.c.fingerprint, RUN.c.fence_floor).with_for_update()).first()
    if run is None:
        raise ManifestCorrupt(f"{session.database.shown}: names no plan", hint=REBUILD)
    if run.fingerprint != old or (grows and old not in new.fingerprints):
        raise planned_anew(session.database.shown)
    slices = lock_slices(connection)
    now = session.now(connection)
    for row in slices:
        if row.state is SliceState.LEASED:
            refuse_live(row, now)
    if not grows and schema.has_receipts(connection):
        raise PlanConflict(
            f"{session.database.shown}: samples were stored meanwhile, so the plan can no longer change",
            hint="run the command again: it says what can be done",
        )
    first = 0
    if grows:
        first = connection.execute(select(func.count()).select_from(SHARD)).scalar_one()
    else:
        _forget_what_was_begun(connection)
    schema.insert_shards(connection, new.layout, range(first, new.layout.shard_count))
    connection.execute(
        update(RUN).values(
            fingerprint=new.fingerprint,
            plan=new.canonical_json.decode(),
            fence_floor=max(run.fence_floor, 0, *(row.fence for row in slices)),
        )
    )
    insert_unless_there(connection, EARLIER_PLAN, {"fingerprint": old})
    connection.execute(delete(EARLIER_PLAN).where(EARLIER_PLAN.c.fingerprint == new.fingerprint))


def _forget_what_was_begun(connection: Connection) -> None:
    """Slices and what is suspected of them; and the micro-batches, which the other plan's network had."""
    for table in (SUSPECT_SAMPLE, SLICE, SHARD, MICRO_BATCH):
        connection.execute(delete(table))
    holding = WORKER.c.slice.is_not(None)
    connection.execute(update(WORKER).where(holding).values(shard=None, slice=None, lease_expires_at=None))
