"""Rows of plans, manifests, artifacts and zips that are newer, foreign, damaged or gone."""

from __future__ import annotations

import json
import shutil
import sqlite3
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from tests.bad_input.case import BACKGROUNDS, RUN, Case

PLAN, MANIFEST = Path(RUN, "plan.json"), Path(RUN, "manifest.sqlite")


def _plan(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda box: (box / PLAN).write_bytes(change((box / PLAN).read_bytes()))


def _plan_of_format(number: int) -> Callable[[Path], object]:
    return _plan(lambda data: json.dumps(json.loads(data) | {"format": number}).encode())


def _sql(*statements: str) -> Callable[[Path], object]:
    def arrange(box: Path) -> None:
        with closing(sqlite3.connect(box / MANIFEST)) as database, database:
            for statement in statements:
                database.execute(statement)

    return arrange


def _foreign_database(box: Path) -> None:
    (box / MANIFEST).unlink()
    _sql("CREATE TABLE holiday (place TEXT)")(box)


def _manifest(data: bytes) -> Callable[[Path], object]:
    return lambda box: (box / MANIFEST).write_bytes(data)


def _damage(box: Path) -> None:
    data = bytearray((box / MANIFEST).read_bytes())
    data[2000:] = b"\xa5" * (len(data) - 2000)
    (box / MANIFEST).write_bytes(data)


def _other_plans_manifest(box: Path) -> None:
    _sql("UPDATE run SET fingerprint = printf('%064d', 0)")(box)


def _artifact(box: Path) -> Path:
    return min((box / RUN / "artifacts").glob("shard-*/*.zip"))


def _cut_zip(box: Path) -> None:
    path = box / RUN / "dataset.zip"
    path.write_bytes(path.read_bytes()[:-1000])


def _bomb_zip(box: Path) -> None:
    with zipfile.ZipFile(box / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("plan.json", "labels.csv", "stats.json"):
            archive.writestr(name, bytes(300_000_000))


def _status(label: str, code: int, arrange: Callable[[Path], object], *says: str, hint: str) -> Case:
    return Case(
        name=label,
        arguments=("status", RUN),
        code=code,
        start="planned",
        arrange=arrange,
        says=says,
        hints=(hint,),
    )


CASES = [
    _status("a plan of a newer version", 13, _plan_of_format(99), "plan.json", "99", hint="upgrade shardgen"),
    _status(
        "a plan of an earlier version",
        13,
        _plan_of_format(1),
        "plan.json",
        "format 1",
        hint="finish it with the version that made it, or plan again in a new directory",
    ),
    Case(
        name="plan over a plan of an earlier version",
        arguments=("plan", RUN),
        code=13,
        start="planned",
        arrange=_plan_of_format(1),
        says=("plan.json", "format 1"),
        hints=("finish it with the version that made it",),
    ),
    _status(
        "half a plan", 23, _plan(lambda data: data[:200]), "plan.json", "JSON", hint="shardgen plan people"
    ),
    _status("an empty plan", 23, _plan(lambda _data: b""), "plan.json", hint="shardgen plan people"),
    _status(
        "another document for a plan",
        23,
        _plan(lambda _data: b"[1, 2]"),
        "plan.json",
        hint="shardgen plan people",
    ),
    _status(
        "a plan nested without end",
        23,
        _plan(lambda _data: b"[" * 200_000),
        "plan.json",
        hint="shardgen plan people",
    ),
    _status(
        "a plan edited by hand",
        23,
        _plan(lambda data: data.replace(b",", b", ", 1)),
        "plan.json",
        "edited",
        hint="shardgen plan people",
    ),
    _status(
        "a manifest of a newer version",
        13,
        _sql("UPDATE alembic_version SET version_num = '2_9999'"),
        "manifest.sqlite",
        "2_9999",
        hint="upgrade shardgen",
    ),
    _status(
        "a manifest of an earlier version",
        13,
        _sql("UPDATE alembic_version SET version_num = '0004'"),
        "manifest.sqlite",
        "earlier version of shardgen (revision 0004)",
        hint="finish it with the version that made it, or plan again in a new directory",
    ),
    _status("somebody else's database", 13, _foreign_database, "manifest.sqlite", hint="[manifest] url"),
    _status(
        "a text for a manifest",
        13,
        _manifest(b"to whom it may concern, " * 100),
        "manifest.sqlite",
        "SQLite",
        hint="shardgen rebuild people",
    ),
    _status("a damaged manifest", 23, _damage, "manifest.sqlite", "damaged", hint="shardgen rebuild people"),
    _status("another plan's manifest", 10, _other_plans_manifest, "manifest.sqlite", hint="manifest"),
    _status(
        "no manifest",
        11,
        lambda box: (box / MANIFEST).unlink(),
        "manifest.sqlite",
        hint="shardgen plan people",
    ),
    _status("an empty manifest", 11, _manifest(b""), "manifest.sqlite", hint="shardgen plan people"),
    Case(
        name="an artifact cut short",
        arguments=("merge", RUN, "-o", "again.zip"),
        code=21,
        start="finished",
        arrange=lambda box: _artifact(box).write_bytes(_artifact(box).read_bytes()[:100]),
        says=("is 100 bytes",),
        hints=("shardgen verify people --requeue",),
    ),
    Case(
        name="artifacts that are elsewhere",
        arguments=("merge", RUN, "-o", "again.zip"),
        code=10,
        start="finished",
        arrange=lambda box: (box / RUN / "shardgen.toml").write_text(
            (box / RUN / "shardgen.toml").read_text().replace('url = "artifacts"', 'url = "elsewhere"')
        ),
        says=("people/elsewhere",),
        hints=("[artifacts] url",),
    ),
    Case(
        name="nothing planned yet",
        arguments=("worker", RUN),
        code=11,
        says=("people", "planned"),
        hints=("shardgen plan people",),
    ),
    Case(
        name="a manifest lost beside artifacts",
        arguments=("plan", RUN),
        code=10,
        start="finished",
        arrange=lambda box: (box / MANIFEST).unlink(),
        says=("artifacts",),
        hints=("shardgen rebuild people",),
        allowed=(str(MANIFEST),),
    ),  # an empty file is no manifest: docs/decisions.md, "a rebuilt manifest"
    Case(
        name="plan over somebody else's database",
        arguments=("plan", RUN),
        code=13,
        start="planned",
        arrange=_foreign_database,
        says=("manifest.sqlite",),
        hints=("[manifest] url",),
    ),
    Case(
        name="a merge before the work",
        arguments=("merge", RUN),
        code=14,
        start="planned",
        says=("48 of 48", "pending"),
        hints=("shardgen run people",),
    ),
    Case(
        name="a rebuild beside a manifest",
        arguments=("rebuild", RUN),
        code=13,
        start="finished",
        says=("manifest.sqlite",),
        hints=("mv ",),
    ),
    Case(
        name="an artifact that is gone",
        arguments=("merge", RUN, "-o", "again.zip"),
        code=20,
        start="finished",
        arrange=lambda box: _artifact(box).unlink(),
        says=("is gone",),
        hints=("shardgen verify people --requeue",),
    ),
    Case(
        name="an artifact with a wrong byte",
        arguments=("merge", RUN, "-o", "again.zip"),
        code=21,
        start="finished",
        arrange=lambda box: _artifact(box).write_bytes(_artifact(box).read_bytes()[:-1] + b"\1"),
        says=("sha256",),
        hints=("shardgen verify people --requeue",),
    ),
    Case(
        name="a zip without its end",
        prints=True,
        arguments=("verify", "people/dataset.zip"),
        code=21,
        start="finished",
        arrange=_cut_zip,
        says=("dataset.zip",),
        hints=("merge",),
    ),
    Case(
        name="somebody else's zip",
        prints=True,
        arguments=("verify", "holiday.zip"),
        code=21,
        arrange=lambda box: shutil.make_archive(str(box / "holiday"), "zip", box / BACKGROUNDS),
        says=("holiday.zip",),
        hints=("merge",),
    ),
    Case(
        name="an empty zip",
        prints=True,
        arguments=("verify", "holiday.zip"),
        code=21,
        arrange=lambda box: (box / "holiday.zip").write_bytes(b""),
        says=("holiday.zip",),
        hints=("merge",),
    ),
    Case(
        name="a zip that unpacks to much",
        prints=True,
        arguments=("verify", "bomb.zip"),
        code=21,
        arrange=_bomb_zip,
        says=("bomb.zip",),
        hints=("merge",),
        peak_bytes=250 << 20,
    ),
    Case(
        name="a zip that is not there",
        arguments=("verify", "people.zip"),
        code=11,
        says=("people.zip",),
        hints=("name",),
    ),
]
