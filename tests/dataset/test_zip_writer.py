from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from shardgen.artifacts.check import stored_samples
from shardgen.dataset.bodies import BodyReader
from shardgen.dataset.member_table import MemberTable
from shardgen.dataset.output import PLAN, TAIL_MEMBERS, read_member, read_tail
from shardgen.dataset.zip_writer import FinalZip, Spool
from shardgen.domain.plan import Plan
from shardgen.storage.files import DiskFiles
from tests.dataset.made_runs import image, make_run
from tests.plans import make_plan

FOUR_GIB = 1 << 32
SMALL = make_plan(batch=8)


def written_behind(start: int, plan: Plan, folder: Path) -> Path:
    """A zip whose first member starts at that byte of a sparse file."""
    run = make_run(plan, folder / "artifacts")
    path, table, files = folder / "out.zip", MemberTable(plan), DiskFiles()
    descriptor = files.create(path)
    with (
        Spool(folder) as directory,
        FinalZip(files, descriptor, table=table, directory=directory) as archive,
    ):
        os.ftruncate(descriptor, start)
        os.lseek(descriptor, start, os.SEEK_SET)
        archive.size = start
        reader = BodyReader(run.store, table, archive)
        for receipt in run.receipts():
            reader.add(receipt.artifact, [receipt.record], stored_samples(plan, [receipt]), facts=False)
        reader.flush()
        for name in TAIL_MEMBERS:
            archive.add(name, name.encode())
        archive.finish()
    files.close(descriptor)
    return path


def test_offsets_beyond_4_gib_stand_in_a_zip64_extra_and_only_those(tmp_path: Path) -> None:
    path = written_behind(FOUR_GIB - 5000, SMALL, tmp_path)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        infos = archive.infolist()
        assert archive.read("mask/00000/0000119.png") == image("mask", 119)
    offsets = [info.header_offset for info in infos]
    assert offsets[0] == FOUR_GIB - 5000
    assert offsets[-1] > FOUR_GIB
    for info in infos:
        is_far = info.header_offset >= FOUR_GIB - 1
        assert (len(info.extra), info.extract_version) == ((12, 45) if is_far else (0, 20))


def test_the_tail_of_a_zip_beyond_4_gib_is_found_without_its_directory(tmp_path: Path) -> None:
    path = written_behind(FOUR_GIB, SMALL, tmp_path)
    files = DiskFiles()
    descriptor = files.open(path)
    tail = read_tail(descriptor, files.size(descriptor), files=files)
    assert tuple(tail.entries) == TAIL_MEMBERS
    assert tail.directory.members == 3 * SMALL.samples + len(TAIL_MEMBERS)
    assert read_member(descriptor, tail.entries[PLAN], files=files) == b"plan.json"
    files.close(descriptor)


@pytest.mark.slow
def test_65_535_members_and_more_get_zip64_end_records(tmp_path: Path) -> None:
    plan = make_plan(backgrounds=11, foregrounds=20, grid=(10, 10), batch=500, slice_batches=4)
    assert 3 * plan.samples + len(TAIL_MEMBERS) >= 65_535
    path = written_behind(0, plan, tmp_path)
    with path.open("rb") as file:
        file.seek(-22 - 20 - 56, os.SEEK_END)
        assert file.read(4) == b"PK\6\6"
    with zipfile.ZipFile(path) as archive:
        assert len(archive.infolist()) == 3 * plan.samples + len(TAIL_MEMBERS)
        assert archive.read("depth/00002/0021999.jpg") == image("depth", 21_999)
