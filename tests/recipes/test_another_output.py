from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from shardgen.domain import plan as domain
from shardgen.domain.identifiers import SampleIndex
from shardgen.domain.plan import Output, Plan
from shardgen.operations.merge import merge_run
from shardgen.operations.plan import make_plan
from shardgen.operations.verify import check, check_run
from shardgen.recipes import registry
from shardgen.recipes.base import Beside, Card, Encoded, Folders, Recipe, SizeEstimate, Station
from shardgen.settings.run_directory import RunDirectory
from shardgen.worker.worker import Ending, Worker, WorkerOptions
from tests.logged import logged
from tests.text_recipe import Text, TextDocument, TextMaker, TextRecipe, TextTables

SETTINGS = """
[recipe]
kind = "text"
[text]
lines = "lines"
times = 2
[shards]
size = 8
slice_batches = 2
batch = 3
"""
LINES = ("one", "two", "three", "four", "five", "six")


class LoudDocument(TextDocument):
    """The document, with one output more."""

    @property
    def outputs(self) -> tuple[Output, ...]:
        said, back = super().outputs
        return said, replace(said, name="loud"), back


class LoudTables(TextTables):
    """The settings make that document."""

    def document(self, planned: domain.Document | None) -> LoudDocument:
        return LoudDocument(times=self.text.times)


class LoudMaker(TextMaker):
    """Its file and its sums."""

    def encode(self, sample: SampleIndex, prepared: str, computed: str) -> Encoded:
        encoded = super().encode(sample, prepared, computed)
        return replace(
            encoded,
            files={**encoded.files, "loud": prepared.upper().encode()},
            sums={**encoded.sums, "loud": encoded.sums["said"]},
        )


class LoudRecipe(TextRecipe):
    """Its line in the card."""

    def card(self) -> Card:
        card = super().card()
        return replace(card, outputs={**card.outputs, "loud": "the line in capitals"})

    def open_maker(self, station: Station) -> LoudMaker:
        return LoudMaker(self)


class Loud(Text):
    """The same kind, some versions later."""

    tables = LoudTables
    document = LoudDocument

    def recipe(self, plan: Plan, beside: Beside | None = None) -> Recipe:
        return LoudRecipe(plan, beside)

    def estimate(self, recipe: Recipe, folders: Folders, *, at_hand: object = None) -> SizeEstimate:
        estimate = super().estimate(recipe, folders)
        return replace(estimate, outputs={**estimate.outputs, "loud": 20.0})


@pytest.fixture(autouse=True)
def _forget_the_kind() -> Iterator[None]:
    yield
    del registry._KINDS["text"]


@pytest.fixture
def planned(tmp_path: Path) -> Callable[[Text], RunDirectory]:
    """Plans a run of this kind, which this process knows from then on."""

    def plan_as(kind: Text) -> RunDirectory:
        registry.register(kind)
        folder = tmp_path / type(kind).__name__
        (folder / "lines").mkdir(parents=True)
        (folder / "lines" / "lines.txt").write_text("\n".join(LINES), encoding="utf-8")
        (folder / "shardgen.toml").write_text(SETTINGS, encoding="utf-8")
        run = RunDirectory.open(folder)
        assert make_plan(run, {}).is_new
        return RunDirectory.open(folder)  # as the next command would: the plan is read from its file

    return plan_as


def change(path: Path, old: bytes) -> None:
    """Change one bit of the only place that holds these bytes."""
    data = path.read_bytes()
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, bytes([old[0] ^ 1]) + old[1:]))


def test_an_output_more_is_made_merged_described_and_verified(
    planned: Callable[[Text], RunDirectory],
) -> None:
    before = planned(Text()).plan()
    run = planned(Loud())
    assert [output.name for output in run.plan().outputs] == ["said", "loud", "back"]
    assert run.plan().fingerprint != before.fingerprint

    said: list[str] = []
    with logged(said.append):
        assert Worker(run, WorkerOptions()).work().ending is Ending.FINISHED
    assert [line for line in said if "taken over" in line] == []  # an undisturbed worker loses nothing
    merge_run(run, None, allow_dead_letters=False)
    dataset = run.path / "dataset.zip"
    assert check_run(run).findings == ()
    assert check(dataset).findings == ()
    with zipfile.ZipFile(dataset) as archive:
        assert archive.read("loud/00000/0000005.txt") == b"THREE (1)"
        assert archive.read("said/00000/0000005.txt") == b"three (1)"
        of_sample = [name for name in archive.namelist() if name.endswith("/0000005.txt")]
        assert of_sample == [f"{name}/00000/0000005.txt" for name in ("said", "loud", "back")]
        assert "- `loud/00000/0000000.txt`: the line in capitals\n" in archive.read("README.md").decode()

    change(dataset, b"THREE (1)")
    assert [one.subject for one in check(dataset, quick=True).findings] == ["loud/00000/0000005.txt"]
    (artifact,) = (path for path in run.artifacts.rglob("*.zip") if b"THREE (1)" in path.read_bytes())
    change(artifact, b"THREE (1)")
    assert check_run(run).bad_batches == (run.plan().layout.batch_of_sample(SampleIndex(5)),)
