"""Rows of folders and disks that cannot be written or read; nothing half-written may stay."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from tests.bad_input.case import POWERLESS, RUN, Case, Condition, full, read_only


def _folder_instead(name: str) -> Callable[[Path], object]:
    def arrange(box: Path) -> None:
        (box / RUN / name).unlink()
        (box / RUN / name).mkdir()

    return arrange


def _file_for_run(box: Path) -> None:
    shutil.rmtree(box / RUN)
    (box / RUN).write_text("a file\n", encoding="utf-8")


def _setting(before: str, after: str) -> Callable[[Path], object]:
    def arrange(box: Path) -> None:
        path = box / RUN / "shardgen.toml"
        text = path.read_text(encoding="utf-8")
        assert before in text
        path.write_text(text.replace(before, after), encoding="utf-8")

    return arrange


def _artifacts_at(url: str, make: Callable[[Path], object] | None) -> Callable[[Path], object]:
    """Another artifact folder, and what lies at `store`."""

    def arrange(box: Path) -> None:
        _setting('url = "artifacts"', f'url = "{url}"')(box)
        if make is not None:
            make(box / RUN / "store")

    return arrange


def _lost_manifest_beside(mode: int) -> Callable[[Path], object]:
    def arrange(box: Path) -> None:
        (box / RUN / "manifest.sqlite").unlink()
        (box / RUN / "artifacts").chmod(mode)

    return arrange


def _closed(box: Path) -> None:
    (box / "closed").mkdir(0o600)


def _link_to_nothing(path: Path) -> None:
    path.symlink_to(path.parent / "gone")


INIT = ("init", "new", "--foregrounds", "cut-outs", "--backgrounds", "scenes")
SMALL = Condition(kind="small-files", arguments=(512,))


def _two_that_may_not_be_read(box: Path) -> None:
    (box / "cut-outs/foreground-000.png").chmod(0)
    (box / "scenes/background-000.jpg").chmod(0)
    (box / "scenes/nothing.png").touch()
    (box / "scenes/movie.gif").write_bytes(b"x")


CASES = [
    Case(
        name="init on a read-only disk",
        arguments=INIT,
        code=31,
        condition=read_only("."),
        says=("new", "Read-only"),
        hints=("write",),
    ),
    Case(
        name="plan on a read-only disk",
        arguments=("plan", RUN),
        code=31,
        condition=read_only(RUN),
        says=("plan.json", "Read-only"),
        hints=("writable",),
    ),
    Case(
        name="worker on a read-only disk",
        arguments=("worker", RUN),
        code=31,
        start="planned",
        condition=read_only(RUN),
        says=("people/artifacts", "Read-only"),
        hints=("writable",),
    ),
    Case(
        name="merge to a read-only disk",
        arguments=("merge", RUN),
        code=31,
        start="finished",
        condition=read_only(RUN),
        says=("dataset.zip", "Read-only"),
        hints=("another folder",),
    ),
    Case(
        name="status on a read-only disk",
        arguments=("status", RUN),
        code=0,
        start="finished",
        condition=read_only(RUN),
    ),
    Case(
        name="verify on a read-only disk",
        arguments=("verify", RUN),
        code=0,
        start="finished",
        condition=read_only(RUN),
    ),
    Case(
        name="init on a full disk",
        arguments=("init", RUN, *INIT[2:]),
        code=31,
        condition=full(RUN),
        arrange=lambda box: (box / RUN / "shardgen.toml").unlink(),
        says=("shardgen.toml", "No space"),
        hints=("free",),
    ),
    Case(
        name="plan on a full disk",
        arguments=("plan", RUN),
        code=31,
        condition=full(RUN),
        says=("plan.json", "No space"),
        hints=("free",),
    ),
    Case(
        name="a manifest on a full disk",
        arguments=("plan", RUN),
        code=31,
        condition=full(RUN, free_bytes=12_000),
        says=("manifest.sqlite", "full"),
        hints=("free",),
        allowed=("people/plan.json", "people/manifest.sqlite"),
    ),
    Case(
        name="merge to a full disk",
        arguments=("merge", RUN, "-o", "scenes/new.zip"),
        code=31,
        start="finished",
        condition=full("scenes"),
        says=("new.zip", "bytes free"),
        hints=("-o",),
    ),
    Case(
        name="a quota for files",
        arguments=("init", "new", *INIT[2:]),
        code=31,
        condition=SMALL,
        says=("shardgen.toml", "File too large"),
        hints=("limit",),
        allowed=("new",),
    ),
    Case(
        name="a run directory that is a file",
        arguments=("plan", RUN),
        code=11,
        arrange=_file_for_run,
        says=("people",),
        hints=("shardgen init",),
    ),
    Case(
        name="init into a file",
        arguments=("init", RUN, *INIT[2:]),
        code=11,
        arrange=_file_for_run,
        says=("people", "a file"),
        hints=("another name",),
    ),
    Case(
        name="init with a photograph for a folder",
        arguments=("init", "new", "--foregrounds", "cut-outs", "--backgrounds", "scenes/background-000.jpg"),
        code=11,
        says=("scenes/background-000.jpg: a file, not a folder of backgrounds",),
        hints=("--backgrounds DIR",),
    ),
    Case(
        name="init below a file",
        arguments=("init", "people/below", *INIT[2:]),
        code=11,
        arrange=_file_for_run,
        says=("people/below", "a file"),
        hints=("another name",),
    ),
    Case(
        name="settings that may not be read",
        arguments=("plan", RUN),
        code=11,
        condition=POWERLESS,
        arrange=lambda box: (box / RUN / "shardgen.toml").chmod(0),
        says=("shardgen.toml", "Permission"),
        hints=("chmod",),
    ),
    Case(
        name="a run directory that may not be written",
        arguments=("plan", RUN),
        code=11,
        condition=POWERLESS,
        arrange=lambda box: (box / RUN).chmod(0o555),
        says=("people: this user may not write there",),
        hints=("chmod u+wx people",),
    ),
    Case(
        name="a plan that may not be read",
        arguments=("status", RUN),
        code=11,
        start="planned",
        condition=POWERLESS,
        arrange=lambda box: (box / RUN / "plan.json").chmod(0),
        says=("plan.json", "Permission"),
        hints=("chmod u+r",),
    ),
    Case(
        name="a manifest that may not be read",
        arguments=("status", RUN),
        code=31,
        start="planned",
        condition=POWERLESS,
        arrange=lambda box: (box / RUN / "manifest.sqlite").chmod(0),
        says=("manifest.sqlite",),
        hints=("permissions",),
    ),
    Case(
        name="a manifest that may not be written",
        arguments=("worker", RUN),
        code=31,
        start="planned",
        condition=POWERLESS,
        arrange=lambda box: (box / RUN / "manifest.sqlite").chmod(0o444),
        says=("manifest.sqlite",),
        hints=("permissions",),
        allowed=("people/artifacts",),
    ),
    Case(
        name="a photograph that may not be read",
        arguments=("plan", RUN),
        code=16,
        condition=POWERLESS,
        arrange=_two_that_may_not_be_read,
        lists=(
            "foregrounds/foreground-000.png: cannot be read (Permission denied) (give this user permission",
            "backgrounds/background-000.jpg: cannot be read (Permission denied) (give this user permission",
            "backgrounds/nothing.png: empty file",
            "backgrounds/movie.gif: left out, not a photograph by its name",
        ),
        says=("3 problems in the source folders",),
        hints=("plan again",),
    ),
    Case(
        name="a folder of photographs that may not be read",
        arguments=("plan", RUN),
        code=11,
        condition=POWERLESS,
        arrange=lambda box: (box / "scenes").chmod(0),
        says=("scenes", "Permission"),
        hints=("read",),
    ),
    Case(
        name="a lost manifest beside artifacts that may not be listed",
        arguments=("plan", RUN),
        code=31,
        start="finished",
        condition=POWERLESS,
        arrange=_lost_manifest_beside(0o333),
        says=("people/artifacts: Permission",),
        hints=("permission to read",),
    ),
    *(
        Case(
            name=f"{command[0]} where a folder above may not be entered",
            arguments=command,
            code=31,
            start="planned",
            condition=POWERLESS,
            arrange=_closed,
            says=("closed/", "Permission"),
            hints=("permission to read",),
            allowed=("people/artifacts", "people/manifest.sqlite") if command[0] == "worker" else (),
        )
        for command in (
            ("backup", RUN, "-o", "closed/in/copy.sqlite"),
            ("init", "new", "--foregrounds", "closed/in", "--backgrounds", "scenes"),
            ("worker", RUN, "--foregrounds", "closed/in"),
            ("verify", "closed/in.zip"),
        )
    ),
    Case(
        name="artifacts that are a file",
        arguments=("plan", RUN),
        code=11,
        arrange=lambda box: (box / RUN / "artifacts").write_text("x"),
        says=("people/artifacts: a file",),
        hints=("[artifacts] url",),
    ),
    *(
        Case(
            name=f"{command} with artifacts {name}",
            arguments=(command, RUN),
            code=11,
            start="new" if command == "plan" else "planned",
            arrange=_artifacts_at(url, make),
            says=says,
            hints=(hint, "[artifacts] url in shardgen.toml"),
        )
        for command in ("plan", "worker", "run")
        for name, url, make, says, hint in (
            (
                "below a folder that is missing",
                "store/people",
                None,
                ("people/store: there is no",),
                "mkdir -p",
            ),
            ("below a file", "store/people", Path.touch, ("people/store: a file",), "move it away"),
            (
                "on a link to nothing",
                "store",
                _link_to_nothing,
                ("people/store: a link", "/gone"),
                "mkdir -p",
            ),
        )
    ),
    Case(
        name="artifacts in a folder that may not be written",
        arguments=("worker", RUN),
        code=11,
        start="planned",
        condition=POWERLESS,
        arrange=_artifacts_at("store/people", lambda path: path.mkdir(0o555)),
        says=("people/store: this user may not write there",),
        hints=("chmod u+wx", "[artifacts] url"),
    ),
    Case(
        name="a manifest below a file",
        arguments=("plan", RUN),
        code=11,
        arrange=_setting("sqlite:///manifest.sqlite", "sqlite:///shardgen.toml/manifest.sqlite"),
        says=("people/shardgen.toml: a file",),
        hints=("[manifest] url",),
    ),
    Case(
        name="a cache that is a file",
        arguments=("plan", RUN),
        code=11,
        arrange=_setting("sqlite:///manifest.sqlite", "folder:"),
        environment={"SHARDGEN_CACHE": "people/shardgen.toml"},
        says=("people/shardgen.toml: a file",),
        hints=("SHARDGEN_CACHE",),
    ),
    Case(
        name="run into a zip below a file",
        arguments=("run", RUN, "-o", "people/plan.json/new.zip"),
        code=11,
        start="planned",
        says=("people/plan.json: a file",),
        hints=("-o",),
    ),
    Case(
        name="a plan that is a folder",
        arguments=("status", RUN),
        code=11,
        start="planned",
        arrange=_folder_instead("plan.json"),
        says=("plan.json", "folder"),
        hints=("move",),
    ),
    Case(
        name="a manifest that is a folder",
        arguments=("status", RUN),
        code=11,
        start="planned",
        arrange=_folder_instead("manifest.sqlite"),
        says=("manifest.sqlite",),
        hints=("shardgen",),
    ),
    Case(
        name="a zip below a folder that is not there",
        arguments=("merge", RUN, "-o", "no/where.zip"),
        code=11,
        start="finished",
        says=("no",),
        hints=("mkdir -p no",),
    ),
    Case(
        name="a zip that is a folder",
        arguments=("run", RUN, "-o", "scenes"),
        code=10,
        start="finished",
        says=("scenes",),
        hints=("-o",),
    ),
    Case(
        name="a zip that is not ours",
        arguments=("merge", RUN, "-o", "holiday.zip"),
        code=10,
        start="finished",
        arrange=lambda box: shutil.make_archive(str(box / "holiday"), "zip", box / "scenes"),
        says=("holiday.zip",),
        hints=("-o",),
    ),
    Case(
        name="a zip in the place of a photograph",
        arguments=("run", RUN, "-o", "scenes/background-000.jpg"),
        code=10,
        start="planned",
        says=("background-000.jpg", "not replaced"),
        hints=("-o",),
    ),
    Case(
        name="a picture in the place of a photograph",
        arguments=("preview", RUN, "-o", "scenes/background-000.jpg"),
        code=10,
        start="planned",
        says=("background-000.jpg", "photographs"),
        hints=("another folder with -o",),
    ),
    Case(
        name="a new picture among the photographs",
        arguments=("preview", RUN, "-o", "cut-outs/sheet.png"),
        code=10,
        start="planned",
        says=("sheet.png", "photographs"),
        hints=("another folder with -o",),
    ),
    Case(
        name="a picture in the place of the settings",
        arguments=("preview", RUN, "-o", "people/shardgen.toml"),
        code=10,
        start="planned",
        says=("shardgen.toml", "not replaced"),
        hints=("-o preview.png",),
    ),
    Case(
        name="a picture in the place of the manifest",
        arguments=("preview", RUN, "-o", "people/manifest.sqlite"),
        code=10,
        start="planned",
        says=("manifest.sqlite", "not replaced"),
        hints=("-o preview.png",),
    ),
    Case(
        name="a picture by the name of another format",
        arguments=("preview", RUN, "-o", "two sheets.jpg"),
        code=12,
        start="planned",
        says=("two sheets.jpg: the picture is a PNG",),
        hints=("-o 'two sheets.png'",),
    ),
    Case(
        name="a picture below a folder that is not there",
        arguments=("preview", RUN, "-o", "no/sheet.png"),
        code=11,
        start="planned",
        says=("no",),
        hints=("mkdir -p no",),
    ),
]
