"""Eight processes that claim, record, give back and forget; what each was told, and what the bucket has."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from shardgen.coordination.bucket.objects import Objects
from shardgen.coordination.bucket.protocol import CLAIMS, RECEIPTS, ReceiptKey, VersionKey
from shardgen.coordination.bucket.rows import Version
from shardgen.coordination.bucket.view import BucketView
from shardgen.domain.identifiers import BatchIndex, Fence
from tests import warm
from tests.bucket import proxy
from tests.bucket.proxy import Proxy
from tests.bucket.servers import Store
from tests.conformance.storm import PLAN, Storm, Told, read_told, take_part

PROCESSES, LEASES = 8, 8
CUT_SHARE = 0.1

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("store", ["ministack"], indirect=True)  # the quicker one
def test_in_a_storm_no_slice_is_granted_twice_and_every_receipt_that_was_acknowledged_is_there(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = store.new_url()
    source = random.Random(store.name)  # noqa: S311
    with Proxy(store.port) as wire:
        wire.cuts = proxy.some(CUT_SHARE, source)
        environment = store.environment(wire.port)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        names = [f"w{number}" for number in range(PROCESSES)]
        storms = [
            Storm(
                database=None,
                bucket=url,
                environment=environment,
                name=name,
                told=tmp_path / name,
                leases=LEASES,
            )
            for name in names
        ]
        processes = [warm.context().Process(target=take_part, args=(storm,)) for storm in storms]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * PROCESSES
        objects = Objects.open(url)
        told = [one for storm in storms for one in read_told(storm.told)]
        found = contradictions(objects, told)
        assert wire.cut > 5
    granted = [one for one in told if one.event == "granted"]
    recorded = [one for one in told if one.event == "recorded"]
    assert found == []
    assert len(granted) > PROCESSES * LEASES / 2
    assert max(one.fence for one in granted) > 2  # slices did change hands
    assert len(recorded) > PROCESSES * LEASES / 10


def contradictions(objects: Objects, told: list[Told]) -> list[str]:
    """Where what the processes were told is not what the bucket says."""
    found = []
    granted = Counter((one.shard, one.slice, one.fence) for one in told if one.event == "granted")
    found += [f"{key} was granted {count} times" for key, count in granted.items() if count > 1]
    holder = {(one.shard, one.slice, one.fence): one.worker for one in told if one.event == "granted"}
    written: dict[tuple[int, int, int], str | None] = {}
    for one in objects.listed(CLAIMS):
        key = VersionKey.parse(one.key)
        assert key is not None
        version = Version.model_validate_json(objects.read(one.key) or b"")
        if version.event == "grant":
            written[(*key.slice_id, key.number)] = version.worker
    found += [
        f"{key} was granted to {holder[key]}, {written.get(key)} is written"
        for key in holder
        if holder[key] != written.get(key)
    ]
    said = Counter((one.shard, one.slice, one.fence) for one in told if one.event == "recorded")
    there: Counter[tuple[int, int, int]] = Counter()
    best: dict[BatchIndex, Fence] = {}
    for one in objects.listed(RECEIPTS):
        receipt = ReceiptKey.parse(one.key)
        assert receipt is not None
        place = PLAN.layout.shard_of_batch(receipt.batch), PLAN.layout.slice_of_batch(receipt.batch)
        there[(*place, receipt.fence)] += 1
        best[receipt.batch] = max(receipt.fence, best.get(receipt.batch, receipt.fence))
    found += [
        f"{key}: {said[key]} receipts were acknowledged, {there[key]} are there"
        for key in sorted(said.keys() | there.keys())
        if said[key] != there[key]
    ]
    view = BucketView(PLAN, objects)
    view.look()
    if {batch: key.fence for batch, key in view.winners.items()} != best:
        found.append("a reader sees other winners than the highest fences")
    return found
