"""Rows of what is wrong in `shardgen.toml`: exit code 12, table, key and what was found there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.bad_input.case import RUN, Case


def _written(content: str | bytes) -> Callable[[Path], object]:
    data = content.encode() if isinstance(content, str) else content
    return lambda box: (box / RUN / "shardgen.toml").write_bytes(data)


def _set(table: str, key: str, value: str) -> Callable[[Path], object]:
    """Set a key in its table, whatever it was."""

    def arrange(box: Path) -> None:
        path = box / RUN / "shardgen.toml"
        lines, inside = [], False
        for line in path.read_text(encoding="utf-8").splitlines():
            inside = line == f"[{table}]" if line.startswith("[") else inside
            if not (inside and line.startswith(f"{key} = ")):
                lines.append(line)
            if line == f"[{table}]":
                lines.append(f"{key} = {value}")
        path.write_text("\n".join(lines), encoding="utf-8")

    return arrange


def _refused(name: str, arrange: Callable[[Path], object], *says: str, hint: str = "") -> Case:
    return Case(
        name=name,
        arguments=("plan", RUN),
        code=12,
        arrange=arrange,
        says=("shardgen.toml", *says),
        hints=(hint or "write, for example: ",),
    )


def _folder_for_settings(box: Path) -> None:
    path = box / RUN / "shardgen.toml"
    path.unlink()
    path.mkdir()


CASES = [
    _refused(
        "a recipe that is not known",
        _set("recipe", "kind", '"videos"'),
        "[recipe]",
        "kind",
        "videos",
        hint="composites",
    ),
    _refused(
        "a quote that is not closed",
        _written('[sources]\nforegrounds = "x\n'),
        "line 2",
        hint="shardgen init",
    ),
    _refused("a table twice", _written("[compose]\n[compose]\n"), "line 2", hint="shardgen init"),
    _refused("a key twice", _written("[shards]\nsize = 1\nsize = 2\n"), "line 3", hint="shardgen init"),
    _refused(
        "settings in Latin-1",
        _written('[sources]\nforegrounds = "Köln"\n'.encode("latin-1")),
        "UTF-8",
        hint="UTF-8",
    ),
    _refused("settings in UTF-16", _written("[sources]\n".encode("utf-16")), "UTF-8", hint="UTF-8"),
    _refused(
        "settings that are a photograph", _written(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"), "UTF-8", hint="UTF-8"
    ),
    _refused("settings nested without end", _written("x = " + "[" * 20_000), "nested", hint="shardgen init"),
    _refused(
        "a number of many digits",
        _written("[shards]\nsize = " + "9" * 20_000),
        "digits",
        hint="shardgen init",
    ),
    _refused(
        "an unknown key", _set("compose", "gird", "[5, 4]"), "[compose] gird", hint="did you mean `grid`?"
    ),
    _refused(
        "an unknown key like none", _set("compose", "colour", '"red"'), "[compose] colour", hint="canvas"
    ),
    _refused(
        "a key in another's table", _set("output", "weights", '"nyu"'), "[output] weights", hint="[depth]"
    ),
    _refused("an unknown table", _written("[compos]\n"), "compos", hint="did you mean `compose`?"),
    _refused("a key outside of any table", _written("grid = [5, 4]\n"), "grid", hint="[compose]"),
    _refused(
        "a table that is a word",
        _written('compose = "large"\n'),
        "compose",
        "large",
        hint="correct shardgen.toml",
    ),
    _refused(
        "a word for a number", _set("output", "image_quality", '"high"'), "[output] image_quality", "high"
    ),
    _refused(
        "a number in quotes", _set("shards", "batch", '"32"'), "[shards] batch", '"32"', hint="batch = 32"
    ),
    _refused("yes for a number", _set("shards", "batch", "true"), "[shards] batch", "true"),
    _refused("half a batch", _set("shards", "batch", "31.5"), "[shards] batch", "31.5"),
    _refused("a number for a folder", _set("sources", "foregrounds", "7"), "[sources] foregrounds", "7"),
    _refused("one side of a canvas", _set("compose", "canvas", "600"), "[compose] canvas", "600"),
    _refused(
        "three sides of a canvas", _set("compose", "canvas", "[1, 2, 3]"), "[compose] canvas", "two numbers"
    ),
    _refused(
        "a grid beside random places",
        _set("compose", "placement", '"random"'),
        "[compose] grid: belongs to placement",
        hint='remove grid, or write placement = "grid"',
    ),
    _refused(
        "a seed beside a grid",
        _set("compose", "seed", "7"),
        "[compose] seed: belongs to placement",
        hint='remove seed, or write placement = "random"',
    ),
    _refused(
        "a height in words",
        _set("compose", "foreground_height", '"tall"'),
        '"halved"',
        "340",
        "[300, 600]",
        '(found "tall")',
        hint='foreground_height = "halved"',
    ),
    _refused(
        "heights at random on a grid",
        _set("compose", "foreground_height", "[300, 600]"),
        'placement = "random"',
        hint="foreground_height = 340",
    ),
    _refused(
        "depth of one side", _set("output", "depth_size", "[112]"), '"size"', "[112, 112]", "found [112]"
    ),
    _refused("a grid of no places", _set("compose", "grid", "[0, 4]"), "[compose] grid", "0"),
    _refused("a negative grid", _set("compose", "grid", "[-5, 4]"), "[compose] grid", "-5"),
    _refused(
        "a canvas beyond all memory", _set("compose", "canvas", "[100000, 600]"), "[compose] canvas", "100000"
    ),
    _refused(
        "more samples than can be counted",
        _set("compose", "grid", "[10000, 10000]"),
        "places",
        hint="fewer sources",
    ),
    _refused(
        "quality in a wrong unit", _set("output", "image_quality", "0.25"), "[output] image_quality", "0.25"
    ),
    _refused(
        "quality above its range", _set("output", "depth_quality", "101"), "[output] depth_quality", "101"
    ),
    _refused("a size with its unit", _set("shards", "size", '"100k"'), "[shards] size", "100k"),
    _refused("a time with its unit", _set("lease", "seconds", '"2m"'), "[lease] seconds", "2m"),
    _refused(
        "a time without end", _set("lease", "stall_seconds", "inf"), "[lease] stall_seconds", "Infinity"
    ),
    _refused(
        "a time that is not a number", _set("lease", "stall_seconds", "nan"), "[lease] stall_seconds", "NaN"
    ),
    _refused(
        "a lease of one heartbeat",
        _set("lease", "heartbeat_seconds", "29"),
        "[lease]",
        "heartbeat",
        hint="correct shardgen.toml",
    ),
    _refused(
        "a date for a number", _set("lease", "max_attempts", "2024-02-30"), "line", hint="shardgen init"
    ),
    _refused("a real date for a number", _set("lease", "max_attempts", "2024-02-28"), "[lease] max_attempts"),
    _refused(
        "an image format that is not there", _set("output", "image", '"gif"'), "[output] image", "jpeg", "gif"
    ),
    _refused(
        "a mask mode that is not there",
        _set("sources", "mask", '"alfa"'),
        "[sources] mask",
        "alfa",
        hint='did you mean "alpha"?',
    ),
    _refused(
        "one number for a size",
        _set("output", "size", "200"),
        "[output] size: must be a list of two numbers (found 200)",
        hint="size = [200, 200]",
    ),
    Case(
        name="several wrong settings",
        arguments=("plan", RUN),
        code=12,
        arrange=_written('[output]\nimage_qualty = 3\nsize = 200\nmask = "pgn"\n'),
        says=("3 settings cannot be used: [output] size, [output] mask, [output] image_qualty",),
        hints=("correct each of them",),
        lists=(
            "  - [output] image_qualty: unknown key; did you mean `image_quality`?",
            "write, for example: size = [200, 200]\n",
            'did you mean "png"?',
        ),
    ),
    _refused(
        "an input of odd size",
        _set("depth", "input", "[640, 481]"),
        "[depth]",
        "input",
        "32",
        "481",
        hint="correct shardgen.toml",
    ),
    _refused(
        "random weights of no width",
        _set("depth", "weights", '"random:0"'),
        "[depth]",
        "weights",
        "random:0",
        hint="weights = ",
    ),
    _refused(
        "16-bit depth as JPEG",
        _set("depth", "encoding", '"relative"'),
        "[depth] encoding",
        "png",
        hint="encoding =",
    ),
    _refused(
        "a folder with a zero byte", _set("sources", "foregrounds", r'"a\u0000b"'), "[sources] foregrounds"
    ),
    _refused("artifacts with a zero byte", _set("artifacts", "url", r'"a\u0000b"'), "[artifacts] url"),
    _refused(
        "a manifest with a zero byte",
        _set("manifest", "url", r'"sqlite:///a\u0000b"'),
        "[manifest] url",
        hint="sqlite:///",
    ),
    _refused("weights with a zero byte", _set("depth", "weights", r'"a\u0000b.h5"'), "[depth] weights"),
    _refused(
        "a folder of a user that is not there",
        _set("sources", "foregrounds", '"~nobody-here/x"'),
        "[sources] foregrounds",
        "nobody-here",
        hint="whole path",
    ),
    _refused(
        "a micro-batch of nothing", _set("depth", "micro_batch", "0"), "[depth] micro_batch", "1024", "0"
    ),
    _refused("a micro-batch in words", _set("depth", "micro_batch", '"all"'), "[depth] micro_batch", "all"),
    _refused("no manifest at all", _set("manifest", "url", '""'), "[manifest] url", "empty"),
    _refused("artifacts nowhere", _set("artifacts", "url", '""'), "[artifacts] url", "empty"),
    Case(
        name="artifacts in a place of no known kind",
        arguments=("plan", RUN),
        code=12,
        arrange=_set("artifacts", "url", '"ftp://b/x"'),
        says=("[artifacts] url", "ftp"),
        hints=('url = "artifacts"',),
    ),
    Case(
        name="a database of another kind",
        arguments=("plan", RUN),
        code=12,
        arrange=_set("manifest", "url", '"mysql://host/people"'),
        says=("[manifest] url", "mysql"),
        hints=("sqlite:///", "postgresql"),
    ),
    *(
        Case(
            name=f"a manifest mistyped: {url}",
            arguments=("plan", RUN),
            code=12,
            arrange=_set("manifest", "url", f'"{url}"'),
            says=("[manifest] url",),
            hints=(f'did you mean "{meant}"? url = "sqlite:///manifest.sqlite"',),
        )
        for url, meant in [
            ("sqlit:///manifest.sqlite", "sqlite"),
            ("postgre://anna@host/people", "postgresql"),
            ("Folder", "folder:"),
        ]
    ),
    Case(
        name="a manifest in memory",
        arguments=("plan", RUN),
        code=12,
        arrange=_set("manifest", "url", '"sqlite:///:memory:"'),
        says=("[manifest] url", "file"),
        hints=("sqlite:///",),
    ),
    Case(
        name="a manifest that is only a path",
        arguments=("plan", RUN),
        code=12,
        arrange=_set("manifest", "url", '"manifest.sqlite"'),
        says=("[manifest] url",),
        hints=("sqlite:///",),
    ),
    Case(
        name="a variable that is not set",
        arguments=("plan", RUN),
        code=12,
        arrange=_set("manifest", "url", '"${SHARDGEN_NO_SUCH}"'),
        says=("[manifest] url", "SHARDGEN_NO_SUCH"),
        hints=("export SHARDGEN_NO_SUCH=",),
    ),
    Case(
        name="a setting that was changed after the plan",
        arguments=("worker", RUN),
        code=10,
        start="planned",
        arrange=_set("compose", "grid", "[4, 4]"),
        says=("grid: 3x2 -> 4x4",),
        hints=("shardgen plan people", "undo"),
    ),
    Case(
        name="two settings that were changed after the plan",
        arguments=("worker", RUN),
        code=10,
        start="planned",
        arrange=lambda box: [
            _set(*change)(box) for change in (("compose", "grid", "[4, 4]"), ("output", "image_quality", "3"))
        ],
        says=("people: shardgen.toml differs from the plan: 2 problems",),
        lists=("  - compose.grid: 3x2 -> 4x4\n", "  - output.image_quality: 25 -> 3"),
        hints=("shardgen plan people", "undo"),
    ),
    Case(
        name="a setting that was changed after the plan, for run",
        arguments=("run", RUN),
        code=10,
        start="planned",
        arrange=_set("compose", "grid", "[4, 4]"),
        says=("grid: 3x2 -> 4x4",),
        hints=("shardgen plan people", "undo"),
    ),
    Case(
        name="a quality that was changed after the first sample",
        arguments=("worker", RUN),
        code=10,
        start="finished",
        arrange=_set("output", "image_quality", "50"),
        says=(": output.image_quality: ", " -> 50"),
        hints=("undo", "new directory"),
    ),
    Case(
        name="a plan over a changed setting, after the first sample",
        arguments=("plan", RUN),
        code=10,
        start="finished",
        arrange=_set("compose", "grid", "[4, 4]"),
        says=("grid: 3x2 -> 4x4",),
        hints=("undo", "new directory"),
    ),
    Case(
        name="settings that are a folder",
        arguments=("plan", RUN),
        code=11,
        arrange=_folder_for_settings,
        says=("shardgen.toml", "folder"),
        hints=("shardgen init",),
    ),
    Case(
        name="no folders named at all",
        arguments=("plan", RUN),
        code=11,
        arrange=_written(""),
        says=("foregrounds",),
        hints=("--foregrounds", "[sources]"),
    ),
    Case(
        name="settings with a byte order mark",
        arguments=("plan", RUN),
        code=0,
        arrange=lambda box: (box / RUN / "shardgen.toml").write_bytes(
            b"\xef\xbb\xbf" + (box / RUN / "shardgen.toml").read_bytes()
        ),
    ),
    Case(
        name="settings with the line ends of Windows",
        arguments=("plan", RUN),
        code=0,
        arrange=lambda box: (box / RUN / "shardgen.toml").write_bytes(
            (box / RUN / "shardgen.toml").read_bytes().replace(b"\n", b"\r\n")
        ),
    ),
]
