from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer
from pydantic import BaseModel

from shardgen.cli.app import app
from shardgen.recipes.registry import kinds
from shardgen.settings.settings import EngineTables

FOLDERS = {"--foregrounds", "--backgrounds", "--pictures"}
OPTIONS = {
    "backup": {"--output", "-o"},
    "cut-out": {"--sheet", "--overwrite", "--model"},
    "dead-letters": {"--json", "--details", "--limit"},
    "demo": set(),
    "doctor": {"--json"},
    "export": {
        *("--format", "--shard-size", "--split", "--split-by", "--split-seed"),
        *("--exclude", "--partial", "--allow-dead-letters", "--json"),
    },
    "extend": FOLDERS,
    "init": {"--preset", *FOLDERS, "--weights", "--set", "--bucket", "--shared-folder"},
    "merge": {"--output", "-o", "--allow-dead-letters", "--exclude", "--partial", "--json"},
    "plan": {"--rate", "--calibrate", "--json", *FOLDERS},
    "preview": {
        "--samples",
        "--all-foregrounds",
        "--output",
        "-o",
        "--device",
        *FOLDERS,
    },
    "ray": {
        *("--address", "--workers", "--gpus-per-worker", "--cpus-per-worker"),
        *("--output", "-o", "--allow-dead-letters"),
        *FOLDERS,
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
            "--serve",
            "--json",
        ),
        *FOLDERS,
    },
    "status": {"--json", "--watch", "--serve", "--html"},
    "sweep": {"--yes"},
    "verify": {"--requeue", "--quick", "--json"},
    "weights check": {"--fast"},
    "weights fetch": set(),
    "worker": {
        *("--shard", "--max-batches", "--deadline", "--grace", "--device", "--id"),
        *FOLDERS,
    },
}
DEPTH = {"model", "weights", "input", "upsampling", "precision", "micro_batch", "encoding"}
OUTPUT = {"size", "image", "image_quality", "depth", "depth_quality", "depth_size"}
OF_RECIPES = {
    "composites": {
        "sources": {"foregrounds", "backgrounds", "mask"},
        "compose": {
            *("canvas", "placement", "grid", "places", "seed", "foregrounds_per_sample"),
            *("foreground_height", "overhang", "flips", "blend"),
        },
        "depth": DEPTH,
        "output": {*OUTPUT, "mask"},
    },
    "depth": {"sources": {"pictures"}, "depth": DEPTH, "output": OUTPUT},
}
SETTINGS = {
    "recipe": {"kind"},
    "shards": {"size", "slice_batches", "batch"},
    "manifest": {"url"},
    "artifacts": {"url"},
    "lease": {"seconds", "heartbeat_seconds", "stall_seconds", "max_attempts", "max_dead_share"},
    "folder": {
        *("segment_seconds", "segment_batches", "settle_seconds", "silent_seconds", "scan_seconds"),
    },
    "card": {"title", "licence", "text"},
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


def test_settings_are_those_that_users_rely_on() -> None:
    assert _keys(EngineTables) == SETTINGS
    assert {kind.name: _keys(kind.tables) for kind in kinds()} == OF_RECIPES


def _keys(tables: type[BaseModel]) -> dict[str, set[str]]:
    found = {}
    for table, field in tables.model_fields.items():
        assert isinstance(field.annotation, type)
        assert issubclass(field.annotation, BaseModel)
        found[table] = set(field.annotation.model_fields)
    return found
