"""Hypothesis strategies: files of our own making, damaged at their bytes, their members or their fields."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from shardgen.artifacts.zip_records import (
    END_RECORDS_MAX,
    Directory,
    Entry,
    ZipLimits,
    central_entry,
    end_records,
    local_header,
    read_end,
    read_entries,
)

Change = Callable[[bytearray], None]
EXTREMES = [0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, (1 << 63) - 1, (1 << 64) - 1, 1 << 60]
NAMES = [
    "../evil",
    "/etc/passwd",
    "fgbg/../../evil",
    "a\\..\\b",
    "nul\0name",
    "",
    ".",
    "..",
    "CON",
    "fgbg/00000/99999999999999999999.jpg",
    "\x1b[2J",
    "x" * 5000,
]


@st.composite
def damaged(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """One to four damages to the bytes of one of the seeds."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        _damage(draw, data)
    return bytes(data)


def _damage(draw: st.DrawFn, data: bytearray) -> None:
    at = draw(st.integers(0, max(0, len(data) - 1)))
    match draw(st.sampled_from(["flip", "set", "number", "cut", "copy", "insert", "digits", "nest"])):
        case "flip" if data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        case "set" if data:
            data[at] = draw(st.integers(0, 255))
        case "number":
            width = draw(st.sampled_from([2, 4, 8]))
            value = draw(st.sampled_from(EXTREMES)) % (1 << 8 * width)
            data[at : at + width] = value.to_bytes(width, draw(st.sampled_from(["little", "big"])))
        case "cut":
            del data[at : at + draw(st.integers(1, 64)) if draw(st.booleans()) else len(data)]
        case "copy":
            start, size = draw(st.integers(0, max(0, len(data) - 1))), draw(st.integers(1, 200))
            data[at:at] = data[start : start + size]
        case "insert":
            data[at:at] = draw(st.binary(max_size=16))
        case "digits":
            data[at:at] = b"9" * draw(st.sampled_from([1, 20, 400, 5000]))
        case "nest":
            data[at:at] = draw(st.sampled_from([b"[", b"{", b'{"a":', b"a.", b"[[", b"("])) * draw(
                st.sampled_from([2, 300, 5000])
            )


Member = tuple[str, bytes]


def members_of(data: bytes) -> list[Member]:
    """The members of one of our archives."""
    directory = read_end(data[-END_RECORDS_MAX:], len(data))
    entries = read_entries(data[directory.offset : directory.offset + directory.size])
    return [(entry.name, data[entry.data_offset : entry.stop]) for entry in entries]


def packed(
    members: list[Member], change: Callable[[list[Entry]], list[Entry]] = lambda entries: entries
) -> bytes:
    """An archive as our writers make it; `change` is done to the directory's entries only."""
    body, entries = b"", []
    for name, content in members:
        entry = Entry(name=name, crc=zlib.crc32(content), size=len(content), offset=len(body))
        body += local_header(entry) + content
        entries.append(entry)
    changed = change(entries)
    central = b"".join(central_entry(entry, ZipLimits()) for entry in changed)
    records = end_records(Directory(members=len(changed), offset=len(body), size=len(central)), ZipLimits())
    return body + central + records


@st.composite
def rearranged(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """An archive whose checksums are right, and whose members, names or directory are not."""
    members = members_of(draw(st.sampled_from(seeds)))
    documents = [member for member in members if member[0].endswith(".json")]
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(members) - 1))
        name, content = members[at]
        match draw(st.sampled_from(["content", "json", "name", "drop", "double", "swap"])):
            case "content":
                changed = bytearray(content)
                _damage(draw, changed)
                members[at] = (name, bytes(changed))
            case "json":
                name, content = draw(st.sampled_from(documents))
                members[at] = (name, draw(refielded([content])))
            case "name":
                members[at] = (draw(st.sampled_from(NAMES) | st.just(members[0][0])), content)
            case "drop" if len(members) > 1:
                del members[at]
            case "double":
                members.insert(at, members[at])
            case "swap":
                other = draw(st.integers(0, len(members) - 1))
                members[at], members[other] = members[other], members[at]
    return packed(members, _entry_change(draw))


def _entry_change(draw: st.DrawFn) -> Callable[[list[Entry]], list[Entry]]:
    if not draw(st.booleans()):
        return lambda entries: entries
    field = draw(st.sampled_from(["crc", "size", "offset"]))
    value = draw(st.sampled_from(EXTREMES)) % ((1 << 32) if field == "crc" else (1 << 64))
    from_end = draw(st.integers(1, 8))

    def change(entries: list[Entry]) -> list[Entry]:
        place = max(0, len(entries) - from_end)
        changed: dict[str, Any] = {field: value}
        return [*entries[:place], replace(entries[place], **changed), *entries[place + 1 :]]

    return change


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 1, 2, 32, 10**9, 2**31, 2**53, 2**63 - 1, 2**63, 10**18, 10**400, -(2**63)]),
    st.integers(),
    st.floats(),
    st.sampled_from([*NAMES, "0" * 64, "nyu", "random:64", "alpha", "\ud7ff", "=1+1"]),
    st.text(max_size=8),
    st.builds(list),
    st.builds(dict),
    st.builds(lambda: [[[[]]]]),
    st.lists(st.integers(0, 9), max_size=4),
)


@st.composite
def refielded(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """Canonical JSON of a seed's document with one to three fields changed, dropped, doubled or added."""
    document = json.loads(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 3))):
        holder = _some_holder(draw, document)
        if holder is None:
            break
        keys: list[Any] = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        key = draw(st.sampled_from(keys))
        match draw(st.sampled_from(["change", "change", "drop", "add", "double"])):
            case "change":
                holder[key] = draw(VALUES)
            case "drop":
                del holder[key]
            case "add" if isinstance(holder, dict):
                holder[draw(st.text(max_size=4))] = draw(VALUES)
            case "double" if isinstance(holder, list):
                holder.extend([holder[key]] * draw(st.sampled_from([1, 50])))
    if draw(st.booleans()):
        _tell_samples(document)
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(
        "utf-8", "replace"
    )


def _some_holder(draw: st.DrawFn, document: Any) -> Any:
    """A list or an object somewhere in the document that is not empty."""
    here = document
    found = None
    while isinstance(here, list | dict) and here:
        found = here
        if draw(st.integers(0, 3)) == 0:
            break
        values = list(here.values()) if isinstance(here, dict) else here
        deeper = [value for value in values if isinstance(value, list | dict) and value]
        if not deeper:
            break
        here = draw(st.sampled_from(deeper[:50]))
    return found


def _tell_samples(document: Any) -> None:
    """Make a plan's number of samples that of its recipe, so that the reader goes on."""
    try:
        compose, block = document["recipe"]["compose"], document["blocks"][0]
        columns, rows = compose["grid"]
        flips = 1 if compose["flips"] == "none" else 2
        sources = len(block["sources"]["backgrounds"]) * len(block["sources"]["foregrounds"])
        block["samples"] = columns * rows * flips * sources
    except (KeyError, IndexError, TypeError, ValueError):
        return
