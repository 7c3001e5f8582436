"""How `shardgen status` looks to a person."""

from __future__ import annotations

from dataclasses import fields

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table

from shardgen.cli.render import duration, table, text
from shardgen.coordination.report import Report
from shardgen.domain.overview import SliceCounts
from shardgen.recipes.registry import recipe_of

_ANY_WIDTH = 10_000
_SLICES = tuple(one.name for one in fields(SliceCounts))


def status_view(report: Report) -> RenderableType:
    """The report as a person reads it."""
    plan = report.plan
    parts: list[RenderableType] = [
        text(
            f"planned {plan.samples:,}   stored {report.stored:,}   dead letters {report.dead:,}   "
            f"pending {report.pending:,}   ({100 * report.stored / plan.samples:.1f} % stored)"
        )
    ]
    if remark := recipe_of(plan).remark:
        parts.append(text(remark))
    parts += [text(_pace(report)), text(""), _shards(report)]
    if report.workers:
        parts += [text(""), _workers(report)]
    for blocked in report.overview.blocked:
        parts.append(text(f"blocked: shard {blocked.shard} slice {blocked.slice}: {blocked.reason}"))
    parts += [text(line) for line in (*mixture_lines(report), *_folder_lines(report))]
    return Group(*parts)


class _Fitting:
    """The wide table where there is room for it, else the narrow one."""

    def __init__(self, wide: Table, narrow: Table) -> None:
        self._wide = wide
        self._narrow = narrow

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """What the console prints."""
        needed = Measurement.get(console, options.update(max_width=_ANY_WIDTH), self._wide).maximum
        yield self._wide if needed <= options.max_width else self._narrow


def _pace(report: Report) -> str:
    if report.rate:
        return f"rate {report.rate:.2f} samples/s   to go {duration(report.eta_seconds)}"
    if not report.pending:
        return "nothing is pending"
    if report.is_anybody_at_work:
        return "the rate is not known yet"
    return "nothing is being made now"


def _shards(report: Report) -> _Fitting:
    """A row for each shard: its samples, and its slices by state."""
    wide, narrow = [], []
    for shard in report.overview.shards:
        samples, slices = report.plan.layout.shard_samples(shard.shard), shard.slices
        pending = len(samples) - shard.stored - shard.dead
        counts = {name.replace("_", " "): getattr(slices, name) for name in _SLICES}
        row = [f"{shard.shard}", f"{samples.start}-{samples.stop - 1}"]
        row += [f"{count:,}" for count in (shard.stored, shard.dead, pending)]
        wide.append([*row, *(f"{count:,}" for count in counts.values())])
        narrow.append([*row, ", ".join(f"{count:,} {state}" for state, count in counts.items() if count)])
    heads = ["shard", "samples", "stored", "dead", "pending"]
    states = [name.replace("_", " ") for name in _SLICES]
    in_words = table([*heads, "slices"], narrow)
    in_words.columns[-1].justify = "left"
    return _Fitting(table([*heads, *states], wide), in_words)


def _folder_lines(report: Report) -> list[str]:
    """What is special about a shared folder: everything is as old as its files are late."""
    news = report.folder
    if news is None:
        return []
    lag = "no worker has seen another's files yet"
    if news.lag_seconds is not None:
        lag = (
            f"workers see each other's files after {duration(news.lag_seconds)}, "
            f"at most {duration(news.slowest_lag_seconds)}, by their clocks"
        )
    lines = ["", f"shared folder, as seen from here; {lag}"]
    if news.waiting:
        lines.append(f"{news.waiting:,} batches made on this machine are not in the folder yet")
    if news.arriving:
        lines.append(f"{news.arriving:,} files are not whole yet: still arriving, or cut short")
    if news.duplicated:
        lines.append(f"{news.duplicated:,} batches were made twice; one attempt at each counts")
    return lines + [f"trouble: {trouble}" for trouble in news.troubles]


def _workers(report: Report) -> _Fitting:
    rows = [
        [
            one.row.identity.id,
            "-" if one.row.shard is None else f"{one.row.shard}/{one.row.slice}",
            one.state.value + _first_line(one.row.note),
            f"{duration(one.last_beat_seconds)} ago",
            f"{one.row.samples_done:,}",
            f"{one.row.samples_per_second:.2f}",
        ]
        for one in report.workers
    ]
    wide = ["worker", "shard/slice", "state", "last beat", "samples", "samples/s"]
    return _Fitting(table(wide, rows), table(["worker", "slice", "state", "beat", "made", "per s"], rows))


def _first_line(note: str) -> str:
    return f" ({note.partition(chr(10))[0]})" if note else ""


def next_step(report: Report) -> str:
    """What to type next, where nobody is at work; empty where somebody is."""
    if report.is_anybody_at_work:
        return ""
    if report.overview.blocked_total:
        return "once the cause is fixed: shardgen requeue RUN_DIR --blocked"
    if report.pending:
        return f"to continue: shardgen {'worker' if report.folder else 'run'} RUN_DIR"
    if report.dead:
        return "next: shardgen dead-letters RUN_DIR"
    return "to make the zip, if you have not yet: shardgen merge RUN_DIR"


def mixture_lines(report: Report) -> list[str]:
    """A remark when batches were made in more than one way, in the words of their recipe's provenance."""
    if not report.mixture:
        return []
    lines = ["mixture: batches were made in different ways; their files may differ a little between them"]
    for part in report.mixture:
        facts = [f"{name.replace('_', '-')} {fact}" for name, fact in part.items() if name != "batches"]
        lines.append(f"  {part['batches']} batches: {', '.join(facts)}")
    return lines
