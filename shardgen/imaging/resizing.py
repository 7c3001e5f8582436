"""The one rule by which every image changes its size."""

from __future__ import annotations

from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = TypeVar("Pixels", NDArray[np.uint8], NDArray[np.float32])


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
