"""How big composites will be, estimated by encoding a few samples."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from shardgen.domain.identifiers import SampleIndex
from shardgen.domain.plan import Block, Plan, Shards
from shardgen.errors import SampleError
from shardgen.imaging.codec import Photograph
from shardgen.imaging.masks import CutOut
from shardgen.imaging.opencv import resize
from shardgen.imaging.options import MaskMode
from shardgen.recipes.base import SizeEstimate
from shardgen.recipes.composites.composer import Composer, SourcesAtHand
from shardgen.recipes.composites.maker import encode_sample
from shardgen.recipes.composites.plan import CompositesPlan, Document, sample_count
from shardgen.recipes.network import likely_depth
from shardgen.sources.inventory import Background, Foreground, Sources

_PROBES = 24  # samples encoded for the estimate; their sizes vary by a tenth or two
_LABEL_BYTES = 160  # a person's row
_AT_HAND_BYTES = 256 << 20  # a whole cut-out of a camera takes 60 MB, one as it is placed 2 MB at most


class AtHand:
    """What a scan has decoded of the photographs that the estimate needs, prepared as a composer does.

    A Keeper: it knows by their number alone which ones those are.
    """

    def __init__(self, document: Document) -> None:
        self._compose = document.compose
        self._document = document
        self._guard = threading.Lock()
        self._free_bytes = _AT_HAND_BYTES
        self._wanted_cutouts = frozenset[str]()
        self._wanted_scenes = frozenset[str]()
        self._cutouts: dict[str, CutOut] = {}
        self._scenes: dict[str, NDArray[np.uint8]] = {}

    def of(self, plan: CompositesPlan) -> SourcesAtHand:
        """What a composer of this plan may take; nothing where it would prepare it otherwise."""
        if plan.compose != self._compose:
            return SourcesAtHand()
        return SourcesAtHand(cutouts=self._cutouts, scenes=self._scenes)

    def expect(self, foregrounds: Sequence[str], backgrounds: Sequence[str]) -> None:
        """Work out which ones the estimate's samples are made of."""
        plan = _stand_in(self._document, foregrounds, backgrounds)
        samples = plan.covering(_PROBES)
        people = {person for sample in samples for person in plan.foregrounds_of(sample)}
        self._wanted_cutouts = frozenset(foregrounds[index] for index in people)
        self._wanted_scenes = frozenset(
            backgrounds[plan.combination(sample).background] for sample in samples
        )

    def keep_foreground(self, name: str, whole: CutOut, placed: CutOut) -> None:
        """Keep it as a composer would."""
        if name in self._wanted_cutouts:
            cutout = whole if isinstance(self._compose.foreground_height, tuple) else placed
            if self._has_room(cutout.nbytes):
                self._cutouts[name] = cutout

    def keep_background(self, name: str, photo: Photograph) -> None:
        """Keep it as large as the canvas."""
        if name in self._wanted_scenes:
            scene = resize(photo.pixels, self._compose.canvas)
            if self._has_room(scene.nbytes):
                self._scenes[name] = scene

    def _has_room(self, size: int) -> bool:
        with self._guard:
            if size > self._free_bytes:
                return False
            self._free_bytes -= size
            return True


def estimate_sizes(plan: CompositesPlan, composer: Composer, *, threads: int = 1) -> SizeEstimate:
    """Encode a few samples that cover the plan, with their blurred brightness in the place of depth."""
    outputs = [output.name for output in plan.plan.outputs]

    def measure(sample: SampleIndex) -> tuple[list[int], int] | None:
        try:
            composed = composer.compose(sample)
        except SampleError:
            return None
        encoded = encode_sample(composed, likely_depth(composed.network_input), plan)
        return [len(encoded.files[name]) for name in outputs], len(composed.measured.boxes)

    with ThreadPoolExecutor(threads, "estimate") as pool:
        found = [one for one in pool.map(measure, plan.covering(_PROBES)) if one is not None]
    count = max(len(found), 1)
    sizes = np.array([sizes for sizes, _ in found]).reshape(-1, len(outputs)).sum(axis=0) / count
    return SizeEstimate(
        outputs=dict(zip(outputs, sizes.tolist(), strict=True)),
        labels=_LABEL_BYTES * sum(people for _, people in found) / count,
        remark="" if plan.depth is None else "depth is a guess",
    )


def _stand_in(document: Document, foregrounds: Sequence[str], backgrounds: Sequence[str]) -> CompositesPlan:
    """A plan of as many photographs, of which nothing but the names is known yet."""
    sources = Sources(
        backgrounds=tuple(
            Background(name=name, bytes=0, sha256="", width=1, height=1) for name in backgrounds
        ),
        foregrounds=tuple(
            Foreground(
                name=name,
                bytes=0,
                sha256="",
                width=1,
                height=1,
                placed_width=1,
                placed_height=1,
                mask=MaskMode.AUTO,
            )
            for name in foregrounds
        ),
    )
    block = Block(samples=sample_count(document.compose, sources), sources=sources)
    shards = Shards(size=1, slice_batches=1, batch=1)
    return CompositesPlan(Plan(recipe=document, outputs=document.outputs, shards=shards, blocks=(block,)))
