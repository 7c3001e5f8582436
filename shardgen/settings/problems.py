"""What pydantic found wrong with the settings, in the words of `shardgen.toml`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from shardgen.domain.wording import nearest
from shardgen.recipes.base import Table
from shardgen.settings.choices import choices, may_be_pair, tables_in

_MAX_SHOWN = 100  # characters of a wrong value
_INDEXES = ("first", "second", "third", "fourth")
_MESSAGES = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "string_type": "must be text in quotes",
    "tuple_type": "must be a list of two numbers",
    "too_long": "must be a list of two numbers",
    "missing": "is missing: the list needs two numbers",
    "finite_number": "must be a finite number",
    "model_type": "must be a table",
    "string_too_short": "must not be empty",
    "too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be at most {le}",
    "enum": "must be {expected}",
    "literal_error": "must be {expected}",
}


@dataclass(frozen=True, slots=True)
class KnownKeys:
    """The keys of all tables: their defaults as JSON, which is TOML for them, and what each may be.

    `words` has only the keys whose types do not say it well: a key that may be a word or a number. `choices`
    are the words that a key may be, `pairs` the keys that may be two numbers (`output.size`). `elsewhere` has
    the tables of other kinds of recipes, and their keys (`sources.pictures`), with the kind's name.
    """

    defaults: Mapping[str, Mapping[str, object]]
    words: Mapping[str, Mapping[str, str]]
    choices: Mapping[str, Mapping[str, tuple[str, ...]]]
    pairs: Container[str]
    elsewhere: Mapping[str, str]

    @classmethod
    def of(cls, *all_tables: type[Table], elsewhere: Mapping[str, str]) -> Self:
        """Take them from the fields of tables, and the words from the fields' descriptions."""
        tables = {name: table for one in all_tables for name, table in tables_in(one).items()}
        return cls(
            defaults={name: table().model_dump(mode="json") for name, table in tables.items()},
            words={
                name: {
                    key: field.description for key, field in table.model_fields.items() if field.description
                }
                for name, table in tables.items()
            },
            choices={
                name: {key: choices(field.annotation) for key, field in table.model_fields.items()}
                for name, table in tables.items()
            },
            pairs={
                f"{name}.{key}"
                for name, table in tables.items()
                for key, field in table.model_fields.items()
                if may_be_pair(field.annotation)
            },
            elsewhere=elsewhere,
        )

    def words_of(self, table: int | str, key: int | str) -> str:
        """What the key must be; "" where its type says it."""
        return self.words.get(str(table), {}).get(str(key), "")


def problems_in(error: ValidationError, known: KnownKeys, *, option: str) -> Iterator[tuple[str, str]]:
    """Each problem as `[table] key: what is wrong (found …)`, with a hint or "".

    Hints show what to write in the file, or behind the `option` that the settings came from.
    """
    said: set[str] = set()
    for detail in error.errors(include_url=False):
        # A value that may be a word or a number is a problem for each of both, at a location of its own.
        location = [*detail["loc"][:2], *(part for part in detail["loc"][2:] if isinstance(part, int))]
        if detail["type"] == "extra_forbidden":
            yield _unknown([str(part) for part in location], known)
            continue
        message = _message(detail)
        if detail["type"] == "value_error" and len(location) == 1:
            # A rule of a whole table, which may be about one key of it.
            key, _, rest = message.partition(": ")
            if key in known.defaults[str(location[0])]:
                location, message = [location[0], key], rest
        elif detail["type"] == "value_error" and not location:
            # One of all tables, about `depth.model`, say.
            names, _, rest = message.partition(": ")
            table, _, key = names.partition(".")
            if key in known.defaults.get(table, {}):
                location, message = [table, key], rest
        elif len(location) > 1 and (words := known.words_of(*location[:2])):
            location, message = location[:2], f"must be {words}{_found(detail)}"
        if (of_key := _subject(location[:2])) in said:
            continue
        said.add(of_key)
        subject = _subject(location)
        hint = getattr(detail.get("ctx", {}).get("error"), "hint", "")
        if not hint and len(location) > 1:
            hint = _advice(location, detail["input"], known, option)
        yield f"{subject}: {message}" if subject else message, hint


def _advice(location: Sequence[int | str], found: object, known: KnownKeys, option: str) -> str:
    """The word that was meant, or else what to write: what `init` writes, or a found number twice."""
    table, key = str(location[0]), str(location[1])
    if isinstance(found, str) and (word := nearest(found, known.choices[table][key])):
        return f'did you mean "{word}"?'
    value = known.defaults[table][key]
    if type(found) is int and found > 0 and f"{table}.{key}" in known.pairs and len(location) == 2:
        value = [found, found]
    elif isinstance(value, float) and value.is_integer():
        value = int(value)
    if option:
        text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
        return f"for example: {option} {shlex.quote(f'{table}.{key}={text}')}"
    text = json.dumps("DIR" if value == "" else value, ensure_ascii=False)
    return f"under [{table}] write, for example: {key} = {text}"


def _unknown(location: list[str], keys: KnownKeys) -> tuple[str, str]:
    *table, name = location
    defaults = keys.defaults
    known = list(defaults[table[0]]) if table else list(defaults)
    homes = [f"[{home}]" for home, names in defaults.items() if name in names]
    if not table and name in keys.elsewhere:
        kind = keys.elsewhere[name]
        return f'[{name}]: belongs to [recipe] kind = "{kind}"', f"remove [{name}], or change the kind"
    if table and (kind := keys.elsewhere.get(f"{table[0]}.{name}", "")):
        return f'[{table[0]}] {name}: belongs to [recipe] kind = "{kind}"', "remove it, or change the kind"
    if meant := nearest(name, known):
        hint = f"did you mean `{meant}`?"
    elif homes:
        hint = f"`{name}` belongs under {' or '.join(homes)}"
    else:
        hint = f"known here: {', '.join(known)}"
    return (f"[{table[0]}] {name}: unknown key" if table else f"{name}: unknown table or key"), hint


def _subject(location: Sequence[int | str]) -> str:
    if not location:
        return ""
    table, *rest = location
    if not rest:
        return f"[{table}]"
    key, *index = rest
    item = f" ({_INDEXES[index[0]]} number)" if index and isinstance(index[0], int) else ""
    return f"[{table}] {key}{item}"


def _message(detail: ErrorDetails) -> str:
    """What must be, and what is there instead."""
    context = {name: _shown(value) for name, value in detail.get("ctx", {}).items()}
    template = _MESSAGES.get(detail["type"])
    text = template.format(**context) if template else detail["msg"].removeprefix("Value error, ")
    return text + _found(detail)


def _found(detail: ErrorDetails) -> str:
    found = detail["input"]
    # A manifest's URL may hold a password, and under a wrong key no rule has looked at it yet.
    is_shown = isinstance(found, str | int | float | list) and detail["loc"][:1] != ("manifest",)
    return f" (found {json.dumps(found, ensure_ascii=False)[:_MAX_SHOWN]})" if is_shown else ""


def _shown(value: object) -> object:
    if isinstance(value, str):
        return value.replace("'", '"')  # pydantic's quotes, of words
    return f"{value:g}" if isinstance(value, float) and value < 1e6 else value
