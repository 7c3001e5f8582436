"""How well masks fit: IoU of `shardgen cut-out` and of `mask = "grabcut"` with a known alpha channel.

python -m benchmarks.cut_out [--foregrounds DIR --backgrounds DIR] [--model FILE.onnx] [--sheet PNG]

Every foreground with an alpha channel is laid on every background, in the middle of its lower edge and 55, 75
or 95 % as high; both ways of cutting out get the composite, and are compared with the alpha channel at 128.
Backgrounds in which other things stand out cost both. Without folders, what is laid are ellipses and polygons
of photographs on textures, all of scikit-image: an easy task, which shows that nothing is broken.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from shardgen.errors import SampleError
from shardgen.imaging.codec import Photograph, decode
from shardgen.imaging.masks import FOREGROUND_LEVEL, cut_out
from shardgen.imaging.opencv import resize
from shardgen.imaging.options import MaskMode
from shardgen.imaging.own_masks import Verdict, judge
from shardgen.imaging.saliency import SaliencyNetwork
from shardgen.imaging.sheet import cut_out_cell, cut_out_sheet
from shardgen.machine.cores import usable_cores
from shardgen.operations.cut_out import U2NETP
from shardgen.storage.released import locate

_SIDE = 480  # pixels; the shorter side of a composite
_HEIGHTS = (0.55, 0.75, 0.95)  # of the picture's height
_GOOD = 0.9  # IoU
_SHEET_CELLS = 24
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Composite:
    """A picture whose foreground is known: `pixels` RGB, `alpha`, both uint8 of one height and width."""

    name: str
    pixels: Pixels
    alpha: Pixels


def main() -> None:
    """Make the composites, cut them out in both ways, print a line for each way."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--foregrounds", type=Path, help="cut-outs with an alpha channel")
    parser.add_argument("--backgrounds", type=Path, help="photographs to lay them on")
    parser.add_argument("--model", type=Path, help="the network (default: the fetched u2netp)")
    parser.add_argument("--sheet", type=Path, help="a PNG to draw what cut-out made of the first composites")
    options = parser.parse_args()
    if (options.foregrounds is None) != (options.backgrounds is None):
        parser.error("--foregrounds and --backgrounds go together")
    model = options.model or locate(U2NETP)
    network = SaliencyNetwork(model.read_bytes(), where=str(model), threads=usable_cores())
    foregrounds = _folder(options.foregrounds) if options.foregrounds else _made()
    backgrounds = _folder(options.backgrounds) if options.backgrounds else _scenes()
    composites = list(_composites(foregrounds, backgrounds))

    def by_network(composite: Composite) -> Pixels:
        levels = network.levels(composite.pixels)
        grey = np.repeat(levels[:, :, np.newaxis], 3, axis=2)
        return _mask(composite, MaskMode.FILE, Photograph(pixels=grey, alpha=None, notes=()))

    def by_grabcut(composite: Composite) -> Pixels:
        return _mask(composite, MaskMode.GRABCUT, None)

    print(f"{len(composites)} composites: {len(foregrounds)} foregrounds on {len(backgrounds)} backgrounds")
    print("| masks by | mean IoU | median | worst | above 0.9 | seconds each |")
    print("|---|---|---|---|---|---|")
    found = _report("`shardgen cut-out`", by_network, composites)
    _report('`mask = "grabcut"`', by_grabcut, composites)
    named = np.array([_is_named(one, network.levels(one.pixels)) for one in composites])
    poor = found <= _GOOD
    print(
        f"cut-out lists for a look: {named[poor].sum()} of {poor.sum()} masks at or below {_GOOD}, "
        f"{named[~poor].sum()} of the other {(~poor).sum()}"
    )
    if options.sheet:
        cells = [
            cut_out_cell(one.name, one.pixels, by_network(one), remark="")
            for one in composites[:_SHEET_CELLS]
        ]
        options.sheet.write_bytes(cut_out_sheet(cells))


def _report(
    name: str, cut: Callable[[Composite], Pixels], composites: list[Composite]
) -> NDArray[np.float64]:
    began = time.perf_counter()
    masks = [cut(composite) for composite in composites]
    seconds = (time.perf_counter() - began) / len(composites)
    overlaps = np.array([overlap(mask, one.alpha) for mask, one in zip(masks, composites, strict=True)])
    print(
        f"| {name} | {overlaps.mean():.2f} | {np.median(overlaps):.2f} | {overlaps.min():.2f} "
        f"| {(overlaps > _GOOD).mean():.0%} | {seconds:.2f} |"
    )
    return overlaps


def _is_named(composite: Composite, levels: Pixels) -> bool:
    photo = Photograph(pixels=composite.pixels, alpha=None, notes=())
    return judge(photo, levels) is not Verdict.CLEAR


def overlap(mask: Pixels, alpha: Pixels) -> float:
    """Intersection over union of two masks, each at 128."""
    one, other = mask >= FOREGROUND_LEVEL, alpha >= FOREGROUND_LEVEL
    return float((one & other).sum() / max(1, (one | other).sum()))


def _mask(composite: Composite, mode: MaskMode, mask_photo: Photograph | None) -> Pixels:
    """The mask as a plan has it; nothing where it is refused."""
    photo = Photograph(pixels=composite.pixels, alpha=None, notes=())
    try:
        return cut_out(photo, mode, mask_photo).mask
    except SampleError:
        return np.zeros(composite.alpha.shape, np.uint8)


def _composites(
    foregrounds: dict[str, Photograph], backgrounds: dict[str, Photograph]
) -> Iterator[Composite]:
    number = 0
    for front, foreground in foregrounds.items():
        for back, background in backgrounds.items():
            yield _laid(f"{front} on {back}", foreground, background, height=_HEIGHTS[number % len(_HEIGHTS)])
            number += 1


def _laid(name: str, foreground: Photograph, background: Photograph, *, height: float) -> Composite:
    scale = _SIDE / min(background.width, background.height)
    size = round(background.width * scale), round(background.height * scale)
    pixels = resize(background.pixels, size).copy()
    alpha = np.zeros(pixels.shape[:2], np.uint8)
    if foreground.alpha is None:
        raise SystemExit(f"{name}: the foreground has no alpha channel")
    scale = min(height * size[1] / foreground.height, size[0] / foreground.width)
    fitted = max(1, round(foreground.width * scale)), max(1, round(foreground.height * scale))
    top, left = size[1] - fitted[1], (size[0] - fitted[0]) // 2
    window = np.s_[top : top + fitted[1], left : left + fitted[0]]
    alpha[window] = resize(foreground.alpha, fitted)
    share = alpha[window][:, :, np.newaxis] / 255
    pixels[window] = np.rint(resize(foreground.pixels, fitted) * share + pixels[window] * (1 - share))
    return Composite(name=name, pixels=pixels, alpha=alpha)


def _folder(folder: Path) -> dict[str, Photograph]:
    return {path.name: decode(path.read_bytes()) for path in sorted(folder.iterdir()) if path.is_file()}


def _scenes() -> dict[str, Photograph]:
    from skimage import data  # noqa: PLC0415 - part of an extra

    pictures = {"brick": data.brick(), "grass": data.grass(), "gravel": data.gravel(), "moon": data.moon()}
    return {name: _photograph(picture) for name, picture in pictures.items()}


def _made() -> dict[str, Photograph]:
    from skimage import data  # noqa: PLC0415 - part of an extra

    pictures = {"astronaut": data.astronaut(), "chelsea": data.chelsea(), "coffee": data.coffee()}
    made = {}
    random = np.random.default_rng(1)
    for name, picture in pictures.items():
        for shape in ("ellipse", "polygon"):
            texture = cv2.resize(picture, (320, 400), interpolation=cv2.INTER_AREA)
            alpha = np.zeros((400, 320), np.uint8)
            if shape == "ellipse":
                cv2.ellipse(alpha, (160, 200), (150, 190), 0, 0, 360, 255, -1, cv2.LINE_AA)
            else:
                angles = np.sort(random.uniform(0, 2 * np.pi, 9))
                radii = random.uniform(0.6, 1.0, 9)
                corners = np.stack(
                    [160 + 155 * radii * np.cos(angles), 200 + 195 * radii * np.sin(angles)], 1
                )
                cv2.fillPoly(alpha, [np.rint(corners).astype(np.int32)], 255, cv2.LINE_AA)
            made[f"{name} {shape}"] = Photograph(pixels=texture, alpha=alpha, notes=())
    return made


def _photograph(picture: Pixels) -> Photograph:
    pixels = picture if picture.ndim == 3 else np.repeat(picture[:, :, np.newaxis], 3, axis=2)
    return Photograph(pixels=np.ascontiguousarray(pixels[:, :, :3]), alpha=None, notes=())


if __name__ == "__main__":
    main()
