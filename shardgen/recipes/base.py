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
"""Opens a file that a plan names; raises the error for a missing or wrong file."""
OnFile = Callable[[str, int], None]
"""Called with the name of each finished file, and the number of all files."""
OnDownload = Callable[[int, int | None], None]
"""Called with the bytes that have arrived and, if known, the bytes in all."""
Between = Callable[[int], None]
"""Called with the number of finished samples of a batch; if it raises, the batch is abandoned."""
Prepared = TypeVar("Prepared")
Computed = TypeVar("Computed")


class WrongSetting(ValueError):
    """A setting breaks a rule of its table; the text begins with `KEY: `, and `hint` says what to write."""

    def __init__(self, problem: str, *, hint: str) -> None:
        super().__init__(problem)
        self.hint = hint


class Table(BaseModel):
    """A table of `shardgen.toml`: no unknown key, never changed.

    If a key may be a word or a number, its field's `description` says what it must be, for the error message.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    @model_validator(mode="after")
    def _no_nul(self) -> Self:
        for name, value in self:
            if isinstance(value, str) and "\0" in value:
                raise ValueError(f"{name}: a path or URL cannot contain a NUL character")
        return self


class RecipeTables(Table, ABC):
    """The tables of `shardgen.toml` that belong to one kind of recipe; every key has a default."""

    @abstractmethod
    def document(self, planned: Document | None) -> Document:
        """The recipe's part of the plan that these settings make.

        Facts that only files can tell (a digest) come from `planned`; without it they are empty.
        """

    @abstractmethod
    def source_folders(self) -> Mapping[str, str]:
        """The folders as written in the settings, by the recipe's names; "" if not set."""

    @abstractmethod
    def local(self, resolve: Callable[[str, str], Path]) -> object:
        """The settings for this machine only, in a type that `RecipeKind` and `Recipe` know.

        None if no device computes anything. `resolve(setting, "depth.weights")` turns a setting into a path.
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
    """The micro-batch that all workers of a run agree on for each model of device."""

    def agreed(self, device_model: str, proposed: int) -> int:
        """The first worker's proposal, which all later workers use."""
        ...

    def shrunk(self, device_model: str) -> int | None:
        """The largest that fitted when memory last ran out; None if it never did."""
        ...

    def shrink(self, device_model: str, micro_batch: int) -> None:
        """Remember that no more than this fits into memory."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Station:
    """Where a maker works: this machine's folders, device and settings.

    `doing` is told what takes long; everything else is logged. Without `agreed`, the maker decides by itself
    how much it computes at once.
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
    """Makes samples in three stages; a sample's bytes depend only on the plan and the machine.

    A SampleError of a stage costs that sample. Any other exception of `compute` is halved down to the sample
    that raises it, with None in the places of the others; of `prepare` and `encode` it is that sample's.
    """

    @abstractmethod
    def prepare(self, sample: SampleIndex) -> Prepared:
        """What `compute` needs of a sample; called from many threads. Raises SampleError.

        Any other ShardgenError, and MemoryError, are not the sample's fault.
        """

    def begin(self, batch: Sequence[Prepared | None]) -> object | None:
        """Put a batch on the device's queue, after the one that it is computing, without waiting for either.

        The thread of `compute` calls it. The result is passed to `compute` with the same batch, or dropped;
        errors are raised there. None, as here, if the device has no queue.
        """
        del batch
        return None

    @abstractmethod
    def compute(
        self, batch: Sequence[Prepared | None], *, between: Between, begun: object | None = None
    ) -> Sequence[Computed | SampleError | None]:
        """The device's part of a whole batch, in order; one thread calls it.

        None stands for a sample that is missing or left out: it keeps its place, and its result is None.
        """

    @abstractmethod
    def encode(self, sample: SampleIndex, prepared: Prepared, computed: Computed) -> Encoded:
        """The sample's files; called from many threads. Raises SampleError."""

    @abstractmethod
    def check(self) -> None:
        """Compute an empty input, before blaming a single sample for an error of `compute`."""

    @abstractmethod
    def provenance(self) -> Provenance:
        """What makes the samples at present and so determines their bytes."""

    @property
    @abstractmethod
    def device_model(self) -> str:
        """What it runs on, as shown by `status`."""

    @property
    def last_words(self) -> str:
        """A line for the worker's log at the end; "" for none."""
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """The memory that a worker on a CPU needs, depending on the micro-batch.

    `micro_batches` are the choices, best first: only one if the settings fix it, and then
    `is_fixed` is set; none, and also fixed, if nothing is computed. `bytes_for` is the peak of one process,
    to about 25 %. `device_model` names the CPU for a worker with that many threads, as its maker will.
    """

    micro_batches: tuple[int, ...]
    is_fixed: bool
    bytes_for: Callable[[int], int]
    device_model: Callable[[int], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What the data set's README says about the recipe, as Markdown.

    The number of samples follows `title`. `outputs` describes each output in half a sentence, by its name;
    `files` describes the files that the plan keeps beside it. `made_of` and `provenance` are lines of lists.
    `tasks` are the Hugging Face Hub's names of tasks that the data set is for.
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
    """Facts that no sample of the plan can have; one line that says of which sample, and why."""


class Recipe(ABC):
    """What can be known about a plan's samples without making them; cheap to open, imports nothing heavy."""

    label_columns: ClassVar[tuple[str, ...]]
    """Columns of `labels.csv` before `shard` and `batch`; the first is `sample`."""
    fact_columns: ClassVar[tuple[str, ...]] = ()
    """The label columns that come from a sample's facts."""
    text_columns: ClassVar[frozenset[str]] = frozenset()
    """The label columns with text; the others have numbers, or nothing."""
    decimal_columns: ClassVar[frozenset[str]] = frozenset()
    """The number columns that may have decimals; the others have whole numbers."""
    sample_columns: ClassVar[tuple[str, ...]] = ("sample",)
    """The label columns that are equal in all rows of a sample, if it may have several."""
    name_column: ClassVar[str] = ""
    """The text column, if any, that names each sample: a unique relative path."""

    def __init__(self, plan: Plan, beside: Beside | None = None) -> None:
        self.plan = plan
        self.beside = beside or _nothing_beside
        """Called only when needed: code that just counts samples has no files, and should not read any."""

    @property
    def files(self) -> tuple[PlanFile, ...]:
        """The files that the plan keeps beside it, in the order of its blocks; names differ between plans."""
        return ()

    def differences(self, new: Recipe) -> list[str]:
        """What changed from this plan to another one, one readable line per change."""
        return differences(self.plan, new.plan)

    def is_part_of(self, new: Recipe) -> bool:
        """Whether a new plan has all sources of this one and more, with no other change."""
        return is_larger(self.plan, new.plan)

    @property
    def has_several_rows(self) -> bool:
        """Whether a sample may have more than one row in `labels.csv`."""
        return False

    @property
    def remark(self) -> str:
        """Why nobody should train on what this plan makes, in one line; "" if there is no reason."""
        return ""

    def load(self) -> None:  # noqa: B027 - a recipe may need none
        """Import what makes and reads its files, so that a missing library shows before hours of work.

        Raises ImportError. Code that only counts samples does not call it.
        """

    @abstractmethod
    def problem(self) -> str | None:
        """The first thing that makes the plan invalid for this recipe, as one line; None if it is valid."""

    @abstractmethod
    def sources_of(self, sample: SampleIndex) -> frozenset[str]:
        """The sources of the sample, as in `foregrounds/NAME`, including those that are not visible in it.

        Two samples without a common source are unlikely to fail for the same reason.
        """

    def stranger_to(self, sample: SampleIndex) -> SampleIndex:
        """Among samples spread over the plan, the one that shares the fewest sources with this one."""
        own = self.sources_of(sample)
        among = spread_samples(self.plan.samples, _STRANGERS)
        return min(among, key=lambda other: len(self.sources_of(other) & own))

    def digests(self) -> Iterator[tuple[int, str, str]]:
        """The sha256 of each source, by block and as `sources_of` names it, for splitting a data set.

        Empty if samples share no sources, or if a source has no file of its own.
        """
        return iter(())

    @property
    def photographs(self) -> int:
        """How many `digests` there are. Override this if it is known without reading them."""
        return sum(1 for _ in self.digests())

    def all_sources(self) -> frozenset[str]:
        """The sources of all samples. Override this if there is a list: it asks for each group of samples."""
        return frozenset().union(*(sources for _, _, sources in self.groups(0, self.plan.samples)))

    @property
    def alike(self) -> int:
        """How many consecutive samples, counted from the first, have the same sources."""
        return 1

    def groups(self, start: int, stop: int) -> Iterator[tuple[int, int, frozenset[str]]]:
        """The samples from `start` to `stop` in groups with the same sources: (start, stop, sources).

        Override this if many samples can be found faster than one by one.
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
        """The rows of `labels.csv` for these samples except `without`, in order: one or more per sample.

        Each row ends with `tail`: `,shard,batch` and a line break. If `facts` is None, the fields of
        `fact_columns` are empty, and the number of rows is the same. Raises WrongFacts, above all if a sample
        has the wrong number of facts; every sample has some.
        """

    @abstractmethod
    def card(self) -> Card:
        """What the data set's README says."""

    def to_look_at(self, wanted: int, *, every: str = "") -> list[SampleIndex]:
        """At most `wanted` samples that show the variety of the plan.

        `every` names a folder of sources; then each of its sources is shown, however many that takes. Raises
        InvalidSettings for a folder that the recipe does not have.
        """
        if every:
            raise InvalidSettings(
                f"--all-{every}: this run has no folder of {every}", hint=f"leave --all-{every} out"
            )
        return spread_samples(self.plan.samples, wanted)

    @abstractmethod
    def contact_sheet(self, samples: Sequence[tuple[int, Files]]) -> bytes | None:
        """A picture of some samples as PNG, in the given order; None if there is nothing to show."""

    def pictures_of(self, sample: SampleIndex, files: Files) -> Mapping[str, bytes]:
        """Small pictures of one stored sample, PNG or JPEG of about 160 pixels, keyed by what each shows.

        Empty if there is nothing to show. Raises SampleError for a file that cannot be read.
        """
        del sample, files
        return {}

    @abstractmethod
    def recount(self, output: Output, data: bytes) -> OutputSums:
        """The sums of one stored file. Raises SampleError if it is not a file of this output."""

    def decoded(self, output: Output, data: bytes) -> Any:
        """What a stored file holds: an image as uint8 or uint16, (H, W, 3) RGB or (H, W), else its bytes.

        Raises SampleError if it is not a file of this output.
        """
        if not output.channels:
            return data
        from shardgen.imaging.codec import decode_encoded

        return decode_encoded(data, channels=output.channels, size=output.size)

    def categories(self) -> tuple[str, ...]:
        """The categories of objects in the samples, sorted; empty if no mask says where they are."""
        return ()

    def instances(self, labels: Mapping[str, Any], files: Files) -> list[Instance]:
        """The visible objects in a sample, from its row of `metadata.csv` and its stored files.

        Raises SampleError for a file that cannot be read.
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
        """The plan's sources that are missing or have another size, one line each; reads no file."""

    def unknown_sources(self, folders: Folders) -> list[str]:
        """The files in this machine's folders that the plan lacks, as in `foregrounds/NAME`; opens no file.

        Empty for a folder that is not there or cannot be read.
        """
        del folders
        return []

    @abstractmethod
    def open_maker(self, station: Station) -> Maker[Any, Any]:
        """Load what makes samples, and run it once. Raises MachineUnfit, InputMissing, WeightsRefused, ..."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A plan's parts from settings and folders, before anything is written.

    `warnings` name files to look at, `notes` files that were converted. `facts` are lines that `plan` prints:
    a name and a text. If `lacks` is set, the plan cannot be written: it is the error why something could not
    be fetched, for which `document` has a placeholder. `files` are the new files that `Recipe.files` of this
    plan names. `at_hand` is what the kind keeps from the sources, so that `estimate` reads none again.
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
    """Callbacks for checked files, downloaded bytes, and anything else that takes long."""

    doing: Say = field(default=lambda _what: None)
    on_file: OnFile = field(default=lambda _name, _of: None)
    on_download: OnDownload = field(default=lambda _done, _total: None)


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeEstimate:
    """Bytes of a sample's files by output, from encoded samples; `labels` is the size of its row."""

    outputs: Mapping[str, float]
    labels: float
    remark: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Settings to start from; `makes` says in a few words what they make.

    `values` are the settings that differ from the template, as TOML by key (`compose.grid`: `[2, 2]`); None
    leaves out a key that would have no effect.
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
    """The presets of `init --preset`, by name; names are unique among all kinds."""

    @abstractmethod
    def recipe(self, plan: Plan, beside: Beside | None = None) -> Recipe:
        """The recipe of a plan of this kind; `beside` opens the files that the plan names."""

    @abstractmethod
    def draft(self, tables: RecipeTables, folders: Folders, local: object, *, events: PlanEvents) -> Draft:
        """Read every source and say what will be made. Raises SourcesRefused with every problem at once."""

    def arrange(self, planned: Recipe, draft: Draft) -> Draft:
        """The drafted sources in the blocks of `planned`, and new sources in one more block.

        Missing sources are left out of their blocks, changed ones are as drafted; a block whose sources are
        all gone has no samples. Raises InvalidSettings for a recipe whose plans cannot grow.
        """
        del draft
        raise InvalidSettings(
            f"plans of {planned.plan.recipe.kind} cannot be extended", hint="plan again in a new directory"
        )

    @abstractmethod
    def estimate(self, recipe: Recipe, folders: Folders, *, at_hand: object = None) -> SizeEstimate:
        """How big the samples will be, from encoding a few; `at_hand` comes from the draft."""


def csv_field(text: str) -> str:
    """A field of `labels.csv`, quoted only if a reader would otherwise misread it."""
    if any(character in text for character in ',"\n\r'):
        return '"' + text.replace('"', '""') + '"'
    return text


def _nothing_beside(file: PlanFile) -> LineFile:
    raise RuntimeError(f"{file.name}: nobody said where it is")
