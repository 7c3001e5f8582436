"""Compose samples; every photograph is decoded, scaled and flipped once, and kept while memory allows."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from shardgen.domain.identifiers import SampleIndex
from shardgen.errors import ComposeFailed, ShardgenError
from shardgen.imaging.compose import Canvas, Figure, Measured, compose, measured, network_input
from shardgen.imaging.masks import CutOut, cut_out, halved_to_fit, mirrored, resized
from shardgen.imaging.opencv import resize, use_one_thread
from shardgen.recipes.composites.placement import Person, heights, size_at
from shardgen.recipes.composites.plan import Compose, CompositesPlan, Flips, largest_size
from shardgen.sources.checking import read_planned
from shardgen.sources.inventory import Background, Foreground

CACHE_BYTES = 512 * 1024 * 1024
"""Of prepared sources kept in memory; a 600x600 background takes 1.1 MB, a cut-out up to 1.8 MB."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ComposedSample:
    """A sample before depth: its canvas, and `network_input` uint8 (H, W, 3) RGB at the network's size.

    Without depth that is empty, (0, 0, 3). Of the canvas's figures only what was measured is kept: many of
    them would take more memory than all else.
    """

    sample: SampleIndex
    canvas: Canvas
    measured: Measured
    network_input: NDArray[np.uint8]


class Composer:
    """Makes the composites of one plan from this machine's folders. Thread-safe."""

    def __init__(
        self,
        plan: CompositesPlan,
        foregrounds: Path,
        backgrounds: Path,
        *,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        use_one_thread()
        self._plan = plan
        self._foregrounds = foregrounds
        self._backgrounds = backgrounds
        self._cache = _PreparedSources(cache_bytes)

    def compose(self, sample: SampleIndex) -> ComposedSample:
        """Make one sample's canvas and network input.

        Raises SampleError when this sample cannot be made; PlanConflict for a file that is not the plan's,
        InputMissing and StorageFailed when files cannot be read: none of them is this sample's fault.
        """
        try:
            return self._compose(sample)
        except (ShardgenError, MemoryError):
            raise
        except Exception as error:
            raise ComposeFailed(f"sample {sample}: composing raised {error!r}") from error

    def _compose(self, sample: SampleIndex) -> ComposedSample:
        plan = self._plan
        made_of = plan.combination(sample)
        figures = [Figure(cutout=self._cutout(person), at=person.frame) for person in plan.people(sample)]
        is_mirrored = made_of.flip == 1 and plan.compose.flips is Flips.BACKGROUNDS
        canvas = compose(
            self._scene(made_of.background, is_mirrored=is_mirrored), figures, plan.compose.blend
        )
        depth = plan.depth
        return ComposedSample(
            sample=sample,
            canvas=replace(canvas, figures=()),
            measured=measured(canvas, plan.output.size, with_instances=plan.most_people > 1),
            network_input=canvas.fgbg[:0, :0] if depth is None else network_input(canvas.fgbg, depth.input),
        )

    def _cutout(self, person: Person) -> CutOut:
        if isinstance(self._plan.compose.foreground_height, tuple):
            # No two samples need the same size, so only the whole cut-out is worth keeping.
            size = person.frame.width, person.frame.height
            sized = resized(self._kept_cutout(person.foreground, is_mirrored=False), size)
            return sized.flipped() if person.is_mirrored else sized
        return self._kept_cutout(person.foreground, is_mirrored=person.is_mirrored)

    def _kept_cutout(self, index: int, *, is_mirrored: bool) -> CutOut:
        def prepare() -> CutOut:
            if is_mirrored:
                return self._kept_cutout(index, is_mirrored=False).flipped()
            return self._read_cutout(self._plan.sources.foregrounds[index])

        return self._cache.get(("foreground", index, is_mirrored), prepare)

    def _scene(self, index: int, *, is_mirrored: bool) -> NDArray[np.uint8]:
        """A background at canvas size, whatever its aspect, uint8 (H, W, 3) RGB."""

        def prepare() -> NDArray[np.uint8]:
            if is_mirrored:
                return mirrored(self._scene(index, is_mirrored=False))
            return self._read_background(self._plan.sources.backgrounds[index])

        return self._cache.get(("background", index, is_mirrored), prepare)

    def _read_background(self, background: Background) -> NDArray[np.uint8]:
        """At canvas size, uint8 (H, W, 3) RGB."""
        photo = read_planned(self._backgrounds, background)
        return resize(photo.pixels, self._plan.compose.canvas)

    def _read_cutout(self, foreground: Foreground) -> CutOut:
        photo = read_planned(self._foregrounds, foreground)
        mask_photo = None
        if foreground.mask_file is not None:
            mask_photo = read_planned(self._foregrounds, foreground.mask_file)
        try:
            whole = cut_out(photo, foreground.mask, mask_photo)
            if isinstance(self._plan.compose.foreground_height, tuple):
                return whole
            return fitted(whole, self._plan.compose)
        except ComposeFailed as error:
            raise ComposeFailed(f"{foreground.name}: {error}", hint=error.hint) from error


def fitted(cutout: CutOut, compose: Compose) -> CutOut:
    """A whole cut-out at the size at which it is placed, of a range at the largest; raises ComposeFailed.

    It is refused if its mask vanishes at any size of a range.
    """
    whole, wanted = (cutout.width, cutout.height), compose.foreground_height
    if wanted is None:
        return halved_to_fit(cutout, compose.canvas)
    try:
        if isinstance(wanted, tuple):
            resized(cutout, size_at(whole, heights(wanted, compose.canvas)[0], compose.canvas))
        return resized(cutout, largest_size(compose, whole, halved=whole))
    except ComposeFailed as error:
        hint = f"raise foreground_height in [compose], or {error.hint}"
        raise ComposeFailed(str(error), hint=hint) from error


_Source = TypeVar("_Source", CutOut, NDArray[np.uint8])
_Key = tuple[str, int, bool]


class _PreparedSources:
    """Least recently used sources up to a number of bytes; each made once, even when several threads ask."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._size_bytes = 0
        self._guard = threading.Lock()
        self._kept: OrderedDict[_Key, CutOut | NDArray[np.uint8]] = OrderedDict()
        self._in_making: dict[_Key, Future[CutOut | NDArray[np.uint8]]] = {}

    def get(self, key: _Key, make: Callable[[], _Source]) -> _Source:
        """Return what is kept under the key, else make it; an error reaches every waiting thread."""
        with self._guard:
            kept = self._kept.get(key)
            if kept is not None:
                self._kept.move_to_end(key)
                return kept  # type: ignore[return-value]  # the key's first part decides the type
            promise = self._in_making.get(key)
            is_ours = promise is None
            if promise is None:
                promise = self._in_making[key] = Future()
        if not is_ours:
            return promise.result()  # type: ignore[return-value]
        try:
            made = make()
        except BaseException as error:
            with self._guard:
                del self._in_making[key]
            promise.set_exception(error)
            raise
        with self._guard:
            del self._in_making[key]
            self._keep(key, made)
        promise.set_result(made)
        return made

    def _keep(self, key: _Key, source: CutOut | NDArray[np.uint8]) -> None:
        self._kept[key] = source
        self._size_bytes += source.nbytes
        while self._size_bytes > self._limit_bytes:
            _key, dropped = self._kept.popitem(last=False)
            self._size_bytes -= dropped.nbytes
