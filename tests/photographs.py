"""Small folders of synthetic photographs for tests: written in milliseconds, the same for the same seed."""

from __future__ import annotations

import importlib
import io
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Folders = tuple[Path, Path]


def write_photographs(folder: Path, *, foregrounds: int = 2, backgrounds: int = 2, seed: int = 0) -> Folders:
    """Write `folder/foregrounds` (RGBA PNG, 40-90 pixels) and `folder/backgrounds` (JPEG and PNG).

    Returns both folders. Every file has a content of its own; names sort in the order of writing.
    """
    random = np.random.default_rng(seed)
    foreground_folder, background_folder = folder / "foregrounds", folder / "backgrounds"
    foreground_folder.mkdir(parents=True, exist_ok=True)
    background_folder.mkdir(parents=True, exist_ok=True)
    for number in range(foregrounds):
        width, height = (int(side) for side in random.integers(40, 91, 2))
        rgba = np.dstack([colours(random, width, height), blob(width, height)])
        write_rgb(foreground_folder / f"foreground-{number:03d}.png", rgba)
    for number in range(backgrounds):
        width, height = (int(side) for side in random.integers(60, 200, 2))
        suffix = "jpg" if number % 2 == 0 else "png"
        write_rgb(background_folder / f"background-{number:03d}.{suffix}", colours(random, width, height))
    return foreground_folder, background_folder


def colours(random: np.random.Generator, width: int, height: int) -> NDArray[np.uint8]:
    """A smooth coloured picture with some noise, uint8 (height, width, 3)."""
    coarse = random.integers(0, 256, (4, 4, 3)).astype(np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    noise = random.integers(-12, 13, (height, width, 3))
    picture: NDArray[np.uint8] = np.clip(smooth + noise, 0, 255).astype(np.uint8)
    return picture


def blob(width: int, height: int) -> NDArray[np.uint8]:
    """An ellipse with a soft edge as alpha channel, uint8 (height, width)."""
    rows, columns = np.mgrid[0:height, 0:width]
    distance = np.hypot((columns - width / 2 + 0.5) / (width / 2), (rows - height / 2 + 0.5) / (height / 2))
    alpha: NDArray[np.uint8] = np.clip((0.95 - distance) * 6 * 255, 0, 255).astype(np.uint8)
    return alpha


def heic(width: int, height: int) -> bytes:
    """A HEIC file of the size, as phones write them."""
    pillow_heif = importlib.import_module("pillow_heif")
    picture = Image.fromarray(colours(np.random.default_rng(5), width, height))
    buffer = io.BytesIO()
    pillow_heif.from_pillow(picture).save(buffer, quality=90)
    return buffer.getvalue()


def write_rgb(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write uint8 (H, W), (H, W, 3) RGB or (H, W, 4) RGBA in the format of the path's suffix."""
    if pixels.ndim == 3:
        code = cv2.COLOR_RGBA2BGRA if pixels.shape[2] == 4 else cv2.COLOR_RGB2BGR
        pixels = cv2.cvtColor(pixels, code)  # type: ignore[assignment]
    succeeded, data = cv2.imencode(path.suffix, pixels)
    if not succeeded:
        raise ValueError(f"OpenCV cannot write {path}")
    path.write_bytes(data.tobytes())
