"""Samples that raise, give NaN, kill, hang or freeze their process: for real worker processes."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardgen.depth.base import Picture, RawOutput
from shardgen.depth.estimator import DepthEstimator
from shardgen.domain.identifiers import SampleIndex
from shardgen.recipes.composites.composer import ComposedSample, Composer

VARIABLE = "SHARDGEN_TEST_POISON"  # KIND:SAMPLE[,SAMPLE…]


def environment(kind: str, *samples: int) -> dict[str, str]:
    """What makes every Python process that inherits it suffer from these samples."""
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent.parent)])
    return {VARIABLE: f"{kind}:{','.join(map(str, samples))}", "PYTHONPATH": path}


def install(text: str) -> None:
    """Poison this process as the variable says."""
    kind, _, numbers = text.partition(":")
    samples = {int(number) for number in numbers.split(",")}
    marked: list[NDArray[np.uint8]] = []
    compose, outputs = Composer._compose, DepthEstimator.outputs

    def poisoned_compose(self: Composer, sample: SampleIndex) -> ComposedSample:
        if sample in samples and kind in _DEEDS:
            _DEEDS[kind]()
        composed = compose(self, sample)
        if sample in samples:
            marked.append(composed.network_input)
        return composed

    def poisoned_outputs(
        self: DepthEstimator, pictures: Sequence[Picture | None], **options: Any
    ) -> list[RawOutput | None]:
        found = outputs(self, pictures, **options)
        is_marked = [
            picture is not None and any(np.array_equal(picture, one) for one in marked)
            for picture in pictures
        ]
        if kind == "broken" and any(picture is not None and picture.any() for picture in pictures):
            raise ZeroDivisionError("this network always raises")
        if kind == "throw" and any(is_marked):
            raise ZeroDivisionError("this network raises now")
        if kind == "nan":
            nothing = np.full((1, 1), np.nan, np.float32)
            return [nothing if bad else raw for raw, bad in zip(found, is_marked, strict=True)]
        return found

    Composer._compose = poisoned_compose  # type: ignore[method-assign]
    DepthEstimator.outputs = poisoned_outputs  # type: ignore[method-assign]


def _raise() -> None:
    raise ZeroDivisionError("made to fail")


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _hang() -> None:
    time.sleep(3600)


def _freeze() -> None:
    # Called through PyDLL, C code keeps the interpreter's lock: no other thread runs, the watchdog neither.
    ctypes.PyDLL(None).sleep(3600)


_DEEDS = {"raise": _raise, "kill": _kill, "hang": _hang, "freeze": _freeze}
