"""The border that no `cv2.error` crosses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import cv2

from shardgen.errors import SampleError

_NO_MEMORY = -4  # OpenCV's StsNoMem


@contextmanager
def opencv_errors(translate: Callable[[str], SampleError]) -> Iterator[None]:
    """Raise `translate(what OpenCV said)` for its errors; a lack of memory is no sample's fault."""
    try:
        yield
    except cv2.error as error:
        if error.code == _NO_MEMORY:
            raise MemoryError(error.err) from error
        raise translate(error.err) from error


def use_one_thread() -> None:
    """Keep OpenCV from starting threads of its own: samples already run side by side, and the network too."""
    cv2.setNumThreads(1)
