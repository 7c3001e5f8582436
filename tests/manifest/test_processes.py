from __future__ import annotations

import multiprocessing
from collections import Counter
from pathlib import Path

from shardgen.domain.identifiers import WorkerId
from shardgen.manifest.leases import NoLease
from shardgen.manifest.manifest import Manifest, Place, create_manifest
from tests.manifest.conftest import POLICY
from tests.plans import make_plan

PLAN = make_plan(backgrounds=10, foregrounds=10, shard_size=1000, batch=4, slice_batches=1)  # 500 slices


def _lease_all(place: Place, name: str, found: Path) -> None:
    with Manifest(place, PLAN) as manifest, found.open("w", encoding="utf-8") as lines:
        while not isinstance(lease := manifest.lease(WorkerId(name), POLICY), NoLease):
            lines.write(f"{lease.shard}/{lease.slice}/{lease.fence}\n")


def test_three_processes_never_get_the_same_slice(tmp_path: Path) -> None:
    place = Place(url="sqlite:///manifest.sqlite", run_dir=tmp_path)
    create_manifest(place, PLAN)
    context = multiprocessing.get_context("spawn")
    files = [tmp_path / f"found-{number}" for number in range(3)]
    processes = [context.Process(target=_lease_all, args=(place, file.name, file)) for file in files]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    granted = Counter(line for file in files for line in file.read_text(encoding="utf-8").splitlines())
    assert len(granted) == 500
    assert set(granted.values()) == {1}
