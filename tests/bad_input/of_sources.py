"""Rows of photographs: moved, changed, broken, enormous, tiny, or with odd names."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.bad_input.case import BACKGROUNDS, FOREGROUNDS, RUN, Case, Outcome
from tests.photographs import colours, write_rgb

PHOTO = Path(BACKGROUNDS, "background-000.jpg")
MIB = 1 << 20


def _empty(folder: str) -> Callable[[Path], object]:
    def arrange(box: Path) -> None:
        for path in (box / folder).iterdir():
            path.unlink()

    return arrange


def _renamed(folder: str, name: str | bytes) -> Callable[[Path], object]:
    def arrange(box: Path) -> None:
        first = min((box / folder).iterdir())
        os.rename(os.fsencode(first), os.path.join(os.fsencode(box / folder), os.fsencode(name)))  # noqa: PTH104, PTH118

    return arrange


def _with(name: str, data: bytes | Callable[[], bytes]) -> Callable[[Path], object]:
    return lambda box: (box / BACKGROUNDS / name).write_bytes(data if isinstance(data, bytes) else data())


def png(width: int, height: int, *, rows: int | None = None) -> bytes:
    """A grey PNG whose rows are all black; it compresses a thousandfold."""
    squeeze = zlib.compressobj(9)
    row = bytes(width + 1)
    parts = [squeeze.compress(row) for _ in range(height if rows is None else rows)]
    data = b"".join([*parts, squeeze.flush()])

    def part(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", data) + part(b"IEND", b"")


def tiny(box: Path) -> None:
    """One photograph of each kind, of one pixel."""
    random = np.random.default_rng(1)
    _empty(FOREGROUNDS)(box)
    _empty(BACKGROUNDS)(box)
    write_rgb(box / FOREGROUNDS / "dot.png", colours(random, 40, 40)[:1, :1])
    write_rgb(box / FOREGROUNDS / "dot.mask.png", np.full((1, 1), 254, np.uint8))
    write_rgb(box / BACKGROUNDS / "dot.png", colours(random, 40, 40)[:1, :1])


def many_problems(box: Path) -> None:
    """A hundred foregrounds without a mask, fifty broken backgrounds, a mask with a wrong name."""
    for number in range(100):
        write_rgb(box / FOREGROUNDS / f"{number}.png", colours(np.random.default_rng(number), 20, 20))
    for number in range(50):
        (box / BACKGROUNDS / f"page-{number}.jpg").write_bytes(b"x" * number)
    write_rgb(box / FOREGROUNDS / "7_mask.png", np.zeros((20, 20), np.uint8))


def _few_lines(outcome: Outcome) -> None:
    assert len(outcome.stderr.splitlines()) <= 12, outcome.stderr


def _names(kind: str, *names: str) -> Callable[[Outcome], object]:
    def check(outcome: Outcome) -> None:
        plan = json.loads((outcome.run / "plan.json").read_bytes())
        assert {source["name"] for source in plan["blocks"][0]["sources"][kind]} >= set(names)

    return check


def _odd_but_fine(label: str, name: str) -> Case:
    return Case(
        name=label,
        arguments=("plan", RUN),
        code=0,
        arrange=_renamed(BACKGROUNDS, name),
        check=_names("backgrounds", name),
    )


def _refused(label: str, arrange: Callable[[Path], object], *lists: str, peak_bytes: int = 0) -> Case:
    return Case(
        name=label,
        arguments=("plan", RUN),
        code=16,
        arrange=arrange,
        lists=lists,
        says=("1 problem",),
        hints=("plan again",),
        peak_bytes=peak_bytes,
    )


CASES = [
    Case(
        name="no foregrounds",
        arguments=("plan", RUN),
        code=11,
        arrange=_empty(FOREGROUNDS),
        says=("cut-outs", "no photographs"),
        hints=("JPEG",),
    ),
    Case(
        name="no backgrounds",
        arguments=("plan", RUN),
        code=11,
        arrange=_empty(BACKGROUNDS),
        says=("scenes", "no photographs"),
        hints=("JPEG",),
    ),
    Case(
        name="a folder of photographs that is not there",
        arguments=("plan", RUN),
        code=11,
        arrange=lambda box: (box / BACKGROUNDS).rename(box / "moved"),
        says=("scenes",),
        hints=("--backgrounds",),
    ),
    Case(
        name="a folder of photographs that is a file",
        arguments=("plan", RUN, "--backgrounds", str(PHOTO)),
        code=11,
        says=("background-000.jpg",),
        hints=("--backgrounds",),
    ),
    Case(
        name="one folder for both",
        arguments=("plan", RUN, "--foregrounds", BACKGROUNDS),
        code=12,
        says=("overlap",),
        hints=("two folders",),
    ),
    Case(
        name="photographs that moved after the plan",
        arguments=("worker", RUN),
        code=11,
        start="planned",
        arrange=lambda box: (box / BACKGROUNDS).rename(box / "moved"),
        says=("scenes",),
        hints=("--backgrounds",),
        allowed=("people/manifest.sqlite", "people/artifacts"),
    ),
    Case(
        name="a photograph that changed after the plan",
        arguments=("worker", RUN),
        code=10,
        start="planned",
        arrange=lambda box: (box / PHOTO).write_bytes((box / PHOTO).read_bytes() + b"\0"),
        says=("those of the plan: backgrounds/background-000.jpg: ", "bytes"),
        hints=("plan again",),
        allowed=("people/manifest.sqlite", "people/artifacts"),
    ),
    Case(
        name="a photograph that is gone when workers would start",
        arguments=("run", RUN),
        code=10,
        start="planned",
        arrange=lambda box: (box / PHOTO).unlink(),
        says=("those of the plan: backgrounds/background-000.jpg: No such file",),
        hints=("shardgen plan people plans without them", "copy the photographs"),
    ),
    Case(
        name="a folder of photographs that is gone when workers would start",
        arguments=("run", RUN, "--backgrounds", "elsewhere"),
        code=11,
        start="planned",
        says=("elsewhere: the folder of backgrounds is not there",),
        hints=("--backgrounds",),
    ),
    Case(
        name="a photograph that is gone after the plan",
        arguments=("preview", RUN),
        code=11,
        start="planned",
        arrange=lambda box: (box / PHOTO).unlink(),
        says=("background-000.jpg",),
        hints=("put the file back",),
    ),
    Case(
        name="a plan over other photographs, after the first sample",
        arguments=("plan", RUN),
        code=10,
        start="finished",
        arrange=lambda box: (box / PHOTO).unlink(),
        says=("people", "background"),
        hints=("new directory",),
    ),
    _refused(
        "a bomb that says its size",
        _with("bomb.png", lambda: png(30_000, 30_000, rows=300)),
        "bomb.png",
        "900 megapixels",
        peak_bytes=250 * MIB,
    ),
    _refused(
        "a bomb that says another size",
        _with("bomb.png", lambda: png(10, 10, rows=4_000_000)),
        "bomb.png",
        "Too much image data",
        peak_bytes=250 * MIB,
    ),
    _refused("text called a photograph", _with("letter.jpg", b"Dear Sir,\n"), "letter.jpg", "not a JPEG"),
    _refused("an empty photograph", _with("nothing.png", b""), "nothing.png", "empty"),
    _refused(
        "half a photograph",
        lambda box: (box / PHOTO).write_bytes((box / PHOTO).read_bytes()[:400]),
        "background-000.jpg",
        "truncated",
    ),
    _refused("a name that is no text", _renamed(BACKGROUNDS, b"K\xf6ln.jpg"), "K\\xf6ln.jpg", "UTF-8"),
    Case(
        name="a link to nowhere",
        arguments=("plan", RUN),
        code=11,
        arrange=lambda box: (box / BACKGROUNDS / "lost.jpg").symlink_to("nowhere.jpg"),
        says=("lost.jpg",),
        hints=("put the file back",),
    ),
    Case(
        name="a pipe called a photograph",
        arguments=("plan", RUN),
        code=0,
        arrange=lambda box: os.mkfifo(box / BACKGROUNDS / "pipe.jpg"),
    ),
    Case(
        name="a hundred megapixels",
        arguments=("plan", RUN),
        code=0,
        arrange=_with("huge.png", lambda: png(10_000, 10_000)),
        peak_bytes=1200 * MIB,
    ),
    _odd_but_fine("spaces in a name", " two  spaces .jpg"),
    _odd_but_fine("other alphabets in a name", "Žluťoučký-人-🐈.jpg"),
    _odd_but_fine("a line end in a name", "two\nlines.jpg"),
    _odd_but_fine("dashes before a name", "--help.jpg"),
    _odd_but_fine("255 bytes of name", "n" * 251 + ".jpg"),
    Case(
        name="one pixel",
        arguments=("plan", RUN),
        code=0,
        arrange=tiny,
        check=_names("foregrounds", "dot.png"),
    ),
    Case(
        name="a refused photograph whose name has a line end",
        arguments=("plan", RUN),
        code=16,
        arrange=_with("two\nlines.jpg", b"x"),
        lists=("two lines.jpg",),
        says=("1 problem",),
        hints=("plan again",),
    ),
    Case(
        name="a hundred and fifty photographs with a few reasons",
        arguments=("plan", RUN),
        code=16,
        arrange=many_problems,
        lists=("99 files in foregrounds: no mask", "49 files in backgrounds: ", "7_mask.png: looks like"),
        says=("150 problems",),
        hints=("plan again",),
        check=_few_lines,
    ),
    Case(
        name="a run directory with a dash",
        arguments=("plan", "--", "-people"),
        code=0,
        arrange=lambda box: (box / RUN).rename(box / "-people"),
    ),
]
