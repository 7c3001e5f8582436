"""Makes composites: composed from photographs, put through the depth network, encoded as three images."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shardgen.depth.base import Estimator
from shardgen.domain.identifiers import SampleIndex
from shardgen.domain.receipt import Provenance, Sums
from shardgen.domain.wording import Say
from shardgen.errors import DepthNotFinite, EncodeFailed, SampleError
from shardgen.imaging.codec import VERSIONS, encode
from shardgen.imaging.compose import Canvas
from shardgen.imaging.opencv import resize
from shardgen.imaging.options import DepthEncoding, ImageFormat
from shardgen.imaging.outputs import depth_image, stored_sums
from shardgen.recipes.base import BatchSizes, Between, Encoded, Maker
from shardgen.recipes.composites.composer import ComposedSample, Composer
from shardgen.recipes.composites.network import remember_shrinking
from shardgen.recipes.composites.plan import DEPTH, FGBG, MASK, CompositesPlan, Formats

DepthMap = NDArray[np.float32]
"""Relative depth, float32 (h, w): 0.01 is near, 1.0 far."""


_IPP_WORDS = ("disabled", "sse42", "avx2", "avx512")


class CompositesMaker(Maker[ComposedSample, DepthMap]):
    """One plan's composites, with the depth network on one device."""

    def __init__(
        self,
        plan: CompositesPlan,
        composer: Composer,
        estimator: Estimator,
        *,
        agreed: BatchSizes | None,
        say: Say,
    ) -> None:
        self._plan = plan
        self._composer = composer
        self._estimator = estimator
        self._agreed = agreed
        self._say = say
        self._micro_batch = estimator.micro_batch

    @property
    def device_model(self) -> str:
        """What the network runs on."""
        return self._estimator.device_model

    def prepare(self, sample: SampleIndex) -> ComposedSample:
        """Its canvas and the network's input."""
        return self._composer.compose(sample)

    def compute(
        self, batch: Sequence[ComposedSample | None], *, between: Between
    ) -> list[DepthMap | SampleError | None]:
        """Their depth. A missing sample is black: the others' last bits must not depend on it."""
        depth = self._estimator.estimate(
            self._inputs(batch), wanted=[sample is not None for sample in batch], between=between
        )
        not_finite = DepthNotFinite("the network's output holds NaN or infinity, in float32 too")
        return [
            None if sample is None else not_finite if depth.non_finite[row] else depth.relative[row]
            for row, sample in enumerate(batch)
        ]

    def encode(self, sample: SampleIndex, prepared: ComposedSample, computed: DepthMap) -> Encoded:
        """The three images, and sums over their pixels as a reader will see them."""
        del sample
        plan = self._plan
        return encode_sample(prepared.canvas, computed, plan.output, plan.depth.encoding)

    def check(self) -> None:
        """Put one black image through the network."""
        self._estimator.warm_up()

    def provenance(self) -> Provenance:
        """What decides the bytes; a micro-batch that has become smaller is remembered for all workers."""
        estimator, now = self._estimator, self._estimator.micro_batch
        remember_shrinking(estimator, self._micro_batch, self._agreed, say=self._say)
        self._micro_batch = now
        return Provenance.of(
            {
                "device_model": estimator.device_model,
                "micro_batch": now,
                **VERSIONS,
                "precision": self._plan.depth.precision.value,
                **_opencv_switches(),
                **estimator.provenance,
            }
        )

    def _inputs(self, batch: Sequence[ComposedSample | None]) -> NDArray[np.uint8]:
        width, height = self._plan.depth.input
        images = np.zeros((len(batch), height, width, 3), np.uint8)
        for row, sample in enumerate(batch):
            if sample is not None:
                images[row] = sample.network_input
        return images


def _opencv_switches() -> dict[str, str]:
    """What makes OpenCV enlarge depth, in float32, to other bits; of words that it does not know, nothing."""
    value = os.environ.get("OPENCV_IPP", "")
    return {"opencv_switches": f"OPENCV_IPP={value}"} if value in _IPP_WORDS else {}


def encode_sample(
    canvas: Canvas, relative_depth: DepthMap, formats: Formats, encoding: DepthEncoding
) -> Encoded:
    """Encode the three images of a sample and sum up the pixels of what was encoded; raises EncodeFailed.

    Composite, uint8 (h, w, 3) RGB, and mask, uint8 (h, w), are resized to the output size; edges turn grey.
    """
    depth = depth_image(relative_depth, formats.size, encoding)
    files = {
        FGBG: encode(resize(canvas.fgbg, formats.size), formats.image, formats.image_quality),
        MASK: encode(resize(canvas.mask, formats.size), formats.mask, formats.image_quality),
        DEPTH: encode(depth, _depth_format(depth, formats), formats.depth_quality),
    }
    sums: Sums = {name: stored_sums(data, channels=3 if name == FGBG else 1) for name, data in files.items()}
    return Encoded(files=files, sums=sums)


def _depth_format(pixels: NDArray[np.uint8] | NDArray[np.uint16], formats: Formats) -> ImageFormat:
    if pixels.dtype == np.uint16 and formats.depth is not ImageFormat.PNG:
        raise EncodeFailed("relative depth has 16 bits and needs PNG", hint='set depth = "png" in [output]')
    return formats.depth
