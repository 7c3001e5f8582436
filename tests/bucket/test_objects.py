from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from obstore.store import MemoryStore

from shardgen.coordination.bucket.objects import Objects
from tests.bucket.conftest import Servers
from tests.bucket.servers import SERVERS

MEMORY = "memory"
_PAGE = 1_000


@pytest.fixture(
    params=[MEMORY, *(pytest.param(one, marks=pytest.mark.slow) for one in SERVERS)],
)
def objects(
    request: pytest.FixtureRequest, bucket_servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Objects]:
    if request.param == MEMORY:
        yield Objects(MemoryStore(), MEMORY)
        return
    server = bucket_servers(request.param)
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    yield Objects.open(server.new_url())


def test_what_was_created_stays_until_it_is_removed(objects: Objects) -> None:
    assert objects.read("claims/1.json") is None
    assert objects.size("claims/1.json") is None
    assert objects.create("claims/1.json", b"mine")
    assert not objects.create("claims/1.json", b"yours")
    assert objects.create("claims/1.json", b"mine")  # as a reply that was lost would look
    assert objects.read("claims/1.json") == b"mine"
    assert objects.size("claims/1.json") == 4
    objects.remove(["claims/1.json", "claims/none.json"])
    assert objects.listed("claims") == []
    assert objects.create("claims/1.json", b"yours")


def test_a_key_that_is_written_again_has_another_tag(objects: Objects) -> None:
    objects.write("workers/w.json", b"1")
    (first,) = objects.listed("workers")
    tag = objects.write("workers/w.json", b"2")
    (second,) = objects.listed("workers")
    assert (first.key, first.size_bytes) == (second.key, second.size_bytes) == ("workers/w.json", 1)
    assert first.e_tag != second.e_tag == tag


def test_of_eight_threads_one_creates_a_key(objects: Objects) -> None:
    keys = [f"claims/{number:03d}.json" for number in range(40)]
    won: dict[str, list[int]] = {key: [] for key in keys}
    barrier = threading.Barrier(8)

    def take_part(me: int) -> None:
        for key in keys:
            barrier.wait(60)
            if objects.create(key, f"of {me}".encode()):
                won[key].append(me)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(take_part, range(8)))
    assert {len(winners) for winners in won.values()} == {1}
    assert {key: objects.read(key) for key in keys} == {key: f"of {won[key][0]}".encode() for key in keys}


def test_listing_is_ascending_paged_and_goes_on_behind_a_key(objects: Objects) -> None:
    keys = sorted(f"receipts/{number:08d}.f00000001.json" for number in range(_PAGE + 5))
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda key: objects.create(key, b""), keys))
    objects.write("receipts-of-others/1.json", b"")  # begins alike, and lies elsewhere
    pages = list(objects.pages("receipts"))
    assert [len(page) for page in pages] == [_PAGE, 5]
    assert [one.key for page in pages for one in page] == keys
    for after, expected in [
        (keys[700], keys[701:]),
        ("receipts/00000700", keys[700:]),  # as a batch's receipts begin
        (keys[-1], []),
        ("receipts/a", []),
    ]:
        assert [one.key for one in objects.listed("receipts", after=after)] == expected
    assert objects.requests.counted()["listed"] >= 6


def test_what_may_take_long_has_a_client_that_waits_long() -> None:
    patient, quick = MemoryStore(), MemoryStore()
    objects = Objects(patient, MEMORY, quick)
    assert objects.create("large", bytes(1 << 20))
    assert objects.create("small", b"1")
    objects.write("w", b"1")
    assert [one.key for one in objects.listed("")] == ["small", "w"]  # of the quick one
    assert objects.read("small") is None
    assert objects.read("large") == bytes(1 << 20)
