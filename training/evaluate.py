"""The six measures of a weights file on scenes it never saw and on a real pair, and its depth as a picture.

    python -m training.evaluate [FILE] [--scenes 200] [--picture docs/small-network.jpg]

Prints the tables of docs/small-network.md. Without FILE: the weights inside the package.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path

import cv2
import numpy as np
import skimage.data
from numpy.typing import NDArray

from shardgen.depth import device
from shardgen.depth.base import Upsampling
from shardgen.depth.densedepth.family import SHIPPED
from shardgen.depth.densedepth.network import Arithmetic, GraphShape, build_network, depth_of
from shardgen.depth.densedepth.weights_file import WeightsFile, read_weights
from training.rendering import render_samples
from training.scenes import FAR
from training.standing_out import CLEARLY, demo_composites, ratios
from training.textures import held_out_bank, photograph

INPUT_SIZE = (640, 480)
SCENES_SEED = 7_000_000
FEW = 24  # the scenes that the tests evaluate again
RAMP = (3.0, 1.0)  # in the first and the last row, any scale: of those tried the best on training scenes
# Middlebury 2014, "Motorcycle", at a quarter of its size: pixels, metres, pixels.
FOCAL, BASELINE, DISPARITY_OFFSET = 994.978, 0.193001, 31.086
PICTURED = (
    "china.jpg", "flower.jpg", "rocket", "stereo_motorcycle", "camera", "astronaut",
    "chelsea", "coffee", "coins", "clock", "gravel", "grass",
)  # fmt: skip
Images = NDArray[np.uint8]
Depth = NDArray[np.float32]
Estimate = Callable[[Images], Depth]
"""uint8 (B, 480, 640, 3) RGB to relative depth (B, 240, 320)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """Of the paper, after scaling by the medians: shares below 1.25, 1.25², 1.25³; the errors."""

    delta1: float
    delta2: float
    delta3: float
    rel: float
    rms: float
    log10: float


def measures(truth: Depth, found: Depth) -> Measures:
    """Of one image's known depths, metres (n,); `found` may have any scale."""
    found = found * (np.median(truth) / np.median(found))
    ratio = np.maximum(truth / found, found / truth)
    return Measures(
        delta1=float((ratio < 1.25).mean()),
        delta2=float((ratio < 1.25**2).mean()),
        delta3=float((ratio < 1.25**3).mean()),
        rel=float((np.abs(found - truth) / truth).mean()),
        rms=float(np.sqrt(np.square(found - truth).mean())),
        log10=float(np.abs(np.log10(found) - np.log10(truth)).mean()),
    )


def mean_measures(truths: Depth, found: Depth) -> Measures:
    """The mean over images of (B, h, w) depths in metres; what is beyond FAR or not known does not count."""
    rows = []
    for truth, depth in zip(truths, found, strict=True):
        is_known = np.isfinite(truth) & (truth > 0) & (truth < FAR)
        if is_known.sum() >= 100:
            rows.append(astuple(measures(truth[is_known], depth[is_known])))
    means = np.mean(rows, axis=0)
    return Measures(**dict(zip(Measures.__slots__, map(float, means), strict=True)))


def estimator(weights: WeightsFile) -> Estimate:
    """What the pipeline does with these weights, in float32."""
    shape = GraphShape(
        micro_batch=2, input_size=INPUT_SIZE, upsampling=Upsampling.ALIGNED, arithmetic=Arithmetic.FLOAT32
    )
    network = build_network(weights, shape)

    def estimate(images: Images) -> Depth:
        padded = np.concatenate([images, np.zeros((len(images) % 2, *images.shape[1:]), np.uint8)])
        raw = [np.asarray(network(padded[at : at + 2])) for at in range(0, len(padded), 2)]
        return depth_of(np.concatenate(raw)[: len(images)])

    return estimate


def baselines() -> Mapping[str, Estimate]:
    """Two ways to know nothing: the same depth everywhere, and far above, near below."""
    width, height = INPUT_SIZE[0] // 2, INPUT_SIZE[1] // 2
    ramp = np.linspace(*RAMP, height, dtype=np.float32)[:, None].repeat(width, axis=1)
    return {
        "constant depth": lambda images: np.ones((len(images), height, width), np.float32),
        "ramp from top to bottom": lambda images: ramp[None].repeat(len(images), axis=0),
    }


def on_scenes(variants: Mapping[str, Estimate], count: int) -> dict[str, Measures]:
    """Held-out scenes with unseen textures; a smaller count takes the first of the same ones."""
    samples = render_samples(held_out_bank(), seed=SCENES_SEED, count=count, size=INPUT_SIZE)
    truths = np.asarray(FAR / samples.outputs, np.float32)
    return {
        name: mean_measures(truths, np.concatenate([
            estimate(samples.images[at : at + 8]) for at in range(0, count, 8)
        ]))
        for name, estimate in variants.items()
    }  # fmt: skip


def on_motorcycle(variants: Mapping[str, Estimate]) -> dict[str, Measures]:
    """The real pair with measured depth."""
    left, _, disparity = skimage.data.stereo_motorcycle()
    size = (INPUT_SIZE[0] // 2, INPUT_SIZE[1] // 2)
    disparity = np.where(np.isfinite(disparity), disparity, np.nan).astype(np.float32)
    depth = FOCAL * BASELINE / (disparity + DISPARITY_OFFSET)
    halved = cv2.resize(np.asarray(depth, np.float32), size, interpolation=cv2.INTER_NEAREST)
    truth = np.asarray(halved, np.float32)[None]
    image = resized(left)[None]
    return {name: mean_measures(truth, estimate(image)) for name, estimate in variants.items()}


def resized(pixels: Images) -> Images:
    """As the pipeline brings a canvas to the network."""
    return np.asarray(cv2.resize(pixels, INPUT_SIZE, interpolation=cv2.INTER_AREA), np.uint8)


def table(rows: Mapping[str, Measures]) -> str:
    """In Markdown."""
    lines = ["| | δ1 ↑ | δ2 ↑ | δ3 ↑ | rel ↓ | rms (m) ↓ | log10 ↓ |", "|---|---|---|---|---|---|---|"]
    for name, values in rows.items():
        lines.append(f"| {name} | " + " | ".join(f"{value:.3f}" for value in astuple(values)) + " |")
    return "\n".join(lines)


def picture(estimate: Estimate, path: Path) -> None:
    """Photographs, each beside its depth as the data set would store it: near is white."""
    cells = []
    for name in PICTURED:
        pixels = skimage.data.stereo_motorcycle()[0] if name == "stereo_motorcycle" else photograph(name)
        image = resized(pixels)
        depth = estimate(image[None])[0]
        span = max(float(np.ptp(depth)), 1e-6)
        grey = 255 - np.floor(255 * (depth - depth.min()) / span).astype(np.uint8)
        small = cv2.resize(image, (200, 150), interpolation=cv2.INTER_AREA)
        grey = cv2.resize(grey, (200, 150), interpolation=cv2.INTER_AREA)
        cell = np.concatenate([small, cv2.merge([grey] * 3)], axis=1)
        cells.append(cv2.copyMakeBorder(cell, 4, 4, 4, 4, cv2.BORDER_CONSTANT, value=(255, 255, 255)))
    rows = [np.concatenate(cells[at : at + 3], axis=1) for at in range(0, len(cells), 3)]
    sheet = cv2.cvtColor(np.concatenate(rows), cv2.COLOR_RGB2BGR)
    cv2.imwrite(str(path), sheet, [cv2.IMWRITE_JPEG_QUALITY, 80])


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, nargs="?", default=SHIPPED["small"])
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    device.prepare("cpu")
    weights = read_weights(options.file)
    print(f"sha256 {hashlib.sha256(options.file.read_bytes()).hexdigest()}, {weights.bytes:,} bytes\n")
    variants = {"this network": estimator(weights), **baselines()}
    few = on_scenes({"this network": variants["this network"]}, FEW)
    rows = on_scenes(variants, options.scenes) | {f"this network, the first {FEW}": few["this network"]}
    print(f"{options.scenes} rendered scenes with unseen textures:\n\n{table(rows)}\n")
    print(f"stereo_motorcycle:\n\n{table(on_motorcycle(variants))}\n")
    composites = demo_composites()
    print(f"{len(composites.masks)} composites of the demo:\n")
    print("| | stands out | clearly | median |\n|---|---|---|---|")
    for name, estimate in variants.items():
        found = ratios(estimate, composites)
        print(
            f"| {name} | {(found > 1).mean():.0%} | {(found > CLEARLY).mean():.0%} | {np.median(found):.2f} |"
        )
    if options.picture:
        picture(variants["this network"], options.picture)


if __name__ == "__main__":
    main()
