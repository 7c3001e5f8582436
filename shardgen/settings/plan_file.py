"""`plan.json`: the only reader of plans from outside (the run directory, the manifest, a zip)."""

from __future__ import annotations

from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from shardgen.domain import plan as domain
from shardgen.domain.limits import plan_problem
from shardgen.domain.plan import PLAN_FORMAT, Plan
from shardgen.errors import InputMissing, ManifestCorrupt, ManifestMismatch
from shardgen.storage.bounded import how_to_read, parse_json, read_regular

FILE_NAME = "plan.json"
MAX_BYTES = 1 << 28  # a photograph takes about 250 bytes

for _value in (
    domain.MaskFile,
    domain.Background,
    domain.Foreground,
    domain.Sources,
    domain.Compose,
    domain.Weights,
    domain.Depth,
    domain.Output,
    domain.Shards,
    domain.Plan,
):
    with_config(ConfigDict(extra="forbid"))(_value)

_PLAN = TypeAdapter(Plan)
_OTHER_COPY = "use another copy of it"
_RESTORE = "move it away; then `shardgen plan RUN_DIR` writes it again from the same photographs and settings"


def parse_plan(text: str | bytes, *, where: str, hint: str = _OTHER_COPY) -> Plan:
    """Check a plan's JSON; `where` and `hint` go into its errors. Raises ManifestMismatch or ManifestCorrupt.

    A plan that reads is one that could have been made here: its numbers stay within what planning allows,
    and its sources' names inside their folders.
    """
    try:
        document = parse_json(text)
    except ValueError as error:
        raise ManifestCorrupt(f"{where}: not JSON ({error})", hint=hint) from error
    found = document.get("format") if isinstance(document, dict) else None
    if isinstance(found, int) and found > PLAN_FORMAT:
        raise ManifestMismatch(
            f"{where}: plan format {str(found)[:20]}, this shardgen reads up to {PLAN_FORMAT}",
            hint="upgrade shardgen on this machine to the version that made the plan",
        )
    try:
        plan = _PLAN.validate_json(text, strict=True)
    except (ValidationError, ValueError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise ManifestCorrupt(f"{where}: not a plan ({reason})", hint=hint) from error
    if plan.canonical_json != (text.encode() if isinstance(text, str) else text):
        raise ManifestCorrupt(f"{where}: not in canonical form, so it was edited by hand", hint=hint)
    problem = plan_problem(plan)
    if problem is not None:
        raise ManifestCorrupt(f"{where}: not a plan ({problem})", hint=hint)
    return plan


def read_plan(run_dir: Path) -> Plan | None:
    """The run directory's plan, or None when nothing was planned yet."""
    path = run_dir / FILE_NAME
    try:
        text = read_regular(path, limit=MAX_BYTES)
    except FileNotFoundError:
        return None
    except IsADirectoryError:
        raise InputMissing(f"{path}: a folder, not a file", hint=_RESTORE) from None
    except OSError as error:
        raise InputMissing(
            f"{path}: cannot be read ({error.strerror})", hint=how_to_read(error, path, otherwise=_RESTORE)
        ) from error
    return parse_plan(text, where=str(path), hint=_RESTORE)
