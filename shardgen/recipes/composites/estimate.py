"""How big composites will be, from a few samples that are really encoded."""

from __future__ import annotations

from collections.abc import Iterator

from shardgen.domain.identifiers import SampleIndex
from shardgen.errors import SampleError
from shardgen.recipes.base import SizeEstimate
from shardgen.recipes.composites.composer import ComposedSample, Composer
from shardgen.recipes.composites.maker import encode_sample
from shardgen.recipes.composites.plan import CompositesPlan
from shardgen.recipes.network import likely_depth

_PROBES = 24  # samples encoded for the estimate; their sizes vary by a tenth or two
_LABEL_BYTES = 160  # a person's row


def estimate_sizes(plan: CompositesPlan, composer: Composer) -> SizeEstimate:
    """Encode a few samples that cover the plan, with their blurred brightness in the place of depth."""
    sizes = {output.name: 0 for output in plan.plan.outputs}
    count, people = 0, 0
    for composed in _composed(composer, plan.covering(_PROBES)):
        encoded = encode_sample(composed, likely_depth(composed.network_input), plan)
        for name in sizes:
            sizes[name] += len(encoded.files[name])
        people += len(composed.measured.boxes)
        count += 1
    return SizeEstimate(
        outputs={name: size / max(count, 1) for name, size in sizes.items()},
        labels=_LABEL_BYTES * people / max(count, 1),
        remark="" if plan.depth is None else "depth is a guess",
    )


def _composed(composer: Composer, samples: list[SampleIndex]) -> Iterator[ComposedSample]:
    for sample in samples:
        try:
            yield composer.compose(sample)
        except SampleError:
            continue
