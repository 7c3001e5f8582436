from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from shardgen.artifacts.store import ArtifactReader
from shardgen.dataset import read_ahead
from shardgen.dataset.export.driver import ExportRequest, export
from shardgen.dataset.export.sources import RunSource
from shardgen.dataset.merge import MergeInputs, merge
from shardgen.dataset.read_ahead import ReadAhead
from shardgen.dataset.verify import verify_run
from shardgen.domain.receipt import ArtifactRef
from shardgen.errors import ArtifactCorrupt
from tests.dataset.made_runs import MadeRecipe, MadeRun, make_run
from tests.plans import make_plan
from tests.runs import sha256_of

PLAN = make_plan(shard_size=50, batch=8, slice_batches=4)
ANNA = "foregrounds/fg_001.png"


class Far:
    """A store that is far away: it notes what is read, by which threads, and how much is read at once."""

    def __init__(self, store: ArtifactReader, at_once: int = 4) -> None:
        self.reads_at_once = at_once
        self.started: list[str] = []
        self.threads: set[str] = set()
        self.waits_for: Callable[[ArtifactRef], None] = lambda _ref: None
        self._store = store

    def read(self, ref: ArtifactRef) -> bytes:
        self.started.append(ref.name)
        self.threads.add(threading.current_thread().name)
        self.waits_for(ref)
        return self._store.read(ref)

    def fill(self, ref: ArtifactRef, buffer: memoryview) -> None:
        buffer[:] = self.read(ref)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeRun:
    return make_run(PLAN, tmp_path_factory.mktemp("made") / "artifacts", dead=[3, 21])


def inputs_of(run: MadeRun, store: ArtifactReader, **options: object) -> MergeInputs:
    inputs = MergeInputs(recipe=MadeRecipe(run.plan), source=run, store=store, allow_dead_letters=True)
    return replace(inputs, **options)  # type: ignore[arg-type]


def refs_of(run: MadeRun) -> list[ArtifactRef]:
    return [row.artifact for row in run.receipts()]


@pytest.mark.parametrize("exclude", [frozenset[str](), frozenset({ANNA})], ids=["all", "excluding"])
def test_a_merge_from_afar_has_the_same_bytes_and_reads_each_artifact_once(
    made: MadeRun, tmp_path: Path, exclude: frozenset[str]
) -> None:
    """Of an artifact that is kept in part the sums are counted again, from the same bytes."""
    expected = merge(inputs_of(made, made.store, exclude=exclude), tmp_path / "near.zip")
    far = Far(made.store)
    merge(inputs_of(made, far, exclude=exclude), tmp_path / "far.zip")
    assert sha256_of(tmp_path / "far.zip") == sha256_of(expected.path)
    assert len(far.started) == len(set(far.started)) > 4
    assert all(name.startswith("read-ahead") for name in far.threads)
    assert len(far.threads) > 1


def test_an_export_from_afar_has_the_same_files_and_reads_nothing_that_is_there(
    made: MadeRun, tmp_path: Path
) -> None:
    request = ExportRequest(format="webdataset", shard_size=16)
    export(RunSource(inputs_of(made, made.store)), tmp_path / "near", request)
    far = Far(made.store)
    export(RunSource(inputs_of(made, far)), tmp_path / "far", request)

    def files(name: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}

    assert files("far") == files("near")
    assert len(far.started) == len(set(far.started)) == PLAN.layout.batch_count
    victim = sorted(tmp_path.glob("far/*.tar"))[2]
    victim.unlink()
    again = Far(made.store)
    export(RunSource(inputs_of(made, again)), tmp_path / "far", request)
    assert files("far") == files("near")
    assert 1 <= len(again.started) <= 4


def test_what_is_wrong_is_found_where_it_would_be_found_one_by_one(made: MadeRun, tmp_path: Path) -> None:
    copy = make_run(PLAN, tmp_path / "artifacts", dead=[3, 21])
    victims = [refs_of(copy)[place].name for place in (6, 9)]
    for name in victims:
        path = copy.store.root / name
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    near = verify_run(PLAN, copy, copy.store)
    far = verify_run(PLAN, copy, Far(copy.store))
    assert (far, [found.subject for found in far.findings]) == (near, victims)
    with pytest.raises(ArtifactCorrupt, match=victims[0]):
        merge(inputs_of(copy, Far(copy.store)), tmp_path / "out.zip")
    assert not [path for path in tmp_path.iterdir() if "zip" in path.name]
    assert not [one for one in threading.enumerate() if one.name.startswith("read-ahead")]


@pytest.mark.parametrize(("at_once", "limit", "ahead"), [(4, 1 << 30, 4), (100, 3, 3), (4, 0, 1)])
def test_it_runs_ahead_by_so_many_artifacts_and_bytes(
    made: MadeRun, monkeypatch: pytest.MonkeyPatch, at_once: int, limit: int, ahead: int
) -> None:
    refs = [replace(ref, size_bytes=1) for ref in refs_of(made)]
    monkeypatch.setattr(read_ahead, "AHEAD_BYTES", limit)
    far = Far(made.store, at_once)
    monkeypatch.setattr(far, "read", lambda _ref: b"x")
    held = []
    with ReadAhead(far) as store:
        for ref in store.over(refs, lambda ref: ref):
            assert store.read(ref) == b"x"
            held.append(len(store._coming))
    assert (len(held), max(held)) == (len(refs), ahead)


def test_reads_overlap_and_the_order_of_use_stays(made: MadeRun) -> None:
    """The first read waits until the third has begun: read one by one this would never end."""
    refs, third = refs_of(made), threading.Event()
    far = Far(made.store)

    def wait(ref: ArtifactRef) -> None:
        if ref == refs[2]:
            third.set()
        if ref == refs[0]:
            assert third.wait(30)

    far.waits_for = wait
    with ReadAhead(far) as store:
        used = [(ref, len(store.read(ref))) for ref in store.over(refs, lambda ref: ref)]
    assert used == [(ref, ref.size_bytes) for ref in refs]


def test_a_store_at_hand_starts_no_thread_and_is_asked_only_when_something_is_used(made: MadeRun) -> None:
    far = Far(made.store, at_once=1)
    with ReadAhead(far) as store:
        for number, ref in enumerate(store.over(refs_of(made), lambda ref: ref)):
            assert len(far.started) == number
            store.fill(ref, memoryview(bytearray(ref.size_bytes)))
    assert far.threads == {threading.current_thread().name}
