from __future__ import annotations

import csv
import io
import json
import random
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shardgen.dataset import bodies
from shardgen.dataset.merge import MergeInputs, MergeResult, merge
from shardgen.dataset.verify import verify_zip
from shardgen.domain.plan import Plan
from shardgen.domain.selection import Ranges, Selection
from shardgen.domain.steps import MergeStep, Step
from shardgen.errors import (
    ArtifactCorrupt,
    InvalidSettings,
    PlanConflict,
    ReceiptConflict,
    RunHasHoles,
    RunIncomplete,
)
from tests.dataset.made_runs import MadeRecipe, MadeRun, image, make_run, sums_of_image, verify_made
from tests.dataset.test_verify_zip import Members, facts, replaced, rewritten
from tests.plans import make_plan
from tests.runs import sha256_of

ANNA, PARK = "foregrounds/fg_001.png", "backgrounds/bg_001.jpg"
# Of 3 backgrounds and 2 foregrounds in 20 places; batches of 10 align with photographs, those of 8 do not.
OF_ANNA = {*range(20, 40), *range(60, 80), *range(100, 120)}
OF_PARK = set(range(40, 80))
DEAD = [3, 21, 25, *range(88, 96)]


def plan_of(batch: int) -> Plan:
    return make_plan(shard_size=50, batch=batch, slice_batches=4)


PLAN = plan_of(8)


def merged(run: MadeRun, output: Path, *exclude: str, partial: bool = False) -> MergeResult:
    inputs = MergeInputs(
        recipe=MadeRecipe(run.plan),
        source=run,
        store=run.store,
        allow_dead_letters=True,
        exclude=frozenset(exclude),
        partial=partial,
    )
    return merge(inputs, output)


def without_batches(run: MadeRun, *batches: int) -> MadeRun:
    rows = [row for row in run.rows if row.record.batch not in batches]
    return MadeRun(run.plan, run.store, rows)


def samples_in(plan: Plan, *batches: int) -> set[int]:
    return {sample for batch in batches for sample in plan.layout.batch_samples(batch)}  # type: ignore[arg-type]


def expect(path: Path, plan: Plan, *, excluded: set[int], pending: set[int], dead: set[int]) -> None:
    """The zip is what these sets say, worked out here from single samples."""
    stored = [s for s in range(plan.samples) if s not in excluded | pending | dead]
    with zipfile.ZipFile(path) as archive:
        images = [name for name in archive.namelist() if "/" in name]
        assert [(name.split("/")[0], int(Path(name).stem)) for name in images] == [
            (output.name, sample) for sample in stored for output in plan.outputs
        ]
        for name in images:
            assert archive.read(name) == image(name.split("/")[0], int(Path(name).stem))
        labels = list(csv.DictReader(io.StringIO(archive.read("labels.csv").decode())))
        assert [int(row["sample"]) for row in labels] == stored
        letters = csv.DictReader(io.StringIO(archive.read("dead_letters.csv").decode()))
        assert [int(row["sample"]) for row in letters] == sorted(dead - excluded - pending)
        stats = json.loads(archive.read("stats.json"))
        for output in plan.outputs:
            parts = [sums_of_image(output, image(output.name, sample)) for sample in stored]
            pixels = sum(part.pixels for part in parts)
            assert (stats[output.name]["images"], stats[output.name]["pixels"]) == (len(stored), pixels)
            for channel in range(output.channels):
                total = sum(part.sum[channel] for part in parts)
                squares = sum(part.squares[channel] for part in parts)
                std = (squares / pixels - (total / pixels) ** 2) ** 0.5
                assert stats[output.name]["mean"][channel] == pytest.approx(total / pixels / 255, rel=1e-12)
                assert stats[output.name]["std"][channel] == pytest.approx(std / 255, rel=1e-9)
        card = archive.read("README.md").decode()
        assert (f"- excluded: {len(excluded)} samples" in card) == bool(excluded)
        assert (f"- pending: {len(pending)} samples" in card) == bool(pending)
        shown = json.loads(archive.read("contact_sheet.png"))
        assert len(shown) == min(20, len(stored))
        assert set(shown) <= set(stored)
        content = json.loads(archive.read("selection.json"))
        found = {key: {s for pair in content[key] for s in range(*pair)} for key in content}
        assert found == {"excluded": excluded, "pending": pending}
        assert archive.namelist()[-8:-1] == [
            *(
                "labels.csv",
                "metadata.csv",
                "stats.json",
                "dead_letters.csv",
                "selection.json",
                "plan.json",
                "README.md",
            ),
        ]
    result = verify_made(path)
    assert facts(result) == ""
    assert result.samples == len(stored)


@pytest.mark.parametrize("piece_bytes", [1000, bodies.PIECE_BYTES])
@pytest.mark.parametrize(("batch", "per_artifact"), [(8, 1), (10, 1), (8, 3)])
@pytest.mark.parametrize(
    ("exclude", "gone", "holes"),
    [
        ((ANNA,), OF_ANNA, ()),
        ((PARK,), OF_PARK, ()),
        ((ANNA, PARK), OF_ANNA | OF_PARK, ()),
        ((), set(), (0,)),
        ((), set(), (4, 5, 6, -1)),
        ((ANNA,), OF_ANNA, (0, 3, 9, -1)),
    ],
)
def test_a_zip_holds_what_the_selection_leaves_and_verify_agrees(
    tmp_path: Path,
    exclude: tuple[str, ...],
    gone: set[int],
    holes: tuple[int, ...],
    batch: int,
    per_artifact: int,
    piece_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bodies, "PIECE_BYTES", piece_bytes)
    plan = plan_of(batch)
    run = make_run(plan, tmp_path / "artifacts", dead=DEAD, per_artifact=per_artifact)
    holes = tuple(hole % plan.layout.batch_count for hole in holes)
    pending = samples_in(plan, *holes) - gone
    result = merged(without_batches(run, *holes), tmp_path / "out.zip", *exclude, partial=bool(holes))
    expect(result.path, plan, excluded=gone, pending=pending, dead=set(DEAD) - gone - pending)
    counts = result.samples_stored, result.dead_letters
    left_out = result.selection.excluded.count, result.selection.pending.count
    assert left_out == (len(gone), len(pending))
    assert sum(counts + left_out) == plan.samples


def test_what_is_excluded_or_wholly_left_out_is_not_read(tmp_path: Path) -> None:
    run = make_run(plan_of(10), tmp_path / "artifacts")
    for row in run.rows:
        if set(run.plan.layout.batch_samples(row.record.batch)) <= OF_ANNA:
            (run.store.root / row.artifact.name).write_bytes(b"gone")
    merged(run, tmp_path / "out.zip", ANNA)


def test_samples_that_are_pending_and_excluded_need_no_partial(tmp_path: Path) -> None:
    run = make_run(plan_of(10), tmp_path / "artifacts", dead=[20])
    run = without_batches(run, 2, 3)
    with pytest.raises(RunIncomplete, match="20 of 120 samples are pending"):
        merged(run, tmp_path / "out.zip")
    result = merged(run, tmp_path / "out.zip", ANNA)
    expect(result.path, run.plan, excluded=OF_ANNA, pending=set(), dead=set())


def test_a_hole_inside_an_artifact_is_left_out(tmp_path: Path) -> None:
    """As a requeue of one batch of a segment leaves it."""
    run = make_run(PLAN, tmp_path / "artifacts", per_artifact=4)
    result = merged(without_batches(run, 1), tmp_path / "out.zip", partial=True)
    expect(result.path, PLAN, excluded=set(), pending=set(range(8, 16)), dead=set())


def test_partial_with_nothing_pending_is_the_whole_data_set(tmp_path: Path) -> None:
    run = make_run(PLAN, tmp_path / "artifacts")
    whole = merged(run, tmp_path / "whole.zip")
    partial = merged(run, tmp_path / "partial.zip", partial=True)
    assert sha256_of(whole.path) == sha256_of(partial.path)
    assert not partial.selection.kinds


def test_the_same_selection_gives_the_same_bytes_however_the_run_went(tmp_path: Path) -> None:
    digests = set()
    for number, per_artifact in enumerate((1, 2, 3)):
        run = make_run(PLAN, tmp_path / str(number), per_artifact=per_artifact, dead=DEAD)
        result = merged(without_batches(run, 0, 4), tmp_path / f"{number}.zip", ANNA, partial=True)
        digests.add(sha256_of(result.path))
    assert len(digests) == 1


def test_receipts_that_come_during_the_merge_change_nothing(tmp_path: Path) -> None:
    whole = make_run(PLAN, tmp_path / "artifacts", dead=DEAD)
    early = without_batches(whole, 1, 11, 16)
    expected = sha256_of(merged(early, tmp_path / "1.zip", partial=True).path)

    def work(step: Step) -> None:
        if step is MergeStep.PLANNED:
            early.rows = whole.rows

    inputs = MergeInputs(
        recipe=MadeRecipe(PLAN), source=early, store=early.store, allow_dead_letters=True, partial=True
    )
    assert sha256_of(merge(inputs, tmp_path / "2.zip", on_step=work).path) == expected
    with pytest.raises(ReceiptConflict, match="changed during the merge"):
        merge(inputs, tmp_path / "3.zip", on_step=lambda _step: early.rows.clear())


def test_letters_recorded_between_two_looks_are_not_counted(tmp_path: Path) -> None:
    whole = make_run(PLAN, tmp_path / "artifacts", dead=DEAD)
    early = without_batches(whole, 11)
    early.dead_letters = whole.dead_letters  # type: ignore[method-assign]
    result = merged(early, tmp_path / "out.zip", partial=True)
    assert result.dead_letters == len(set(DEAD) - samples_in(PLAN, 11))


def test_nothing_to_merge_is_refused(tmp_path: Path) -> None:
    run = make_run(PLAN, tmp_path / "artifacts")
    everybody = ("foregrounds/fg_000.png", ANNA)
    with pytest.raises(RunHasHoles, match="120 excluded"):
        merged(run, tmp_path / "out.zip", *everybody)
    run.rows = []
    with pytest.raises(RunIncomplete, match="none of 120 samples is stored"):
        merged(run, tmp_path / "out.zip", partial=True)
    assert not (tmp_path / "out.zip").exists()


def test_dead_letters_need_to_be_allowed_with_a_selection_too(tmp_path: Path) -> None:
    run = make_run(PLAN, tmp_path / "artifacts", dead=[3, 25])
    inputs = MergeInputs(recipe=MadeRecipe(PLAN), source=run, store=run.store, exclude=frozenset({ANNA}))
    with pytest.raises(RunHasHoles, match="1 of 120 samples are dead"):
        merge(inputs, tmp_path / "out.zip")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("foregrounds/fg_01.png", "did you mean --exclude foregrounds/fg_001.png?"),
        ("people/fg_001.png", "did you mean --exclude foregrounds/fg_001.png?"),
        ("", "backgrounds/NAME or foregrounds/NAME"),
    ],
)
def test_a_name_that_is_no_source_is_refused_with_what_may_be_meant(
    tmp_path: Path, name: str, hint: str
) -> None:
    run = make_run(PLAN, tmp_path / "artifacts")
    with pytest.raises(InvalidSettings, match="no such source") as caught:
        merged(run, tmp_path / "out.zip", name)
    assert hint in caught.value.hint


def test_a_name_without_its_folder_is_understood(tmp_path: Path) -> None:
    run = make_run(PLAN, tmp_path / "artifacts")
    assert merged(run, tmp_path / "out.zip", "fg_001.png").selection.excluded.count == len(OF_ANNA)


@pytest.mark.parametrize("what", ["crc", "digest"])
def test_bytes_of_a_touched_batch_are_checked_as_strongly(tmp_path: Path, what: str) -> None:
    run = make_run(PLAN, tmp_path / "artifacts")
    row = run.rows[2]
    if what == "crc":
        path = run.store.root / row.artifact.name
        path.write_bytes(path.read_bytes().replace(image("mask", 17), b"\0" * len(image("mask", 17))))
    else:
        run.rows[2] = replace(row, record=replace(row.record, members_sha256="0" * 64))
    with pytest.raises(ArtifactCorrupt):
        merged(run, tmp_path / "out.zip", ANNA)


def test_a_zip_is_replaced_only_by_one_that_leaves_out_no_more_kinds(tmp_path: Path) -> None:
    run = make_run(PLAN, tmp_path / "artifacts")
    part = without_batches(run, 5)
    out = tmp_path / "out.zip"
    merged(part, out, ANNA, partial=True)
    merged(part, out, partial=True)
    merged(without_batches(run, 5, 6), out, partial=True)
    with pytest.raises(PlanConflict, match="without excluded samples"):
        merged(run, out, ANNA)
    merged(run, out)
    before = sha256_of(out)
    for refused, exclude in ((part, ()), (run, (ANNA,))):
        with pytest.raises(PlanConflict, match="holds the whole data set of this run") as caught:
            merged(refused, out, *exclude, partial=refused is part)
        assert "-o" in caught.value.hint
    assert sha256_of(out) == before


def test_nobody_who_was_excluded_comes_back_by_the_exclusion_of_another(tmp_path: Path) -> None:
    run = make_run(PLAN, tmp_path / "artifacts")
    out = tmp_path / "out.zip"
    merged(run, out, ANNA)
    with pytest.raises(PlanConflict, match="that it leaves out would come back") as caught:
        merged(run, out, PARK)
    assert "--exclude" in caught.value.hint
    merged(run, out, ANNA, PARK)


def edited(change: Callable[[dict[str, list[list[int]]]], object]) -> Callable[[Members], None]:
    def apply(data: bytes) -> bytes:
        content = json.loads(data)
        change(content)
        return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()

    return replaced("selection.json", apply)


def swapped(content: dict[str, list[list[int]]]) -> None:
    content["excluded"], content["pending"] = content["pending"], content["excluded"]


def whole_again(content: dict[str, list[list[int]]]) -> None:
    content.update(excluded=[], pending=[])


def put(key: str, *pairs: list[Any]) -> Callable[[Members], None]:
    return edited(lambda content: content.update({key: list(pairs)}))


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (edited(lambda c: c["excluded"].pop()), "fgbg/00000/0000100.jpg: is missing"),
        (edited(lambda c: c["excluded"][0].__setitem__(1, 39)), "as excluded, but samples of all its"),
        (edited(lambda c: c["excluded"].append([119, 121])), "overlap, touch or are out of order"),
        (put("excluded", [20, 40], [60, 80], [100, 121]), "outside of the 120 planned"),
        (put("excluded", [-5, -1], [20, 40]), "outside of the 120 planned"),
        (edited(lambda c: c["excluded"].reverse()), "out of order"),
        (put("excluded", [20, 30], [30, 40], [60, 80], [100, 120]), "touch"),
        (put("excluded", [20, 40], [50, 50]), "empty"),
        (put("excluded", [20.0, 40]), "pairs of whole numbers"),
        (put("excluded", [True, 40]), "pairs of whole numbers"),
        (put("pending", [0, 24]), "excluded and pending"),
        (put("pending", [0, 9]), "part of a batch as pending"),
        (put("pending"), "fgbg/00000/0000000.jpg: is missing"),
        (put("pending", [0, 8], [88, 96]), "which is a dead letter"),
        (edited(swapped), "selection.json"),
        (edited(whole_again), "lists nothing"),
        (edited(lambda c: c.pop("pending")), "not the keys"),
        (edited(lambda c: c.update(others=[])), "not the keys"),
        (replaced("selection.json", lambda data: data + b"\n"), "not as merge writes it"),
        (replaced("selection.json", lambda _data: b"["), "selection.json"),
        (replaced("selection.json", lambda _data: b"[" * 100_000), "selection.json"),
        (lambda members: members.pop(len(members) - 4), "images, plan and dead letters say"),
        (lambda members: members.insert(-1, members.pop(len(members) - 4)), "ends with"),
    ],
)
def test_a_selection_that_is_not_the_zips_is_found(
    tmp_path: Path, change: Callable[[Members], object], fact: str
) -> None:
    run = without_batches(make_run(PLAN, tmp_path / "artifacts", dead=DEAD), 0)
    path = merged(run, tmp_path / "out.zip", ANNA, partial=True).path
    rewritten(path, lambda _members: None)
    assert facts(verify_made(path)) == ""
    rewritten(path, change)
    assert fact in facts(verify_zip(path))


def test_every_flipped_byte_of_a_zip_with_a_selection_is_found(tmp_path: Path) -> None:
    run = without_batches(make_run(PLAN, tmp_path / "artifacts"), 3)
    path = merged(run, tmp_path / "out.zip", ANNA, partial=True).path
    whole = path.read_bytes()
    start = whole.index(b'{"excluded"')
    for position in range(start, start + 60):
        flipped = bytearray(whole)
        flipped[position] ^= 1
        path.write_bytes(flipped)
        assert verify_zip(path).findings, f"byte {position}"


def test_a_selection_that_claims_a_huge_plan_is_no_work(tmp_path: Path) -> None:
    """Verify looks at what is there, not at what might have been."""
    plan = make_plan(backgrounds=2000, foregrounds=2000, grid=(50, 50), shard_size=100_000, batch=8)
    selection = Selection(planned=plan.samples, pending=Ranges([(8, plan.samples)]))
    run = MadeRun(plan, make_run(PLAN, tmp_path / "artifacts").store)
    run.publish(range(1), fence=9)
    result = merged(run, tmp_path / "out.zip", partial=True)
    assert result.selection == selection
    assert facts(verify_made(result.path)) == ""


def test_ranges_are_sets_of_numbers() -> None:
    dice = random.Random(5)  # noqa: S311
    for _ in range(300):
        one, two = ({dice.randrange(30) for _ in range(dice.randrange(25))} for _ in range(2))
        first, second = (Ranges.of((n, n + 1) for n in sorted(numbers)) for numbers in (one, two))
        start, stop = sorted(dice.sample(range(30), 2))
        found = {n for pair in first.within(start, stop) for n in range(*pair)}
        assert found == one & set(range(start, stop))
        gaps = {n for pair in first.gaps(start, stop) for n in range(*pair)}
        assert gaps == set(range(start, stop)) - one
        for ranges, numbers in ((first, one), (first | second, one | two), (first - second, one - two)):
            assert [n for n in range(-2, 32) if n in ranges] == sorted(numbers)
            assert ranges.count == len(numbers)
            assert [ranges.nth(place) for place in range(ranges.count)] == sorted(numbers)
            assert ranges.next_gap(start) == next(n for n in range(start, 99) if n not in numbers)
