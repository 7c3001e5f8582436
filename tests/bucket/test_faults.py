from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest

from shardgen.coordination.bucket import objects as objects_module
from shardgen.coordination.bucket.objects import Objects
from shardgen.errors import StorageFailed
from tests.bucket import proxy
from tests.bucket.ignoring_server import ignoring_server
from tests.bucket.proxy import Cut, Proxy, Refusal
from tests.bucket.servers import Store

Wires = tuple[Proxy, Objects]
EVERY_REQUEST: list[Callable[[Objects], object]] = [
    lambda objects: objects.create("claims/1.json", b"1"),
    lambda objects: objects.write("workers/w.json", b"1"),
    lambda objects: objects.read("claims/1.json"),
    lambda objects: objects.size("claims/1.json"),
    lambda objects: objects.listed("claims"),
    lambda objects: objects.remove(["claims/1.json"]),
]


@pytest.fixture
def wire(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wires]:
    """A proxy before each server, and the objects behind it."""
    with Proxy(store.port) as opened:
        for name, value in store.environment(opened.port).items():
            monkeypatch.setenv(name, value)
        yield opened, Objects.open(store.new_url())


def test_a_creation_whose_answer_is_lost_is_ones_own(wire: Wires) -> None:
    between, objects = wire
    for how in Cut:
        between.cuts = proxy.once_each(how)
        before = between.cut
        assert objects.create(f"claims/{how.name}.json", b"mine")
        assert between.cut == before + 1
        assert objects.read(f"claims/{how.name}.json") == b"mine"
        assert not objects.create(f"claims/{how.name}.json", b"yours")
        objects.write("workers/w.json", how.name.encode())
        assert objects.read("workers/w.json") == how.name.encode()


def test_another_who_was_first_is_seen_behind_a_lost_answer(wire: Wires) -> None:
    between, objects = wire
    assert objects.create("claims/1.json", b"another's")
    between.cuts = proxy.once_each()
    assert not objects.create("claims/1.json", b"mine")
    assert between.cut == 1


@pytest.mark.parametrize("refusal", [proxy.SLOW_DOWN, proxy.TOO_MANY], ids=lambda one: one.code)
def test_a_store_that_has_too_much_to_do_is_asked_again(
    refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = timedelta(milliseconds=1)
    quickly = {"init_backoff": moment, "max_backoff": moment, "base": 2}
    monkeypatch.setattr(objects_module, "_RETRY", {**objects_module._RETRY, "backoff": quickly})
    with ignoring_server() as server, Proxy(server.port) as between:
        for name, value in server.environment(between.port).items():
            monkeypatch.setenv(name, value)
        objects = Objects.open(server.new_url())
        for request in EVERY_REQUEST:
            between.refuse(refusal, times=20)  # half a minute, with the pauses as they are
            request(objects)
        assert between.refused == 20 * len(EVERY_REQUEST)


def test_a_store_that_cannot_be_reached_for_a_moment_is_asked_again(wire: Wires) -> None:
    between, objects = wire
    assert objects.create("claims/1.json", b"1")
    between.disconnect()
    timer = threading.Timer(0.5, between.connect)
    timer.start()
    assert objects.read("claims/1.json") == b"1"
    timer.join()


@pytest.mark.parametrize(
    "refusal", [proxy.DENIED, proxy.EXPIRED, proxy.UNKNOWN], ids=lambda one: f"{one.status}"
)
def test_refused_credentials_are_named_at_once_whatever_was_asked(
    refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ignoring_server() as server, Proxy(server.port) as between:
        for name, value in server.environment(between.port).items():
            monkeypatch.setenv(name, value)
        objects = Objects.open(server.new_url())
        for number, request in enumerate(EVERY_REQUEST):
            between.refuse(refusal)
            # The answer to HEAD has no body that could say what has expired.
            expected = "credentials" if (refusal, number) != (proxy.EXPIRED, 3) else "400"
            with pytest.raises(StorageFailed, match=expected):
                request(objects)
            assert between.refused == number + 1
            between.refuse(None)
            request(objects)


def test_a_store_that_lists_from_the_start_each_time_is_heard_from_the_key_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with ignoring_server(heeds_offset=False) as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        objects = Objects.open(server.new_url())
        for number in range(5):
            objects.write(f"receipts/{number}.json", b"")
        assert [one.key for one in objects.listed("receipts", after="receipts/2.json")] == [
            "receipts/3.json",
            "receipts/4.json",
        ]
        assert list(objects.pages("receipts", after="receipts/5")) == []
