"""Names of a sample's members, and samples spread over a plan: pure functions of numbers."""

from __future__ import annotations

from shardgen.domain.identifiers import SampleIndex
from shardgen.domain.plan import Output

SAMPLES_PER_FOLDER = 10_000  # large folders choke shared drives and file browsers


def member_name(output: Output, sample: SampleIndex, *, digits: int) -> str:
    """The member of one output, as in `fgbg/00012/0123456.jpg`; `digits` are `Plan.name_digits`."""
    return f"{output.name}/{sample // SAMPLES_PER_FOLDER:05d}/{sample:0{digits}d}.{output.suffix}"


def spread_samples(sample_count: int, wanted: int) -> list[SampleIndex]:
    """At most `wanted` samples, evenly spread over the plan, ascending."""
    count = min(sample_count, wanted)
    return [SampleIndex((2 * number + 1) * sample_count // (2 * count)) for number in range(count)]
