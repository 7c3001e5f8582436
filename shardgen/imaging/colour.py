"""Colour profiles: ICC to sRGB by LittleCMS, and CMYK without a profile."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from shardgen.imaging.containers.base import by_strips

_MODES = {1: "L", 3: "RGB", 4: "CMYK"}
_SPACES = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}
_CUBE_STEPS = 17  # 17**3 colours, 16 levels apart, and the ends


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Converted:
    """`pixels` uint8 (H, W) or (H, W, 3) in sRGB; what was done, one phrase in one of the others or none."""

    pixels: NDArray[np.uint8]
    note: str = ""
    warning: str = ""


def to_srgb(pixels: NDArray[np.uint8], profile: bytes) -> Converted:
    """Convert uint8 (H, W) grey, (H, W, 3) RGB or (H, W, 4) CMYK (255 is no ink), relative colorimetric.

    A profile that moves none of 17**3 colours by more than 1 level is sRGB: then RGB and grey stay untouched.
    One that is broken or of another colour space is ignored, with a warning. CMYK without a profile of its
    own is converted as OpenCV does: level - ((255 - ink) * level >> 8), `level` being that of the black.
    """
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    warning = ""
    if profile:
        plan = _plan(profile, _MODES[channels])
        if plan.transform is not None:
            return Converted(pixels=_rgb(pixels, partial(_applied, transform=plan.transform)), note=plan.note)
        warning = plan.warning
    if channels == 4:
        return Converted(pixels=_rgb(pixels, _plain_cmyk), note="CMYK converted to RGB", warning=warning)
    return Converted(pixels=pixels, warning=warning)


@dataclass(frozen=True, slots=True)
class _Plan:
    transform: ImageCms.ImageCmsTransform | None = None
    note: str = ""
    warning: str = ""


@lru_cache(maxsize=8)
def _plan(profile: bytes, mode: str) -> _Plan:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = _SPACES.get(source.profile.xcolor_space.strip(), source.profile.xcolor_space.strip())
        name = " ".join((source.profile.profile_description or "").split())[:60] or "an unnamed profile"
        if space != mode:
            return _Plan(warning=f"its colour profile ({name}) is for {space} and was ignored")
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return _Plan(warning="its colour profile cannot be read and was ignored")
    if mode != "CMYK" and _is_srgb(transform, mode):
        return _Plan()
    return _Plan(transform, note=f"colours converted from {name} to sRGB")


def _is_srgb(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    cube: NDArray[np.uint8]
    if mode == "L":
        cube = np.arange(256, dtype=np.uint8).reshape(1, -1)
        expected = np.dstack([cube] * 3)
    else:
        steps = np.rint(np.linspace(0, 255, _CUBE_STEPS)).astype(np.uint8)
        cube = expected = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3)
    moved = np.abs(_applied(cube, transform).astype(np.int16) - expected)
    return bool(moved.max() <= 1)


def _rgb(
    pixels: NDArray[np.uint8], convert: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
) -> NDArray[np.uint8]:
    return by_strips(np.empty((*pixels.shape[:2], 3), np.uint8), convert, pixels)


def _applied(pixels: NDArray[np.uint8], transform: ImageCms.ImageCmsTransform) -> NDArray[np.uint8]:
    if transform.input_mode == "CMYK":
        pixels = 255 - pixels  # LittleCMS counts ink, 255 being full
    size = pixels.shape[1], pixels.shape[0]
    image = Image.frombytes(transform.input_mode, size, pixels.tobytes())
    return np.asarray(ImageCms.applyTransform(image, transform))


def _plain_cmyk(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    black = pixels[:, :, 3:].astype(np.int32)
    return (black - ((255 - pixels[:, :, :3].astype(np.int32)) * black >> 8)).astype(np.uint8)
