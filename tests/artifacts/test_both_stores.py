"""What both stores promise, whatever they keep artifacts in: a folder, and the objects of a bucket."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Barrier

import pytest
from obstore.store import MemoryStore

from shardgen.artifacts.folder_store import FolderStore
from shardgen.artifacts.names import ArtifactName
from shardgen.artifacts.store import ArtifactStore, FoundFile, refuse_changed
from shardgen.coordination.artifact_folder import claim_folder
from shardgen.coordination.bucket.artifacts import BucketStore
from shardgen.coordination.bucket.objects import Objects
from shardgen.domain.identifiers import Fence, ShardIndex
from shardgen.domain.receipt import ArtifactRef
from shardgen.domain.steps import BatchStep, Step
from shardgen.errors import ArtifactCorrupt, ArtifactMissing, PlanConflict, ReceiptConflict, StorageFailed
from tests.bucket.servers import SERVERS, Store
from tests.plans import make_plan

LAYOUT = make_plan(backgrounds=2, foregrounds=1, grid=(2, 2), shard_size=4, batch=2).layout
NAME = ArtifactName(
    shard=ShardIndex(0), batches=range(1, 2), fence=Fence(1), worker="0abc1234", random="deadbeef"
)


class Place:
    """Where a store is; `put` writes past it, `other()` is the same place as another process opens it."""

    def __init__(self, kind: str, folder: Path, objects: Objects | None = None) -> None:
        self.objects = objects or Objects(MemoryStore(), "memory")
        self.folder = folder / "artifacts"
        self.prefix = None if kind == "folder" else "artifacts/" if kind == "below" else ""

    def other(self) -> ArtifactStore:
        return FolderStore(self.folder) if self.prefix is None else BucketStore(self.objects, self.prefix)

    def put(self, path: str, data: bytes) -> None:
        if self.prefix is not None:
            self.objects.write(f"{self.prefix}{path}", data)
            return
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


@pytest.fixture(
    params=["folder", "bucket", "below", *(pytest.param(one, marks=pytest.mark.slow) for one in SERVERS)]
)
def place(
    request: pytest.FixtureRequest,
    bucket_servers: Callable[[str], Store],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Place:
    objects = None
    if request.param in SERVERS:
        server = bucket_servers(request.param)
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        objects = Objects.open(server.new_url())
    place = Place(request.param, tmp_path, objects)
    if place.prefix:  # what lies beside the artifacts is nobody's business
        place.objects.write("claims/00000-00000/00000001.json", b"{}")
        place.objects.write("workers/w.json", b"{}")
    return place


@pytest.fixture
def store(place: Place) -> ArtifactStore:
    store = place.other()
    store.make_identity()
    return store


def test_a_published_artifact_reads_back_whole_and_is_listed(place: Place, store: ArtifactStore) -> None:
    steps: list[Step] = []
    ref = store.publish(NAME, b"content", on_step=steps.append)
    assert ref == ArtifactRef(name=str(NAME), size_bytes=7, sha256=hashlib.sha256(b"content").hexdigest())
    assert steps[-1] is BatchStep.PUBLISHED
    other, buffer = place.other(), bytearray(7)
    other.fill(ref, memoryview(buffer))
    assert (other.read(ref), bytes(buffer), other.read_unrecorded(NAME)) == (b"content",) * 3
    assert (list(other.names()), other.size(str(NAME))) == ([NAME], 7)
    assert other.listing(LAYOUT).files == (FoundFile(path=str(NAME), name=NAME, is_staged=False),)


def test_a_name_in_use_is_refused_and_stays_as_it_is(place: Place, store: ArtifactStore) -> None:
    ref = store.publish(NAME, b"first")
    with pytest.raises(ReceiptConflict, match=r"deadbeef\.zip: exists already"):
        place.other().publish(NAME, b"second")
    assert store.read(ref) == b"first"


@pytest.mark.parametrize("bytes_now", [b"", b"conten", b"contenT", b"content and more"])
def test_bytes_that_a_receipt_does_not_name_are_refused(
    place: Place, store: ArtifactStore, bytes_now: bytes
) -> None:
    ref = store.publish(NAME, b"content")
    place.put(str(NAME), bytes_now)
    buffer = bytearray(7)

    def fill() -> None:
        store.fill(ref, memoryview(buffer))
        refuse_changed(ref, 7, buffer)

    for read in (partial(store.read, ref), fill):
        with pytest.raises(ArtifactCorrupt, match=r"deadbeef\.zip: (is \d+ bytes|sha256 is)") as raised:
            read()
        assert f"is {len(bytes_now)} bytes" in str(raised.value) or len(bytes_now) == 7
        assert raised.value.hint == "shardgen verify RUN_DIR --requeue"


def test_what_is_gone_is_named_and_no_name_leads_out(place: Place, store: ArtifactStore) -> None:
    gone = ArtifactRef(name=str(NAME), size_bytes=7, sha256="0" * 64)
    with pytest.raises(ArtifactMissing, match=r"deadbeef\.zip: is gone"):
        store.read(gone)
    with pytest.raises(StorageFailed, match=r"deadbeef\.zip") as raised:
        store.read_unrecorded(NAME)
    assert isinstance(raised.value.__cause__, FileNotFoundError)
    assert store.size(str(NAME)) is None
    place.put("../secret" if place.prefix is None else "secret", b"content")
    with pytest.raises(ArtifactCorrupt, match="not an artifact's name"):
        store.read(replace(gone, name="../secret"))


def test_names_come_shard_by_shard_and_sorted_without_strangers(place: Place, store: ArtifactStore) -> None:
    """More than a page of them, in a bucket."""
    names = [
        replace(NAME, shard=ShardIndex(shard), random=f"{number:08x}")
        for shard in (0, 2, 10)
        for number in range(400)
    ]
    for name in reversed(names):
        place.put(str(name), b"content")
    for stranger in ("notes.txt", "shard-00000/notes.txt", "zip/mine", "zip/deep/mine", "shard-00002/sub/x"):
        place.put(stranger, b"mine")
    store.publish_requeued(Fence(1), b"{}")
    assert list(store.names()) == names
    listing = place.other().listing(LAYOUT)
    of_plan = [str(name) for name in names if name.shard == 0]  # the plan has two shards
    assert [found.path for found in listing.files] == of_plan
    assert {name.partition(".f")[0] for name in listing.strangers if "batch-" in name} == {
        "shard-00002/batch-00000001",
        "shard-00010/batch-00000001",
    }
    shown = [name.removesuffix("/") for name in listing.strangers if "batch-" not in name]
    assert sorted(shown) == ["notes.txt", "shard-00000/notes.txt", "shard-00002/sub", "zip"]


def test_marks_read_back_and_no_other_file_is_one(place: Place, store: ArtifactStore) -> None:
    names = sorted(store.publish_requeued(Fence(fence), str(fence).encode()) for fence in (7, 12))
    place.put("requeued/notes.json", b"mine")
    assert list(place.other().requeued()) == [(names[0], b"7"), (names[1], b"12")]
    assert names[0].startswith("requeued/0007-")


@pytest.mark.parametrize("kind", ["folder", "bucket"])
def test_of_many_that_make_an_identity_at_once_all_get_the_same(kind: str, tmp_path: Path) -> None:
    place, start = Place(kind, tmp_path), Barrier(8)

    def make(_number: int) -> str:
        store = place.other()
        assert store.identity() is None
        start.wait(30)
        return store.make_identity()

    with ThreadPoolExecutor(8) as threads:
        found = set(threads.map(make, range(8)))
    assert found == {place.other().identity()}


@pytest.mark.parametrize("content", [b"", b"not hexadecimal\n", b"0" * 32, b"0" * 5000])
def test_an_identity_that_is_none_is_refused_with_what_to_type(place: Place, content: bytes) -> None:
    place.put("folder-id", content)
    with pytest.raises(ArtifactCorrupt, match="folder-id") as raised:
        place.other().identity()
    assert raised.value.hint


class Known:
    """What a manifest knows of its run's artifact folder."""

    def __init__(self, identity: str | None) -> None:
        self._identity = identity

    def identity(self) -> str | None:
        return self._identity

    def claim(self, identity: str) -> str:
        self._identity = self._identity or identity
        return self._identity


def test_a_worker_is_refused_anywhere_but_in_the_runs_place(place: Place, store: ArtifactStore) -> None:
    known = Known(None)
    claim_folder(store, known)  # type: ignore[arg-type]
    assert known.identity() == store.identity()
    claim_folder(place.other(), known)  # type: ignore[arg-type]
    with pytest.raises(PlanConflict, match="is not the folder") as raised:
        claim_folder(place.other(), Known("f" * 32))  # type: ignore[arg-type]
    assert raised.value.hint.startswith("set [artifacts] url to ")


def test_removing_asks_nothing_twice_and_forgives_what_is_gone(place: Place, store: ArtifactStore) -> None:
    other = replace(NAME, random="0badcafe")
    for name in (NAME, other):
        store.publish(name, b"content")
    asked = []
    store.remove(iter([str(NAME), f"{NAME}".replace("dead", "gone")]), on_removed=lambda: asked.append(1))
    assert (len(asked), list(place.other().names())) == (2, [other])


def test_only_a_folder_contains_paths_of_this_machine(place: Place, store: ArtifactStore) -> None:
    assert store.contains(place.folder / "out") == (place.prefix is None)
    assert not store.contains(place.folder.parent)
    assert store.place(NAME).endswith(f"{os.sep}{NAME}")


def test_a_bucket_is_asked_once_for_each_artifact_in_and_out(tmp_path: Path) -> None:
    place = Place("bucket", tmp_path)
    store = place.other()
    ref = store.publish(NAME, b"content")
    store.read(ref)
    list(store.names())
    counted = place.objects.requests.counted()
    assert {kind: number for kind, number in counted.items() if "bytes" not in kind} == {
        "created": 1,
        "read": 1,
        "listed": 1,
    }
