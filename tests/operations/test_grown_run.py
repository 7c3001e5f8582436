"""A run whose plan grew: what was made stays, the rest is made, and the new zip begins with the old one."""

from __future__ import annotations

import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from shardgen.artifacts.archive import build_artifact
from shardgen.artifacts.check import examine
from shardgen.artifacts.folder_store import FolderStore
from shardgen.artifacts.marks import read_marks
from shardgen.artifacts.names import ArtifactName
from shardgen.dataset.verify import verify_run, verify_zip
from shardgen.domain.identifiers import BatchIndex, Fence
from shardgen.domain.lease import Attempt
from shardgen.domain.receipt import Receipt
from shardgen.errors import ArtifactCorrupt
from shardgen.operations.plan import draft_plan
from shardgen.operations.rebuild import rebuild
from shardgen.operations.sweep import find_orphans
from shardgen.settings.run_directory import RunDirectory
from tests.dataset.made_runs import MadeRun, batch_content
from tests.dataset.made_runs import make_run as make_made_run
from tests.operations.lost_runs import receipts_of
from tests.photographs import write_photographs
from tests.plans import grown, make_plan
from tests.runs import make_run, plan_run, shardgen


def made_by(run: RunDirectory, zip_name: str) -> tuple[Path, list[Receipt]]:
    """The run to its end: its verified zip and its receipts."""
    for arguments in (("worker",), ("merge", "-o", run.path / zip_name), ("verify",)):
        done = shardgen(arguments[0], run.path, *arguments[1:])
        assert done.returncode == 0, done.stderr
    path = run.path / zip_name
    verified = verify_zip(path, decode=True)
    assert verified.findings == ()
    assert verified.samples == run.plan().samples
    return path, receipts_of(run)


def grow(run: RunDirectory) -> RunDirectory:
    """The run with the photographs that are in its folders by now, its manifest made of its artifacts."""
    folders, planned = run.folders({}), run.plan()
    _, draft = draft_plan(run, folders)
    plan = replace(planned, blocks=run.settings.kind.arrange(run.recipe(planned), draft).blocks)
    assert plan.until(len(planned.blocks)) == planned
    (run.path / "plan.json").write_bytes(plan.canonical_json)
    (run.path / "manifest.sqlite").unlink()
    grown_run = RunDirectory.open(run.path)
    _, found = rebuild(grown_run)
    assert (found.batches, found.refused) == (planned.layout.batch_count, [])
    return grown_run


@pytest.mark.slow
def test_what_was_made_stays_and_the_new_zip_begins_with_the_old_one(tmp_path: Path) -> None:
    run = plan_run(make_run(tmp_path))
    foregrounds, backgrounds = (run.folders({})[kind] for kind in ("foregrounds", "backgrounds"))
    new_foregrounds, new_backgrounds = write_photographs(tmp_path / "new", seed=7)
    zip_path, receipts = made_by(run, "one.zip")
    additions = (
        [(new_foregrounds / "foreground-000.png", foregrounds / "anna.png")],
        [
            (new_foregrounds / "foreground-001.png", foregrounds / "a.png"),
            (new_backgrounds / "background-000.jpg", backgrounds / "a.jpg"),
        ],
    )
    for name, added in zip(("two.zip", "three.zip"), additions, strict=True):
        for source, target in added:
            shutil.copy(source, target)
        run = grow(run)
        later_path, later = made_by(run, name)
        assert later[: len(receipts)] == receipts
        assert len(later) == run.plan().layout.batch_count > len(receipts)
        with zipfile.ZipFile(zip_path) as archive:
            stop = archive.getinfo("labels.csv").header_offset
            labels = archive.read("labels.csv")
        with zipfile.ZipFile(later_path) as archive:
            assert archive.read("labels.csv").startswith(labels)
        assert later_path.read_bytes()[:stop] == zip_path.read_bytes()[:stop]
        zip_path, receipts = later_path, later
    assert run.plan().samples == 3 * 4 * 12


PLAN = grown(
    make_plan(backgrounds=1, foregrounds=2, grid=(5, 1), batch=4, shard_size=8, slice_batches=1), (1, 1)
)


def published(run: MadeRun, batch: int, fingerprint: str) -> tuple[ArtifactName, bytes, Receipt]:
    """An artifact of one batch that carries this fingerprint, with the receipt that a manifest would have."""
    plan, number = run.plan, BatchIndex(batch)
    attempt = Attempt(
        shard=plan.layout.shard_of_batch(number),
        slice=plan.layout.slice_of_batch(number),
        fence=Fence(1),
        worker=run.rows[0].worker,
    )
    data, inside = build_artifact(fingerprint, attempt, [batch_content(plan, batch)])
    name = replace(ArtifactName.of(attempt, range(batch, batch + 1)), random="ffffffff")
    row = next(row for row in run.rows if row.record.batch == batch)
    return name, data, replace(row, artifact=run.store.publish(name, data), record=inside.batches[0])


def test_an_artifact_carries_the_fingerprint_of_the_plan_that_ends_with_its_block(tmp_path: Path) -> None:
    run = make_made_run(PLAN, tmp_path)
    assert PLAN.layout.starts[1].batch == 3
    first, last = PLAN.fingerprints
    assert verify_run(PLAN, run, run.store).findings == ()
    for batch, right, wrong in ((0, first, last), (2, first, last), (3, last, first)):
        name, data, row = published(run, batch, wrong)
        with pytest.raises(ArtifactCorrupt, match="belongs to another plan"):
            examine(PLAN, name, data)
        rows = [row if one.record.batch == batch else one for one in run.rows]
        (found,) = verify_run(PLAN, MadeRun(PLAN, run.store, rows), run.store).findings
        assert (found.batch, found.fact.partition(" (")[0]) == (batch, "belongs to another plan")
        run.store.remove([str(name)])
        name, data, _ = published(run, batch, right)
        assert [receipt.record.batch for receipt in examine(PLAN, name, data)] == [batch]
        run.store.remove([str(name)])


def test_orphans_and_marks_of_before_the_plan_grew_are_still_the_runs(run: RunDirectory) -> None:
    old = run.plan()
    plan = grown(old, (1, 0))
    store = FolderStore(run.artifacts)
    with run.manifest(old) as manifest:
        made = make_made_run(old, run.artifacts)
        swept = find_orphans(plan, manifest, store)
    assert (len(swept.orphans), swept.strangers) == (old.layout.batch_count, [])
    assert made.plan.fingerprint == plan.fingerprints[0]
    store.publish_requeued(
        Fence(3), f'{{"batches":[1],"fence":3,"fingerprint":"{old.fingerprint}"}}'.encode()
    )
    assert read_marks(plan, store).up_to == {1: 3}
