"""How big a data set will be, from a few samples that are really encoded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shardgen.domain.identifiers import SampleIndex
from shardgen.domain.plan import Plan
from shardgen.domain.receipt import ImageKind
from shardgen.domain.sample import member_name, spread_samples
from shardgen.errors import SampleError
from shardgen.imaging.outputs import encode_sample
from shardgen.recipes.composites.composer import ComposedSample, Composer

_PROBES = 24  # samples encoded for the estimate; their sizes vary by a tenth or two
_ZIP_RECORD_BYTES = 30 + 46  # a local header and a directory entry, without the name twice
_LABEL_BYTES = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Bytes per sample as stored, from samples that were really encoded; depth is guessed from them."""

    fgbg_bytes: float
    mask_bytes: float
    depth_bytes: float
    container_bytes: float

    @property
    def sample_bytes(self) -> float:
        """All of a sample's share of the final zip."""
        return self.fgbg_bytes + self.mask_bytes + self.depth_bytes + self.container_bytes


def estimate_sizes(plan: Plan, composer: Composer) -> Estimate:
    """Encode a few samples spread over the plan, with their blurred brightness in the place of depth."""
    sizes = dict.fromkeys(ImageKind, 0)
    count = 0
    for composed in _composed(composer, spread_samples(plan.samples, _PROBES)):
        encoded = encode_sample(composed.canvas, _stand_in(composed), plan.output, plan.depth.encoding)
        for kind in ImageKind:
            sizes[kind] += len(encoded.images[kind])
        count += 1
    names = (member_name(k, SampleIndex(0), sample_count=plan.samples, suffix="jpg") for k in ImageKind)
    container = sum(_ZIP_RECORD_BYTES + 2 * len(name) for name in names) + _LABEL_BYTES
    return Estimate(
        fgbg_bytes=sizes[ImageKind.FGBG] / max(count, 1),
        mask_bytes=sizes[ImageKind.MASK] / max(count, 1),
        depth_bytes=sizes[ImageKind.DEPTH] / max(count, 1),
        container_bytes=float(container),
    )


def _composed(composer: Composer, samples: list[SampleIndex]) -> Iterator[ComposedSample]:
    for sample in samples:
        try:
            yield composer.compose(sample)
        except SampleError:
            continue


def _stand_in(composed: ComposedSample) -> NDArray[np.float32]:
    """Brightness averaged over blocks of 8x8 and drawn large again, 0.01-1.0: about as smooth as depth."""
    grey = composed.network_input.astype(np.float32).mean(axis=2) / 255
    height, width = (side // 8 * 8 for side in grey.shape)
    blocks = grey[:height, :width].reshape(height // 8, 8, width // 8, 8).mean(axis=(1, 3))
    return np.clip(np.kron(blocks, np.ones((4, 4), np.float32)), 0.01, 1.0).astype(np.float32)
