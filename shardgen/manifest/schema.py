"""Creating and upgrading a manifest (Alembic, imported only then), and refusing one of another revision."""

from __future__ import annotations

import threading
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, inspect, select, text

from shardgen.domain.identifiers import ShardIndex
from shardgen.domain.layout import Layout
from shardgen.domain.plan import EARLIER, Plan
from shardgen.domain.slice_state import SliceState
from shardgen.errors import InputMissing, ManifestMismatch, PlanConflict
from shardgen.manifest.session import planned_anew
from shardgen.manifest.tables import EARLIER_PLAN, REBUILD, RECEIPT, RUN, SHARD

REVISION = "2_0003"
"""The newest file in migrations/versions; 2 is the plan's format. Those of format 1 had a number alone."""
_EARLIER_PLANS = "2_0002"  # the first that keeps them
_INSERT_ROWS = 10_000
_ALEMBIC = threading.Lock()  # it keeps its context in the globals of a module


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPlan:
    """The plan that a manifest holds, as canonical JSON; and which plans this run had `earlier`.

    `has_receipts`: some of it is made, so that it can only grow.
    """

    fingerprint: str
    text: str
    earlier: frozenset[str]
    has_receipts: bool


def migrations_folder() -> Path:
    """Where the migrations lie: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "migrations"
    return installed if installed.is_dir() else package.parent / "migrations"


def create_or_upgrade(
    connection: Connection, plan: Plan, *, where: str, artifacts_exist: bool = False
) -> bool:
    """Make the manifest hold this plan at the newest revision; harmless when it already does.

    To be called in a transaction that keeps all others from doing the same, so that two at once do it once,
    and a kill leaves nothing. Returns whether the manifest was new. Raises ManifestMismatch or PlanConflict.
    """
    upgrade(connection, where=where)
    existing = connection.execute(select(RUN.c.fingerprint)).scalar_one_or_none()
    if existing is not None:
        if existing != plan.fingerprint:
            raise other_plan(connection, where, existing, plan)
        return False
    if artifacts_exist:
        raise lost_manifest(where)
    _insert_plan(connection, plan)
    return True


def upgrade(connection: Connection, *, where: str) -> None:
    """Bring an empty database or a manifest to the newest revision; harmless when it is there already.

    In such a transaction, too. Raises ManifestMismatch for what is neither.
    """
    found = _revision(connection)
    if found is None and inspect(connection).get_table_names():
        raise ManifestMismatch(
            f"{where}: a database, but not a shardgen manifest",
            hint="name another in [manifest] url (a file may also be moved away)",
        )
    if found != REVISION:
        if found is not None and not is_older(found):
            raise _other_revision(where, found)
        _upgrade(connection)


def is_older(revision: str) -> bool:
    """Whether a manifest of this revision can be upgraded to the newest."""
    return "_" in revision and revision < REVISION


def create(connection: Connection, plan: Plan, *, earlier: Collection[str] = ()) -> None:
    """Make the manifest of this plan in an empty database; `earlier` are fingerprints that the run had."""
    _upgrade(connection)
    _insert_plan(connection, plan, earlier)


def read_stored(connection: Connection, *, where: str, known: str = "") -> StoredPlan | None:
    """What a manifest says of its plan, also one that an upgrade awaits; None of an empty database.

    Its text is left unread if its fingerprint is `known`. Raises ManifestMismatch for what is no manifest
    that this version reads.
    """
    revision = _revision(connection)
    if revision is None or not is_older(revision):
        if revision is None and not inspect(connection).get_table_names():
            return None
        check_revision(connection, where=where)
    fingerprint = connection.execute(select(RUN.c.fingerprint)).scalar_one_or_none()
    if fingerprint is None:
        return None
    is_told = fingerprint == known
    has_none = revision is None or revision < _EARLIER_PLANS
    earlier = () if has_none else connection.execute(select(EARLIER_PLAN.c.fingerprint)).scalars()
    return StoredPlan(
        fingerprint=fingerprint,
        text="" if is_told else str(connection.execute(select(RUN.c.plan)).scalar_one()),
        earlier=frozenset(earlier),
        has_receipts=has_receipts(connection),
    )


def has_receipts(connection: Connection) -> bool:
    """Whether any batch is done."""
    return connection.execute(select(RECEIPT.c.batch).limit(1)).first() is not None


def check_revision(connection: Connection, *, where: str) -> None:
    """Refuse a database that is not a manifest of this version; reads one row, without Alembic."""
    found = _revision(connection)
    if found is None and not inspect(connection).get_table_names():
        raise InputMissing(
            f"{where}: there is no manifest",
            hint="shardgen plan RUN_DIR; or, if there are artifacts, shardgen rebuild RUN_DIR",
        )
    if found is None:
        raise ManifestMismatch(
            f"{where}: a database, but not a shardgen manifest",
            hint="check [manifest] url in shardgen.toml; `shardgen plan RUN_DIR` makes a manifest",
        )
    if found != REVISION:
        raise _other_revision(where, found)


def lost_manifest(where: str) -> PlanConflict:
    """The error of a manifest that must not be made anew: that would look like a fresh start."""
    return PlanConflict(
        f"{where}: the manifest is gone or empty, but there are artifacts",
        hint="shardgen rebuild RUN_DIR; or move the artifacts away to make everything again",
    )


def other_plan(connection: Connection, where: str, found: str, expected: Plan) -> PlanConflict:
    """The error of a manifest that has another plan by now, or always had."""
    query = select(EARLIER_PLAN.c.fingerprint).where(EARLIER_PLAN.c.fingerprint == expected.fingerprint)
    if connection.execute(query).first() is not None:
        return planned_anew(where)
    return foreign_plan(where, found, expected)


def foreign_plan(where: str, found: str, expected: Plan) -> PlanConflict:
    """The error of a manifest that belongs to another run, or is from before this one was extended."""
    if found in expected.fingerprints:
        return PlanConflict(
            f"{where}: is older than this run's last `extend`, like an old backup; plan.json has more",
            hint=REBUILD,
        )
    return PlanConflict(
        f"{where}: holds plan {found[:12]}…, the run directory's is {expected.fingerprint[:12]}…",
        hint="name another manifest in [manifest] url, or use the run directory that it belongs to",
    )


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.execute(
        text("SELECT version_num FROM alembic_version")
    ).scalar_one_or_none()
    return found


def _other_revision(where: str, found: str) -> ManifestMismatch:
    if "_" not in found:
        return ManifestMismatch(
            f"{where}: of an earlier version of shardgen (revision {found})", hint=EARLIER
        )
    newer = found > REVISION
    hint = "upgrade shardgen on this machine" if newer else "shardgen plan RUN_DIR upgrades it"
    return ManifestMismatch(f"{where}: revision {found}, this shardgen works with {REVISION}", hint=hint)


def _upgrade(connection: Connection) -> None:
    # Alembic takes 0.2 s to import, and only this needs it.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    config.attributes["connection"] = connection
    with _ALEMBIC:
        command.upgrade(config, "head")


def _insert_plan(connection: Connection, plan: Plan, earlier: Collection[str] = ()) -> None:
    before = {*earlier, *plan.fingerprints} - {plan.fingerprint}
    if before:
        connection.execute(EARLIER_PLAN.insert(), [{"fingerprint": one} for one in sorted(before)])
    connection.execute(
        RUN.insert(),
        {
            "id": 1,
            "fingerprint": plan.fingerprint,
            "plan": plan.canonical_json.decode(),
            "fence_floor": 0,
        },
    )
    insert_shards(connection, plan.layout, range(plan.layout.shard_count))


def insert_shards(connection: Connection, layout: Layout, shards: range) -> None:
    """Add the rows of these shards: nothing of them is begun."""
    counters = dict.fromkeys(("next_slice", "stored", "dead", *(f"slices_{one}" for one in SliceState)), 0)
    for start in range(0, len(shards), _INSERT_ROWS):
        connection.execute(
            SHARD.insert(),
            [
                {"shard": shard, "slice_count": layout.slice_count(ShardIndex(shard)), **counters}
                for shard in shards[start : start + _INSERT_ROWS]
            ],
        )
