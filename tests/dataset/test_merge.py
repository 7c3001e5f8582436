from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import shutil
import subprocess
import time
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stream_unzip import stream_unzip

from shardgen.artifacts.zip_records import ZipLimits
from shardgen.dataset import bodies, zip_writer
from shardgen.dataset.merge import CONTACT_SHEET_SAMPLES, MergeInputs, MergeResult, merge
from shardgen.dataset.verify import verify_zip
from shardgen.depth.base import Quality
from shardgen.domain.plan import Plan
from shardgen.domain.steps import MergeStep, Step
from shardgen.errors import (
    ArtifactCorrupt,
    ArtifactMissing,
    CorruptionError,
    PlanConflict,
    ReceiptConflict,
    RunHasHoles,
    RunIncomplete,
    StorageFailed,
)
from shardgen.recipes.base import Files
from shardgen.storage.files import DiskFiles
from tests.artifacts.recorded_files import RecordedFiles
from tests.dataset.made_runs import MadeRecipe, MadeRun, image, make_run
from tests.dataset.test_verify_zip import facts, rewritten
from tests.plans import changed, depth_in, make_plan
from tests.runs import sha256_of

PLAN = make_plan(shard_size=50, batch=8, slice_batches=4)


def merge_run(
    run: MadeRun, output: Path, *, allow: bool = False, files: DiskFiles | None = None
) -> MergeResult:
    inputs = MergeInputs(
        recipe=MadeRecipe(run.plan),
        source=run,
        store=run.store,
        allow_dead_letters=allow,
        files=files or DiskFiles(),
    )
    return merge(inputs, output)


def names(plan: Plan, dead: set[int]) -> list[str]:
    members = []
    for sample in range(plan.samples):
        if sample not in dead:
            members += [
                f"fgbg/00000/{sample:07d}.jpg",
                f"mask/00000/{sample:07d}.png",
                f"depth/00000/{sample:07d}.jpg",
            ]
    tail = [
        "labels.csv",
        "metadata.csv",
        "stats.json",
        "dead_letters.csv",
        "plan.json",
        "README.md",
        "contact_sheet.png",
    ]
    return members + tail


@pytest.mark.parametrize("per_artifact", [1, 3])
def test_a_merged_zip_holds_every_sample_in_order_and_opens_with_zipfile(
    tmp_path: Path, per_artifact: int
) -> None:
    run = make_run(PLAN, tmp_path / "artifacts", per_artifact=per_artifact)
    result = merge_run(run, tmp_path / "out.zip")
    with zipfile.ZipFile(result.path) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == names(PLAN, set())
        for info in archive.infolist():
            assert (info.compress_type, info.flag_bits, info.extra) == (zipfile.ZIP_STORED, 0, b"")
            assert (info.create_system, info.external_attr) == (3, 0o100644 << 16)
            assert info.date_time == (1980, 1, 1, 0, 0, 0)
            assert (info.create_version, info.extract_version) == (20, 20)
        for sample in range(PLAN.samples):
            assert archive.read(f"depth/00000/{sample:07d}.jpg") == image("depth", sample)
        assert archive.read("plan.json") == PLAN.canonical_json
    data = result.path.read_bytes()
    assert result.size_bytes == len(data)
    assert (result.samples_stored, result.dead_letters) == (120, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifacts", "out.zip"]


@pytest.mark.parametrize("is_zip64", [False, True])
def test_a_merged_zip_can_be_read_from_its_first_byte_to_its_last_without_a_directory(
    tmp_path: Path, *, is_zip64: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_zip64:
        monkeypatch.setattr(zip_writer, "ZipLimits", lambda: ZipLimits(offset=5000, members=10))
    result = merge_run(make_run(PLAN, tmp_path / "artifacts"), tmp_path / "out.zip")
    with zipfile.ZipFile(result.path) as archive, result.path.open("rb") as file:
        members = stream_unzip(iter(lambda: file.read(1000), b""))
        found = {name.decode(): b"".join(pieces) for name, _, pieces in members}
        assert found == {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize(("command", "arguments"), [("unzip", ["-tqq"]), ("7z", ["t"])])
@pytest.mark.parametrize("is_zip64", [False, True])
def test_a_merged_zip_passes_other_readers(
    tmp_path: Path, command: str, arguments: list[str], *, is_zip64: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which(command) is None:
        pytest.skip(f"{command} is not installed")
    if is_zip64:
        monkeypatch.setattr(zip_writer, "ZipLimits", lambda: ZipLimits(offset=5000, members=10))
    result = merge_run(make_run(PLAN, tmp_path / "artifacts"), tmp_path / "out.zip")
    answer = subprocess.run([command, *arguments, str(result.path)], check=False, capture_output=True)
    assert answer.returncode == 0, answer.stdout


def test_artifacts_however_grouped_give_the_same_bytes(tmp_path: Path) -> None:
    first = merge_run(make_run(PLAN, tmp_path / "one", per_artifact=1), tmp_path / "1.zip")
    second = merge_run(make_run(PLAN, tmp_path / "three", per_artifact=3), tmp_path / "2.zip")
    again = merge_run(make_run(PLAN, tmp_path / "three-again", per_artifact=3), tmp_path / "3.zip")
    assert sha256_of(first.path) == sha256_of(second.path) == sha256_of(again.path)


def test_pieces_of_any_size_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(PLAN, tmp_path / "artifacts")
    expected = sha256_of(merge_run(run, tmp_path / "1.zip").path)
    monkeypatch.setattr(bodies, "PIECE_BYTES", 1000)
    assert sha256_of(merge_run(run, tmp_path / "2.zip").path) == expected


def test_bytes_that_wait_for_a_slow_disk_stay_what_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that pieces were read into is filled anew, but not before they are written."""

    class SlowFiles(DiskFiles):
        def write(self, descriptor: int, data: bytes | memoryview) -> None:
            time.sleep(0.01)
            super().write(descriptor, data)

    run = make_run(PLAN, tmp_path / "artifacts")
    expected = merge_run(run, tmp_path / "1.zip")
    monkeypatch.setattr(bodies, "PIECE_BYTES", 10_000)
    found = merge_run(run, tmp_path / "2.zip", files=SlowFiles())
    assert sha256_of(found.path) == found.sha256 == expected.sha256


def test_batches_of_an_overtaken_artifact_are_taken_from_the_winner(tmp_path: Path) -> None:
    expected = sha256_of(merge_run(make_run(PLAN, tmp_path / "one"), tmp_path / "1.zip").path)
    run = MadeRun(PLAN, make_run(PLAN, tmp_path / "two").store)
    run.publish(range(4), fence=2, count=range(1, 2))
    run.publish(range(1), fence=3)
    run.publish(range(2, 4), fence=3)
    run.publish(range(4, 7), fence=2, count=range(4, 6))
    run.publish(range(6, 7), fence=3)
    for batch in range(7, PLAN.layout.batch_count, 1):
        run.publish(range(batch, batch + 1), fence=2)
    assert sha256_of(merge_run(run, tmp_path / "2.zip").path) == expected


def test_dead_letters_are_listed_and_everything_else_is_there(tmp_path: Path) -> None:
    dead = {0, 9, 10, *range(16, 24), 119}
    run = make_run(PLAN, tmp_path / "artifacts", dead=sorted(dead))
    with pytest.raises(RunHasHoles, match="12 of 120") as raised:
        merge_run(run, tmp_path / "out.zip")
    assert "--allow-dead-letters" in raised.value.hint
    assert not (tmp_path / "out.zip").exists()
    result = merge_run(run, tmp_path / "out.zip", allow=True)
    with zipfile.ZipFile(result.path) as archive:
        assert archive.namelist() == names(PLAN, dead)
        listed = archive.read("dead_letters.csv").decode()
        labels = list(csv.DictReader(io.StringIO(archive.read("labels.csv").decode())))
        stats = json.loads(archive.read("stats.json"))
    assert listed == "sample,reason\n" + "".join(f"{sample},compose\n" for sample in sorted(dead))
    assert [int(row["sample"]) for row in labels] == sorted(set(range(120)) - dead)
    assert stats["mask"]["images"] == result.samples_stored == 108
    assert result.dead_letters == 12


def test_statistics_in_the_zip_are_those_of_its_own_images(tmp_path: Path) -> None:
    result = merge_run(make_run(PLAN, tmp_path / "artifacts"), tmp_path / "out.zip")
    with zipfile.ZipFile(result.path) as archive:
        stats = json.loads(archive.read("stats.json"))
        values: list[int] = []
        for name in archive.namelist():
            if name.startswith("mask/"):
                data = archive.read(name)
                values += data[0 : len(data) // 3 * 3 : 3]
    mean = sum(values) / len(values) / 255
    deviation = (sum((value / 255 - mean) ** 2 for value in values) / len(values)) ** 0.5
    assert stats["mask"]["mean"] == pytest.approx([mean], rel=1e-12)
    assert stats["mask"]["std"] == pytest.approx([deviation], rel=1e-12)
    assert stats["mask"]["pixels"] == len(values)


def test_the_contact_sheet_gets_samples_that_cover_the_plan_or_the_next_ones_stored(tmp_path: Path) -> None:
    seen: list[tuple[int, Files]] = []

    class Looking(MadeRecipe):
        def contact_sheet(self, samples: Sequence[tuple[int, Files]]) -> bytes:
            seen.extend(samples)
            return b"png"

    wanted = sorted(Looking(PLAN).to_look_at(CONTACT_SHEET_SAMPLES))
    dead = [wanted[2], wanted[2] + 1, wanted[5]]
    run = make_run(PLAN, tmp_path / "artifacts", dead=dead)
    inputs = MergeInputs(recipe=Looking(PLAN), source=run, store=run.store, allow_dead_letters=True)
    merge(inputs, tmp_path / "out.zip")
    stored = sorted(set(range(PLAN.samples)) - set(dead))
    assert [sample for sample, _ in seen] == sorted({next(s for s in stored if s >= one) for one in wanted})
    for sample, files in seen:
        assert files == {output.name: image(output.name, sample) for output in PLAN.outputs}


def test_a_gap_is_refused_with_the_number_of_pending_samples(tmp_path: Path) -> None:
    run = make_run(PLAN, tmp_path / "artifacts")
    run.rows = [row for row in run.rows if row.record.batch not in (3, 14)]
    with pytest.raises(
        RunIncomplete, match=r"16 of 120 samples are pending.*2 of 17 batches.*first is 3"
    ) as raised:
        merge_run(run, tmp_path / "out.zip")
    assert "shardgen run" in raised.value.hint
    assert not (tmp_path / "out.zip").exists()


def test_an_empty_run_is_refused(tmp_path: Path) -> None:
    run = make_run(PLAN, tmp_path / "artifacts")
    run.rows = []
    with pytest.raises(RunIncomplete, match="120 of 120"):
        merge_run(run, tmp_path / "out.zip")


def test_two_receipts_of_one_batch_are_refused(tmp_path: Path) -> None:
    run = make_run(PLAN, tmp_path / "artifacts")
    run.rows.append(run.rows[3])
    with pytest.raises(ReceiptConflict, match="batch 3"):
        merge_run(run, tmp_path / "out.zip")


def test_a_receipt_that_counts_other_images_is_refused(tmp_path: Path) -> None:
    run = make_run(PLAN, tmp_path / "artifacts")
    record = run.rows[2].record
    mask = replace(record.sums["mask"], images=7)
    sums = {**record.sums, "mask": mask}
    run.rows[2] = replace(run.rows[2], record=replace(record, sums=sums))
    with pytest.raises(ReceiptConflict, match="batch 2"):
        merge_run(run, tmp_path / "out.zip")


def damage(run: MadeRun, what: str) -> str:
    """Damage the sixth artifact; returns its name."""
    name = run.rows[5].artifact.name
    path = run.store.root / name
    data = bytearray(path.read_bytes())
    match what:
        case "flip":
            data[len(data) // 2] ^= 0x10
            path.write_bytes(data)
        case "truncate":
            path.write_bytes(data[:-1])
        case "swap":
            path.write_bytes((run.store.root / run.rows[4].artifact.name).read_bytes())
        case "delete":
            path.unlink()
    return name


@pytest.mark.parametrize("what", ["flip", "truncate", "swap", "delete"])
def test_a_damaged_artifact_is_named_and_no_zip_appears(tmp_path: Path, what: str) -> None:
    run = make_run(PLAN, tmp_path / "artifacts")
    name = damage(run, what)
    with pytest.raises(CorruptionError, match=name) as raised:
        merge_run(run, tmp_path / "out.zip")
    assert isinstance(raised.value, ArtifactMissing if what == "delete" else ArtifactCorrupt)
    assert "verify" in raised.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["artifacts"]


@pytest.mark.parametrize("row", [0, -1])
def test_one_changed_byte_of_an_image_is_found_by_the_digest_in_any_artifact(
    tmp_path: Path, row: int
) -> None:
    run = make_run(PLAN, tmp_path / "artifacts")
    name = run.rows[row].artifact.name
    data = bytearray((run.store.root / name).read_bytes())
    data[60] ^= 1  # of the first image
    (run.store.root / name).write_bytes(data)
    with pytest.raises(ArtifactCorrupt, match=f"{name}: sha256 is"):
        merge_run(run, tmp_path / "out.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["artifacts"]


def test_an_artifact_whose_members_are_another_batchs_is_named_although_its_sha256_agrees(
    tmp_path: Path,
) -> None:
    run = make_run(PLAN, tmp_path / "artifacts")
    run.rows[5] = replace(run.rows[5], artifact=run.rows[4].artifact)
    run.rows[4] = replace(run.rows[4], artifact=run.rows[3].artifact)
    with pytest.raises(ArtifactCorrupt, match="batch-00000003"):
        merge_run(run, tmp_path / "out.zip")


@pytest.mark.parametrize("part", ["local header", "directory"])
def test_an_artifact_with_a_wrong_header_is_named_although_its_sha256_agrees(
    tmp_path: Path, part: str
) -> None:
    run = make_run(PLAN, tmp_path / "artifacts")
    artifact = run.rows[5].artifact
    path = run.store.root / artifact.name
    data = bytearray(path.read_bytes())
    data[4 if part == "local header" else data.index(b"PK\1\2") + 6] ^= 1
    path.write_bytes(data)
    forged = replace(artifact, sha256=hashlib.sha256(data).hexdigest())
    run.rows[5] = replace(run.rows[5], artifact=forged)
    with pytest.raises(ArtifactCorrupt, match=artifact.name):
        merge_run(run, tmp_path / "out.zip")


@pytest.mark.parametrize("content", [b"", b"my holiday", b"PK\5\6" + bytes(18)])
def test_a_file_that_is_no_data_set_is_not_replaced(tmp_path: Path, content: bytes) -> None:
    run = make_run(PLAN, tmp_path / "artifacts")
    (tmp_path / "out.zip").write_bytes(content)
    with pytest.raises(PlanConflict, match=r"out\.zip"):
        merge_run(run, tmp_path / "out.zip")
    assert (tmp_path / "out.zip").read_bytes() == content


def test_a_foreign_zip_with_a_plan_json_of_its_own_is_not_replaced(tmp_path: Path) -> None:
    run = make_run(PLAN, tmp_path / "artifacts")
    with zipfile.ZipFile(tmp_path / "out.zip", "w") as archive:
        archive.writestr("plan.json", PLAN.canonical_json)
    with pytest.raises(PlanConflict):
        merge_run(run, tmp_path / "out.zip")


def test_a_zip_that_an_earlier_version_merged_is_told_and_replaced(tmp_path: Path) -> None:
    run = make_run(PLAN, tmp_path / "artifacts")
    output = merge_run(run, tmp_path / "dataset.zip").path
    whole = output.read_bytes()
    rewritten(output, lambda members: members.pop([name for name, _ in members].index("metadata.csv")))
    assert "an earlier version merged it, so merge it again" in facts(verify_zip(output))
    merge_run(run, output)
    assert output.read_bytes() == whole


def test_another_plans_zip_is_not_replaced_and_the_same_plans_is(tmp_path: Path) -> None:
    run = make_run(PLAN, tmp_path / "artifacts")
    first = merge_run(run, tmp_path / "out.zip")
    inode, before = first.path.stat().st_ino, sha256_of(first.path)
    assert sha256_of(merge_run(run, tmp_path / "out.zip").path) == before
    assert first.path.stat().st_ino != inode
    other = make_run(make_plan(shard_size=50, batch=9), tmp_path / "others")
    with pytest.raises(PlanConflict, match="another plan"):
        merge_run(other, tmp_path / "out.zip")


def test_too_little_disk_is_said_before_the_start_with_the_number_of_bytes(tmp_path: Path) -> None:
    class FullDisk(RecordedFiles):
        def free_bytes(self, folder: Path) -> int:
            self.asked = folder
            return 5000

    files = FullDisk()
    run = make_run(PLAN, tmp_path / "artifacts")
    with pytest.raises(StorageFailed, match=r"needs [\d,]+ bytes free on its disk, there are 5,000"):
        merge_run(run, tmp_path / "out.zip", files=files)
    assert files.calls == []
    assert files.asked == tmp_path


@pytest.mark.parametrize("call", ["create", "write", "fsync", "rename"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_during_the_merge_leaves_nothing_and_the_next_merge_succeeds(
    tmp_path: Path, call: str, number: int
) -> None:
    run = make_run(PLAN, tmp_path / "artifacts")
    with pytest.raises(StorageFailed, match=r"out\.zip"):
        merge_run(run, tmp_path / "out.zip", files=RecordedFiles(fail=call, errno=number))
    assert [path.name for path in tmp_path.iterdir()] == ["artifacts"]
    merge_run(run, tmp_path / "out.zip")


def test_a_disk_that_fails_at_the_very_last_write_leaves_nothing(tmp_path: Path) -> None:
    run, files = make_run(PLAN, tmp_path / "artifacts"), RecordedFiles()
    merge_run(run, tmp_path / "out.zip", files=files).path.unlink()
    writes = sum(call.startswith("write ") for call in files.calls)
    with pytest.raises(StorageFailed, match=r"out\.zip"):
        merge_run(run, tmp_path / "out.zip", files=RecordedFiles(fail="write", errno=5, after=writes - 1))
    assert [path.name for path in tmp_path.iterdir()] == ["artifacts"]


def test_the_zip_is_synced_before_it_gets_its_name_and_the_folder_after(tmp_path: Path) -> None:
    files = RecordedFiles()
    steps: list[Step] = []

    def on_step(step: Step) -> None:
        steps.append(step)
        files.calls.append(step.value)

    run = make_run(PLAN, tmp_path / "artifacts")
    inputs = MergeInputs(
        recipe=MadeRecipe(PLAN), source=run, store=run.store, contact_sheet=False, files=files
    )
    merge(inputs, tmp_path / "out.zip", on_step=on_step)
    assert steps == list(MergeStep)
    after = [call.partition(" ")[0] for call in files.calls[files.calls.index("directory-written") :]]
    assert after == [
        "directory-written",
        "fsync",
        "synced",
        "rename",
        "fsync_folder",
        "renamed",
    ]
    assert files.calls[-2] == f"fsync_folder {tmp_path.name}"


def test_what_a_killed_merge_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    run = make_run(PLAN, tmp_path / "artifacts")
    (tmp_path / ".out.zip.0123abcd.part").write_bytes(b"half")
    (tmp_path / ".out.zip.mine.part").write_bytes(b"not ours")
    merge_run(run, tmp_path / "out.zip")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.zip.mine.part", "artifacts", "out.zip"]


def test_receipts_that_change_during_the_merge_are_noticed(tmp_path: Path) -> None:
    run = make_run(PLAN, tmp_path / "artifacts")

    def requeue(step: Step) -> None:
        if step is MergeStep.PLANNED:
            del run.rows[-1]

    inputs = MergeInputs(recipe=MadeRecipe(PLAN), source=run, store=run.store, contact_sheet=False)
    with pytest.raises(ReceiptConflict, match="changed during the merge"):
        merge(inputs, tmp_path / "out.zip", on_step=requeue)
    assert not (tmp_path / "out.zip").exists()


def test_the_card_says_loudly_that_random_depth_is_noise(tmp_path: Path) -> None:
    depth = depth_in(PLAN)
    plan = changed(
        PLAN, depth=replace(depth, weights=replace(depth.weights, name="random:64", quality=Quality.NOISE))
    )
    for number, (made, is_loud) in enumerate([(PLAN, False), (plan, True)]):
        result = merge_run(make_run(made, tmp_path / str(number)), tmp_path / f"{number}.zip")
        with zipfile.ZipFile(result.path) as archive:
            card = archive.read("README.md").decode()
        assert ("NOISE, NOT DEPTH" in card) == is_loud
        assert made.fingerprint in card


def test_the_cards_python_reads_the_zip_it_lies_in(tmp_path: Path) -> None:
    result = merge_run(make_run(PLAN, tmp_path / "artifacts"), tmp_path / "dataset.zip")
    with zipfile.ZipFile(result.path) as archive:
        card = archive.read("README.md").decode()
    code = card.partition("```python\n")[2].partition("```")[0]
    code = (
        code.replace("from PIL import Image\n", "")
        .replace("Image.open(", "(")
        .replace('"dataset.zip"', repr(str(result.path)))
    )
    scope: dict[str, Any] = {}
    exec(compile(code, "card", "exec"), scope)  # noqa: S102
    assert scope["row"]["sample"] == str(PLAN.samples - 1)
    assert set(scope["images"]) == {f"{output.name}_file_name" for output in PLAN.outputs}
