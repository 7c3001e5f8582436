"""Outputs of any network that is a function: micro-batches, given ahead, overflows, out of memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from shardgen.depth.base import Begun, Estimator, NetworkPlan, Picture, Precision, RawOutput
from shardgen.depth.device import Device
from shardgen.errors import DepthBackendUnavailable

Graph = Callable[[NDArray[np.uint8]], Callable[[], NDArray[np.float32]]]
"""Gives uint8 (micro_batch, H, W, 3) RGB to the device; what it returns waits for the raw outputs.

These are float32 (micro_batch, h, w) of their own. A device with a queue, as a GPU, takes more before it has
finished. Both raise MemoryError when the device has no memory left, and no error of their library but those
that speak of the input.
"""
Build = Callable[[int, Precision], Graph]
"""Makes the graph of a micro-batch and a precision; raises as the graph does."""


@dataclass(slots=True)
class _Ahead(Begun):
    """Micro-batches on the device's queue, by their first picture, in order; all of one size."""

    micro_batch: int
    waiting: deque[tuple[int, Callable[[], NDArray[np.float32]]]] = field(default_factory=deque)


class DepthEstimator(Estimator):
    """Graphs of fixed shapes, built when they are needed; `depth_of` makes depth of one raw output.

    `micro_batch` is halved, and stays smaller, when the device runs out of memory.
    """

    def __init__(
        self,
        build: Build,
        depth_of: Callable[[RawOutput], RawOutput],
        plan: NetworkPlan,
        *,
        micro_batch: int,
        on: Device,
    ) -> None:
        if micro_batch < 1:
            raise ValueError(f"micro-batch {micro_batch} (expected at least 1)")
        self._build, self._depth_of, self._plan, self._device = build, depth_of, plan, on
        self._micro_batch = micro_batch
        self._graphs: dict[tuple[int, Precision], Graph] = {}

    @property
    def micro_batch(self) -> int:
        """As it is now."""
        return self._micro_batch

    @property
    def device_model(self) -> str:
        """The device's name; of a CPU with its widest instruction set and the number of threads."""
        return self._device.model

    @property
    def provenance(self) -> Mapping[str, str | int]:
        """The library, its version, and the switches that are set."""
        on = self._device
        found: dict[str, str | int] = {on.library: on.version}
        if on.switches:
            found[f"{on.library}_switches"] = on.switches
        return found

    def warm_up(self) -> None:
        """Build the graph, too."""
        width, height = self._plan.input
        self.outputs([np.zeros((height, width, 3), np.uint8)])

    def depth_of(self, raw: RawOutput) -> RawOutput:
        """As the family makes it."""
        return self._depth_of(raw)

    def begin(self, pictures: Sequence[Picture | None]) -> Begun | None:
        """On a GPU; a CPU computes when it is called, and would keep what is finished waiting."""
        if self._device.kind != "gpu":
            return None
        self._check(pictures)
        ahead = _Ahead(self._micro_batch)
        with suppress(Exception):  # it comes again when its turn comes, and costs no other batch
            for start in range(0, len(pictures), self._micro_batch):
                part = pictures[start : start + self._micro_batch]
                if any(picture is not None for picture in part):
                    ahead.waiting.append((start, self._given(self._plan.precision, part)))
        return ahead

    def outputs(
        self,
        pictures: Sequence[Picture | None],
        *,
        begun: Begun | None = None,
        between: Callable[[int], None] | None = None,
    ) -> list[RawOutput | None]:
        """The last micro-batch is padded with black; one without a picture is passed over."""
        self._check(pictures)
        begun = begun or self.begin(pictures)
        ahead = begun if isinstance(begun, _Ahead) else _Ahead(0)
        raw: list[RawOutput | None] = [None] * len(pictures)
        start = 0
        while start < len(pictures):
            part = pictures[start : start + self._micro_batch]
            if all(picture is None for picture in part):
                start += len(part)
                continue
            found = self._waited_for(ahead, start, part)
            if found is None:
                found = self._run_smaller_if_needed(part)
            for row, picture in enumerate(pictures[start : start + len(found)]):
                if picture is not None:
                    raw[start + row] = found[row]
            start += len(found)
            if between is not None:
                between(start)
        return raw

    def _check(self, pictures: Sequence[Picture | None]) -> None:
        width, height = self._plan.input
        for one in pictures:
            if one is not None and (one.dtype != np.uint8 or one.shape != (height, width, 3)):
                raise ValueError(
                    f"a picture is {one.dtype} {one.shape} (expected uint8 ({height}, {width}, 3))"
                )

    def _waited_for(
        self, ahead: _Ahead, start: int, part: Sequence[Picture | None]
    ) -> NDArray[np.float32] | None:
        """What was given ahead from this picture on; None when it was not, or has to be given again."""
        if ahead.micro_batch != self._micro_batch or not ahead.waiting or ahead.waiting[0][0] != start:
            ahead.waiting.clear()
            return None
        _start, wait = ahead.waiting.popleft()
        try:
            return self._exact_where_needed(wait()[: len(part)], part)
        except MemoryError:
            ahead.waiting.clear()
            return None

    def _run_smaller_if_needed(self, pictures: Sequence[Picture | None]) -> NDArray[np.float32]:
        """Raw outputs of the first pictures, as many as the micro-batch that fits into memory."""
        while True:
            pictures = pictures[: self._micro_batch]
            try:
                return self._run(pictures)
            except MemoryError as error:
                if self._micro_batch == 1:
                    raise DepthBackendUnavailable(
                        f"{self.device_model}: not enough memory for one image",
                        hint="close other programs on this device, or run with --device cpu",
                    ) from error
                self._graphs.clear()
                self._micro_batch //= 2

    def _run(self, pictures: Sequence[Picture | None]) -> NDArray[np.float32]:
        given = self._given(self._plan.precision, pictures)
        return self._exact_where_needed(given()[: len(pictures)], pictures)

    def _exact_where_needed(
        self, outputs: NDArray[np.float32], pictures: Sequence[Picture | None]
    ) -> NDArray[np.float32]:
        if self._plan.precision is not Precision.FLOAT32 and not np.isfinite(outputs).all():
            # Sixteen bits overflow where float32 does not. Only the bad images change, so that the bytes of
            # the others do not depend on who shares their micro-batch.
            exact = self._given(Precision.FLOAT32, pictures)()
            is_bad = ~np.isfinite(outputs).all(axis=(1, 2))
            outputs[is_bad] = exact[: len(outputs)][is_bad]
        return outputs

    def _given(
        self, precision: Precision, pictures: Sequence[Picture | None]
    ) -> Callable[[], NDArray[np.float32]]:
        width, height = self._plan.input
        padded = np.zeros((self._micro_batch, height, width, 3), np.uint8)
        for row, picture in enumerate(pictures):
            if picture is not None:
                padded[row] = picture
        key = self._micro_batch, precision
        if key not in self._graphs:
            self._graphs[key] = self._build(*key)
        return self._graphs[key](padded)
