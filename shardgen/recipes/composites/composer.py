"""Compose samples; every photograph is decoded, scaled and flipped once, and kept while memory allows."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from shardgen.domain.identifiers import SampleIndex
from shardgen.domain.wording import counted
from shardgen.errors import ComposeFailed, ShardgenError
from shardgen.imaging.compose import Canvas, Figure, Measured, compose, measured, on_canvas
from shardgen.imaging.masks import CutOut, cut_out, halved_to_fit, mirrored, resized
from shardgen.imaging.opencv import resize, use_one_thread
from shardgen.imaging.options import around
from shardgen.imaging.scaling import Scaling
from shardgen.recipes.composites.placement import Person, heights, size_at
from shardgen.recipes.composites.plan import Compose, CompositesPlan, Flips, largest_size
from shardgen.sources.checking import read_planned
from shardgen.sources.inventory import Background, Foreground

CACHE_BYTES = 512 * 1024 * 1024
"""Of all prepared sources kept in memory; a 600x600 background takes 2.1 MB, a cut-out up to 1.8 MB."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ComposedSample:
    """A sample before depth: its `picture` uint8 (h, w, 3) RGB and its masks as they are stored.

    `network_input` is uint8 (H, W, 3) RGB at the network's size; without depth it is empty, (0, 0, 3). The
    canvas is not kept: it takes more memory than all else.
    """

    sample: SampleIndex
    picture: NDArray[np.uint8]
    measured: Measured
    network_input: NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scene:
    """A background at canvas size, uint8 (H, W, 3) RGB, and resized as composites are.

    `stored` is of the output's size, `network` of the network's; None where composites are resized whole.
    """

    canvas: NDArray[np.uint8]
    stored: NDArray[np.uint8] | None
    network: NDArray[np.uint8] | None

    @property
    def nbytes(self) -> int:
        """Memory held by the arrays."""
        held = [array for array in (self.canvas, self.stored, self.network) if array is not None]
        return sum({id(array): array.nbytes for array in held}.values())


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
        self._cache = PreparedSources(cache_bytes)
        canvas, depth = plan.compose.canvas, plan.depth
        self._to_stored = Scaling(canvas, plan.output.size)
        self._to_network = None if depth is None else Scaling(canvas, depth.input, by_area=False)

    @property
    def kept(self) -> PreparedSources:
        """The photographs that are kept in memory."""
        return self._cache

    def compose(self, sample: SampleIndex) -> ComposedSample:
        """Make one sample's picture, masks and network input.

        Raises SampleError when this sample cannot be made; PlanConflict for a file that is not the plan's,
        InputMissing and StorageFailed when files cannot be read: none of them is this sample's fault.
        """
        try:
            return self._compose(sample)
        except (ShardgenError, MemoryError):
            raise
        except Exception as error:
            raise ComposeFailed(f"sample {sample}: composing raised {error!r}") from error

    def canvas(self, sample: SampleIndex) -> Canvas:
        """One sample's whole canvas; raises as `compose` does."""
        scene, figures = self._drawn(sample)
        return compose(scene.canvas, figures, self._plan.compose.blend)

    def _compose(self, sample: SampleIndex) -> ComposedSample:
        plan, to_stored, to_network = self._plan, self._to_stored, self._to_network
        scene, figures = self._drawn(sample)
        changed = on_canvas(figures, plan.compose.canvas, plan.compose.blend)
        stored = to_stored.part_for(changed)
        network = stored if to_network is None else to_network.part_for(changed)
        canvas = compose(scene.canvas, figures, plan.compose.blend, part=around([stored, network]))
        return ComposedSample(
            sample=sample,
            picture=to_stored.resized(canvas.fgbg[canvas.within(stored)], stored, scene.stored),
            measured=measured(canvas, stored, to_stored, with_instances=plan.most_people > 1),
            network_input=(
                np.empty((0, 0, 3), np.uint8)
                if to_network is None
                else to_network.resized(canvas.fgbg[canvas.within(network)], network, scene.network)
            ),
        )

    def _drawn(self, sample: SampleIndex) -> tuple[Scene, list[Figure]]:
        """A sample's background, and who stands on it."""
        plan = self._plan
        made_of = plan.combination(sample)
        figures = [Figure(cutout=self._cutout(person), at=person.frame) for person in plan.people(sample)]
        is_mirrored = made_of.flip == 1 and plan.compose.flips is Flips.BACKGROUNDS
        return self._scene(made_of.background, is_mirrored=is_mirrored), figures

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

    def _scene(self, index: int, *, is_mirrored: bool) -> Scene:
        """A background at canvas size, whatever its aspect."""

        def prepare() -> Scene:
            if is_mirrored:
                return self._resized(mirrored(self._scene(index, is_mirrored=False).canvas))
            return self._resized(self._read_background(self._plan.sources.backgrounds[index]))

        return self._cache.get(("background", index, is_mirrored), prepare)

    def _read_background(self, background: Background) -> NDArray[np.uint8]:
        """At canvas size, uint8 (H, W, 3) RGB."""
        photo = read_planned(self._backgrounds, background)
        return resize(photo.pixels, self._plan.compose.canvas)

    def _resized(self, canvas: NDArray[np.uint8]) -> Scene:
        to_stored, to_network = self._to_stored, self._to_network
        return Scene(
            canvas=canvas,
            stored=to_stored.whole(canvas) if to_stored.has_parts else None,
            network=to_network.whole(canvas) if to_network is not None and to_network.has_parts else None,
        )

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


class _Prepared(Protocol):
    @property
    def nbytes(self) -> int: ...


_Source = TypeVar("_Source", bound=_Prepared)
_Key = tuple[str, int, bool]


class PreparedSources:
    """Least recently used sources up to a number of bytes; each made once, even when several threads ask."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._size_bytes = 0
        self._asked = self._found = 0
        self._guard = threading.Lock()
        self._kept: OrderedDict[_Key, _Prepared] = OrderedDict()
        self._in_making: dict[_Key, Future[_Prepared]] = {}

    def __str__(self) -> str:
        """How often a source was at hand, and the memory that all take; "" before any was asked for."""
        with self._guard:
            if not self._asked:
                return ""
            share, used, limit = self._found / self._asked, self._size_bytes >> 20, self._limit_bytes >> 20
            return (
                f"photographs kept in memory: {used:,} MiB (at most {limit:,}), "
                f"at hand for {share:.1%} of {counted(self._asked, 'use')}"
            )

    def get(self, key: _Key, make: Callable[[], _Source]) -> _Source:
        """Return what is kept under the key, else make it; an error reaches every waiting thread."""
        with self._guard:
            self._asked += 1
            kept = self._kept.get(key)
            if kept is not None:
                self._found += 1
                self._kept.move_to_end(key)
                return kept  # type: ignore[return-value]  # the key's first part decides the type
            promise = self._in_making.get(key)
            is_ours = promise is None
            self._found += not is_ours
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

    def _keep(self, key: _Key, source: _Prepared) -> None:
        self._kept[key] = source
        self._size_bytes += source.nbytes
        while self._size_bytes > self._limit_bytes:
            _key, dropped = self._kept.popitem(last=False)
            self._size_bytes -= dropped.nbytes
