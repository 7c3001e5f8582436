"""The commented `shardgen.toml` that `init` writes; `settings` reads what becomes of it."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

from shardgen.recipes.registry import DEFAULT_PRESET, find_preset

_HEAD = """\
# What this run makes. Lines marked (plan) are fixed once the first sample is stored; until then run
# `shardgen plan` after a change. The others are read anew at every start and may differ from machine to
# machine.

"""
_ENGINE = """\

[shards]
size = 100_000          # (plan) samples per shard: what a person sees and can assign by hand
slice_batches = 16      # (plan) batches that a worker leases at a time
batch = 32              # (plan) samples per checkpoint: what a crash can cost

[manifest]
# A file relative to this one, on this machine's own disk, never a network's. For several machines a database
# on a PostgreSQL server, with its password from the environment only:  url = "${SHARDGEN_MANIFEST}"  and
# export SHARDGEN_MANIFEST=postgresql+psycopg://user:password@host/database
# For machines that share only a bucket, with its keys from the environment:  url = "s3://bucket/people"
# (or gs://, az://). For machines that share nothing but this folder, on a Google Drive, say:  url = "folder:"
url = "sqlite:///manifest.sqlite"

[artifacts]
# A folder, relative to this file, that every worker and merge can reach.
# With a bucket in [manifest] url, leave this as it is: artifacts go into the bucket.
url = "artifacts"

[lease]
seconds = 120           # after this long, others may take over a silent worker's slice
heartbeat_seconds = 30  # how often a worker renews; at most a third of the above
stall_seconds = 600     # a worker without progress for this long gives up its slice
max_attempts = 6        # deaths without progress before a slice is blocked
max_dead_share = 100    # stop when more per cent of the finished samples are dead letters; 100: never

[folder]
# Only for [manifest] url = "folder:", where machines share this directory and nothing else.
segment_seconds = 300   # a worker publishes its batches this often: what a lost machine can cost
segment_batches = 32    # or after this many batches
settle_seconds = 180    # how long a worker checks for others' older claims on the slice it has begun
silent_seconds = 3600   # after this long without a new file, others may take over a worker's slice
scan_seconds = 60       # how often a worker scans the folder

[card]
# For the README in the zip, which Hugging Face's Hub reads, too.
title = ""              # "" names what the recipe makes
licence = ""            # yours to choose: a word that the Hub knows, as "cc-by-4.0", or your own words
text = ""               # Markdown behind the introduction; a long one between lines of three quotes
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
    raise TypeError(f"{value!r} is no text, number, truth value, or list of these")


def _toml_string(text: str) -> str:
    # JSON strings are TOML basic strings, except that DEL must be escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")
