"""GrabCut: a guess of what stands in the middle of a photograph."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from shardgen.errors import ComposeFailed
from shardgen.imaging.resizing import resize

_WORKING_SIDE = 640  # pixels; GrabCut takes seconds at this size and minutes at a camera's
_MARGIN = 0.04  # of the side: outside this rectangle everything is background
_ROUNDS = 6
_SEED = 1


def grabcut_mask(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Levels uint8 (H, W), 0-255, at or above 128 where GrabCut sees the subject of RGB uint8 (H, W, 3).

    The same pixels give the same mask. Large photographs are cut at a reduced size and the mask enlarged.
    """
    height, width = pixels.shape[:2]
    scale = min(1.0, _WORKING_SIDE / max(width, height))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = resize(pixels, size)
    margin_x, margin_y = max(1, round(size[0] * _MARGIN)), max(1, round(size[1] * _MARGIN))
    labels = np.full((size[1], size[0]), cv2.GC_BGD, np.uint8)
    labels[margin_y : size[1] - margin_y, margin_x : size[0] - margin_x] = cv2.GC_PR_FGD
    background_model, foreground_model = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(_SEED)
    try:
        cv2.grabCut(
            small, labels, (0, 0, 0, 0), background_model, foreground_model, _ROUNDS, cv2.GC_INIT_WITH_MASK
        )
    except cv2.error as error:
        raise ComposeFailed(
            f"GrabCut cannot tell subject from background: {error.err}", hint="put a mask file beside it"
        ) from error
    is_subject = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    return resize(np.where(is_subject, 255, 0).astype(np.uint8), (width, height))
