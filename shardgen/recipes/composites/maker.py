"""Makes composites: composes photographs, runs the depth network, encodes images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shardgen.depth.base import Begun, Picture, RawOutput
from shardgen.domain.identifiers import SampleIndex
from shardgen.domain.receipt import Provenance
from shardgen.imaging.codec import VERSIONS
from shardgen.imaging.masks import Box
from shardgen.imaging.opencv import switches
from shardgen.imaging.options import ImageFormat
from shardgen.imaging.outputs import depth_picture, mask_picture, picture
from shardgen.recipes.base import Between, Encoded, Maker
from shardgen.recipes.composites.composer import ComposedSample, Composer
from shardgen.recipes.composites.plan import FGBG, INSTANCES, MASK, CompositesPlan
from shardgen.recipes.depth import DEPTH
from shardgen.recipes.network import DepthMap, DepthStage

_NO_DEPTH = np.zeros((1, 1), np.float32)


class CompositesMaker(Maker[ComposedSample, RawOutput]):
    """One plan's composites, with the depth network on one device, if depth is made."""

    def __init__(
        self,
        plan: CompositesPlan,
        composer: Composer,
        depth: DepthStage | None,
        *,
        cpu: str,
    ) -> None:
        self._plan = plan
        self._composer = composer
        self._depth = depth
        self._cpu = cpu

    @property
    def device_model(self) -> str:
        """What the network runs on; without depth the CPU."""
        return self._cpu if self._depth is None else self._depth.device_model

    @property
    def last_words(self) -> str:
        """How often a photograph was found in memory."""
        return str(self._composer.kept)

    def prepare(self, sample: SampleIndex) -> ComposedSample:
        """Its picture, its masks and the network's input."""
        return self._composer.compose(sample)

    def begin(self, batch: Sequence[ComposedSample | None]) -> Begun | None:
        """Give the network their pictures, if depth is made."""
        return None if self._depth is None else self._depth.begin(_inputs(batch))

    def compute(
        self, batch: Sequence[ComposedSample | None], *, between: Between, begun: object = None
    ) -> Sequence[RawOutput | None]:
        """The network's outputs, if depth is made."""
        if self._depth is None:
            between(len(batch))
            return [None if sample is None else _NO_DEPTH for sample in batch]
        ahead = begun if isinstance(begun, Begun) else None
        return self._depth.compute(_inputs(batch), between=between, begun=ahead)

    def encode(self, sample: SampleIndex, prepared: ComposedSample, computed: RawOutput) -> Encoded:
        """The images, sums over their pixels as a reader will see them, and who is where in them."""
        del sample
        depth = computed if self._depth is None else self._depth.depth_of(computed)
        return encode_sample(prepared, depth, self._plan)

    def check(self) -> None:
        """Put one black image through the network."""
        if self._depth is not None:
            self._depth.check()

    def provenance(self) -> Provenance:
        """What decides the bytes."""
        computed = {"device_model": self._cpu} if self._depth is None else self._depth.provenance()
        return Provenance.of({**VERSIONS, **switches(), **computed})


def encode_sample(composed: ComposedSample, relative_depth: DepthMap, plan: CompositesPlan) -> Encoded:
    """Encode the images of a sample and sum up the pixels of what was encoded; raises EncodeFailed."""
    formats, depth, seen = plan.output, plan.depth, composed.measured
    made = {
        FGBG: picture(composed.picture, formats.image, formats.image_quality),
        MASK: mask_picture(seen.mask, formats.mask, formats.image_quality),
    }
    if depth is not None:
        size = depth.size or formats.size
        made[DEPTH] = depth_picture(relative_depth, size, depth.encoding, depth.format, depth.quality)
    if seen.instances is not None:
        made[INSTANCES] = mask_picture(seen.instances, ImageFormat.PNG, 100)
    facts: list[int] = []
    for on_canvas, per_mille, stored in seen.boxes:
        facts += [*_numbers(on_canvas), per_mille, *_numbers(stored)]
    return Encoded(
        files={name: data for name, (data, _sums) in made.items()},
        sums={name: sums for name, (_data, sums) in made.items()},
        facts=tuple(facts),
    )


def _inputs(batch: Sequence[ComposedSample | None]) -> list[Picture | None]:
    return [None if sample is None else sample.network_input for sample in batch]


def _numbers(box: Box) -> tuple[int, ...]:
    return box.x, box.y, box.width, box.height, box.area
