from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

from shardgen.coordination.open import open_run
from shardgen.domain.receipt import ArtifactRef
from shardgen.imaging.codec import decode_encoded
from shardgen.imaging.sheet import SheetSample, small_pictures
from shardgen.operations.page import pictures
from shardgen.operations.page.look import look_once
from shardgen.operations.page.pictures import Album
from shardgen.settings.run_directory import RunDirectory


class Reader:
    """The run's store, whose readings are counted."""

    reads_at_once = 1

    def __init__(self, run: RunDirectory) -> None:
        with open_run(run).records() as recorded:
            self._store = recorded.store
            self.receipts = list(recorded.source.receipts())[::-1]
        self.read_names: list[str] = []

    def read(self, ref: ArtifactRef) -> bytes:
        self.read_names.append(ref.name)
        return self._store.read(ref)

    def fill(self, ref: ArtifactRef, buffer: memoryview) -> None:
        raise AssertionError(ref, buffer)


@pytest.fixture
def reader(finished_run: RunDirectory) -> Reader:
    return Reader(finished_run)


@pytest.fixture
def album(finished_run: RunDirectory) -> Album:
    return Album(finished_run.recipe(finished_run.plan()))


def test_the_newest_samples_are_composite_mask_and_coloured_depth(finished_run: RunDirectory) -> None:
    look = look_once(open_run(finished_run), named="people")
    assert len(look.samples) == len(look.details.newest) == pictures.RECEIPTS
    newest = {
        sample
        for receipt in look.details.newest
        for sample in finished_run.plan().layout.batch_samples(receipt.record.batch)
    }
    assert {one.sample for one in look.samples} <= newest
    for sample in look.samples:
        assert "background-" in sample.made_of
        assert [one.what for one in sample.pictures] == ["composite", "mask", "depth"]
        composite, mask, depth = (decode_encoded(one.data, channels=3) for one in sample.pictures)
        assert max(composite.shape) == max(mask.shape) == max(depth.shape) == 160
        assert set(np.unique(mask)) <= {*range(256)}
        assert (mask.min(), mask.max()) == (0, 255)
        assert len(np.unique(depth.reshape(-1, 3), axis=0)) > 10
        assert [one.media_type for one in sample.pictures] == ["image/jpeg", "image/png", "image/jpeg"]
    keys = [one.key for sample in look.samples for one in sample.pictures]
    assert all(len(key) == 32 for key in keys)


def test_random_weights_are_marked_in_name_and_picture() -> None:
    sample = SheetSample(
        caption="", picture=np.zeros((20, 20, 3), np.uint8), depth=np.zeros((20, 20), np.uint8)
    )
    noise = small_pictures(sample, near_is_dark=False, depth_is_random=True)
    depth = small_pictures(sample, near_is_dark=False, depth_is_random=False)
    assert list(noise) == ["picture", "not depth"]
    assert list(depth) == ["picture", "depth"]
    assert decode_encoded(noise["not depth"], channels=3)[:, :, 0].max() > 150
    assert decode_encoded(depth["depth"], channels=3)[:, :, 0].max() < 30


def test_nothing_is_read_twice_and_nothing_soon_again(
    album: Album, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = album.newest(reader.receipts[4:], reader)
    assert len(reader.read_names) == pictures.RECEIPTS
    assert album.newest(reader.receipts, reader) == first
    monkeypatch.setattr("shardgen.operations.page.pictures.time.monotonic", lambda: 1e12)
    later = album.newest(reader.receipts, reader)
    assert len(reader.read_names) == len(set(reader.read_names)) == pictures.RECEIPTS + 4
    assert later[4:] == first[:2]


def test_large_artifacts_are_read_less_often(
    album: Album, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = sum(one.artifact.size_bytes for one in reader.receipts[4:10])
    monkeypatch.setattr(pictures, "_PACE", size / 100)
    now = 1e6
    monkeypatch.setattr("shardgen.operations.page.pictures.time.monotonic", lambda: now)
    first = album.newest(reader.receipts[4:], reader)
    now += 99
    assert album.newest(reader.receipts, reader) == first == album.samples
    assert len(reader.read_names) == pictures.RECEIPTS
    now += 2
    assert album.newest(reader.receipts, reader) != first


def test_a_damaged_artifact_has_no_pictures_and_hides_no_other(
    album: Album, reader: Reader, finished_run: RunDirectory
) -> None:
    damaged, gone = reader.receipts[0], reader.receipts[1]
    path = finished_run.artifacts / damaged.artifact.name
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    (finished_run.artifacts / gone.artifact.name).unlink()
    wrong = replace(reader.receipts[2], record=replace(reader.receipts[2].record, members_stop=1))
    shown = album.newest([damaged, gone, wrong, *reader.receipts[3:]], reader)
    assert len(shown) == pictures.RECEIPTS - 3


def test_a_huge_artifact_is_not_read(album: Album, reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_MAX_ARTIFACT", 10)
    assert album.newest(reader.receipts, reader) == ()
    assert reader.read_names == []


def test_without_opencv_it_says_why_there_are_none(
    album: Album, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(sys.modules):
        if name.startswith("shardgen.imaging"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert album.newest(reader.receipts, reader) == ()
    assert album.remark.startswith("opencv-python")
