from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from shardgen.artifacts.zip_records import ZipLimits
from shardgen.dataset import opened_zip, zip_check, zip_writer
from shardgen.dataset.merge import MergeInputs, merge
from shardgen.dataset.verify import Verification, verify_zip
from shardgen.domain.plan import Output
from shardgen.domain.receipt import OutputSums
from shardgen.errors import InputMissing
from tests.dataset.made_runs import MadeRecipe, make_run, sums_of_image, verify_made
from tests.plans import make_plan

PLAN = make_plan(shard_size=50, batch=8, slice_batches=4)
DEAD = [3, *range(16, 24)]


def merged(folder: Path) -> Path:
    run = make_run(PLAN, folder / "artifacts", dead=DEAD)
    inputs = MergeInputs(recipe=MadeRecipe(PLAN), source=run, store=run.store, allow_dead_letters=True)
    return merge(inputs, folder / "out.zip").path


def facts(verification: Verification) -> str:
    return "\n".join(f"{found.subject}: {found.fact}" for found in verification.findings)


@pytest.mark.parametrize("samples_at_once", [1, 5, 1024])
@pytest.mark.parametrize("limits", [ZipLimits(), ZipLimits(offset=5001, members=10), ZipLimits(offset=0)])
def test_a_sound_zip_has_no_findings(
    tmp_path: Path, samples_at_once: int, limits: ZipLimits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opened_zip, "_SAMPLES_AT_ONCE", samples_at_once)
    monkeypatch.setattr(zip_check, "_BYTES_AT_ONCE", 700)
    monkeypatch.setattr(zip_writer, "ZipLimits", lambda: limits)
    progress: list[tuple[int, int]] = []
    path = merged(tmp_path)
    result = verify_made(path, on_progress=lambda done, planned: progress.append((done, planned)))
    assert facts(result) == ""
    assert result.samples == PLAN.samples - len(DEAD)
    assert progress[-1] == (result.samples, PLAN.samples)


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    path = merged(tmp_path)
    whole = path.read_bytes()
    for position in [*range(0, len(whole), 397), len(whole) - 1]:
        flipped = bytearray(whole)
        flipped[position] ^= 0x40
        path.write_bytes(flipped)
        assert verify_zip(path).findings, f"byte {position}"


def test_a_flipped_image_is_named_and_nothing_else(tmp_path: Path) -> None:
    path = merged(tmp_path)
    with zipfile.ZipFile(path) as archive:
        infos = [archive.getinfo(name) for name in ("mask/00000/0000030.png", "fgbg/00000/0000111.jpg")]
    data = bytearray(path.read_bytes())
    for info in infos:
        data[info.header_offset + 30 + len(info.filename) + 5] ^= 1
    path.write_bytes(data)
    result = verify_zip(path)
    assert [found.subject for found in result.findings] == [info.filename for info in infos]


def test_a_damaged_local_header_of_any_last_member_is_named(tmp_path: Path) -> None:
    path = merged(tmp_path)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        infos = [info for info in archive.infolist() if "/" not in info.filename]
    assert {"labels.csv", "metadata.csv", "plan.json", "README.md"} <= {info.filename for info in infos}
    for info in infos:
        place = info.header_offset + 10  # the time of day
        path.write_bytes(whole[:place] + b"\1" + whole[place + 1 :])
        assert info.filename in facts(verify_zip(path))


@pytest.mark.parametrize("size", [0, 10, 1000, -1, -30])
def test_a_truncated_zip_is_found(tmp_path: Path, size: int) -> None:
    path = merged(tmp_path)
    path.write_bytes(path.read_bytes()[:size])
    assert verify_zip(path).findings


Members = list[tuple[str, bytes]]


def rewritten(path: Path, change: Callable[[Members], object], *, gap_before: str = "") -> None:
    """The zip with other members, every header and CRC of them right; and 5 bytes that no member has."""
    with zipfile.ZipFile(path) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    change(members)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members:
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, 0o100644 << 16
            archive.start_dir += 5 * (name == gap_before)  # where the next member goes
            archive.writestr(info, data)
    path.write_bytes(buffer.getvalue())


def replaced(name: str, change: Callable[[bytes], bytes]) -> Callable[[Members], None]:
    def apply(members: Members) -> None:
        place = [member for member, _ in members].index(name)
        members[place] = (name, change(members[place][1]))

    return apply


def doubled(members: Members) -> None:
    members.insert(31, members[30])


def swapped(members: Members) -> None:
    members[30], members[33] = members[33], members[30]


def test_the_rewriting_of_this_test_changes_nothing(tmp_path: Path) -> None:
    path = merged(tmp_path)
    before = path.read_bytes()
    rewritten(path, lambda _members: None)
    assert path.read_bytes() == before


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (lambda members: members.pop(30), "fgbg/00000/0000011.jpg"),
        (doubled, "fgbg/00000/0000011.jpg: is there twice"),
        (swapped, "fgbg/00000/0000011.jpg: is not where it should be"),
        (lambda members: members.insert(0, ("hello.txt", b"hello")), "hello.txt"),
        (lambda members: members.pop(len(members) - 4), "ends with"),
        (replaced("labels.csv", lambda data: data.replace(b"\n5,", b"\n6,")), "labels.csv: has a row '6,"),
        (replaced("labels.csv", lambda data: data[:-9]), "labels.csv"),
        (replaced("labels.csv", lambda data: data + b"more\n"), "behind its last row"),
        (
            replaced("stats.json", lambda data: data.replace(b": 111", b": 110")),
            "stats.json: counts other than 111",
        ),
        (replaced("stats.json", lambda _data: b"[]"), "stats.json: cannot be read"),
        (
            replaced("stats.json", lambda data: data.replace(b"[", b'["x",', 1)),
            "stats.json: cannot be read (has other channels than the plan)",
        ),
        (replaced("dead_letters.csv", lambda data: data.replace(b"3,compose", b"3,bored")), "3,bored"),
        (
            replaced("dead_letters.csv", lambda data: data.replace(b"\n3,compose", b"")),
            "fgbg/00000/0000003.jpg",
        ),
        (replaced("dead_letters.csv", lambda data: data + b"3,compose\n"), "out of order"),
        (replaced("plan.json", lambda data: data.replace(b"bg_001", b"bg_009")), "bg_009"),
        (replaced("plan.json", lambda _data: b"{}"), "not a plan"),
    ],
)
def test_a_zip_that_is_well_formed_but_not_its_plans_is_found(
    tmp_path: Path, change: Callable[[Members], object], fact: str
) -> None:
    path = merged(tmp_path)
    rewritten(path, change)
    assert fact in facts(verify_zip(path))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_every_member_that_is_missing_doubled_or_foreign_is_named(tmp_path: Path) -> None:
    path = merged(tmp_path)
    removed: list[str] = []
    twice: list[str] = []

    def change(members: Members) -> None:
        last = len([name for name, _ in members if "/" in name]) - 1
        removed.extend(members.pop(place)[0] for place in (last, 200, 31, 30, 0))  # the last image, too
        for place in (100, 10):
            twice.append(members[place][0])
            members.insert(place + 7, members[place])
        members.insert(50, ("mask/00000/9999999.png", b"beyond the plan"))
        members.insert(60, ("fgbg/00000/0000003.jpg", b"a dead letter's"))

    rewritten(path, change)
    found = {(finding.subject, finding.fact) for finding in verify_zip(path).findings}
    assert {subject for subject, fact in found if fact == "is missing"} == set(removed)
    assert {subject for subject, fact in found if fact == "is there twice"} == set(twice)
    strangers = {"mask/00000/9999999.png", "fgbg/00000/0000003.jpg"}
    assert {subject for subject, fact in found if "does not belong" in fact} == strangers


def test_an_end_record_that_counts_other_members_is_found(tmp_path: Path) -> None:
    path = merged(tmp_path)
    data = bytearray(path.read_bytes())
    for position in (len(data) - 14, len(data) - 12):
        data[position] ^= 1
    path.write_bytes(data)
    assert "holds 334 images, plan and dead letters say 333" in facts(verify_zip(path))


class ReversedRecipe(MadeRecipe):
    def recount(self, output: Output, data: bytes) -> OutputSums:
        return sums_of_image(output, data[::-1])


def test_statistics_that_are_not_the_images_are_found_when_images_are_decoded(tmp_path: Path) -> None:
    path = merged(tmp_path)
    assert facts(verify_made(path, recipe=ReversedRecipe))
    wrong = replaced("stats.json", lambda data: data.replace(b'"std": [\n      0.', b'"std": [\n      1.'))
    rewritten(path, wrong)
    assert facts(verify_zip(path)) == ""
    assert "not those of the images" in facts(verify_made(path))


def test_a_zip_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InputMissing, match=r"none\.zip"):
        verify_zip(tmp_path / "none.zip")


def test_a_zip_has_no_batches_to_put_back(tmp_path: Path) -> None:
    path = merged(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    result = verify_zip(path)
    assert result.findings
    assert result.bad_batches == ()
