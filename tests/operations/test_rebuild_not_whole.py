from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from shardgen.artifacts import archive, zip_records
from shardgen.artifacts.zip_records import Entry
from shardgen.domain.plan import Plan
from shardgen.operations.rebuild import rebuild
from shardgen.settings.run_directory import RunDirectory
from tests.artifacts.attempts import single
from tests.operations.lost_runs import found_by, publish, receipts_of
from tests.plans import changed, depth_in


def damage_truncate(path: Path, _plan: Plan) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def damage_flip(path: Path, _plan: Plan) -> None:
    data = bytearray(path.read_bytes())
    data[60] ^= 1  # inside the first image
    path.write_bytes(data)


def damage_empty(path: Path, _plan: Plan) -> None:
    path.write_bytes(b"")


def damage_swap(path: Path, plan: Plan) -> None:
    path.write_bytes(single(3, fence=8, worker="c").content(plan)[0])


def damage_other_worker(path: Path, plan: Plan) -> None:
    path.write_bytes(single(2, fence=8, worker="d").content(plan)[0])


def damage_other_fence(path: Path, plan: Plan) -> None:
    path.write_bytes(single(2, fence=7, worker="c").content(plan)[0])


def damage_foreign(path: Path, plan: Plan) -> None:
    other = changed(plan, depth=replace(depth_in(plan), quality=61))
    path.write_bytes(single(2, fence=8, worker="c", claims=other).content(plan)[0])


def damage_slice(path: Path, plan: Plan) -> None:
    path.write_bytes(single(2, fence=8, worker="c", slice=0).content(plan)[0])


def damage_names(path: Path, plan: Plan) -> None:
    """Make an artifact that agrees with itself, but with the members of another plan's formats."""
    data, receipts = single(2, fence=8, worker="c").content(plan)
    forged = data.replace(b".png", b".bmp")
    members = forged[: forged.index(b"receipt.json") - 30]
    digest = hashlib.sha256(members).hexdigest()
    old = receipts[0].record.members_sha256
    path.write_bytes(with_receipt(forged, old.encode(), digest.encode()))


def damage_count(path: Path, plan: Plan) -> None:
    """Make an artifact whose receipt counts a sample of another batch as dead."""
    data, _ = single(2, fence=8, worker="c", dead=(9,)).content(plan)
    path.write_bytes(with_receipt(data, b'"sample":9', b'"sample":1'))


def with_receipt(data: bytes, old: bytes, new: bytes) -> bytes:
    """Change the receipt inside an artifact, its CRCs with it."""
    assert len(old) == len(new)
    start = data.index(b'{"batches"')
    stop = data.index(b"PK\1\2", start)
    before = data[start:stop]
    after = before.replace(old, new)
    assert before != after
    crcs = [zlib.crc32(content).to_bytes(4, "little") for content in (before, after)]
    return data.replace(before, after).replace(crcs[0], crcs[1])


@pytest.mark.parametrize(
    ("damage", "fact"),
    [
        (damage_truncate, ""),
        (damage_flip, "members_sha256"),
        (damage_empty, ""),
        (damage_swap, "another artifact's"),
        (damage_other_worker, "another artifact's"),
        (damage_other_fence, "another artifact's"),
        (damage_foreign, "another plan"),
        (damage_slice, "slice 0, the plan 1"),
        (damage_names, "not those of the plan"),
        (damage_count, "contradicts itself or the plan"),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
@pytest.mark.parametrize("has_lower", [False, True])
def test_an_artifact_that_is_not_whole_is_named_and_the_next_lower_is_taken(
    lost: RunDirectory, damage: Callable[[Path, Plan], None], fact: str, *, has_lower: bool
) -> None:
    plan = lost.plan()
    (other,) = publish(lost, single(3))
    (best,) = publish(lost, single(2, fence=8, worker="c"))
    damage(lost.artifacts / best.artifact.name, plan)
    lower = publish(lost, single(2, fence=5)) if has_lower else []
    found = found_by(lost)
    assert receipts_of(lost) == [*lower, other]
    assert [name for name, _ in found.refused] == [best.artifact.name]
    assert fact in found.refused[0][1]


def test_names_that_the_plan_does_not_have_are_not_taken(lost: RunDirectory) -> None:
    data, _ = single(0).content(lost.plan())
    folder = lost.artifacts / "shard-00000"
    publish(lost, single(4))
    names = [
        "shard-00000/batch-00000005.f0001.aaaaaaaa.00000000.zip",  # a batch of shard 1
        "shard-00000/batch-00000001-00000002.f0001.aaaaaaaa.00000000.zip",  # of two slices
        "shard-00003/batch-00000015.f0001.aaaaaaaa.00000000.zip",  # past the plan's end
        "shard-00002/batch-00000012.f0001.aaaaaaaa.00000000.zip",
    ]
    for name in names:
        (lost.artifacts / name).parent.mkdir(exist_ok=True)
        (lost.artifacts / name).write_bytes(data)
    (folder / "notes.txt").write_text("mine")
    (lost.artifacts / "shard-of-mine").write_text("mine")
    found = found_by(lost)
    assert sorted(name for name, _ in found.refused) == sorted(names)
    assert found.batches == 1


def test_an_artifact_is_taken_apart_only_once(lost: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(lost, *(single(batch) for batch in range(12)))
    read = []
    original = zip_records.read_entries

    def note(directory: bytes) -> Iterator[Entry]:
        read.append(directory)
        return original(directory)

    monkeypatch.setattr(archive, "read_entries", note)
    assert rebuild(lost)[1].batches == 12
    assert len(read) == 12
