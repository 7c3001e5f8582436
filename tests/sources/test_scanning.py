from __future__ import annotations

import hashlib
import os
import sys
import threading
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shardgen.cli.render import remark_text
from shardgen.domain.remarks import Remark
from shardgen.errors import InputMissing, InvalidSettings, PlanConflict, SourcesRefused
from shardgen.imaging.codec import Photograph, decode
from shardgen.imaging.masks import halved_to_fit
from shardgen.imaging.options import MaskMode
from shardgen.sources.checking import check_against_plan
from shardgen.sources.scanning import Inventory, SourceFolders, scan
from tests.photographs import blob, colours, heic, write_photographs, write_rgb

CANVAS = (100, 100)


@pytest.fixture
def folders(tmp_path: Path) -> SourceFolders:
    foregrounds, backgrounds = write_photographs(tmp_path)
    return SourceFolders(foregrounds=foregrounds, backgrounds=backgrounds)


def scanned(folders: SourceFolders, mask: MaskMode = MaskMode.AUTO) -> Inventory:
    return scan(folders, mask, partial(halved_to_fit, canvas=CANVAS), threads=2)


def said(remarks: Sequence[Remark]) -> list[str]:
    return [remark_text(remark) for remark in remarks]


def refused(folders: SourceFolders) -> SourcesRefused:
    with pytest.raises(SourcesRefused) as refusal:
        scanned(folders)
    return refusal.value


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
    problems = said(refusal.value.remarks)
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
    assert "more than one mask file (twice.mask.bmp, twice.mask.png)" in problems[4]


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
    assert said(scanned(folders).warnings) == [
        (
            "backgrounds/copy.jpg: the same content as background-000.jpg "
            "(remove one of the two, unless its samples should count twice)"
        ),
        (
            "foregrounds/gone.mask.png: a mask file without its photograph "
            "(name it like its photograph: NAME.mask.png)"
        ),
        "backgrounds/movie.gif: left out, not a photograph by its name",
    ]


def test_conversions_are_noted_by_name(folders: SourceFolders) -> None:
    write_rgb(folders.backgrounds / "deep.png", opaque(20, 20).astype(np.uint16) * 257)  # type: ignore[arg-type]
    assert said(scanned(folders).notes) == ["backgrounds/deep.png: 16 bits per channel converted to 8"]


def test_what_the_decoder_says_of_files_is_said_once_for_all_of_them(
    folders: SourceFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode_with_warnings(data: bytes) -> Photograph:
        return replace(decode(data), warnings=("odd colours",), notes=("turned",))

    write_rgb(folders.foregrounds / "cup.jpg", opaque(30, 30))
    write_rgb(folders.foregrounds / "cup.mask.png", blob(30, 30))
    monkeypatch.setattr("shardgen.sources.scanning.decode", decode_with_warnings)
    inventory = scanned(folders)
    assert [(one.folder, one.reason, one.names) for one in inventory.warnings] == [
        (
            "foregrounds",
            "odd colours",
            ("cup.jpg", "cup.mask.png", "foreground-000.png", "foreground-001.png"),
        ),
        ("backgrounds", "odd colours", ("background-000.jpg", "background-001.png")),
    ]
    assert [len(one.names) for one in inventory.notes] == [3, 2]


@pytest.mark.parametrize(("orientation", "count"), [(1, 0), (3, 1), (6, 1)])
def test_a_mask_that_may_not_be_turned_as_its_photograph_is_warned_of(
    folders: SourceFolders, orientation: int, count: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(opaque(30, 30)).save(folders.foregrounds / "cup.jpg", exif=exif)
    write_rgb(folders.foregrounds / "cup.mask.png", blob(30, 30))
    warnings = scanned(folders).warnings
    assert [one.names for one in warnings] == [("cup.jpg",)] * count
    assert all(f"EXIF orientation ({orientation})" in one.reason for one in warnings)


def test_a_mask_is_found_however_the_accents_of_names_are_encoded(folders: SourceFolders) -> None:
    composed, decomposed = unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")
    for name, of_mask, number in ((composed, decomposed, 1), (decomposed, composed, 2)):
        write_rgb(folders.foregrounds / f"{name}-{number}.jpg", opaque(30, 30, number))
        write_rgb(folders.foregrounds / f"{of_mask}-{number}.mask.png", blob(30, 30))
    inventory = scanned(folders)
    assert [entry.mask for entry in inventory.sources.foregrounds[:2]] == [MaskMode.FILE, MaskMode.FILE]
    assert not inventory.warnings


def test_names_that_differ_in_their_encoding_alone_need_a_mask_each(folders: SourceFolders) -> None:
    one, other = unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")
    for seed, name in enumerate((one, other)):
        write_rgb(folders.foregrounds / f"{name}.jpg", opaque(30, 30, seed))
        write_rgb(folders.backgrounds / f"{name}.jpg", opaque(30, 30, seed))
    write_rgb(folders.foregrounds / f"{one}.mask.png", blob(30, 30))
    (problem,) = refused(folders).remarks
    assert problem.reason == "shares its mask file with another photograph"
    assert set(problem.names) == {f"{one}.jpg", f"{other}.jpg"}
    write_rgb(folders.foregrounds / f"{other}.mask.png", blob(30, 30))
    entries = {entry.name: entry for entry in scanned(folders).sources.foregrounds}
    for name in (one, other):
        mask_file = entries[f"{name}.jpg"].mask_file
        assert mask_file is not None
        assert mask_file.name == f"{name}.mask.png"


def test_one_mask_for_two_photographs_is_refused_by_their_names(folders: SourceFolders) -> None:
    write_rgb(folders.foregrounds / "cat.jpg", opaque(30, 30, 1))
    write_rgb(folders.foregrounds / "cat.png", np.dstack([opaque(30, 30, 2), blob(30, 30)]))
    write_rgb(folders.foregrounds / "cat.mask.png", blob(30, 30))
    (problem,) = refused(folders).remarks
    assert (problem.names, problem.details) == (("cat.jpg", "cat.png"), ("cat.png", "cat.jpg"))
    assert problem.reason == "shares its mask file with another photograph"
    assert len(scanned(folders, MaskMode.GRABCUT).sources.foregrounds) == 4


@pytest.mark.parametrize("mark", ["_mask", "-Mask"])
def test_a_mask_with_a_wrong_name_is_told_from_a_photograph(folders: SourceFolders, mark: str) -> None:
    for number in range(2):
        write_rgb(folders.foregrounds / f"cat-{number}.jpg", opaque(30, 30, number))
        write_rgb(folders.foregrounds / f"cat-{number}{mark}.png", blob(30, 30 + number))
    write_rgb(folders.foregrounds / "carnival_mask.png", np.dstack([opaque(30, 30, 5), blob(30, 30)]))
    (problem,) = refused(folders).remarks
    assert problem.reason == "looks like a mask, but masks are named NAME.mask.png"
    assert problem.names == (f"cat-0{mark}.png", f"cat-1{mark}.png")
    assert problem.details == ("beside cat-0.jpg", "beside cat-1.jpg")


def test_a_mask_that_cuts_nothing_out_is_warned_of(folders: SourceFolders) -> None:
    write_rgb(folders.foregrounds / "cup.jpg", opaque(30, 30))
    write_rgb(folders.foregrounds / "cup.mask.png", np.full((30, 30), 255, np.uint8))
    (warning,) = scanned(folders).warnings
    assert (warning.names, warning.reason) == (
        ("cup.jpg",),
        "its mask covers everything: the whole rectangle is placed",
    )


def test_backgrounds_that_are_cut_out_are_warned_of(folders: SourceFolders) -> None:
    write_rgb(folders.backgrounds / "person.png", np.dstack([opaque(30, 30), blob(30, 30)]))
    write_rgb(folders.backgrounds / "veil.png", np.dstack([opaque(30, 30), np.full((30, 30), 254, np.uint8)]))
    write_rgb(folders.backgrounds / "cat.mask.png", blob(30, 30))
    assert {one.names: one.reason for one in scanned(folders).warnings} == {
        ("person.png",): "its transparency is ignored: what it hides will show",
        ("cat.mask.png",): "named like a mask, but used as a background",
    }


@pytest.mark.parametrize("kind", ["alpha", "mask file", "photograph"])
def test_folders_that_look_swapped_are_said_to_be(folders: SourceFolders, kind: str) -> None:
    for path in folders.foregrounds.iterdir():
        path.unlink()
    for number in range(10):
        scene = opaque(30, 30, number)
        scene[:] = 255 if number == 0 else scene
        scene[10:20, 10:20] = 0 if number == 0 else scene[10:20, 10:20]
        write_rgb(folders.foregrounds / f"scene-{number}.png", scene)
    for number in range(5):
        person = opaque(30, 30, number + 20)
        if kind == "alpha":
            person = np.dstack([person, blob(30, 30)])
        if kind == "mask file":
            write_rgb(folders.backgrounds / f"person-{number}.mask.png", blob(30, 30))
        write_rgb(folders.backgrounds / f"person-{number}.png", person)
    refusal = refused(folders)
    assert len(refusal.remarks[0].names) == 9
    assert ("9 of 10 foregrounds without a mask" in str(refusal)) is (kind != "photograph")
    assert ("are the two folders swapped?" in refusal.hint) is (kind != "photograph")


def test_what_a_nas_and_a_desktop_leave_behind_is_no_photograph(folders: SourceFolders) -> None:
    for name in (
        "@eaDir/background-000.jpg/SYNOPHOTO_THUMB_M.jpg",
        "album/@eaDir/other.jpg/SYNOPHOTO_THUMB_S.jpg",
        "__MACOSX/._background-000.jpg",
        "#recycle/old.jpg",
        "$RECYCLE.BIN/S-1-5/$RABC.jpg",
        ".thumbnails/small.png",
        "Thumbs.db",
        "album/desktop.ini",
        ".DS_Store",
    ):
        path = folders.backgrounds / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no picture")
    (folders.backgrounds / "System Volume Information").mkdir(mode=0)
    inventory = scanned(folders)
    assert len(inventory.sources.backgrounds) == 2
    assert said(inventory.warnings) == [
        (
            "backgrounds: 6 files left out, in system folders: "
            "#recycle, $RECYCLE.BIN, .thumbnails, @eaDir, __MACOSX"
        )
    ]


@pytest.mark.parametrize("suffix", ["heic", "HEIF", "hif", "avif"])
def test_a_phones_formats_are_not_left_out(folders: SourceFolders, suffix: str) -> None:
    (folders.backgrounds / f"phone.{suffix}").write_bytes(b"what the decoder will name")
    assert refused(folders).remarks[0].names == (f"phone.{suffix}",)


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


@pytest.mark.parametrize(
    ("threads", "pixels", "expected"), [(1, 10**8, 1), (3, 10**8, 3), (9, 10**8, 9), (9, 1000, 2), (9, 0, 1)]
)
def test_each_file_is_decoded_once_and_no_more_pixels_at_once_than_allowed(
    folders: SourceFolders, threads: int, pixels: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardgen.sources.scanning._PIXELS_AT_ONCE", pixels)
    for number in range(10):
        write_rgb(folders.backgrounds / f"more-{number}.png", opaque(20, 20, number))
        cut_out = np.dstack([opaque(20, 20, number), blob(20, 20)])
        write_rgb(folders.foregrounds / f"more-{number}.png", cut_out)
    guard, inside, most, calls = threading.Lock(), [0], [0], [0]
    together = threading.Event()

    def counting(data: bytes) -> Photograph:
        with guard:
            inside[0] += 1
            calls[0] += 1
            most[0] = max(most[0], inside[0])
            if inside[0] == expected:
                together.set()
        together.wait(1)  # for others, of which none may come beside a large one
        photo = decode(data)
        with guard:
            inside[0] -= 1
        return photo

    monkeypatch.setattr("shardgen.sources.scanning.decode", counting)
    heard: list[tuple[str, int]] = []
    scan(
        folders,
        MaskMode.AUTO,
        partial(halved_to_fit, canvas=CANVAS),
        threads=threads,
        on_file=lambda name, of: heard.append((name, of)),
    )
    assert calls[0] == len(heard) == 24
    assert {of for _, of in heard} == {24}
    assert most[0] == expected


def check(folders: SourceFolders, inventory: Inventory) -> list[str]:
    heard: list[str] = []
    counts = set[int]()

    def on_file(name: str, of: int) -> None:
        heard.append(name)
        counts.add(of)

    check_against_plan(folders.foregrounds, folders.backgrounds, inventory.sources, on_file=on_file)
    assert counts == {len(heard)}
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


def test_a_heic_photograph_is_a_problem_with_what_to_install_where_that_is_missing(
    folders: SourceFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folders.backgrounds / "phone.heic").write_bytes(heic(40, 30))
    assert scanned(folders).sources.backgrounds[-1].name == "phone.heic"
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(SourcesRefused) as refusal:
        scanned(folders)
    (remark,) = refusal.value.remarks
    assert remark.names == ("phone.heic",)
    assert "shardgen[heic]" in remark.hint
