"""Calls to OpenCV: no `cv2.error` escapes, and every image is resized by the same rule."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from shardgen.errors import ShardgenError

Pixels = TypeVar("Pixels", NDArray[np.uint8], NDArray[np.float32])

_IPP_WORDS = ("disabled", "sse42", "avx2", "avx512")
_NO_MEMORY = -4  # OpenCV's StsNoMem


@contextmanager
def opencv_errors(translate: Callable[[str], ShardgenError]) -> Iterator[None]:
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


def switches() -> dict[str, str]:
    """What makes OpenCV enlarge depth, in float32, to other bits; of words that it does not know, nothing."""
    value = os.environ.get("OPENCV_IPP", "")
    return {"opencv_switches": f"OPENCV_IPP={value}"} if value in _IPP_WORDS else {}


def resize(image: Pixels, size: tuple[int, int]) -> Pixels:
    """Resize (H, W[, C]) to `size` (width, height): by area when neither axis grows, else bilinear.

    The result may be the image itself when the size is right already.
    """
    height, width = image.shape[:2]
    if (width, height) == size:
        return image
    grows = size[0] > width or size[1] > height
    interpolation = cv2.INTER_LINEAR if grows else cv2.INTER_AREA
    return cv2.resize(image, size, interpolation=interpolation)  # type: ignore[return-value]
