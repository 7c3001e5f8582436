"""CPU-seconds per image of our network against Keras and OpenVINO, and the grey levels it costs.

    python -m benchmarks.network [--rounds 3] [--width 1664] [--weights small] [--before DIR] [--markdown]

Every way has a process of its own, since its speed is decided (oneDNN, memory) when libraries are loaded;
they take turns, two images at a time. CPU seconds are of all threads, user and system, the median of all
turns. The weights are random ones of full width, calibrated on photographs, or with `--weights small` the
network that ships. The reference is the same network out of Keras layers, called as DenseDepth's own code
does. Grey levels are those of the 8-bit encoding (inverse min-max of relative depth), over all photographs.
`--before` is a checkout of another version, whose network takes its turns, too. OpenVINO takes part where it
is installed (the extra [bench]). Where the CPU has no bfloat16, `fast` is emulated for its error alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.beside.table import aligned, markdown
from shardgen.depth import device

MICRO_BATCH = 2
INPUT_SIZE = (640, 480)
CALIBRATION_SIZE = (320, 256)
KERAS, OPENVINO, OPENVINO_BFLOAT16 = (
    "Keras `predict`, batches of 2",
    "OpenVINO, float32",
    "OpenVINO, bfloat16",
)
OURS, FAST, EMULATED = "shardgen, float32", "shardgen, fast", "shardgen, fast, emulated (error only)"
BEFORE = "shardgen before, float32"
ROOT = Path(__file__).parent.parent
Images = NDArray[np.uint8]
Depth = NDArray[np.float32]
Way = Callable[[Images], Depth]


def photographs(size: tuple[int, int] = INPUT_SIZE) -> Images:
    """Ten photographs of scikit-image and scikit-learn, uint8 (10, height, width, 3) RGB."""
    import cv2  # noqa: PLC0415 - the parent process needs none of it
    import skimage.data  # noqa: PLC0415
    from sklearn.datasets import load_sample_image  # noqa: PLC0415

    images = [getattr(skimage.data, name)() for name in ("astronaut", "chelsea", "coffee")]
    images += [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    images += [image[:, ::-1] for image in images]
    return np.stack([cv2.resize(image, size, interpolation=cv2.INTER_LINEAR) for image in images])


def relative_depth(raw: NDArray[np.float32]) -> Depth:
    """As DenseDepth's `utils.predict`."""
    return np.asarray(np.clip(1000 / raw, 10, 1000) / 1000, np.float32)


def grey_levels(depth: Depth) -> NDArray[np.int64]:
    """The 8-bit image of relative depth (B, H, W): inverse min-max."""
    low, high = depth.min((1, 2), keepdims=True), depth.max((1, 2), keepdims=True)
    return np.asarray(255 - np.floor(255 * (depth - low) / (high - low)), np.int64)


def keras_model(weights: Path) -> Any:
    """The network out of Keras layers, float32 (B, H, W, 3) from 0 to 1."""
    from shardgen.depth.densedepth.weights_file import read_weights  # noqa: PLC0415
    from training.network import build_model, load_tensors  # noqa: PLC0415

    found = read_weights(weights)
    model = build_model(found.topology)
    load_tensors(model, found.tensors)
    return model


def keras_way(weights: Path) -> Way:
    """As DenseDepth's code runs it."""
    model = keras_model(weights)

    def predict(images: Images) -> Depth:
        outputs = model.predict(images.astype(np.float32) / 255, batch_size=2, verbose=0)
        return relative_depth(outputs[..., 0])

    return predict


def openvino_way(weights: Path, precision: str) -> Way:
    """The Keras network, converted with a fixed shape."""
    import openvino  # noqa: PLC0415
    import tensorflow as tf  # noqa: PLC0415

    model, (width, height) = keras_model(weights), INPUT_SIZE
    shape = [MICRO_BATCH, height, width, 3]
    traced = tf.function(lambda x: model(x, training=False), autograph=False)
    concrete = traced.get_concrete_function(tf.TensorSpec(shape, tf.float32))
    compiled = openvino.compile_model(
        openvino.convert_model(concrete), "CPU", {"INFERENCE_PRECISION_HINT": precision}
    )
    return lambda images: relative_depth(compiled(images.astype(np.float32) / 255)[0][..., 0])


def our_way(weights: Path, precision: str) -> Way:
    """Ours, of whichever version can be imported, as a worker runs it."""
    from shardgen.depth.base import NetworkChoice, NetworkPlan, Precision, Upsampling  # noqa: PLC0415
    from shardgen.depth.densedepth.family import DenseDepth  # noqa: PLC0415

    family = DenseDepth()
    choice = NetworkChoice(name="file", written=str(weights), file=weights, micro_batch=MICRO_BATCH)
    network = family.find(choice)
    preparing: Any = network if hasattr(network, "prepare") else family
    plan = NetworkPlan(
        model=family.name,
        weights=network.weights,
        input=INPUT_SIZE,
        upsampling=Upsampling.ALIGNED,
        precision=Precision(precision),
    )
    loaded: Any = network.load(plan, micro_batch=MICRO_BATCH, on=preparing.prepare("cpu", threads=0))
    if hasattr(loaded, "estimate"):  # an older version
        return lambda images: np.asarray(loaded.estimate(images).relative)
    return lambda images: np.stack([loaded.depth_of(raw) for raw in loaded.outputs(list(images))])


def emulated_way(weights: Path) -> Way:
    """`fast` in float32 arithmetic with the roundings of bfloat16."""
    from shardgen.depth.base import Upsampling  # noqa: PLC0415
    from shardgen.depth.densedepth.network import Arithmetic, GraphShape, build_network  # noqa: PLC0415
    from shardgen.depth.densedepth.weights_file import read_weights  # noqa: PLC0415

    device.prepare("cpu")
    shape = GraphShape(
        micro_batch=MICRO_BATCH,
        input_size=INPUT_SIZE,
        upsampling=Upsampling.ALIGNED,
        arithmetic=Arithmetic.BFLOAT16_EMULATED,
    )
    network = build_network(read_weights(weights), shape)
    return lambda images: relative_depth(np.asarray(network(images)))


WAYS: dict[str, Callable[[Path], Way]] = {
    KERAS: keras_way,
    OPENVINO: lambda weights: openvino_way(weights, "f32"),
    OPENVINO_BFLOAT16: lambda weights: openvino_way(weights, "bf16"),
    BEFORE: lambda weights: our_way(weights, "float32"),
    OURS: lambda weights: our_way(weights, "float32"),
    FAST: lambda weights: our_way(weights, "fast"),
    EMULATED: emulated_way,
}


def serve(way: Way) -> None:
    """Do what stdin says, a line each: `PAIR` (its CPU seconds an image are printed) or `save FILE`."""
    images = photographs()
    pairs = [images[start : start + MICRO_BATCH] for start in range(0, len(images), MICRO_BATCH)]
    way(pairs[0])
    print("ready", flush=True)
    for line in sys.stdin:
        word, _, name = line.strip().partition(" ")
        if word == "save":
            np.save(name, np.concatenate([way(pair) for pair in pairs]))
            print("saved", flush=True)
            continue
        before = os.times()
        way(pairs[int(word) % len(pairs)])
        after = os.times()
        print((after.user + after.system - before.user - before.system) / MICRO_BATCH, flush=True)


class Child:
    """The process of one way."""

    def __init__(self, name: str, weights: Path, *, root: Path = ROOT) -> None:
        # The checkout's package comes first, this benchmark serves both.
        program = (
            f"import sys; sys.path[:0] = [{str(root)!r}, {str(ROOT)!r}]; import shardgen; del sys.path[0]\n"
            "from pathlib import Path; from benchmarks.network import WAYS, serve\n"
            f"serve(WAYS[{name!r}](Path({str(weights)!r})))"
        )
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
        self.process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=root,
        )
        if self.process.stdin is None or self.process.stdout is None:
            raise TypeError("no pipes")
        self.requests, self.answers = self.process.stdin, self.process.stdout
        self.seconds: list[float] = []
        self.answer()

    def answer(self) -> str:
        """The next line."""
        line = self.answers.readline().strip()
        if not line:
            sys.exit(f"a way ended with exit code {self.process.wait()}")
        return line

    def ask(self, request: str) -> str:
        """What it answers to a request."""
        self.requests.write(f"{request}\n")
        self.requests.flush()
        return self.answer()

    def end(self) -> None:
        """Let it end."""
        self.process.communicate()


def write_calibrated(path: Path, width: int) -> None:
    """Calibrated weights of a decoder's width as a file."""
    from benchmarks.calibrated import calibrate  # noqa: PLC0415
    from shardgen.depth.densedepth.random_weights import random_weights  # noqa: PLC0415
    from training.legacy_file import write_weights  # noqa: PLC0415

    device.prepare("cpu")
    weights = random_weights(f"random:{width}")
    write_weights(path, weights.topology, calibrate(weights, photographs(CALIBRATION_SIZE)))


def ways_here(before: Path | None) -> list[str]:
    """The names of the ways that this machine can go."""
    names = [KERAS]
    has_bfloat16 = device.has_bfloat16()
    if importlib.util.find_spec("openvino"):
        names += [OPENVINO, OPENVINO_BFLOAT16] if has_bfloat16 else [OPENVINO]
    names += [BEFORE] if before else []
    return [*names, OURS, FAST if has_bfloat16 else EMULATED]


def measure(names: list[str], weights: Path, folder: Path, options: argparse.Namespace) -> list[list[str]]:
    """The rows of the table."""
    children: dict[str, Child] = {}
    depths: dict[str, Depth] = {}
    for name in names:
        print(f"loading: {name}", file=sys.stderr)
        children[name] = Child(name, weights, root=options.before if name == BEFORE else ROOT)
        children[name].ask(f"save {folder / 'depth.npy'}")
        depths[name] = np.load(folder / "depth.npy")
        if name == EMULATED:
            children.pop(name).end()
    for turn in range(options.rounds * 5):
        print(f"turn {turn + 1} of {options.rounds * 5}", file=sys.stderr)
        order = list(children) if turn % 2 else list(children)[::-1]
        for name in order:
            children[name].seconds.append(float(children[name].ask(str(turn))))
    medians = {name: statistics.median(child.seconds) for name, child in children.items()}
    for child in children.values():
        child.end()
    reference = grey_levels(depths[KERAS])
    rows = []
    for name in names:
        error = np.abs(grey_levels(depths[name]) - reference)
        middle = medians.get(name)
        rows.append([
            name,
            "" if middle is None else f"{middle:.3f}",
            "" if middle is None else f"{medians[KERAS] / middle:.2f}",
            "" if name == KERAS else f"{error.mean():.2f}",
            "" if name == KERAS else f"{np.percentile(error, 99):.0f}",
            "" if name == KERAS else f"{error.max()}",
        ])  # fmt: skip
    return rows


def main() -> None:
    """Time, compare and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=int, default=1664)
    parser.add_argument("--weights", choices=["calibrated", "small"], default="calibrated")
    parser.add_argument("--before", type=Path, metavar="DIR")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        weights = Path(made) / "weights.h5"
        if options.weights == "small":
            from shardgen.depth.densedepth.family import SHIPPED  # noqa: PLC0415

            weights = SHIPPED["small"]
        else:
            # In a process of its own, which gives the memory back.
            program = (
                f"from benchmarks.network import *; write_calibrated(Path({str(weights)!r}), {options.width})"
            )
            subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)  # noqa: S603
        rows = measure(ways_here(options.before), weights, Path(made), options)
    which = "the small network" if options.weights == "small" else f"decoder width {options.width}"
    print(f"{device.describe_cpu()}; {which}; {options.rounds} rounds", file=sys.stderr)
    header = ["network", "CPU-seconds an image", "speed", "grey levels off, mean", "99 %", "most"]
    print((markdown if options.markdown else aligned)(header, rows))


if __name__ == "__main__":
    main()
