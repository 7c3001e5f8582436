"""Masks made by shardgen: how good they look, and how to tell its own files from the user's."""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass
from enum import StrEnum

import cv2
import numpy as np
from numpy.typing import NDArray

from shardgen.errors import ComposeFailed
from shardgen.imaging.codec import Photograph, encode
from shardgen.imaging.masks import FOREGROUND_LEVEL, cut_out
from shardgen.imaging.opencv import resize
from shardgen.imaging.options import ImageFormat, MaskMode

_FULL_SHARE = 0.95  # of the pixels: hardly any background would be left out
# Levels that say neither yes nor no: a clear subject has a seam of them, 0.1 to 0.2 of its area.
_DOUBTFUL = (51, 204)
_DOUBTFUL_SHARE = 0.25
_OTHERS_SHARE = 0.1  # of the mask, outside its largest part: more than one thing stands out
_COUNTING_SIDE = 640  # pixels; parts are counted in a smaller mask, which bounds the memory for it

_START = b"\x89PNG\r\n\x1a\n"
_HEADER_END = len(_START) + 25  # the chunk IHDR
_SOFTWARE = "shardgen cut-out"
_KEYWORDS = ("Software", "Model", "Photograph", "Verdict", "Content")


class Verdict(StrEnum):
    """What a cut-out looks like; an empty one has no file."""

    CLEAR = "clear"
    UNCERTAIN = "uncertain"
    FULL = "full"
    EMPTY = "empty"


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """What a mask file of our own says of itself: sha256 of the model and of the photograph's file."""

    model: str
    photograph: str
    verdict: Verdict


def has_useful_alpha(photo: Photograph) -> bool:
    """Whether a plan takes the alpha channel for the mask when there is no mask file."""
    if photo.alpha is None:
        return False
    try:
        return cut_out(photo, MaskMode.AUTO, None).mode is MaskMode.ALPHA
    except ComposeFailed:
        return False


def judge(photo: Photograph, levels: NDArray[np.uint8]) -> Verdict:
    """What a mask of these levels uint8 (H, W) would look like, by the very steps of composing.

    Uncertain are a mask with many levels near the middle, and one of several things.
    """
    grey = np.repeat(levels[:, :, np.newaxis], 3, axis=2)
    try:
        mask = cut_out(photo, MaskMode.FILE, Photograph(pixels=grey, alpha=None, notes=())).mask
    except ComposeFailed:
        return Verdict.EMPTY
    if np.count_nonzero(mask) >= _FULL_SHARE * mask.size:
        return Verdict.FULL
    if _share_of_others(mask) >= _OTHERS_SHARE:
        return Verdict.UNCERTAIN
    in_doubt = np.count_nonzero((levels >= _DOUBTFUL[0]) & (levels <= _DOUBTFUL[1]))
    surely = np.count_nonzero(levels >= FOREGROUND_LEVEL)
    return Verdict.UNCERTAIN if in_doubt >= _DOUBTFUL_SHARE * surely else Verdict.CLEAR


def _share_of_others(mask: NDArray[np.uint8]) -> float:
    """How much of a mask lies outside its largest part."""
    height, width = mask.shape
    scale = min(1.0, _COUNTING_SIDE / max(height, width))
    small = resize(mask, (max(1, round(width * scale)), max(1, round(height * scale))))
    binary = np.where(small >= FOREGROUND_LEVEL, 255, 0).astype(np.uint8)
    _, _, facts, _ = cv2.connectedComponentsWithStats(binary, connectivity=8)
    areas = facts[1:, cv2.CC_STAT_AREA]
    return float(1 - areas.max() / areas.sum()) if areas.size else 0.0


def own_mask_file(levels: NDArray[np.uint8], marks: Marks) -> bytes:
    """A mask file: a grey PNG, 8 bits, with the marks as text behind its header; same input, same bytes."""
    picture = encode(levels, ImageFormat.PNG, 100)
    head, rest = picture[:_HEADER_END], picture[_HEADER_END:]
    texts = (_SOFTWARE, marks.model, marks.photograph, marks.verdict)
    head += b"".join(map(_png_text, _KEYWORDS, texts))
    return head + _png_text(_KEYWORDS[-1], hashlib.sha256(head + rest).hexdigest()) + rest


def read_marks(data: bytes) -> Marks | None:
    """The marks of a mask file that `own_mask_file` made and nobody changed since; None for any other file.

    A program that opens one and saves it again, changed or not, writes other bytes.
    """
    texts: list[str] = []
    at = end_of_head = _HEADER_END
    for keyword in _KEYWORDS:
        length = int.from_bytes(data[at : at + 4])
        piece = data[at : at + 12 + length]
        text = piece[8 + len(keyword) + 1 : 8 + length].decode("ascii", "replace")
        if length > 200 or piece != _png_text(keyword, text):
            return None
        texts.append(text)
        end_of_head, at = at, at + 12 + length
    software, model, photograph, verdict, content = texts
    found = hashlib.sha256(data[:end_of_head])
    found.update(memoryview(data)[at:])
    if software != _SOFTWARE or content != found.hexdigest() or verdict not in list(Verdict):
        return None
    return Marks(model=model, photograph=photograph, verdict=Verdict(verdict))


def _png_text(keyword: str, text: str) -> bytes:
    body = b"tEXt" + keyword.encode("ascii") + b"\0" + text.encode("ascii", "replace")
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
