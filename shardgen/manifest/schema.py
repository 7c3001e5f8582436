"""Creating and upgrading a manifest (Alembic, imported only then), and refusing one of another revision."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect, select, text

from shardgen.domain.identifiers import ShardIndex
from shardgen.domain.plan import EARLIER, Plan
from shardgen.domain.slice_state import SliceState
from shardgen.errors import InputMissing, ManifestMismatch, PlanConflict
from shardgen.manifest.tables import RUN, SHARD

REVISION = "2_0001"
"""The newest file in migrations/versions; 2 is the plan's format. Those of format 1 had a number alone."""
_INSERT_ROWS = 10_000


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
    found = _revision(connection)
    if found is None and inspect(connection).get_table_names():
        raise ManifestMismatch(
            f"{where}: a database, but not a shardgen manifest",
            hint="name another in [manifest] url (a file may also be moved away)",
        )
    if found != REVISION:
        if found is not None and (found > REVISION or "_" not in found):
            raise _other_revision(where, found)
        _upgrade(connection)
    existing = connection.execute(select(RUN.c.fingerprint)).scalar_one_or_none()
    if existing is not None:
        if existing != plan.fingerprint:
            raise other_plan(where, existing, plan.fingerprint)
        return False
    if artifacts_exist:
        raise PlanConflict(
            f"{where}: the manifest is gone or empty, but there are artifacts",
            hint="shardgen rebuild RUN_DIR; or move the artifacts away to make everything anew",
        )
    _insert_plan(connection, plan)
    return True


def create(connection: Connection, plan: Plan) -> None:
    """Make the manifest of this plan in an empty database."""
    _upgrade(connection)
    _insert_plan(connection, plan)


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


def other_plan(where: str, found: str, expected: str) -> PlanConflict:
    """The error of a manifest that belongs to another plan."""
    return PlanConflict(
        f"{where}: holds plan {found[:12]}…, the run directory's is {expected[:12]}…",
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
    command.upgrade(config, "head")


def _insert_plan(connection: Connection, plan: Plan) -> None:
    connection.execute(
        RUN.insert(),
        {
            "id": 1,
            "fingerprint": plan.fingerprint,
            "plan": plan.canonical_json.decode(),
            "fence_floor": 0,
        },
    )
    counters = dict.fromkeys(("next_slice", "stored", "dead", *(f"slices_{one}" for one in SliceState)), 0)
    shards = range(plan.layout.shard_count)
    for start in range(0, len(shards), _INSERT_ROWS):
        connection.execute(
            SHARD.insert(),
            [
                {"shard": shard, "slice_count": plan.layout.slice_count(ShardIndex(shard)), **counters}
                for shard in shards[start : start + _INSERT_ROWS]
            ],
        )
