"""A recipe of text files, to show that the engine needs no picture: a line of a file, said several times.

`python -m tests.text_recipe …` is `shardgen …` with this recipe known, too.
"""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from shardgen.domain import plan as domain
from shardgen.domain.identifiers import SampleIndex
from shardgen.domain.plan import Block, Output, Plan
from shardgen.domain.receipt import Facts, OutputSums, Provenance
from shardgen.errors import EncodeFailed, PlanConflict
from shardgen.recipes.base import (
    Beside,
    Between,
    Card,
    Demand,
    Draft,
    Encoded,
    Files,
    Folders,
    Maker,
    OnFile,
    PlanEvents,
    Recipe,
    RecipeKind,
    RecipeTables,
    SizeEstimate,
    Station,
    Table,
    WrongFacts,
)

IMPORTED = "SHARDGEN_TEST_IMPORTED"
"""Names a folder, in which every process leaves a file for each of these libraries that it imports."""
HEAVY = frozenset({"cv2", "tensorflow", "keras", "h5py"})
KILLS = "kill (0)"
"""Kills whoever computes it, as a bug in a library would: a line `kill`, said for the first time."""
RAISES = "raise (1)"
"""Makes `compute` raise: a line `raise`, said for the second time."""


class TextTable(Table):
    """`[text]`: the folder, how often each line is said, and how many rows a sample has in `labels.csv`."""

    lines: str = ""
    times: int = 3
    rows: int = 1


class TextTables(RecipeTables):
    """The tables of this recipe."""

    text: TextTable = TextTable()

    def document(self, planned: domain.Document | None) -> TextDocument:
        del planned
        return TextDocument(times=self.text.times, rows=self.text.rows)

    def source_folders(self) -> Mapping[str, str]:
        return {"lines": self.text.lines}

    def local(self, resolve: Callable[[str, str], Path]) -> object:
        del resolve
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class TextDocument:
    """`recipe` in a plan of text."""

    times: int
    rows: int = 1
    kind: Literal["text"] = "text"

    @property
    def outputs(self) -> tuple[Output, ...]:
        return tuple(
            Output(name=name, suffix="txt", channels=0, size=None, full_scale=None)
            for name in ("said", "back")
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSources:
    """The lines of `lines.txt`, and its digest."""

    lines: tuple[str, ...]
    sha256: str


class TextMaker(Maker[str, str]):
    """Says lines, and says them backwards."""

    device_model = "tongue"

    def __init__(self, recipe: TextRecipe) -> None:
        self._recipe = recipe

    def prepare(self, sample: SampleIndex) -> str:
        return f"{self._recipe.line(sample)} ({sample % self._recipe.times})"

    def compute(
        self, batch: Sequence[str | None], *, between: Between, begun: object | None = None
    ) -> list[str | None]:
        if any(line is not None and KILLS in line for line in batch):
            os.kill(os.getpid(), signal.SIGKILL)
        if any(line is not None and RAISES in line for line in batch):
            raise ArithmeticError("no such word")
        between(len(batch))
        return [None if line is None else line[::-1] for line in batch]

    def encode(self, sample: SampleIndex, prepared: str, computed: str) -> Encoded:
        return Encoded(
            files={"said": prepared.encode(), "back": computed.encode()},
            sums={name: _one_file() for name in ("said", "back")},
            facts=tuple(len(prepared[row :: self._recipe.rows]) for row in range(self._recipe.rows)),
        )

    def check(self) -> None:
        self.compute([None], between=lambda _done: None)

    def provenance(self) -> Provenance:
        return Provenance.of({"device_model": self.device_model})


class TextRecipe(Recipe):
    """What is known of a plan of text."""

    label_columns: ClassVar[tuple[str, ...]] = ("sample", "time", "characters")
    fact_columns: ClassVar[tuple[str, ...]] = ("characters",)
    sample_columns: ClassVar[tuple[str, ...]] = ("sample", "time")

    def __init__(self, plan: Plan, beside: Beside | None = None) -> None:
        super().__init__(plan, beside)
        sources, document = plan.blocks[0].sources, plan.recipe
        assert isinstance(sources, TextSources)
        assert isinstance(document, TextDocument)
        self.sources, self.times, self.rows = sources, document.times, document.rows

    @property
    def has_several_rows(self) -> bool:
        return self.rows > 1

    def line(self, sample: SampleIndex) -> str:
        return self.sources.lines[sample // self.times]

    def problem(self) -> str | None:
        expected = self.times * len(self.sources.lines)
        return None if self.plan.samples == expected else f"{self.plan.samples} samples, not {expected}"

    def sources_of(self, sample: SampleIndex) -> frozenset[str]:
        return frozenset({f"lines/{sample // self.times}"})

    def describe(self, sample: SampleIndex) -> Mapping[str, str]:
        return {"line": self.line(sample)}

    def label_rows(self, samples: range, *, tail: str, without: Container[int], facts: Facts | None) -> str:
        rows = []
        for sample in samples:
            if sample in without:
                continue
            counted = [""] * self.rows if facts is None else list(map(str, facts[SampleIndex(sample)]))
            if len(counted) != self.rows:
                raise WrongFacts(f"sample {sample} has {len(counted)} counts, not {self.rows}")
            rows += [f"{sample},{sample % self.times},{characters}{tail}" for characters in counted]
        return "".join(rows)

    def card(self) -> Card:
        return Card(
            title="Lines of text",
            introduction="Lines that were said, and said backwards.\n",
            made_of=f"{len(self.sources.lines)} lines",
            how_made="Each line is said several times.\n",
            outputs={"said": "the line", "back": "the line backwards"},
            labels="one row per stored sample",
        )

    def contact_sheet(self, samples: Sequence[tuple[int, Files]]) -> bytes | None:
        del samples
        return None

    def recount(self, output: Output, data: bytes) -> OutputSums:
        try:
            data.decode()
        except UnicodeDecodeError as error:
            raise EncodeFailed(f"{output.name}: no text") from error
        return _one_file()

    def demand(self, local: object) -> Demand:
        return Demand(
            micro_batches=(1,),
            is_fixed=True,
            bytes_for=lambda _micro_batch: 100 << 20,
            device_model=lambda _threads: TextMaker.device_model,
        )

    def check_sources(self, folders: Folders, *, on_file: OnFile) -> None:
        if read_lines(folders["lines"]) != self.sources:
            raise PlanConflict("lines.txt: not the file that the plan was made from", hint="put it back")
        on_file("lines.txt", 1)

    def source_problems(self, folders: Folders) -> list[str]:
        return [] if (folders["lines"] / "lines.txt").is_file() else ["lines.txt: is not there"]

    def open_maker(self, station: Station) -> TextMaker:
        del station
        return TextMaker(self)


class Text(RecipeKind):
    """`[recipe] kind = "text"`."""

    name = "text"
    folders = ("lines",)
    tables = TextTables
    document = TextDocument
    sources = TextSources

    def recipe(self, plan: Plan, beside: Beside | None = None) -> Recipe:
        return TextRecipe(plan, beside)

    def draft(self, tables: RecipeTables, folders: Folders, local: object, *, events: PlanEvents) -> Draft:
        document, sources = tables.document(None), read_lines(folders["lines"])
        assert isinstance(document, TextDocument)
        events.on_file("lines.txt", 1)
        count = len(sources.lines) * document.times
        return Draft(
            document=document,
            blocks=(Block(samples=count, sources=sources),),
            facts=(("made of", f"{len(sources.lines)} lines x {document.times} times"),),
        )

    def estimate(self, recipe: Recipe, folders: Folders, *, at_hand: object = None) -> SizeEstimate:
        return SizeEstimate(outputs={"said": 20.0, "back": 20.0}, labels=10.0)


def read_lines(folder: Path) -> TextSources:
    """Read `lines.txt`."""
    data = (folder / "lines.txt").read_bytes()
    return TextSources(lines=tuple(data.decode().splitlines()), sha256=hashlib.sha256(data).hexdigest())


def _one_file() -> OutputSums:
    return OutputSums(images=1, pixels=0, sum=(), squares=())
