from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer
from pydantic import BaseModel

from shardgen.cli.app import app
from shardgen.recipes.registry import DEFAULT, find_kind
from shardgen.settings.settings import EngineTables

OPTIONS = {
    "backup": {"--output", "-o"},
    "cut-out": {"--sheet", "--overwrite", "--model"},
    "dead-letters": {"--json", "--details", "--limit"},
    "demo": set(),
    "doctor": set(),
    "extend": {"--foregrounds", "--backgrounds", "--pictures"},
    "init": {"--foregrounds", "--backgrounds", "--weights", "--shared-folder"},
    "merge": {"--output", "-o", "--allow-dead-letters", "--exclude", "--partial"},
    "plan": {"--rate", "--foregrounds", "--backgrounds", "--pictures"},
    "preview": {
        "--samples",
        "--all-foregrounds",
        "--output",
        "-o",
        "--device",
        "--foregrounds",
        "--backgrounds",
        "--pictures",
    },
    "rebuild": set(),
    "requeue": {"--batch", "--dead-letters", "--blocked"},
    "run": {
        *(
            "--workers",
            "--gpus",
            "--output",
            "-o",
            "--allow-dead-letters",
            "--device",
            "--limit",
            "--deadline",
        ),
        *("--foregrounds", "--backgrounds", "--pictures"),
    },
    "status": {"--json", "--watch"},
    "sweep": {"--yes"},
    "verify": {"--requeue", "--quick", "--json"},
    "weights check": set(),
    "weights fetch": set(),
    "worker": {
        *("--shard", "--max-batches", "--deadline", "--grace", "--device", "--id"),
        *("--foregrounds", "--backgrounds", "--pictures"),
    },
}
SETTINGS = {
    "recipe": {"kind"},
    "sources": {"foregrounds", "backgrounds", "mask"},
    "compose": {
        *("canvas", "placement", "grid", "places", "seed", "foregrounds_per_sample", "foreground_height"),
        *("overhang", "flips", "blend"),
    },
    "depth": {"model", "weights", "input", "upsampling", "precision", "micro_batch", "encoding"},
    "output": {"size", "image", "image_quality", "mask", "depth", "depth_quality", "depth_size"},
    "shards": {"size", "slice_batches", "batch"},
    "manifest": {"url"},
    "artifacts": {"url"},
    "lease": {"seconds", "heartbeat_seconds", "stall_seconds", "max_attempts", "max_dead_share"},
    "folder": {
        *("segment_seconds", "segment_batches", "settle_seconds", "silent_seconds", "scan_seconds"),
    },
}

SETTINGS_OF_PICTURES = {
    **{name: keys for name, keys in SETTINGS.items() if name != "compose"},
    "sources": {"pictures"},
    "output": SETTINGS["output"] - {"mask"},
}


def _commands(command: Any, name: str = "") -> Iterator[tuple[str, set[str]]]:
    if hasattr(command, "commands"):
        for part, below in command.commands.items():
            yield from _commands(below, f"{name} {part}".strip())
        return
    flags = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    yield name, {flag for flag in flags if flag.startswith("-")}


def test_commands_and_options_are_those_that_users_rely_on() -> None:
    assert dict(_commands(typer.main.get_command(app))) == OPTIONS


@pytest.mark.parametrize(
    ("kind", "settings"), [(DEFAULT, SETTINGS), ("depth", SETTINGS_OF_PICTURES)], ids=["composites", "depth"]
)
def test_settings_are_those_that_users_rely_on(kind: str, settings: dict[str, set[str]]) -> None:
    found = {}
    for table, field in (EngineTables.model_fields | find_kind(kind).tables.model_fields).items():
        assert isinstance(field.annotation, type)
        assert issubclass(field.annotation, BaseModel)
        found[table] = set(field.annotation.model_fields)
    assert found == settings
