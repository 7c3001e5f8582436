"""How `shardgen status` looks to a person."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from shardgen.cli.render import Fitting, Table, View, one_line, table
from shardgen.coordination.report import Report, ShownWorker
from shardgen.domain.overview import SLICE_WORDS
from shardgen.domain.wording import counted, duration, sized
from shardgen.domain.worker import WORKER_WORDS
from shardgen.operations.forecast import Forecast, forecast_line
from shardgen.operations.merged import Merged
from shardgen.operations.status import advice, by_node, shown_path
from shardgen.recipes.registry import recipe_of

_SHOWN_LOGS = 4
_SHOWN_NOTE = 80  # characters


def status_view(report: Report, *, finished: Merged | None = None, forecast: Forecast | None = None) -> View:
    """The report as a person reads it, with the zip of all that is stored and the forecast, where known."""
    plan = report.plan
    first = (
        f"planned {plan.samples:,}   stored {report.stored:,}   dead letters {report.dead:,}   "
        f"pending {report.pending:,}"
    )
    parts: list[str | Table | Fitting] = [first]
    if remark := recipe_of(plan).remark:
        parts.append(remark)
    parts.append(_pace(report, finished))
    if forecast is not None:
        parts.append(forecast_line(forecast, report))
    parts += ["", _shards(report)]
    if report.workers:
        nodes = _nodes(report)
        if 1 < len(nodes) < len(report.workers):
            parts += ["", _totals(nodes)]
        parts += ["", _workers(report, nodes), *_logs(report)]
    for blocked in report.overview.blocked:
        parts.append(f"blocked: shard {blocked.shard} slice {blocked.slice}: {blocked.reason}")
    parts += [*mixture_lines(report), *_folder_lines(report)]
    return View(tuple(parts))


def _pace(report: Report, finished: Merged | None) -> str:
    if report.pending:
        return report.progress.line()
    if finished is None:
        return "nothing is pending"
    return f"finished: {shown_path(finished)}, {sized(finished.size_bytes)}"


def _shards(report: Report) -> Fitting:
    """A row for each shard: its samples, and its slices by state."""
    wide, narrow = [], []
    for shard in report.overview.shards:
        samples, slices = report.plan.layout.shard_samples(shard.shard), shard.slices
        pending = len(samples) - shard.stored - shard.dead
        counts = {word: getattr(slices, name) for name, word in SLICE_WORDS.items()}
        row = [f"{shard.shard}", f"{samples.start}-{samples.stop - 1}"]
        row += [f"{count:,}" for count in (shard.stored, shard.dead, pending)]
        wide.append([*row, *(f"{count:,}" for count in counts.values())])
        narrow.append([*row, ", ".join(f"{count:,} {state}" for state, count in counts.items() if count)])
    heads = ["shard", "samples", "stored", "dead", "pending"]
    in_words = table([*heads, "slices"], narrow)
    return Fitting((table([*heads, *SLICE_WORDS.values()], wide), _last_left(in_words)))


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


def _nodes(report: Report) -> list[tuple[str, list[ShownWorker]]]:
    return [(one_line(name), workers) for name, workers in by_node(report)]


def _logs(report: Report) -> list[str]:
    """Where the logs of workers of this machine are; of many, the newest."""
    newest = sorted(report.workers, key=lambda one: one.row.started_at, reverse=True)
    logs = [log for one in newest if (log := report.log_of(one)) is not None]
    lines = [f"log: {log}" for log in logs[:_SHOWN_LOGS]]
    if rest := logs[_SHOWN_LOGS:]:
        lines.append(f"and {counted(len(rest), 'other log')} in {rest[0].parent}")
    return lines


def _totals(nodes: list[tuple[str, list[ShownWorker]]]) -> Table:
    """A row for each node: what it makes, and its workers by state."""
    rows = []
    for name, workers in nodes:
        counts = Counter(one.state for one in workers)
        states = ", ".join(f"{counts[state]} {word}" for state, word in WORKER_WORDS.items() if counts[state])
        rows.append([name, f"{sum(one.rate for one in workers):.2f}", states])
    return _last_left(table(["node", "samples/s", "workers"], rows))


def _last_left(found: Table) -> Table:
    """The same with its last column to the left, too."""
    return replace(found, left=found.left | {len(found.heads) - 1})


def _workers(report: Report, nodes: list[tuple[str, list[ShownWorker]]]) -> Fitting:
    wide = ["worker", "shard/slice", "state", "last seen", "samples", "samples/s"]
    narrow = ["worker", "slice", "state", "seen", "made", "per s"]
    if len(nodes) < 2:
        rows = [_cells(one) for one in report.workers]
        return Fitting((table(wide, rows), table(narrow, rows)))
    rows, lines = [], []
    for name, workers in nodes:
        cells = [_cells(one) for one in workers]
        rows += [[name if row is cells[0] else "", *row] for row in cells]
        lines += [[name] + [""] * len(narrow[1:])] + [[f"  {row[0]}", *row[1:]] for row in cells]
    return Fitting((table(["node", *wide], rows), table(["node", *narrow], rows), table(narrow, lines)))


def _cells(one: ShownWorker) -> list[str]:
    return [
        one.row.identity.id,
        "-" if one.row.shard is None else f"{one.row.shard}/{one.row.slice}",
        WORKER_WORDS[one.state] + _first_line(one.row.note),
        f"{duration(one.last_beat_seconds)} ago",
        f"{one.row.samples_done:,}",
        f"{one.row.samples_per_second:.2f}",
    ]


def _first_line(note: str) -> str:
    """The start of a note: its log has the rest, and a table is no place for a list of files."""
    line = note.partition("\n")[0]
    return f" ({line if len(line) <= _SHOWN_NOTE else line[: _SHOWN_NOTE - 1] + '…'})" if note else ""


def next_step(report: Report, finished: Merged | None = None) -> str:
    """What to type next, where nobody is at work; empty where somebody is."""
    if report.is_anybody_at_work:
        return ""
    return "; ".join(f"{one.text}: {one.command}" for one in advice(report, finished))


def mixture_lines(report: Report) -> list[str]:
    """A remark when batches were made in more than one way, in the words of their recipe's provenance."""
    if not report.mixture:
        return []
    lines = ["mixture: batches were made in different ways; their files may differ a little between them"]
    for part in report.mixture:
        facts = [f"{name.replace('_', '-')} {fact}" for name, fact in part.items() if name != "batches"]
        lines.append(f"  {part['batches']} batches: {', '.join(facts)}")
    return lines
