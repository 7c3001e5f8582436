"""As much of YAML as our own example uses: blocks indented by spaces, JSON for everything on one line.

Anything else raises ValueError, so that the example stays plain enough to be checked.
"""

from __future__ import annotations

import json
import re
import textwrap
from typing import Any

_KEY = re.compile(r"(?P<key>[\w./-]+):(?: (?P<value>.*))?")
_PLAIN = re.compile(r"[\w./:-]+")
_Lines = list[tuple[int, str]]


def documents(text: str) -> list[Any]:
    """Every document of a file; those of comments alone are left out."""
    parsed = []
    for part in re.split(r"^---$", text, flags=re.MULTILINE):
        lines = [
            (len(line) - len(line.lstrip(" ")), line.strip())
            for line in part.splitlines()
            if line.strip() and not line.lstrip().startswith("#")
        ]
        if lines:
            parsed.append(_block(lines, lines[0][0]))
            if lines:
                raise ValueError(f"not indented like its neighbours: {lines[0][1]}")
    return parsed


def _block(lines: _Lines, indent: int) -> Any:
    """The list or mapping at this indentation; its lines are taken."""
    if lines[0][1].startswith("- "):
        items = []
        while lines and lines[0][0] == indent and lines[0][1].startswith("- "):
            inner = lines[0][1][2:]
            if inner.startswith(("{", "[")):
                items.append(json.loads(inner))
                del lines[0]
            else:
                lines[0] = (indent + 2, inner)
                items.append(_block(lines, indent + 2))
        return items
    found: dict[str, Any] = {}
    while lines and lines[0][0] == indent and not lines[0][1].startswith("- "):
        match = _KEY.fullmatch(lines.pop(0)[1])
        if match is None or match["key"] in found:
            raise ValueError(f"neither a new key nor a list in: {found}")
        found[match["key"]] = _value(match["value"], lines, indent)
    return found


def _value(text: str | None, lines: _Lines, indent: int) -> Any:
    if text is None:
        if not lines or lines[0][0] <= indent:
            raise ValueError("a key without a value")
        return _block(lines, lines[0][0])
    if text == "|":
        kept = []
        while lines and lines[0][0] > indent:
            spaces, line = lines.pop(0)
            kept.append(" " * spaces + line)
        return textwrap.dedent("\n".join(kept)) + "\n"
    if text.startswith(("{", "[", '"')):
        return json.loads(text)
    if not _PLAIN.fullmatch(text):
        raise ValueError(f"needs quotes: {text}")
    return int(text) if text.isdecimal() else text
