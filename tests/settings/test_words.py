"""What a person writes into `shardgen.toml` is understood, or answered with what was probably meant."""

from __future__ import annotations

import tomllib

import pytest

from shardgen.errors import InvalidSettings
from shardgen.recipes.registry import kinds
from shardgen.settings.choices import choices, tables_in
from shardgen.settings.settings import EngineTables, parse_settings

# Beside the default `placement = "grid"` their other rule is told first.
OF_RANDOM = {("compose", key) for key in ("places", "seed", "foregrounds_per_sample", "overhang")}


def _parsed(table: str, line: str, kind: str = "composites") -> object:
    document = tomllib.loads(f'[recipe]\nkind = "{kind}"\n[{table}]\n{line}')
    settings = parse_settings(document, where="shardgen.toml")
    (key,) = document[table]
    return settings.tables.model_dump(mode="json")[table][key]


def _hint(table: str, line: str, kind: str = "composites") -> str:
    with pytest.raises(InvalidSettings) as refused:
        _parsed(table, line, kind)
    return refused.value.hint


@pytest.mark.parametrize(
    ("table", "line", "meant"),
    [
        ("output", 'image = "PNG"', "png"),
        ("output", 'image = "jpg"', "jpeg"),
        ("output", 'depth = "JPG"', "jpeg"),
        ("output", 'depth_size = "Size"', "size"),
        ("sources", 'mask = " Alpha "', "alpha"),
        ("depth", 'upsampling = "half_pixel"', "half-pixel"),
        ("depth", 'micro_batch = "AUTO"', "auto"),
        ("compose", 'foreground_height = "HALVED"', "halved"),
        ("sources", 'foregrounds = "PNG"', "PNG"),  # a folder's name is as it is
    ],
)
def test_a_word_is_understood_in_any_case_and_by_its_usual_names(table: str, line: str, meant: str) -> None:
    assert _parsed(table, line) == meant


def test_the_plan_knows_nothing_of_how_a_word_was_written() -> None:
    plain, other = (
        parse_settings({"output": {"image": word}}, where="").tables.document(None)
        for word in ("jpeg", "JPG")
    )
    assert plain == other


@pytest.mark.parametrize(
    ("table", "line", "hint"),
    [
        ("output", "image_qualty = 25", "did you mean `image_quality`?"),
        ("output", "IMAGE_QUALITY = 25", "did you mean `image_quality`?"),
        ("outptu", "size = [2, 2]", "did you mean `output`?"),
        ("output", 'image = "pgn"', 'did you mean "png"?'),
        ("output", 'image = "tiff"', 'under [output] write, for example: image = "jpeg"'),
        ("compose", 'flips = "foreground"', 'did you mean "foregrounds"?'),
        ("depth", 'model = "DenseDepth"', 'did you mean "densedepth"?'),
        ("depth", 'micro_batch = "autom"', 'did you mean "auto"?'),
    ],
)
def test_another_word_is_answered_with_the_one_that_was_meant(table: str, line: str, hint: str) -> None:
    assert _hint(table, line) == hint


def test_a_kind_of_recipe_is_answered_so_too() -> None:
    with pytest.raises(InvalidSettings) as refused:
        parse_settings({"recipe": {"kind": "Composite"}}, where="")
    assert refused.value.hint == 'did you mean "composites"?'


@pytest.mark.parametrize(
    ("table", "line", "kind", "example"),
    [
        ("output", "size = 200", "composites", "size = [200, 200]"),
        ("output", "size = 200", "depth", "size = [200, 200]"),
        ("output", 'size = "large"', "depth", 'size = "source"'),
        ("compose", "canvas = 704", "composites", "canvas = [704, 704]"),
        ("compose", "grid = [5, 4, 3]", "composites", "grid = [5, 4]"),
        ("output", "depth_size = true", "composites", 'depth_size = "size"'),
        ("lease", "seconds = -3", "composites", "seconds = 120"),
        ("shards", "size = 0", "composites", "size = 100000"),
    ],
)
def test_a_wrong_number_is_answered_with_a_line_that_can_be_pasted(
    table: str, line: str, kind: str, example: str
) -> None:
    assert _hint(table, line, kind) == f"under [{table}] write, for example: {example}"
    parse_settings(tomllib.loads(f'[recipe]\nkind = "{kind}"\n[{table}]\n{example}\n'), where="shardgen.toml")


def test_each_of_several_problems_is_listed_with_its_own_hint() -> None:
    document = {"output": {"image_qualty": 3, "size": 200}, "lease": {"seconds": -1}}
    with pytest.raises(InvalidSettings) as refused:
        parse_settings(document, where="p/shardgen.toml")
    assert str(refused.value) == (
        "p/shardgen.toml: 3 settings cannot be used: [output] size, [output] image_qualty, [lease] seconds"
    )
    sized, *others = refused.value.problems
    assert sized.startswith("[output] size: must be a list of two numbers (found 200); under [output] write")
    assert sized.endswith("size = [200, 200]")
    assert others == [
        "[output] image_qualty: unknown key; did you mean `image_quality`?",
        "[lease] seconds: must be more than 0 (found -1); under [lease] write, for example: seconds = 120",
    ]


def test_a_list_with_two_wrong_numbers_is_one_problem() -> None:
    assert _hint("compose", "grid = [0, 0]") == "under [compose] write, for example: grid = [5, 4]"


def test_every_example_is_of_its_own_key_and_can_be_used() -> None:
    """A nested list fits no key, so all of them are answered."""
    for kind in kinds():
        for name, table in (tables_in(kind.tables) | tables_in(EngineTables)).items():
            for key in table.model_fields:
                if (name, key) in (("recipe", "kind"), ("manifest", "url")):
                    continue
                hint = _hint(name, f"{key} = [[1]]", kind.name)
                start, _, line = hint.partition(": ")
                assert start == f"under [{name}] write, for example"
                assert line.startswith(f"{key} = "), hint
                document = tomllib.loads(f'[recipe]\nkind = "{kind.name}"\n[{name}]\n{line}')
                if (name, key) not in OF_RANDOM:
                    parse_settings(document, where="")


def test_no_two_words_of_a_key_are_read_as_one() -> None:
    for kind in kinds():
        for table in tables_in(kind.tables).values():
            for field in table.model_fields.values():
                words = choices(field.annotation)
                assert [word.lower().replace("_", "-") for word in words] == list(words)
                assert "jpg" not in words
