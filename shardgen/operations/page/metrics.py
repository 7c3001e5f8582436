"""A look at a run in Prometheus' text format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from shardgen.domain.overview import SLICE_WORDS
from shardgen.domain.receipt import DeadLetterReason
from shardgen.domain.worker import ShownState
from shardgen.operations.page.look import Seen

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def metrics(seen: Seen) -> str:
    """Gauges of the last look; of none but `shardgen_up` where there was no look yet.

    No label comes from outside: states and reasons are closed lists, and workers have no names here.
    """
    lines = [*_gauge("up", "1 if the run could be read the last time.", {"": int(not seen.failure)})]
    if (look := seen.look) is None:
        lines[-1] = "shardgen_up 0"
        return "\n".join([*lines, ""])
    found, details = look.report, look.details
    taken_at = found.overview.taken_at
    workers = Counter(one.state for one in found.workers)
    letters = {group.reason: group.count for group in details.dead_letters}
    slices = {
        state: sum(getattr(shard.slices, state) for shard in found.overview.shards) for state in SLICE_WORDS
    }
    samples = {"stored": found.stored, "dead_letters": found.dead, "pending": found.pending}
    lines += _gauge("planned_samples", "Samples in the plan.", {"": found.plan.samples})
    lines += _gauge("samples", "Samples by state.", _labelled("state", samples))
    lines += _gauge("slices", "Slices by state.", _labelled("state", slices))
    lines += _gauge(
        "workers", "Workers by state.", _labelled("state", {one: workers[one] for one in ShownState})
    )
    lines += _gauge(
        "dead_letters",
        "Samples given up, by reason.",
        _labelled("reason", {one: letters.get(one, 0) for one in DeadLetterReason}),
    )
    lines += _gauge("samples_per_second", "Samples per second of all working workers.", {"": found.rate})
    if found.eta_seconds is not None:
        lines += _gauge("eta_seconds", "Time left at that rate.", {"": found.eta_seconds})
    if details.last_stored_at is not None:
        since = max(0.0, (taken_at - details.last_stored_at).total_seconds())
        lines += _gauge("seconds_since_last_receipt", "Seconds since the last batch was stored.", {"": since})
    lines += _gauge("look_timestamp_seconds", "When the run was last read.", {"": taken_at.timestamp()})
    return "\n".join([*lines, ""])


def _labelled(label: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f'{{{label}="{value}"}}': count for value, count in values.items()}


def _gauge(name: str, text: str, values: Mapping[str, float]) -> Iterable[str]:
    yield f"# HELP shardgen_{name} {text}"
    yield f"# TYPE shardgen_{name} gauge"
    for labels, value in values.items():
        yield f"shardgen_{name}{labels} {value!r}"
