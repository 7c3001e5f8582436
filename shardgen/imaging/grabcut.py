"""GrabCut: a guess of what stands in the middle of a photograph."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from shardgen.errors import ComposeFailed
from shardgen.imaging.opencv import opencv_errors, resize

_WORKING_SIDE = 512  # pixels; GrabCut takes about two seconds at this size and minutes at a camera's
# Shares of the sides. Subjects often touch the lower edge, and close-ups the upper one too: only the two
# upper corners are surely background, and only the very middle is surely subject.
_CORNER = (0.08, 0.30)
_SIDE_MARGIN = 0.06
_MIDDLE = 0.16
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
    labels = _first_guess(*size)
    background_model, foreground_model = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(_SEED)
    with opencv_errors(_undecided):
        cv2.grabCut(
            small, labels, (0, 0, 0, 0), background_model, foreground_model, _ROUNDS, cv2.GC_INIT_WITH_MASK
        )
    is_subject = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    return resize(np.where(is_subject, 255, 0).astype(np.uint8), (width, height))


def _undecided(reason: str) -> ComposeFailed:
    return ComposeFailed(
        f"GrabCut cannot tell subject from background: {reason}", hint="put a mask file beside it"
    )


def _first_guess(width: int, height: int) -> NDArray[np.uint8]:
    """Return GrabCut's labels, uint8 (height, width), from the position in the picture alone."""
    labels = np.full((height, width), cv2.GC_PR_BGD, np.uint8)
    margin = round(width * _SIDE_MARGIN)
    labels[:, margin : width - margin] = cv2.GC_PR_FGD
    left, top = round(width * (1 - _MIDDLE) / 2), round(height * (1 - _MIDDLE) / 2)
    labels[top : height - top, left : width - left] = cv2.GC_FGD
    corner_width, corner_height = max(1, round(width * _CORNER[0])), max(1, round(height * _CORNER[1]))
    labels[:corner_height, :corner_width] = cv2.GC_BGD
    labels[:corner_height, -corner_width:] = cv2.GC_BGD
    return labels
