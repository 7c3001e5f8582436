from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
from pydantic import BaseModel

from shardgen.errors import InvalidSettings
from shardgen.recipes.registry import DEFAULT_PRESET, find_kind, find_preset, presets
from shardgen.settings.settings import EngineTables, parse_settings
from shardgen.settings.template import settings_text

OF_RANDOM = {f"compose.{key}" for key in ("places", "seed", "foregrounds_per_sample", "overhang")}
OF_DEPTH = {
    *(f"depth.{key}" for key in ("weights", "input", "upsampling", "precision", "micro_batch", "encoding")),
    *(f"output.{key}" for key in ("depth", "depth_quality", "depth_size")),
}
# Keys that the preset's other values leave nothing to do.
IDLE = {
    "grid600": OF_RANDOM,
    "random224": {"compose.grid"},
    "museum704": {"compose.grid"},
    "masks-only": OF_RANDOM | OF_DEPTH,
    "depth-of-folder": set(),
}
# What the recipes are known for; all else is as by default.
KNOWN_FOR: dict[str, dict[str, Any]] = {
    "grid600": {},
    "random224": {
        "compose.canvas": [224, 224],
        "compose.placement": "random",
        "compose.places": 20,
        "compose.seed": 0,
        "compose.foreground_height": [300, 600],
        "output.size": [224, 224],
        "output.depth_size": [112, 112],
    },
    "museum704": {
        "compose.canvas": [704, 704],
        "compose.placement": "random",
        "compose.places": 20,
        "compose.foreground_height": 340,
        "compose.blend": "alpha",
        "output.size": [224, 224],
    },
    "masks-only": {"depth.model": "none"},
    "depth-of-folder": {"recipe.kind": "depth", "output.size": "source"},
}


def _flat(tables: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {f"{table}.{key}": value for table, keys in tables.items() for key, value in keys.items()}


def _text(preset: str) -> str:
    folders = find_preset(preset)[0].folders
    return settings_text(preset=preset, changes={f"sources.{kind}": f'"/of/{kind}"' for kind in folders})


def _defaults(preset: str) -> dict[str, Any]:
    kind = find_preset(preset)[0]
    tables = {name: field.annotation for name, field in kind.tables.model_fields.items()}
    tables |= {name: field.annotation for name, field in EngineTables.model_fields.items()}
    found: dict[str, Any] = {}
    for name, table in tables.items():
        assert isinstance(table, type)
        assert issubclass(table, BaseModel)
        found |= _flat({name: table().model_dump(mode="json")})
    return found | {"recipe.kind": kind.name} | {f"sources.{one}": f"/of/{one}" for one in kind.folders}


def test_the_presets_are_those_that_users_rely_on() -> None:
    assert set(presets()) == set(IDLE)
    assert DEFAULT_PRESET == "grid600"


@pytest.mark.parametrize("preset", sorted(presets()))
def test_a_preset_writes_every_key_that_does_something(preset: str) -> None:
    written, defaults = _flat(tomllib.loads(_text(preset))), _defaults(preset)
    assert set(written) == set(defaults) - IDLE[preset]
    expected = defaults | KNOWN_FOR[preset]
    assert written == {key: expected[key] for key in written}


@pytest.mark.parametrize("preset", sorted(presets()))
def test_a_preset_is_read_as_it_is_written(preset: str) -> None:
    written = tomllib.loads(_text(preset))
    settings = parse_settings(written, where=preset)
    found = settings.tables.model_dump(mode="json") | settings.engine.model_dump(mode="json")
    read = {key: value for key, value in _flat(found).items() if key in _flat(written)}
    assert read == _flat(written)


@pytest.mark.parametrize("preset", sorted(presets()))
def test_every_key_of_a_preset_has_a_comment_and_none_is_commented_out(preset: str) -> None:
    lines = _text(preset).splitlines()
    assert [line for line in lines if re.match(r"#\s*\w+ = ", line)] == []
    for above, line in zip(["", *lines], lines, strict=False):
        if re.match(r"\w+ = ", line):
            assert " # " in line or above.startswith("#") or line.split(" = ")[0] in SAID_ABOVE, line
        assert len(line) <= 112, line


SAID_ABOVE = {"backgrounds"}


@pytest.mark.parametrize("key", sorted(OF_RANDOM))
def test_a_key_of_the_other_placement_is_refused_by_name(key: str) -> None:
    table, _, name = key.partition(".")
    document = tomllib.loads(_text("grid600"))
    document[table][name] = _defaults("random224")[key]
    with pytest.raises(InvalidSettings, match=rf"\[{table}\] {name}: ") as refused:
        parse_settings(document, where="shardgen.toml")
    assert "remove" in refused.value.hint


def test_where_no_depth_is_made_its_other_keys_do_nothing() -> None:
    document = tomllib.loads(_text("masks-only"))
    planned = parse_settings(document, where="").tables.document(None)
    document["depth"] |= {"weights": "random:64", "input": [64, 64], "precision": "fast"}
    document["output"] |= {"depth": "png", "depth_quality": 1, "depth_size": [8, 8]}
    assert parse_settings(document, where="").tables.document(None) == planned


@pytest.mark.parametrize(
    ("table", "key", "value", "says"),
    [
        ("depth", "micro_batch", 0, 'must be "auto" or a number from 1 to 1024 (found 0)'),
        ("compose", "foreground_height", "tall", '"halved"'),
        ("compose", "foreground_height", 0, "number of pixels"),
        ("compose", "foreground_height", [300], "as in [300, 600]"),
        ("compose", "foreground_height", [300, "many"], "as in [300, 600]"),
        ("compose", "canvas", [600], "two numbers"),
        ("output", "depth_size", "source", '"size"'),
    ],
)
def test_a_wrong_value_is_told_all_that_its_key_may_be(table: str, key: str, value: Any, says: str) -> None:
    with pytest.raises(InvalidSettings) as refused:
        parse_settings({table: {key: value}}, where="shardgen.toml")
    (said,) = str(refused.value).split("; ")
    assert said.startswith(f"shardgen.toml: [{table}] {key}"), said
    assert says in said
    default = _flat({table: find_kind("composites").tables().model_dump(mode="json")[table]})[
        f"{table}.{key}"
    ]
    assert f"under [{table}] write, for example: {key} = " in refused.value.hint
    assert str(default).replace("'", '"') in refused.value.hint


def test_the_table_of_another_recipe_is_refused_with_its_kind() -> None:
    document = tomllib.loads(_text("depth-of-folder")) | {"compose": {"canvas": [600, 600]}}
    with pytest.raises(
        InvalidSettings, match=r'\[compose\]: belongs to \[recipe\] kind = "composites"'
    ) as refused:
        parse_settings(document, where="shardgen.toml")
    assert refused.value.hint == "remove [compose], or change the kind"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[sources]\npictures = "scenes"', '[sources] pictures: belongs to [recipe] kind = "depth"'),
        (
            '[recipe]\nkind = "depth"\n[output]\nmask = "png"',
            '[output] mask: belongs to [recipe] kind = "composites"',
        ),
    ],
)
def test_a_key_of_another_recipe_is_named_as_such(text: str, says: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        parse_settings(tomllib.loads(text), where="here")
    assert says in str(caught.value)
    assert caught.value.hint == "remove it, or change the kind"
