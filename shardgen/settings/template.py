"""The commented `shardgen.toml` that `init` writes; `settings` reads it back."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

from shardgen.recipes.registry import DEFAULT_PRESET, find_preset

_HEAD = """\
# What this run makes. Lines marked (plan) are fixed once the first sample is stored. Until then, run
# `shardgen plan` after each change. The other lines are read at every start and may differ from machine to
# machine.

"""
_ENGINE = """\

[shards]
size = 100_000          # (plan) samples per shard; you can assign a shard to a worker with --shard
slice_batches = 16      # (plan) batches per slice: what a worker leases at a time
batch = 32              # (plan) samples per batch: a crash costs at most three batches per worker

[manifest]
# A file on a local disk (never a network drive), relative to this one. For several machines, use a database
# on a PostgreSQL server, with the password only in the environment:  url = "${SHARDGEN_MANIFEST}"  and
# export SHARDGEN_MANIFEST=postgresql+psycopg://user:password@host/database
# For machines that share only a bucket, with the keys in the environment:  url = "s3://bucket/people"
# (or gs://, az://). For machines that share only this folder, such as one on Google Drive:  url = "folder:"
url = "sqlite:///manifest.sqlite"

[artifacts]
# A folder, relative to this file, that every worker and `merge` can reach.
# With a bucket in [manifest] url, don't change this: artifacts go into the bucket.
url = "artifacts"

[lease]
seconds = 120           # after this long, others may take over a silent worker's slice
heartbeat_seconds = 30  # how often a worker renews its lease; at most a third of the above
stall_seconds = 600     # a worker without progress for this long gives up its slice
max_attempts = 6        # deaths without progress before a slice is blocked
max_dead_share = 100    # stop if more than this percentage of finished samples are dead letters; 100: never

[folder]
# Only for [manifest] url = "folder:", if machines share only this directory.
segment_seconds = 300   # a worker publishes its batches this often: about what a lost machine costs
segment_batches = 32    # or after this many batches
settle_seconds = 180    # for this long after starting a slice, a worker checks for older claims by others
silent_seconds = 3600   # after this long without a new file, others may take over a worker's slice
scan_seconds = 60       # how often a worker scans the folder

[card]
# For the README in the zip, which the Hugging Face Hub reads, too.
title = ""              # "": named after what the recipe makes
licence = ""            # your choice: a name that the Hub knows, such as "cc-by-4.0", or your own words
text = ""               # Markdown after the introduction; put long text between lines of three quotes
"""


def settings_text(
    *,
    preset: str = DEFAULT_PRESET,
    weights: str | None = None,
    changes: Mapping[str, str | None] | None = None,
    **folders: Path,
) -> str:
    """The commented `shardgen.toml` of a preset, with the source folders by the recipe's names for them.

    `changes` are other values, as TOML, by key (`compose.grid`: `[2, 2]`); None leaves a key out. Raises
    InvalidSettings for an unknown preset, ValueError for a key that it does not have.
    """
    kind, chosen = find_preset(preset)
    values = dict(chosen.values) | {
        f"sources.{name}": _toml_string(str(path)) for name, path in folders.items()
    }
    if weights is not None:
        values["depth.weights"] = _toml_string(weights)
    text = _HEAD + kind.template + _ENGINE
    for name, value in (values | dict(changes or {})).items():
        text = _changed(text, name, value)
    return text


def setting_names(preset: str) -> tuple[str, ...]:
    """The keys that the preset has (`depth.weights`). Raises InvalidSettings for an unknown preset."""
    tables = tomllib.loads(settings_text(preset=preset))
    return tuple(f"{table}.{key}" for table, values in tables.items() for key in values)


def _changed(text: str, name: str, value: str | None) -> str:
    """Comments stay in their column where that is possible."""
    line = _line(text, name)
    if line is None:
        raise ValueError(f"{name}: no such setting in the template")
    changed = ""
    if value is not None:
        width = max(len(line["value"]), len(value) + 1)
        changed = f"{line['key']} = {value.ljust(width)}{line['comment']}".rstrip() + "\n"
    return text[: line.start()] + changed + text[line.end() :]


def _line(text: str, name: str) -> re.Match[str] | None:
    table, _, key = name.partition(".")
    start = text.find(f"[{table}]\n")
    if start < 0:
        return None
    end = text.find("\n[", start)
    value = r"(?P<value>(?:\"[^\"]*\"|\[[^\]]*\]|[^\s#]+) *)"
    pattern = re.compile(rf"^(?P<key>{key}) = {value}(?P<comment>.*)\n", re.MULTILINE)
    return pattern.search(text, start, len(text) if end < 0 else end + 1)


def toml_value(value: object) -> str:
    """A text, number, truth value, or a list of these, as it stands in `shardgen.toml`. Raises TypeError."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | PathLike):
        return _toml_string(str(value))
    if isinstance(value, Sequence):
        return f"[{', '.join(map(toml_value, value))}]"
    raise TypeError(f"{value!r} is not text, a number, a truth value, or a list of these")


def _toml_string(text: str) -> str:
    # JSON strings are TOML basic strings, except that DEL must be escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")
