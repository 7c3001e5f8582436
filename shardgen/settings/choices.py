"""The words that a key of `shardgen.toml` may be, and how else a person may write them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, get_args, get_origin

from shardgen.recipes.base import Table

_OTHER_NAMES = {"jpg": "jpeg"}


def choices(annotation: object) -> tuple[str, ...]:
    """The words that a value of this type may be; none where it may be any text, or none at all."""
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return tuple(annotation)
    parts = get_args(annotation)
    if get_origin(annotation) is tuple:
        return ()
    if get_origin(annotation) is Annotated:
        return choices(parts[0])
    return tuple(word for part in parts for word in ((part,) if isinstance(part, str) else choices(part)))


def may_be_pair(annotation: object) -> bool:
    """Whether a list of two numbers is such a value."""
    if get_origin(annotation) is tuple:
        return True
    return any(map(may_be_pair, get_args(annotation)))


def tables_in(all_tables: type[Table]) -> dict[str, type[Table]]:
    """The tables that have keys of their own, by name."""
    found = {name: field.annotation for name, field in all_tables.model_fields.items()}
    return {name: one for name, one in found.items() if isinstance(one, type) and issubclass(one, Table)}


def understood(all_tables: type[Table], document: Mapping[str, object]) -> dict[str, object]:
    """The document with such words as their keys know them: `"PNG"` becomes `"png"`, `"jpg"` `"jpeg"`."""
    return dict(document) | {
        name: {key: _word(table, key, value) for key, value in values.items()}
        for name, table in tables_in(all_tables).items()
        if isinstance(values := document.get(name), Mapping)
    }


def _word(table: type[Table], key: object, value: object) -> object:
    field = table.model_fields.get(str(key))
    if field is None or not isinstance(value, str):
        return value
    word = value.strip().lower().replace("_", "-")
    word = _OTHER_NAMES.get(word, word)
    return word if word in choices(field.annotation) else value
