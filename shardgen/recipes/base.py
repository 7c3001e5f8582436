"""The port between the engine, which knows numbers and files, and a recipe, which knows what a sample is.

A recipe's kind (`RecipeKind`) makes plans from settings and folders. A `Recipe` answers what can be known of
a plan without making anything. A `Maker` makes samples; it may be heavy, and there is one in a process.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, Self, TypeVar

from pydantic import BaseModel, ConfigDict, model_validator

from shardgen.domain.identifiers import SampleIndex
from shardgen.domain.plan import Block, Document, Output, Plan, PlanFile, differences, is_larger
from shardgen.domain.receipt import Facts, OutputSums, Provenance, Sums
from shardgen.domain.remarks import Remark
from shardgen.domain.sample import spread_samples
from shardgen.domain.wording import Say
from shardgen.errors import InvalidSettings, SampleError, ShardgenError, WrongOption
from shardgen.machine.cores import schedulable_cores, usable_cores
from shardgen.storage.lines import LineFile

if TYPE_CHECKING:  # `status` does without it
    import numpy as np
    from numpy.typing import NDArray

THREADS_VARIABLE = "SHARDGEN_THREADS"
_STRANGERS = 64  # samples spread over the plan, among which to look for one that has nothing in common

Folders = Mapping[str, Path]
"""This machine's source folders by the recipe's names for them (`RecipeKind.folders`)."""
Files = Mapping[str, bytes]
"""The files of a sample by the names of their outputs."""
Beside = Callable[[PlanFile], LineFile]
"""Opens a file that a plan names; raises what its reader should know of one that is missing or another."""
OnFile = Callable[[str, int], None]
"""Called with the name of each file that is done, and how many there are."""
OnDownload = Callable[[int, int | None], None]
"""Called with the bytes that have arrived and, where it is known, those that will."""
Between = Callable[[int], None]
"""Called with the finished samples of a batch; what it raises abandons the batch."""
Prepared = TypeVar("Prepared")
Computed = TypeVar("Computed")


class WrongSetting(ValueError):
    """A rule of a table is broken, and `hint` says what to write; the text begins with `KEY: `."""

    def __init__(self, problem: str, *, hint: str) -> None:
        super().__init__(problem)
        self.hint = hint


class Table(BaseModel):
    """A table of `shardgen.toml`: no unknown key, never changed.

    A key that may be a word or a number says in its field's `description` what it must be, for the user who
    wrote something else.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    @model_validator(mode="after")
    def _no_nul(self) -> Self:
        for name, value in self:
            if isinstance(value, str) and "\0" in value:
                raise ValueError(f"{name}: no path and no URL holds a NUL character")
        return self


class RecipeTables(Table, ABC):
    """The tables of `shardgen.toml` that belong to one kind of recipe; every key has a default."""

    @abstractmethod
    def document(self, planned: Document | None) -> Document:
        """The recipe's part of the plan that these settings make.

        What only files tell (a digest) is taken from `planned`, or is empty without it.
        """

    @abstractmethod
    def source_folders(self) -> Mapping[str, str]:
        """The folders as they are written, by the recipe's names; "" for one that is not set."""

    @abstractmethod
    def local(self, resolve: Callable[[str, str], Path]) -> object:
        """What the settings say of this machine alone, for `RecipeKind` and `Recipe`, which know its type.

        None where no device computes anything.

        `resolve(setting, "depth.weights")` makes a path of what the key says.
        """


_DEVICES = ("auto", "cpu", "gpu")


def refuse_device(device: str) -> None:
    """Raise WrongOption for what is no auto, cpu or gpu."""
    if device not in _DEVICES:
        raise WrongOption("device", f"{device!r} is not one of {', '.join(_DEVICES)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceChoice:
    """auto, cpu or gpu; `threads` for computing, preparing and encoding each, 0 for the libraries' choice."""

    device: str = "auto"
    threads: int = 0

    def __post_init__(self) -> None:
        refuse_device(self.device)

    @classmethod
    def from_environment(cls, name: str) -> Self:
        """With the threads that `$SHARDGEN_THREADS` sets, as `run` does for its workers, else all cores."""
        cores = usable_cores()
        # Libraries count the cores themselves, but know nothing of a container's quota.
        own_choice = cores if cores < schedulable_cores() else 0
        return cls(device=name, threads=given_threads() or own_choice)


def given_threads() -> int:
    """The number of threads a worker that `$SHARDGEN_THREADS` sets; 0: none."""
    text = os.environ.get(THREADS_VARIABLE, "0")
    if not (text.isascii() and text.isdigit() and len(text) < 5):
        raise InvalidSettings(
            f"${THREADS_VARIABLE} is {text!r}, not a number of threads", hint=f"unset {THREADS_VARIABLE}"
        )
    return int(text)


class BatchSizes(Protocol):
    """What all workers of a run agree on, by the model of their device: how much one computes at once."""

    def agreed(self, device_model: str, proposed: int) -> int:
        """The first worker's proposal, kept for all later ones."""
        ...

    def shrunk(self, device_model: str) -> int | None:
        """What memory sufficed for when it last ran out; None: it never did."""
        ...

    def shrink(self, device_model: str, micro_batch: int) -> None:
        """Remember that there is no memory for more."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Station:
    """Where a maker works: this machine's folders, device and settings.

    `doing` hears what takes long and is no news; what is news is logged. Without `agreed` how much is
    computed at once is the maker's own affair.
    """

    folders: Folders
    local: object
    device: DeviceChoice
    doing: Say = lambda _what: None
    agreed: BatchSizes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """A sample as it will be stored: a file and its sums for every declared output."""

    files: Files
    sums: Sums
    facts: tuple[int, ...] = ()


class Maker(ABC, Generic[Prepared, Computed]):
    """Makes samples in three stages; a sample's bytes depend on the plan and the machine, on nothing else.

    A SampleError of a stage costs that sample. Any other exception of `compute` is halved down to the sample
    that raises it, with None in the places of the others; of `prepare` and `encode` it is that sample's.
    """

    @abstractmethod
    def prepare(self, sample: SampleIndex) -> Prepared:
        """What `compute` takes of a sample; called from many threads. Raises SampleError.

        A ShardgenError that is none, and MemoryError, are no sample's fault.
        """

    def begin(self, batch: Sequence[Prepared | None]) -> object | None:
        """Put a batch on the device's queue, behind the one that it computes, and wait for neither.

        The thread of `compute` calls it. What it gives goes to `compute` with the same batch, or is dropped;
        what goes wrong is raised there. None, as here, where a device has no queue.
        """
        del batch
        return None

    @abstractmethod
    def compute(
        self, batch: Sequence[Prepared | None], *, between: Between, begun: object | None = None
    ) -> Sequence[Computed | SampleError | None]:
        """The device's part of a whole batch, in order; one thread calls it.

        None stands for a sample that is missing or left out: it keeps its position, and gives None.
        """

    @abstractmethod
    def encode(self, sample: SampleIndex, prepared: Prepared, computed: Computed) -> Encoded:
        """The sample's files; called from many threads. Raises SampleError."""

    @abstractmethod
    def check(self) -> None:
        """Compute an empty input, before a lone sample is blamed for what `compute` raised."""

    @abstractmethod
    def provenance(self) -> Provenance:
        """What makes the samples now, and decides their bytes."""

    @property
    @abstractmethod
    def device_model(self) -> str:
        """What it runs on, as `status` shows it."""

    @property
    def last_words(self) -> str:
        """What the worker's log should say of it at the end, as one line; "" for nothing."""
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """The memory that a worker on a CPU will take, by how much it computes at once.

    `micro_batches` are those to choose from, best first; a single one when the settings fix it, and then
    `is_fixed`; none, and fixed too, when nothing is computed. `bytes_for` gives the peak of one process,
    within about a quarter. `device_model` names the CPU of a worker with so many threads, as its maker will.
    """

    micro_batches: tuple[int, ...]
    is_fixed: bool
    bytes_for: Callable[[int], int]
    device_model: Callable[[int], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What the data set's README says of the recipe, as Markdown.

    The number of samples follows `title`. `outputs` describes each output in half a sentence, by its name;
    `files` those that the plan keeps beside it. `made_of` and `provenance` are lines of lists. `tasks` are
    those of Hugging Face's Hub that the data set serves.
    """

    title: str
    introduction: str
    made_of: str
    how_made: str
    outputs: Mapping[str, str]
    labels: str
    files: str = ""
    tasks: tuple[str, ...] = ()
    provenance: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """An object in the stored images, of one of the recipe's `categories`.

    `mask` is bool (H, W), `box` its x, y, width and height in pixels, `area` its pixels, and `row` its place
    among the rows of its sample in `labels.csv`.
    """

    category: str
    mask: NDArray[np.bool_]
    box: tuple[int, int, int, int]
    area: int
    row: int


class WrongFacts(ValueError):
    """Facts that no sample of the plan has; says which sample's and why, in one line."""


class Recipe(ABC):
    """What is known of a plan's samples without making them; cheap to open, nothing heavy is imported."""

    label_columns: ClassVar[tuple[str, ...]]
    """Of `labels.csv`, in front of `shard` and `batch`; the first is `sample`."""
    fact_columns: ClassVar[tuple[str, ...]] = ()
    """Those of them that are made of the facts of a sample."""
    text_columns: ClassVar[frozenset[str]] = frozenset()
    """Those of them that hold text; in the others there are numbers, or nothing."""
    decimal_columns: ClassVar[frozenset[str]] = frozenset()
    """Those of the others in which there may be decimals; the rest hold whole numbers."""
    sample_columns: ClassVar[tuple[str, ...]] = ("sample",)
    """Those of them that say the same in all rows of a sample, where it may have several."""
    name_column: ClassVar[str] = ""
    """The text column, if there is one, that names each sample: a relative path that no other has."""

    def __init__(self, plan: Plan, beside: Beside | None = None) -> None:
        self.plan = plan
        self.beside = beside or _nothing_beside
        """Asked late: what counts samples only has no files at hand, and should not read them."""

    @property
    def files(self) -> tuple[PlanFile, ...]:
        """What the plan keeps beside it, in the order of its blocks; another plan's have other names."""
        return ()

    def differences(self, new: Recipe) -> list[str]:
        """What has changed from this plan to another one, a readable line each."""
        return differences(self.plan, new.plan)

    def is_part_of(self, new: Recipe) -> bool:
        """Whether a new plan has all sources of this one, and more of them, and nothing else is changed."""
        return is_larger(self.plan, new.plan)

    @property
    def has_several_rows(self) -> bool:
        """Whether a sample may have more than one row in `labels.csv`."""
        return False

    @property
    def remark(self) -> str:
        """Why nobody should train on what the plan makes, in one line; "" when nothing speaks against it."""
        return ""

    def load(self) -> None:  # noqa: B027 - a recipe may need none
        """Import what makes and reads its files: a missing library must be heard of before hours of work.

        Raises ImportError. Whoever only counts samples does not call it.
        """

    @abstractmethod
    def problem(self) -> str | None:
        """The first thing that no plan of this recipe holds, as one line; None when there is none."""

    @abstractmethod
    def sources_of(self, sample: SampleIndex) -> frozenset[str]:
        """The sources of the sample, as in `foregrounds/NAME`, also of what is not visible in it.

        Two samples without a common one can hardly fail for the same reason.
        """

    def stranger_to(self, sample: SampleIndex) -> SampleIndex:
        """Of samples spread over the plan one that shares the fewest sources with this one."""
        own = self.sources_of(sample)
        among = spread_samples(self.plan.samples, _STRANGERS)
        return min(among, key=lambda other: len(self.sources_of(other) & own))

    def digests(self) -> Iterator[tuple[int, str, str]]:
        """The sha256 of each source, by block and as `sources_of` names it: what a data set is split by.

        Nothing where samples share no sources, or a source has no file of its own.
        """
        return iter(())

    @property
    def photographs(self) -> int:
        """How many `digests` there are. Override it where that is known without reading them."""
        return sum(1 for _ in self.digests())

    def all_sources(self) -> frozenset[str]:
        """Those of all samples. Override it where lists tell them: this asks for each group of samples."""
        return frozenset().union(*(sources for _, _, sources in self.groups(0, self.plan.samples)))

    @property
    def alike(self) -> int:
        """So many samples that follow each other, counted from the first, have the same sources."""
        return 1

    def groups(self, start: int, stop: int) -> Iterator[tuple[int, int, frozenset[str]]]:
        """The samples from `start` to `stop` by their sources: first, behind the last, and `sources_of` them.

        Neighbours that share them all come together. Override it where many are found faster than each.
        """
        while start < stop:
            end = min(stop, start - start % self.alike + self.alike)
            yield start, end, self.sources_of(SampleIndex(start))
            start = end

    @abstractmethod
    def describe(self, sample: SampleIndex) -> Mapping[str, str]:
        """What the sample is made of, in words for a table: the same keys for every sample."""

    @abstractmethod
    def label_rows(self, samples: range, *, tail: str, without: Container[int], facts: Facts | None) -> str:
        """The rows of `labels.csv` of these samples, in order, without some: one or more of each.

        Each is ended by `tail`: `,shard,batch` and a line break. With `facts` None the fields of
        `fact_columns` are empty, and the rows as many. Raises WrongFacts, for a wrong number of them above
        all; no sample lacks them altogether.
        """

    @abstractmethod
    def card(self) -> Card:
        """What the data set's README says."""

    def to_look_at(self, wanted: int, *, every: str = "") -> list[SampleIndex]:
        """At most `wanted` samples that show what there is: no two more alike than they must be.

        `every` names a folder of sources, each of which is to be seen, whatever is wanted. Raises
        InvalidSettings for a folder that the recipe does not have.
        """
        if every:
            raise InvalidSettings(
                f"--all-{every}: this run has no folder of {every}", hint=f"leave --all-{every} out"
            )
        return spread_samples(self.plan.samples, wanted)

    @abstractmethod
    def contact_sheet(self, samples: Sequence[tuple[int, Files]]) -> bytes | None:
        """A picture of some samples as PNG, in the given order; None when there is nothing to look at."""

    def pictures_of(self, sample: SampleIndex, files: Files) -> Mapping[str, bytes]:
        """Small pictures of one stored sample, PNG or JPEG of about 160 pixels, by what each shows.

        Nothing where there is nothing to look at. Raises SampleError for a file that does not read.
        """
        del sample, files
        return {}

    @abstractmethod
    def recount(self, output: Output, data: bytes) -> OutputSums:
        """The sums of one stored file. Raises SampleError for what is no file of this output."""

    def decoded(self, output: Output, data: bytes) -> Any:
        """What a stored file holds: an image as uint8 or uint16, (H, W, 3) RGB or (H, W), else its bytes.

        Raises SampleError for what is no file of this output.
        """
        if not output.channels:
            return data
        from shardgen.imaging.codec import decode_encoded

        return decode_encoded(data, channels=output.channels, size=output.size)

    def categories(self) -> tuple[str, ...]:
        """What may be seen in the samples, sorted; nothing where no mask tells where."""
        return ()

    def instances(self, labels: Mapping[str, Any], files: Files) -> list[Instance]:
        """The objects that are visible in a sample, by its row of `metadata.csv` and its stored files.

        Raises SampleError for a file that does not read.
        """
        del labels, files
        return []

    @abstractmethod
    def demand(self, local: object) -> Demand:
        """What a worker on this machine's CPU needs."""

    @abstractmethod
    def check_sources(self, folders: Folders, *, on_file: OnFile) -> None:
        """Compare this machine's folders with the plan, every byte; raises PlanConflict or InputMissing."""

    @abstractmethod
    def source_problems(self, folders: Folders) -> list[str]:
        """What of the plan's sources is plainly not there, without reading it, a line each."""

    def unknown_sources(self, folders: Folders) -> list[str]:
        """What lies in this machine's folders and not in the plan, as in `foregrounds/NAME`; opens no file.

        Nothing is known of a folder that is not there, or may not be read.
        """
        del folders
        return []

    @abstractmethod
    def open_maker(self, station: Station) -> Maker[Any, Any]:
        """Load what makes samples, and run it once. Raises MachineUnfit, InputMissing, WeightsRefused, ..."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A plan's parts from settings and folders, before anything is written.

    `warnings` ask for a look and `notes` say what was converted. `facts` are lines of what `plan` prints: a
    name and a text. With `lacks` the plan cannot be written: it is why something of it could not be had, in
    whose place `document` has a stand-in. `files` are what `Recipe.files` of its plan names and is new.
    `at_hand` is what the kind keeps of the sources for an estimate, so that it reads none of them again.
    """

    document: Document
    blocks: tuple[Block, ...]
    facts: tuple[tuple[str, str], ...]
    warnings: tuple[Remark, ...] = ()
    notes: tuple[Remark, ...] = ()
    lacks: ShardgenError | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    at_hand: object = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanEvents:
    """Who hears of files checked and of bytes downloaded, and what else takes long."""

    doing: Say = field(default=lambda _what: None)
    on_file: OnFile = field(default=lambda _name, _of: None)
    on_download: OnDownload = field(default=lambda _done, _total: None)


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeEstimate:
    """Bytes of a sample's files by output, from samples that were really encoded; `labels` of its row."""

    outputs: Mapping[str, float]
    labels: float
    remark: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Settings to begin with: `makes` says of what, in a few words.

    `values` are TOML by key (`compose.grid`: `[2, 2]`), where they differ from the template; None leaves out
    a key that would do nothing.
    """

    makes: str
    values: Mapping[str, str | None] = field(default_factory=dict)


class RecipeKind(ABC):
    """A kind of recipe: `[recipe] kind` names it."""

    name: ClassVar[str]
    folders: ClassVar[tuple[str, ...]]
    """Names of source folders, as in `--foregrounds` and `$SHARDGEN_FOREGROUNDS`."""
    tables: ClassVar[type[RecipeTables]]
    document: ClassVar[type]
    """The frozen dataclass of the recipe's part of a plan: a `Document`."""
    sources: ClassVar[type]
    """The frozen dataclass of a block's sources."""
    template: ClassVar[str] = ""
    """`[recipe]` and the recipe's tables as `init` writes them: every key on its own line, with a comment."""
    presets: ClassVar[Mapping[str, Preset]] = {}
    """What `init --preset` makes of the template, by name; names are unique among all kinds."""

    @abstractmethod
    def recipe(self, plan: Plan, beside: Beside | None = None) -> Recipe:
        """The recipe of a plan of this kind, and who opens the files that the plan names."""

    @abstractmethod
    def draft(self, tables: RecipeTables, folders: Folders, local: object, *, events: PlanEvents) -> Draft:
        """Read every source and say what will be made. Raises SourcesRefused with every problem at once."""

    def arrange(self, planned: Recipe, draft: Draft) -> Draft:
        """The drafted sources in the blocks of `planned`, and those that it does not know in one more block.

        There, what is gone is left out and what has changed is as drafted; a block of which all is gone has
        no samples. Raises InvalidSettings for a recipe whose plans cannot grow.
        """
        del draft
        raise InvalidSettings(
            f"plans of {planned.plan.recipe.kind} cannot be extended", hint="plan anew in a new directory"
        )

    @abstractmethod
    def estimate(self, recipe: Recipe, folders: Folders, *, at_hand: object = None) -> SizeEstimate:
        """How big its samples will be, from a few that are really encoded; `at_hand` is its draft's."""


def csv_field(text: str) -> str:
    """A field of `labels.csv`, quoted only where a reader would otherwise be misled."""
    if any(character in text for character in ',"\n\r'):
        return '"' + text.replace('"', '""') + '"'
    return text


def _nothing_beside(file: PlanFile) -> LineFile:
    raise RuntimeError(f"{file.name}: nobody said where it is")
