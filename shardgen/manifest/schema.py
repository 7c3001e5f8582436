"""Creating and upgrading a manifest (Alembic, imported only then), and refusing one of another revision."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, select, text

from shardgen.domain.identifiers import ShardIndex
from shardgen.domain.plan import Plan
from shardgen.errors import ManifestMismatch, PlanConflict
from shardgen.manifest.engine import transaction
from shardgen.manifest.tables import RUN, SHARD

REVISION = "0002"  # the newest file in migrations/versions; a test compares them
_INSERT_ROWS = 10_000


def migrations_folder() -> Path:
    """Where the migrations lie: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "migrations"
    return installed if installed.is_dir() else package.parent / "migrations"


def create_or_upgrade(
    engine: Engine, plan: Plan, *, fence_floor: int = 0, artifacts_exist: bool = False
) -> bool:
    """Make the manifest hold this plan at the newest revision; harmless when it already does.

    One transaction that takes the write lock first, so that two at once do it once, and a kill leaves
    nothing. Returns whether the manifest was new. Raises ManifestMismatch or PlanConflict.
    """
    with transaction(engine) as connection:
        found = _revision(connection)
        if found is None and inspect(connection).get_table_names():
            raise ManifestMismatch(
                f"{_shown(engine)}: a database, but not a shardgen manifest",
                hint="move that file away, or name another in [manifest] url",
            )
        if found != REVISION:
            if found is not None and found > REVISION:
                raise _other_revision(engine, found)
            _upgrade(connection)
        existing = connection.execute(select(RUN.c.fingerprint)).scalar_one_or_none()
        if existing is not None:
            if existing != plan.fingerprint:
                raise other_plan(engine, existing, plan.fingerprint)
            return False
        if artifacts_exist:
            raise PlanConflict(
                f"{_shown(engine)}: the manifest is gone or empty, but there are artifacts",
                hint="shardgen rebuild RUN_DIR; or move the artifacts away to make everything anew",
            )
        _insert_plan(connection, plan, fence_floor)
        return True


def check_revision(connection: Connection, engine: Engine) -> None:
    """Refuse a database that is not a manifest of this version; reads one row, without Alembic."""
    found = _revision(connection)
    if found is None:
        raise ManifestMismatch(
            f"{_shown(engine)}: a database, but not a shardgen manifest",
            hint="check [manifest] url in shardgen.toml; `shardgen plan RUN_DIR` makes a manifest",
        )
    if found != REVISION:
        raise _other_revision(engine, found)


def other_plan(engine: Engine, found: str, expected: str) -> PlanConflict:
    """The error of a manifest that belongs to another plan."""
    return PlanConflict(
        f"{_shown(engine)}: holds plan {found[:12]}…, the run directory's is {expected[:12]}…",
        hint="name another manifest in [manifest] url, or use the run directory that it belongs to",
    )


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.execute(
        text("SELECT version_num FROM alembic_version")
    ).scalar_one_or_none()
    return found


def _other_revision(engine: Engine, found: str) -> ManifestMismatch:
    newer = found > REVISION
    hint = "upgrade shardgen on this machine" if newer else "shardgen plan RUN_DIR upgrades it"
    return ManifestMismatch(
        f"{_shown(engine)}: revision {found}, this shardgen works with {REVISION}", hint=hint
    )


def _shown(engine: Engine) -> str:
    return (engine.url.database or "").removeprefix("file:")


def _upgrade(connection: Connection) -> None:
    # Alembic takes 0.2 s to import, and only this needs it.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _insert_plan(connection: Connection, plan: Plan, fence_floor: int) -> None:
    connection.execute(
        RUN.insert(),
        {
            "id": 1,
            "fingerprint": plan.fingerprint,
            "plan": plan.canonical_json.decode(),
            "fence_floor": fence_floor,
        },
    )
    counters = dict.fromkeys(
        ("next_slice", "stored", "dead", "slices_open", "slices_leased", "slices_done", "slices_blocked"), 0
    )
    shards = range(plan.layout.shard_count)
    for start in range(0, len(shards), _INSERT_ROWS):
        connection.execute(
            SHARD.insert(),
            [
                {"shard": shard, "slice_count": plan.layout.slice_count(ShardIndex(shard)), **counters}
                for shard in shards[start : start + _INSERT_ROWS]
            ],
        )
