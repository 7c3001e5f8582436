from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from shardgen.domain.plan import MaskMode
from shardgen.errors import InputMissing, InvalidSettings, PlanConflict, SourcesRefused
from shardgen.imaging.codec import Photograph, decode
from shardgen.sources.checking import check_against_plan
from shardgen.sources.scanning import Inventory, SourceFolders, scan
from tests.photographs import blob, colours, write_photographs, write_rgb

CANVAS = (100, 100)


@pytest.fixture
def folders(tmp_path: Path) -> SourceFolders:
    foregrounds, backgrounds = write_photographs(tmp_path)
    return SourceFolders(foregrounds=foregrounds, backgrounds=backgrounds)


def scanned(folders: SourceFolders, mask: MaskMode = MaskMode.AUTO) -> Inventory:
    return scan(folders, mask, CANVAS, threads=2)


def opaque(width: int, height: int, seed: int = 9) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return colours(np.random.default_rng(seed), width, height)


def test_an_entry_says_what_the_file_is(folders: SourceFolders) -> None:
    write_rgb(folders.foregrounds / "tall.png", np.dstack([opaque(31, 230), blob(31, 230)]))
    entry = scanned(folders).sources.foregrounds[-1]
    data = (folders.foregrounds / "tall.png").read_bytes()
    assert (entry.name, entry.bytes, entry.sha256) == (
        "tall.png",
        len(data),
        hashlib.sha256(data).hexdigest(),
    )
    assert (entry.width, entry.height, entry.placed_width, entry.placed_height) == (31, 230, 7, 57)
    assert entry.mask is MaskMode.ALPHA


def test_names_are_relative_and_sorted_by_their_utf8_bytes(folders: SourceFolders) -> None:
    names = [
        "Z.PNG",
        "a/b.Jpg",
        "a.png",
        "é.tif",
        "\U0001f600.bmp",
        "\ufb01.webp",
        ".hidden.png",
        ".git/x.png",
    ]
    for seed, name in enumerate(names):
        (folders.backgrounds / name).parent.mkdir(exist_ok=True)
        write_rgb(folders.backgrounds / name, opaque(20, 20, seed))
    found = [entry.name for entry in scanned(folders).sources.backgrounds]
    assert found == sorted(found, key=str.encode)
    assert set(names) - set(found) == {".hidden.png", ".git/x.png"}


def test_all_problems_come_in_one_go_by_name(folders: SourceFolders) -> None:
    write_rgb(folders.foregrounds / "opaque.png", opaque(30, 30))
    (folders.foregrounds / "empty.png").touch()
    write_rgb(folders.foregrounds / "sized.png", opaque(30, 30, 3))
    write_rgb(folders.foregrounds / "sized.mask.png", blob(30, 31))
    write_rgb(folders.foregrounds / "twice.png", opaque(30, 30, 4))
    write_rgb(folders.foregrounds / "twice.mask.png", blob(30, 30))
    write_rgb(folders.foregrounds / "twice.mask.bmp", blob(30, 30))
    (folders.backgrounds / "page.jpg").write_text("<html>")
    (folders.backgrounds / os.fsdecode(b"latin-\xe9.png")).write_bytes(b"x")
    with pytest.raises(SourcesRefused) as refusal:
        scanned(folders)
    problems = refusal.value.problems
    assert [problem.split(":")[0] for problem in problems] == [
        "backgrounds/latin-\\xe9.png",
        "foregrounds/empty.png",
        "foregrounds/opaque.png",
        "foregrounds/sized.png",
        "foregrounds/twice.png",
        "backgrounds/page.jpg",
    ]
    assert "not UTF-8" in problems[0]
    assert "mask file has 30x31 pixels" in problems[3]
    assert "more than one mask file" in problems[4]


def test_mask_files_are_no_sources_and_are_recorded(folders: SourceFolders) -> None:
    write_rgb(folders.foregrounds / "cup.jpg", opaque(30, 30))
    write_rgb(folders.foregrounds / "cup.mask.PNG", blob(30, 30))
    entry = scanned(folders).sources.foregrounds[0]
    assert (entry.name, entry.mask) == ("cup.jpg", MaskMode.FILE)
    assert entry.mask_file is not None
    data = (folders.foregrounds / "cup.mask.PNG").read_bytes()
    assert entry.mask_file.name == "cup.mask.PNG"
    assert (entry.mask_file.bytes, entry.mask_file.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_duplicates_lonely_masks_and_other_files_are_warnings(folders: SourceFolders) -> None:
    data = (folders.backgrounds / "background-000.jpg").read_bytes()
    (folders.backgrounds / "copy.jpg").write_bytes(data)
    (folders.backgrounds / "movie.gif").write_bytes(b"GIF89a")
    write_rgb(folders.foregrounds / "gone.mask.png", blob(30, 30))
    assert scanned(folders).warnings == (
        "backgrounds: the same content 2 times: background-000.jpg, copy.jpg",
        "foregrounds/gone.mask.png: a mask file without its photograph",
        "backgrounds: 1 file left out, not photographs by name: movie.gif",
    )


def test_conversions_are_noted_by_name(folders: SourceFolders) -> None:
    write_rgb(folders.backgrounds / "deep.png", opaque(20, 20).astype(np.uint16) * 257)  # type: ignore[arg-type]
    assert scanned(folders).notes == ("backgrounds/deep.png: 16 bits per channel converted to 8",)


def test_a_folder_that_is_missing_or_empty_says_which(folders: SourceFolders, tmp_path: Path) -> None:
    with pytest.raises(InputMissing, match=r"nowhere: the folder of backgrounds is not there"):
        scanned(SourceFolders(foregrounds=folders.foregrounds, backgrounds=tmp_path / "nowhere"))
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "notes.txt").touch()
    with pytest.raises(InputMissing, match=r"no photographs in the folder of foregrounds \(1 other file\)"):
        scanned(SourceFolders(foregrounds=tmp_path / "bare", backgrounds=folders.backgrounds))


def test_folders_that_overlap_are_refused(folders: SourceFolders) -> None:
    one, above = folders.foregrounds, folders.foregrounds.parent
    for foregrounds, backgrounds in ((one, one), (one, above), (above, one)):
        with pytest.raises(InvalidSettings, match="overlap"):
            scanned(SourceFolders(foregrounds=foregrounds, backgrounds=backgrounds))


def test_a_linked_folder_is_followed_once(folders: SourceFolders) -> None:
    (folders.backgrounds / "loop").symlink_to(folders.backgrounds, target_is_directory=True)
    assert len(scanned(folders).sources.backgrounds) == 2


@pytest.mark.parametrize(("threads", "expected"), [(1, 1), (3, 3), (4, 4), (9, 4)])
def test_each_file_is_decoded_once_and_no_more_at_once_than_allowed(
    folders: SourceFolders, threads: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(10):
        write_rgb(folders.backgrounds / f"more-{number}.png", opaque(20, 20, number))
        cut_out = np.dstack([opaque(20, 20, number), blob(20, 20)])
        write_rgb(folders.foregrounds / f"more-{number}.png", cut_out)
    guard, inside, most, calls = threading.Lock(), [0], [0], [0]
    together = threading.Barrier(expected)  # broken after a while, if fewer come

    def counting(data: bytes) -> Photograph:
        with guard:
            inside[0] += 1
            calls[0] += 1
            most[0] = max(most[0], inside[0])
        together.wait(30)
        photo = decode(data)
        with guard:
            inside[0] -= 1
        return photo

    monkeypatch.setattr("shardgen.sources.scanning.decode", counting)
    heard: list[str] = []
    scan(folders, MaskMode.AUTO, CANVAS, threads=threads, on_file=heard.append)
    assert calls[0] == len(heard) == 24
    assert most[0] == expected


def check(folders: SourceFolders, inventory: Inventory) -> list[str]:
    heard: list[str] = []
    check_against_plan(folders.foregrounds, folders.backgrounds, inventory.sources, on_file=heard.append)
    return heard


def test_the_planned_files_pass_the_check_whatever_else_lies_there(folders: SourceFolders) -> None:
    inventory = scanned(folders)
    write_rgb(folders.backgrounds / "later.png", opaque(10, 10))
    assert sorted(check(folders, inventory)) == [
        "background-000.jpg",
        "background-001.png",
        "foreground-000.png",
        "foreground-001.png",
    ]


def test_files_that_are_missing_or_of_another_size_are_named_at_once(folders: SourceFolders) -> None:
    inventory = scanned(folders)
    (folders.backgrounds / "background-001.png").unlink()
    with (folders.foregrounds / "foreground-000.png").open("ab") as file:
        file.write(b"!")
    with pytest.raises(PlanConflict) as conflict:
        check(folders, inventory)
    assert "foregrounds/foreground-000.png: " in str(conflict.value)
    assert "backgrounds/background-001.png: No such file" in str(conflict.value)


def test_a_file_of_the_same_size_with_other_content_is_named(folders: SourceFolders) -> None:
    inventory = scanned(folders)
    path = folders.backgrounds / "background-000.jpg"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(PlanConflict, match=r"backgrounds/background-000\.jpg: other content"):
        check(folders, inventory)


def test_a_changed_mask_file_is_named(folders: SourceFolders) -> None:
    write_rgb(folders.foregrounds / "cup.jpg", opaque(30, 30))
    write_rgb(folders.foregrounds / "cup.mask.bmp", blob(30, 30))
    inventory = scanned(folders)
    write_rgb(folders.foregrounds / "cup.mask.bmp", blob(30, 30) // 2)
    with pytest.raises(PlanConflict, match=r"cup\.mask\.bmp: other content"):
        check(folders, inventory)
