"""The JSON documents that commands print with `--json`; docs/schemas/ holds the schema of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from shardgen.cli.render import Answered, print_json
from shardgen.domain.remarks import Remark
from shardgen.errors import ShardgenError

if TYPE_CHECKING:
    from shardgen.coordination.report import Report
    from shardgen.dataset.export.driver import ExportResult
    from shardgen.dataset.merge import MergeResult
    from shardgen.dataset.verify import Verification
    from shardgen.domain.plan import Plan
    from shardgen.domain.selection import Selection
    from shardgen.operations.doctor import Line
    from shardgen.operations.forecast import Forecast
    from shardgen.operations.plan import Planned
    from shardgen.operations.requeue import Requeued


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of a document."""

    # pydantic makes the schemas; the texts below the keys go into them.
    __pydantic_config__: ClassVar = {"use_attribute_docstrings": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class RemarkPart(Part):
    """What is said of files of one folder."""

    folder: str
    """The recipe's name for the folder (foregrounds, backgrounds, pictures)."""
    reason: str
    """Where it holds `…`, each file's own word is in `details`."""
    hint: str
    names: tuple[str, ...]
    """All of the files; empty if it is about the folder itself."""
    details: tuple[str, ...]

    @classmethod
    def of(cls, remark: Remark) -> Self:
        """As the operations say it."""
        return cls(
            folder=remark.folder,
            reason=remark.reason,
            hint=remark.hint,
            names=remark.names,
            details=remark.details,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorPart(Part):
    """Why a command failed, and what to do."""

    code: str
    """A name that stays: a class of shardgen.errors, or UsageError, Interrupted, Bug."""
    message: str
    hint: str
    """One command or one action; "" where there is none."""
    exit_code: int
    problems: tuple[str, ...]
    """Everything that is wrong, where that may be more than one thing."""
    remarks: tuple[RemarkPart, ...]
    """The same of files."""

    @classmethod
    def of(cls, error: ShardgenError) -> Self:
        """The error with the hint that its reader can paste."""
        return cls(
            code=error.code,
            message=str(error),
            hint=error.hint,
            exit_code=error.exit_code,
            problems=error.problems,
            remarks=tuple(map(RemarkPart.of, error.remarks)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Printout(Part):
    """What a command prints; one that fails prints `error`, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorDocument(Printout):
    """What a command that fails prints, if it has nothing else to say."""

    error: ErrorPart


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanPart(Part):
    """The plan of a run."""

    fingerprint: str
    samples: int
    shards: int
    batches: int
    not_depth: bool
    """Whether the recipe warns against training on the result: its depth is noise."""

    @classmethod
    def of(cls, plan: Plan) -> Self:
        """As `status` shows it."""
        from shardgen.coordination.report import plan_json

        return cls(**plan_json(plan))


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastPart(Part):
    """What `plan --calibrate` measured on this machine, of one worker."""

    samples_per_second: float
    device_model: str
    threads: int
    """0: as many as the libraries choose."""
    micro_batch: int
    """0: nothing is computed."""
    bytes_per_sample: Mapping[str, float]
    """By output: the mean size of its file."""
    made_at: str
    """ISO 8601, with its time zone; so is every time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplesPart(Part):
    """planned = stored + dead_letters + pending."""

    planned: int
    stored: int
    dead_letters: int
    pending: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectedPart(SamplesPart):
    """planned = stored + dead_letters + excluded + pending."""

    excluded: int

    @classmethod
    def of(cls, selection: Selection, *, dead_letters: int) -> Self:
        """How many samples a data set has, and how many it leaves out."""
        excluded, pending = selection.excluded.count, selection.pending.count
        return cls(
            planned=selection.planned,
            stored=selection.planned - excluded - pending - dead_letters,
            dead_letters=dead_letters,
            pending=pending,
            excluded=excluded,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BytesPart(Part):
    """How many bytes the whole plan takes, by what some encoded samples have, or calibrating measured."""

    per_sample: Mapping[str, float]
    """By output: the mean size of its file."""
    artifacts: int
    zip: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanDocument(Printout):
    """`plan --json`."""

    run_dir: str
    state: Literal["new", "unchanged", "changed"]
    plan: PlanPart
    changes: tuple[str, ...]
    """What differs from the plan before, a line for each setting or source."""
    bytes: BytesPart
    seconds: float | None
    """For all samples at --rate; null without it."""
    forecast: ForecastPart | None
    """null without --calibrate."""
    warnings: tuple[RemarkPart, ...]
    notes: tuple[RemarkPart, ...]

    @classmethod
    def of(cls, planned: Planned, *, run_dir: str, rate: float | None, forecast: Forecast | None) -> Self:
        """What `plan` shows as a table."""
        samples = planned.plan.samples
        sizes = planned.estimate.outputs if forecast is None else forecast.bytes
        in_zip = planned.bytes_in_zip(sizes)
        stored = in_zip if forecast is None else forecast.sample_bytes + forecast.artifact_bytes
        return cls(
            run_dir=run_dir,
            state="changed" if planned.changes else "new" if planned.is_new else "unchanged",
            plan=PlanPart.of(planned.plan),
            changes=planned.changes,
            bytes=BytesPart(
                per_sample={name: round(size, 1) for name, size in sizes.items()},
                artifacts=round(stored * samples),
                zip=round(in_zip * samples),
            ),
            seconds=None if rate is None else samples / rate,
            forecast=None if forecast is None else ForecastPart(**forecast.as_json()),
            warnings=tuple(map(RemarkPart.of, planned.draft.warnings)),
            notes=tuple(map(RemarkPart.of, planned.draft.notes)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StatisticsPart(Part):
    """Of all images of an output: per channel, pixels from 0 to 1; no numbers if there are no pixels."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    images: int
    pixels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeDocument(Printout):
    """`merge --json`: the zip."""

    path: str
    size_bytes: int
    sha256: str
    samples: SelectedPart
    statistics: Mapping[str, StatisticsPart]
    """By output, of those that are images."""

    @classmethod
    def of(cls, result: MergeResult) -> Self:
        """What `merge` shows as a table."""
        return cls(
            path=str(result.path),
            size_bytes=result.size_bytes,
            sha256=result.sha256,
            samples=SelectedPart.of(result.selection, dead_letters=result.dead_letters),
            statistics={
                name: StatisticsPart(mean=one.mean, std=one.std, images=one.images, pixels=one.pixels)
                for name, one in result.statistics.items()
            },
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDocument(Printout):
    """`run --json`: what there is when it ends."""

    run_dir: str
    plan: PlanPart
    samples: SamplesPart
    """Of the whole run, whoever made them."""
    zip: MergeDocument | None
    """null while samples are pending: then nothing is merged."""

    @classmethod
    def of(cls, found: Report, *, run_dir: str, merged: MergeResult | None) -> Self:
        """What `run` says at its end."""
        return cls(
            run_dir=run_dir,
            plan=PlanPart.of(found.plan),
            samples=SamplesPart(**found.samples_json()),
            zip=None if merged is None else MergeDocument.of(merged),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitPart(Part):
    """A split as it lies there; without --split there is one, called data."""

    name: str
    samples: int
    photographs: int
    files: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportDocument(Printout):
    """`export --json`: the folder."""

    path: str
    format: str
    splits: tuple[SplitPart, ...]
    samples: SelectedPart
    """Of the data set; those that `dropped` counts are among the stored ones."""
    dropped: int
    """Samples in no split: their photographs are in several."""
    already_there: int
    """Samples that an earlier command had written."""

    @classmethod
    def of(cls, result: ExportResult) -> Self:
        """What `export` shows as a table."""
        return cls(
            path=str(result.out),
            format=result.request.format,
            splits=tuple(
                SplitPart(
                    name=one.name,
                    samples=one.samples,
                    photographs=one.photographs,
                    files=one.files,
                    size_bytes=one.size_bytes,
                )
                for one in result.splits
            ),
            samples=SelectedPart.of(result.selection, dead_letters=result.dead_letters),
            dropped=result.dropped,
            already_there=result.there,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckPart(Part):
    """One thing that `doctor` checked."""

    subject: str
    verdict: Literal["ok", "look", "fails"]
    """look: worth a look; fails: work here would fail."""
    fact: str
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorDocument(Printout):
    """`doctor --json`: this machine, and the run directory if one is named."""

    checks: tuple[CheckPart, ...]
    """Several may have the same subject."""
    error: ErrorPart | None = None
    """Only if a check fails."""

    @classmethod
    def of(cls, lines: Sequence[Line], *, error: ShardgenError | None) -> Self:
        """What `doctor` shows as a table."""
        return cls(
            checks=tuple(
                CheckPart(
                    subject=one.subject,
                    verdict=_VERDICTS[one.verdict.value],
                    fact=one.fact,
                    hint=one.hint,
                )
                for one in lines
            ),
            error=None if error is None else ErrorPart.of(error),
        )


_VERDICTS: Mapping[str, Literal["ok", "look", "fails"]] = {"": "ok", "look": "look", "FAILS": "fails"}


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingPart(Part):
    """One thing that `verify` found wrong."""

    subject: str
    """A file, or a part of the manifest."""
    fact: str
    batch: int | None
    """The batch to put back; null where no batch is to blame."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequeuedPart(Part):
    """What `verify --requeue` put back."""

    batches: int
    samples: int
    mended: int
    """Records of the manifest that were put right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyDocument(Printout):
    """`verify --json`."""

    subject: str
    """The run directory, bucket or zip that was named."""
    samples: int
    """How many were read."""
    pending: int | None
    """Samples that are not made yet, so not read; null where nobody knows, and of a zip."""
    findings: tuple[FindingPart, ...]
    remarks: tuple[str, ...]
    """What was checked in part only, and what a zip leaves out."""
    requeued: RequeuedPart | None
    """null without --requeue, and if nothing is wrong."""
    error: ErrorPart | None = None
    """Only if there are findings."""

    @classmethod
    def of(
        cls, found: Verification, *, subject: str, requeued: Requeued | None, error: ShardgenError | None
    ) -> Self:
        """What `verify` lists."""
        return cls(
            subject=subject,
            samples=found.samples,
            pending=found.pending,
            findings=tuple(
                FindingPart(subject=one.subject, fact=one.fact, batch=one.batch) for one in found.findings
            ),
            remarks=found.remarks,
            requeued=None
            if requeued is None
            else RequeuedPart(
                batches=len(requeued.batches), samples=requeued.samples, mended=requeued.mended
            ),
            error=None if error is None else ErrorPart.of(error),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SlicesPart(Part):
    """Slices of a shard by state."""

    never_leased: int
    leased: int
    open: int
    """Given back, with or without finished batches."""
    expired: int
    """Leased by a worker that is silent; the next free worker takes it over."""
    done: int
    blocked: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPart(Part):
    """A shard; its samples are those from `start` to before `stop`."""

    index: int
    start: int
    stop: int
    stored: int
    dead_letters: int
    pending: int
    workers: int
    slices: SlicesPart


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockedSlicePart(Part):
    """A slice that nobody leases until it is requeued."""

    shard: int
    slice: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockedPart(Part):
    """Blocked slices: how many, and the first of them."""

    total: int
    first: tuple[BlockedSlicePart, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPart(Part):
    """A worker; one that has stopped is listed for an hour."""

    id: str
    node: str
    """The machine's host name, which another machine may have, too."""
    host: str
    """What tells machines and containers apart."""
    shard: int | None
    slice: int | None
    state: Literal["starting", "working", "waiting", "suspect", "stalled", "expired", "dead", "stopped"]
    last_beat_seconds: float
    samples_per_second: float
    log: str | None
    """The path of its log; null where that is not on this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedFolderPart(Part):
    """How a shared folder does; lags are those from writing a file until another machine sees it."""

    lag_seconds: float | None
    slowest_lag_seconds: float | None
    waiting_batches: int
    arriving_files: int
    duplicated_batches: int
    troubles: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusDocument(Printout):
    """`status --json`, and /status.json of the page about a run."""

    plan: PlanPart
    samples: SamplesPart
    shards: tuple[ShardPart, ...]
    blocked: BlockedPart
    workers: tuple[WorkerPart, ...]
    mixture: tuple[Mapping[str, int | str], ...]
    """What batches were made by, if by more than one kind of device, version or switch; else empty."""
    rate_samples_per_second: float
    eta_seconds: float | None
    """null while nobody works."""
    taken_at: str
    forecast: ForecastPart | None = None
    """Only where `plan --calibrate` measured this plan."""
    shared_folder: SharedFolderPart | None = None
    """Only of a run on a shared folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterPart(Part):
    """A sample that was given up; with the recipe's names for what it is made of."""

    sample: int
    batch: int
    reason: Literal["unreadable", "compose", "non-finite", "encode", "killed-process", "hung"]
    detail: str
    """Its whole text, with a traceback where there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLettersDocument(Printout):
    """`dead-letters --json`."""

    total: int
    dead_letters: tuple[DeadLetterPart, ...]
    """The first of them, as many as --limit says."""


DOCUMENTS: Mapping[str, type[Printout]] = {
    "plan": PlanDocument,
    "run": RunDocument,
    "status": StatusDocument,
    "merge": MergeDocument,
    "verify": VerifyDocument,
    "export": ExportDocument,
    "dead-letters": DeadLettersDocument,
    "doctor": DoctorDocument,
    "error": ErrorDocument,
}
"""By command; `error` is what any of them prints if it fails and has nothing else to say."""


def as_json(answer: Printout) -> dict[str, Any]:
    """What to print: without `error` where all went well."""
    return {key: value for key, value in asdict(answer).items() if key != "error" or value is not None}


def answer(printout: Printout, error: ShardgenError | None = None) -> None:
    """Print it; raises Answered if the command failed with an error, which it holds."""
    print_json(as_json(printout))
    if error is not None:
        raise Answered(error)
