from __future__ import annotations

import hashlib
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from skimage import data

import shardgen as package
from shardgen.errors import InputMissing, PlanConflict, SourcesRefused, StorageFailed, WeightsRefused
from shardgen.imaging.codec import Photograph, decode
from shardgen.imaging.own_masks import Marks, Verdict, judge, own_mask_file, read_marks
from shardgen.imaging.saliency import SaliencyNetwork
from shardgen.operations.cut_out import (
    U2NETP,
    Concern,
    CutOutEvents,
    CutOutRequest,
    CutOuts,
    Kind,
    concerns,
    cut_out_photographs,
    draw_sheet,
)
from shardgen.sources.folder import MAX_FILE_BYTES
from shardgen.storage.files import DiskFiles
from tests import u2netp as released
from tests import warm
from tests.onnx_files import another_network, network_with_external_data
from tests.photographs import blob, colours, write_photographs, write_rgb
from tests.runs import shardgen

ASTRONAUT = cv2.resize(data.astronaut(), (240, 200), interpolation=cv2.INTER_AREA)
ROCKET = cv2.resize(data.rocket(), (320, 214), interpolation=cv2.INTER_AREA)
GRASS = data.grass()[:160, :200]
LEVELS = SaliencyNetwork.levels


def cut(path: Path, model: Path, **more: object) -> CutOuts:
    request = replace(CutOutRequest(path=path, model=model), **more)  # type: ignore[arg-type]
    return cut_out_photographs(request)


def kinds(done: CutOuts) -> dict[str, Kind]:
    return {one.name: one.kind for one in done.outcomes}


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(autouse=True, scope="module")
def quick_network() -> Iterator[None]:
    """The network looks once at each picture, for all tests, and in one thread.

    Tests run side by side; OpenCV's threads would wait for each other's cores.
    """
    seen: dict[tuple[object, ...], NDArray[np.uint8]] = {}

    def levels(network: SaliencyNetwork, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        picture = (network.sha256, pixels.shape, pixels.tobytes())
        if picture not in seen:
            seen[picture] = LEVELS(network, pixels)
        return seen[picture]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shardgen.operations.cut_out.usable_cores", lambda: 1)
        patch.setattr(SaliencyNetwork, "levels", levels)
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One portrait, `anna.jpg`."""
    path = tmp_path / "portraits"
    path.mkdir()
    write_rgb(path / "anna.jpg", ASTRONAUT)
    return path


@pytest.fixture(scope="session")
def made_template(tmp_path_factory: pytest.TempPathFactory, u2netp: Path) -> Path:
    path = tmp_path_factory.mktemp("made")
    write_rgb(path / "anna.jpg", ASTRONAUT)
    cut(path, u2netp)
    return path


@pytest.fixture
def made(folder: Path, made_template: Path) -> Path:
    """The same folder with `anna.mask.png` of our own."""
    shutil.copy2(made_template / "anna.mask.png", folder)
    return folder


def test_a_photograph_without_a_mask_gets_one_and_it_is_made_once(folder: Path, u2netp: Path) -> None:
    assert kinds(cut(folder, u2netp)) == {"anna.jpg": Kind.WRITTEN}
    mask = decode((folder / "anna.mask.png").read_bytes()).pixels
    assert mask.shape == ASTRONAUT.shape
    assert mask[150, 100, 0] > 250  # her suit
    assert mask[5, 230, 0] < 5
    before = (folder / "anna.mask.png").stat()
    assert kinds(cut(folder, u2netp)) == {"anna.jpg": Kind.EARLIER}
    assert (folder / "anna.mask.png").stat().st_mtime_ns == before.st_mtime_ns
    assert sorted(content(folder)) == ["anna.jpg", "anna.mask.png"]


def test_the_same_photograph_gives_the_same_bytes_again(
    made: Path, u2netp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SaliencyNetwork, "levels", LEVELS)  # looks again
    first = (made / "anna.mask.png").read_bytes()
    assert kinds(cut(made, u2netp, overwrite=True)) == {"anna.jpg": Kind.WRITTEN}
    assert (made / "anna.mask.png").read_bytes() == first
    marks = read_marks(first)
    assert marks is not None
    assert marks.photograph == hashlib.sha256((made / "anna.jpg").read_bytes()).hexdigest()
    assert (marks.model, marks.verdict) == (released.SHA256, Verdict.CLEAR)


@pytest.mark.parametrize("name", ["anna.mask.png", "anna.mask.jpg", "anna.MASK.tif"])
def test_a_mask_of_the_users_is_never_replaced(folder: Path, u2netp: Path, name: str) -> None:
    write_rgb(folder / name.lower(), blob(240, 200))
    (folder / name.lower()).rename(folder / name)
    before = content(folder)
    for overwrite in (False, True):
        assert kinds(cut(folder, u2netp, overwrite=overwrite)) == {"anna.jpg": Kind.THEIRS}
    with pytest.raises(SourcesRefused, match="did not make"):
        cut(folder / "anna.jpg", u2netp)
    assert content(folder) == before


def test_a_mask_of_our_own_that_somebody_changed_is_theirs(made: Path, u2netp: Path) -> None:
    path = made / "anna.mask.png"
    with Image.open(path) as image:
        image.load()
        assert image.info["Software"] == "shardgen cut-out"
        image.putpixel((0, 0), 255)
        info = PngInfo()
        for key, value in image.info.items():
            if isinstance(key, str) and isinstance(value, str):
                info.add_text(key, value)
        image.save(path, pnginfo=info)
    changed = path.read_bytes()
    assert kinds(cut(made, u2netp, overwrite=True)) == {"anna.jpg": Kind.THEIRS}
    assert path.read_bytes() == changed


def test_a_link_in_the_place_of_a_mask_is_theirs(made: Path, u2netp: Path) -> None:
    elsewhere = made.parent / "elsewhere.png"
    (made / "anna.mask.png").rename(elsewhere)
    before = elsewhere.read_bytes()
    for target in (elsewhere, made.parent / "nowhere.png"):
        (made / "anna.mask.png").symlink_to(target)
        assert kinds(cut(made, u2netp, overwrite=True)) == {"anna.jpg": Kind.THEIRS}
        (made / "anna.mask.png").unlink()
    assert elsewhere.read_bytes() == before
    assert not (made.parent / "nowhere.png").exists()


def test_any_changed_bit_makes_a_mask_file_somebody_elses() -> None:
    levels = blob(30, 20)
    marks = Marks(model="a" * 64, photograph="b" * 64, verdict=Verdict.UNCERTAIN)
    file = own_mask_file(levels, marks)
    assert read_marks(file) == marks
    np.testing.assert_array_equal(decode(file).pixels[:, :, 0], levels)
    for at in range(len(file)):
        changed = bytearray(file)
        changed[at] ^= 0x10
        assert read_marks(bytes(changed)) is None, at
        assert read_marks(file[:at]) is None, at
    assert read_marks(file + b"x") is None


def test_a_mask_that_comes_while_ours_is_made_stays(folder: Path, u2netp: Path) -> None:
    class Rival(DiskFiles):
        def fsync(self, descriptor: int) -> None:
            (folder / "anna.mask.png").write_bytes(b"theirs")

    done = cut_out_photographs(CutOutRequest(path=folder, model=u2netp), files=Rival())
    assert kinds(done) == {"anna.jpg": Kind.THEIRS}
    assert (folder / "anna.mask.png").read_bytes() == b"theirs"
    assert sorted(content(folder)) == ["anna.jpg", "anna.mask.png"]


@pytest.mark.slow
def test_a_mask_that_another_cut_out_was_faster_with_is_none_of_the_users(folder: Path, u2netp: Path) -> None:
    class Rival(DiskFiles):
        def fsync(self, descriptor: int) -> None:
            cut(folder, u2netp)

    (outcome,) = cut_out_photographs(CutOutRequest(path=folder, model=u2netp), files=Rival()).outcomes
    assert (outcome.kind, outcome.verdict, outcome.is_outdated) == (Kind.EARLIER, Verdict.CLEAR, False)


def test_a_mask_of_our_own_that_is_exchanged_while_it_is_made_anew_stays(made: Path, u2netp: Path) -> None:
    class Rival(DiskFiles):
        def fsync(self, descriptor: int) -> None:
            (made / "anna.mask.png").write_bytes(b"theirs")

    request = CutOutRequest(path=made, model=u2netp, overwrite=True)
    assert kinds(cut_out_photographs(request, files=Rival())) == {"anna.jpg": Kind.THEIRS}
    assert (made / "anna.mask.png").read_bytes() == b"theirs"


def test_one_photograph_by_name_has_its_mask_made_anew_and_no_other(made: Path, u2netp: Path) -> None:
    for suffix in (".jpg", ".mask.png"):
        shutil.copy(made / f"anna{suffix}", made / f"bert{suffix}")
    bert = (made / "bert.mask.png").stat().st_mtime_ns
    write_rgb(made / "anna.jpg", ROCKET)
    (outcome,) = cut(made / "anna.jpg", u2netp).outcomes
    assert (outcome.name, outcome.kind) == ("anna.jpg", Kind.WRITTEN)
    assert decode((made / "anna.mask.png").read_bytes()).pixels.shape == ROCKET.shape
    assert (made / "bert.mask.png").stat().st_mtime_ns == bert


def test_a_mask_of_an_earlier_photograph_of_that_name_is_told(made: Path, u2netp: Path) -> None:
    write_rgb(made / "anna.jpg", ROCKET)
    assert concerns(cut(made, u2netp)) == {Concern.OUTDATED: ["anna.jpg"]}
    assert concerns(cut(made, u2netp, overwrite=True)) == {Concern.UNCERTAIN: ["anna.jpg"]}


@pytest.mark.slow
def test_the_mask_of_a_turned_photograph_is_turned_too(made: Path, u2netp: Path) -> None:
    upright = decode((made / "anna.mask.png").read_bytes()).pixels[:, :, 0] >= 128
    turns = {3: 2, 6: 1}
    for orientation, quarters in turns.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = np.ascontiguousarray(np.rot90(ASTRONAUT, quarters))
        Image.fromarray(stored).save(made / f"{orientation}.jpg", exif=exif, quality=95)
    cut(made, u2netp)
    for orientation in turns:
        photo = decode((made / f"{orientation}.jpg").read_bytes())
        mask = decode((made / f"{orientation}.mask.png").read_bytes()).pixels[:, :, 0] >= 128
        assert mask.shape == photo.pixels.shape[:2] == upright.shape
        assert _overlap(mask, upright) > 0.95


def _overlap(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return float((one & other).sum() / (one | other).sum())


def test_nothing_is_written_where_nothing_stands_out(folder: Path, u2netp: Path) -> None:
    write_rgb(folder / "anna.jpg", GRASS)
    told: list[tuple[str, int]] = []
    events = CutOutEvents(on_file=lambda name, of: told.append((name, of)))
    done = cut_out_photographs(CutOutRequest(path=folder, model=u2netp), events=events)
    assert concerns(done) == {Concern.EMPTY: ["anna.jpg"]}
    assert told == [("anna.jpg", 1)]
    assert sorted(content(folder)) == ["anna.jpg"]


def test_a_mask_that_is_empty_when_it_is_made_anew_is_gone(made: Path, u2netp: Path) -> None:
    write_rgb(made / "anna.jpg", GRASS)
    assert kinds(cut(made / "anna.jpg", u2netp)) == {"anna.jpg": Kind.EMPTY}
    assert sorted(content(made)) == ["anna.jpg"]


@pytest.mark.slow
def test_alpha_counts_only_where_it_cuts_something_out(folder: Path, u2netp: Path) -> None:
    write_rgb(folder / "cut.png", np.dstack([ASTRONAUT, blob(240, 200)]))
    write_rgb(folder / "opaque.png", np.dstack([ASTRONAUT, np.full((200, 240), 255, np.uint8)]))
    found = kinds(cut(folder, u2netp))
    assert (found["cut.png"], found["opaque.png"]) == (Kind.ALPHA, Kind.WRITTEN)
    assert "cut.mask.png" not in content(folder)


def test_one_mask_is_not_made_for_two_photographs(folder: Path, u2netp: Path) -> None:
    write_rgb(folder / "anna.png", ROCKET)
    write_rgb(folder / "bert.jpg", ASTRONAUT)
    done = cut(folder, u2netp)
    assert kinds(done) == {"bert.jpg": Kind.WRITTEN}
    (problem,) = done.problems
    assert problem.names == ("anna.jpg", "anna.png")
    assert cut(folder / "anna.png", u2netp).problems == done.problems
    assert "anna.mask.png" not in content(folder)


def test_levels_are_judged_by_what_becomes_of_them() -> None:
    photo = Photograph(pixels=colours(np.random.default_rng(1), 60, 50), alpha=None, notes=())
    clear = np.where(blob(60, 50) > 127, 255, 0).astype(np.uint8)
    doubtful = np.where(clear > 0, 180, 60).astype(np.uint8)
    speck = np.zeros((50, 60), np.uint8)
    speck[10:13, 10:13] = 255  # opening removes it
    two = np.zeros((50, 60), np.uint8)
    two[5:45, 5:30] = two[10:20, 40:55] = 255
    full = np.full((50, 60), 255, np.uint8)
    found = [judge(photo, levels) for levels in (clear, doubtful, two, speck, full)]
    assert found == [Verdict.CLEAR, Verdict.UNCERTAIN, Verdict.UNCERTAIN, Verdict.EMPTY, Verdict.FULL]


@pytest.mark.slow
def test_what_asks_for_a_look_is_listed_again_after_a_resume(folder: Path, u2netp: Path) -> None:
    write_rgb(folder / "rocket.jpg", ROCKET)
    write_rgb(folder / "grass.png", GRASS)
    first = concerns(cut(folder, u2netp))
    assert first == {Concern.EMPTY: ["grass.png"], Concern.UNCERTAIN: ["rocket.jpg"]}
    again = cut(folder, u2netp)
    assert kinds(again)["rocket.jpg"] is Kind.EARLIER
    assert concerns(again) == first


@pytest.mark.slow
def test_a_sheet_shows_masks_made_now_and_earlier_and_what_has_none(
    made: Path, u2netp: Path, tmp_path: Path
) -> None:
    write_rgb(made / "grass.png", GRASS)
    sheet = tmp_path / "sheet.png"
    assert draw_sheet(cut(made, u2netp, sheet=sheet), sheet) == 2
    first = sheet.read_bytes()
    assert draw_sheet(cut(made, u2netp, sheet=sheet), sheet) == 2
    assert sheet.read_bytes() == first
    with pytest.raises(PlanConflict, match="lies in a folder of photographs") as caught:
        cut(made, u2netp, sheet=made / "sheet.png")
    assert caught.value.hint == "choose another folder with --sheet"


@pytest.mark.parametrize(
    "call",
    [
        "link",
        *(pytest.param(one, marks=pytest.mark.slow) for one in ("create", "write", "fsync", "fsync_folder")),
        pytest.param("unlink", marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_killed_at_any_step_it_goes_on_and_nothing_is_half_there(
    folder: Path, u2netp: Path, tmp_path: Path, call: str
) -> None:
    write_rgb(folder / "bert.jpg", ASTRONAUT[:, ::-1].copy())
    killed = warm.run("tests.operations.killed_cut_out", [folder, u2netp, call, "2"])
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    left = content(folder)
    assert read_marks(left["anna.mask.png"]) is not None
    assert "bert.mask.png" not in left or read_marks(left["bert.mask.png"]) is not None
    done = cut(folder, u2netp)
    assert kinds(done)["anna.jpg"] is Kind.EARLIER
    after = content(folder)
    assert sorted(after) == ["anna.jpg", "anna.mask.png", "bert.jpg", "bert.mask.png"]
    assert after["anna.mask.png"] == left["anna.mask.png"]


@pytest.mark.slow
def test_a_plan_takes_what_was_cut_out(folder: Path, u2netp: Path, tmp_path: Path) -> None:
    _, scenes = write_photographs(tmp_path / "sources", backgrounds=2)
    (folder / "sub").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(ASTRONAUT))).save(folder / "sub" / "turned.jpg", exif=exif)
    run = tmp_path / "run"
    for command in (
        ("init", run, "--foregrounds", folder, "--backgrounds", scenes),
        ("cut-out", folder, "--model", u2netp, "--sheet", tmp_path / "sheet.png"),
    ):
        said = shardgen(*command)
        assert said.returncode == 0, said.stderr
    assert "masks written" in said.stdout
    settings = run / "shardgen.toml"
    settings.write_text(settings.read_text().replace('weights = "nyu"', 'weights = "small"'))
    planned = shardgen("plan", run)
    assert planned.returncode == 0, planned.stderr
    plan = (run / "plan.json").read_text()
    assert '"name":"anna.mask.png"' in plan
    assert '"name":"sub/turned.mask.png"' in plan


@pytest.mark.slow
def test_what_cannot_be_read_is_named_and_the_rest_is_done(folder: Path, u2netp: Path) -> None:
    (folder / "bad.jpg").write_bytes((folder / "anna.jpg").read_bytes()[:2000])
    write_rgb(folder / "zoe.jpg", ROCKET)
    said = shardgen("cut-out", folder, "--model", u2netp)
    assert said.returncode == 16
    assert f"  - {folder}/bad.jpg: " in said.stderr
    assert f"warning: {folder}/zoe.jpg: the mask is uncertain, or covers several things" in said.stderr
    assert {"anna.mask.png", "zoe.mask.png"} <= set(content(folder))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a.heic", "HEIC"),
        ("a.jpg", "more than"),
        (f"{'a' * 235}.jpg", "too long"),
        ("anna.jpg", "truncated JPEG"),
    ],
    ids=["no reader", "too large", "too long a name", "exchanged, and damaged"],
)
@pytest.mark.slow
def test_a_photograph_that_gets_no_mask_costs_no_other_its_own(
    made: Path, u2netp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, reason: str
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    photograph = (made / "anna.jpg").read_bytes()
    (made / "zoe.jpg").write_bytes(photograph)
    bad = made / name
    if bad.suffix == ".heic":
        bad.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    elif reason == "more than":
        with bad.open("wb") as file:
            file.truncate(MAX_FILE_BYTES + 1)
    else:
        bad.write_bytes(photograph[:2000] if bad.name == "anna.jpg" else photograph)
    done = cut(made, u2netp)
    (problem,) = done.problems
    assert problem.names == (name,)
    assert reason in problem.reason
    assert problem.hint
    assert kinds(done)["zoe.jpg"] is Kind.WRITTEN
    assert draw_sheet(done, tmp_path / "sheet.png") == len(done.outcomes)


@pytest.mark.slow
def test_python_is_told_what_was_written_what_needs_a_look_and_what_was_left_out(
    made: Path, u2netp: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_rgb(made / "grass.png", GRASS)
    (made / "bad.jpg").write_bytes((made / "anna.jpg").read_bytes()[:2000])
    (made / "zoe.jpg").write_bytes((made / "anna.jpg").read_bytes())
    seen: list[package.Progress] = []
    found = package.cut_out(made, model=u2netp, sheet=tmp_path / "sheet.png", on_progress=seen.append)
    assert (found.written, found.kept) == (("zoe.jpg",), ("anna.jpg",))
    assert [(one.names, one.reason) for one in found.warnings] == [(("grass.png",), Concern.EMPTY.words)]
    assert [one.names for one in found.left_out] == [("bad.jpg",)]
    assert found.sheet == tmp_path / "sheet.png"
    assert found.sheet.is_file()
    assert [(one.doing, one.done, one.total, one.thing) for one in seen] == [
        ("cutting out", done, 4, "photograph") for done in (1, 2, 3, 4)
    ]
    assert repr(found) == "<CutOutResult: 1 mask written, 1 photograph kept, 1 to look at, 1 file left out>"
    assert package.cut_out(made / "zoe.jpg", model=u2netp).written == ("zoe.jpg",)
    with pytest.raises(InputMissing, match="no such folder"):
        package.cut_out(tmp_path / "nobody")
    assert capfd.readouterr() == ("", "")


def test_a_photograph_that_is_damaged_before_the_sheet_is_drawn_is_named(
    made: Path, u2netp: Path, tmp_path: Path
) -> None:
    done = cut(made, u2netp)
    (made / "anna.jpg").write_bytes((made / "anna.jpg").read_bytes()[:2000])
    with pytest.raises(SourcesRefused, match=r"anna\.jpg: truncated"):
        draw_sheet(done, tmp_path / "sheet.png")


def test_a_folder_that_nothing_is_missing_in_needs_no_network(folder: Path, tmp_path: Path) -> None:
    write_rgb(folder / "anna.mask.png", blob(240, 200))
    assert kinds(cut(folder, tmp_path / "none.onnx")) == {"anna.jpg": Kind.THEIRS}


def test_the_released_network_is_pinned_and_comes_from_its_author(u2netp: Path) -> None:
    assert U2NETP.url == "https://github.com/danielgatis/rembg/releases/download/v0.0.0/u2netp.onnx"
    assert U2NETP.size_bytes == u2netp.stat().st_size == 4_574_861
    assert U2NETP.sha256 == hashlib.sha256(u2netp.read_bytes()).hexdigest()


def test_the_released_network_is_taken_from_the_cache_unless_it_was_changed(
    folder: Path, u2netp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHARDGEN_CACHE", str(tmp_path / "cache"))
    cached = tmp_path / "cache" / "u2netp.onnx"
    cached.parent.mkdir()
    changed = bytearray(u2netp.read_bytes())
    changed[3_000_000] ^= 1  # in a weight: as good a network as any
    cached.write_bytes(changed)
    with pytest.raises(WeightsRefused) as caught:
        cut_out_photographs(CutOutRequest(path=folder))
    assert caught.value.hint == f"rm -f {cached}; shardgen weights fetch u2netp"
    cached.write_bytes(u2netp.read_bytes())
    assert kinds(cut_out_photographs(CutOutRequest(path=folder))) == {"anna.jpg": Kind.WRITTEN}


@pytest.mark.slow
def test_another_network_of_the_family_is_taken_after_a_trial(
    folder: Path, u2netp: Path, tmp_path: Path
) -> None:
    changed = bytearray(u2netp.read_bytes())
    changed[3_000_000] ^= 1
    (tmp_path / "mine.onnx").write_bytes(changed)
    cut(folder, tmp_path / "mine.onnx")
    marks = read_marks((folder / "anna.mask.png").read_bytes())
    assert marks is not None
    assert marks.model == hashlib.sha256(changed).hexdigest()


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (b"", "cannot read it"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"\x89HDF\r\n\x1a\n" + bytes(500), "cannot read it"),
        (another_network(), "not a U²-Net: 1 outputs"),
        (another_network(7), "not a U²-Net: 7 outputs, the first of 1x3x320x320"),
        (network_with_external_data("anna.jpg"), "in other files"),
    ],
    ids=["empty", "web page", "HDF5", "another network", "seven outputs", "external data"],
)
def test_a_file_that_is_no_such_network_is_refused(
    folder: Path, tmp_path: Path, model: bytes, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardgen.operations.cut_out.try_to_read", lambda _module, _path: "")
    monkeypatch.chdir(folder)
    (tmp_path / "model.onnx").write_bytes(model)
    with pytest.raises(WeightsRefused, match=says) as caught:
        cut(folder, tmp_path / "model.onnx")
    assert "model.onnx" in str(caught.value)
    assert caught.value.hint
    assert sorted(content(folder)) == ["anna.jpg"]


@pytest.mark.slow
def test_a_network_cut_short_is_refused_in_the_same_words_by_trial_and_reader(
    folder: Path, u2netp: Path, tmp_path: Path
) -> None:
    (tmp_path / "model.onnx").write_bytes(u2netp.read_bytes()[:3_000_000])
    with pytest.raises(WeightsRefused, match="OpenCV cannot read it"):
        cut(folder, tmp_path / "model.onnx")


def test_a_network_that_ends_the_process_which_reads_it_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cv2.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "model.onnx").write_bytes(another_network())
    with pytest.raises(WeightsRefused, match="ended with SIGSEGV"):
        cut(folder, tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("nobody", "no such folder or photograph"),
        ("portraits/anna.txt", "not a photograph by its name"),
        ("portraits/anna.mask.png", "a mask file"),
        ("empty", "no photographs in this folder"),
        ("run", "a run directory"),
    ],
)
def test_what_is_no_folder_of_photographs_is_refused(folder: Path, path: str, says: str) -> None:
    for name in ("empty", "run"):
        (folder.parent / name).mkdir()
    (folder.parent / "run" / "shardgen.toml").touch()
    (folder / "anna.txt").touch()
    (folder / "anna.mask.png").touch()
    with pytest.raises(InputMissing, match=says) as caught:
        cut(folder.parent / path, Path("none.onnx"))
    assert caught.value.hint


def test_a_full_disk_leaves_nothing_half_there(folder: Path, u2netp: Path) -> None:
    class Full(DiskFiles):
        def write(self, descriptor: int, data: bytes | memoryview) -> None:
            super().write(descriptor, data[:100])
            raise OSError(28, "No space left on device")

    with pytest.raises(StorageFailed, match="No space left"):
        cut_out_photographs(CutOutRequest(path=folder, model=u2netp), files=Full())
    assert sorted(content(folder)) == ["anna.jpg"]
