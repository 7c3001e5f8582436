"""Train the small network on rendered scenes.

    python -m training.train FOLDER [--stages 128x96:3200x16,256x192:1000x16,640x480:270x8]

FOLDER keeps the checkpoint: the same command goes on where it stopped. After each checkpoint it holds
`last.h5`, and `best.h5`, that of the lowest validation loss at the last stage's size.
"""

from __future__ import annotations

import argparse
import os
import pickle
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from shardgen.depth.densedepth.topology import Topology
from training.legacy_file import write_weights
from training.loss import densedepth_loss
from training.network import SMALL, build_model, tensors_of
from training.rendering import Samples, render_samples
from training.textures import TextureBank, training_bank

STAGES = "128x96:3200x16,256x192:1000x16,640x480:270x8"
RATE, LAST_RATE = 2e-3, 1e-5
SWAP_SHARE, FLIP_SHARE = 0.25, 0.5
VALIDATION_SEED, FIRST_SEED = 900_000, 1_000_000
VALIDATION_COUNT = 32
PIXELS_PER_CHECKPOINT = 75 * 16 * 256 * 192


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """`steps` of `batch` pictures of one size (width, height)."""

    size: tuple[int, int]
    steps: int
    batch: int

    @property
    def pixels(self) -> int:
        """Of one step."""
        return self.size[0] * self.size[1] * self.batch


def parse_stages(text: str) -> list[Stage]:
    """Of `256x192:900x16,640x480:300x8`: sizes, steps, pictures per step."""
    stages = []
    for part in text.split(","):
        size, _, rest = part.partition(":")
        (width, _, height), (steps, _, batch) = size.partition("x"), rest.partition("x")
        stages.append(Stage(size=(int(width), int(height)), steps=int(steps), batch=int(batch)))
    return stages


class Trainer:
    """A model, its optimizer and the loss; `step` counts what it has learned from."""

    def __init__(self, topology: Topology = SMALL, *, seed: int = 0) -> None:
        keras.utils.set_random_seed(seed)
        self.topology = topology
        self.model = build_model(topology)
        self.optimizer = keras.optimizers.Adam(RATE, global_clipnorm=5.0)
        self.optimizer.build(self.model.trainable_variables)
        self.step = 0
        self._learn = tf.function(self._learn_from, autograph=False, reduce_retracing=True)
        self._judge = tf.function(self._loss_of, autograph=False, reduce_retracing=True)

    def learn(self, samples: Samples, rate: float) -> float:
        """One step at this learning rate; returns the loss before it."""
        self.optimizer.learning_rate.assign(rate)
        self.step += 1
        return float(self._learn(*_tensors(samples)))

    def judge(self, samples: Samples) -> float:
        """The mean loss, with the batch norms as they will be stored."""
        parts = [
            Samples(images=samples.images[at : at + 8], outputs=samples.outputs[at : at + 8])
            for at in range(0, len(samples.images), 8)
        ]
        return float(np.mean([float(self._judge(*_tensors(part))) for part in parts]))

    def _loss_of(self, images: Any, truth: Any) -> Any:
        output = self.model(tf.cast(images, tf.float32) / 255.0, training=False)
        return densedepth_loss(truth, output)

    def _learn_from(self, images: Any, truth: Any) -> Any:
        with tf.GradientTape() as tape:
            output = self.model(tf.cast(images, tf.float32) / 255.0, training=True)
            loss = densedepth_loss(truth, output)
        variables = self.model.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    def state(self) -> list[NDArray[Any]]:
        """Every number that the next step depends on."""
        return [np.asarray(variable.numpy()) for variable in self._variables()]

    def load_state(self, state: Sequence[NDArray[Any]], step: int) -> None:
        """Go on from there."""
        for variable, value in zip(self._variables(), state, strict=True):
            variable.assign(value)
        self.step = step

    def _variables(self) -> list[Any]:
        return [*self.model.variables, *self.optimizer.variables]

    def write(self, path: Path) -> None:
        """As a weights file, whole or not at all."""
        partial = path.with_suffix(".partial")
        write_weights(partial, self.topology, tensors_of(self.model, self.topology))
        partial.replace(path)


def _tensors(samples: Samples) -> tuple[Any, Any]:
    return tf.constant(samples.images), tf.constant(samples.outputs[..., None])


def augmented(samples: Samples, random: np.random.Generator) -> Samples:
    """Half of them mirrored, a quarter with swapped colour channels, as in the paper."""
    images, outputs = samples.images.copy(), samples.outputs.copy()
    for index in range(len(images)):
        if random.random() < FLIP_SHARE:
            images[index], outputs[index] = images[index, :, ::-1], outputs[index, :, ::-1]
        if random.random() < SWAP_SHARE:
            images[index] = images[index][..., random.permutation(3)]
    return Samples(images=images, outputs=outputs)


def batch_of(bank: TextureBank, step: int, stage: Stage) -> Samples:
    """The pictures of one step: seeded by it, so that a resumed training sees the same ones."""
    samples = render_samples(bank, seed=FIRST_SEED + step, count=stage.batch, size=stage.size)
    return augmented(samples, np.random.default_rng((FIRST_SEED, step)))


def learning_rate(share: float) -> float:
    """Falls along a cosine with the share of all pixels that were seen."""
    return LAST_RATE + (RATE - LAST_RATE) * 0.5 * (1 + float(np.cos(np.pi * min(share, 1.0))))


def _schedule(stages: Sequence[Stage]) -> Iterator[tuple[int, Stage, float]]:
    """(step, stage, share of the pixels seen before it)."""
    total = sum(stage.steps * stage.pixels for stage in stages)
    step, seen = 0, 0
    for stage in stages:
        for _ in range(stage.steps):
            yield step, stage, seen / total
            step, seen = step + 1, seen + stage.pixels


@dataclass(slots=True, kw_only=True)
class _Progress:
    folder: Path
    began: float
    lowest: float = float("inf")

    def save(self, trainer: Trainer, loss: float, *, is_last_stage: bool) -> None:
        trainer.write(self.folder / "last.h5")
        if is_last_stage and loss < self.lowest:
            self.lowest = loss
            trainer.write(self.folder / "best.h5")
        partial = self.folder / "checkpoint.partial"
        with partial.open("wb") as file:
            pickle.dump((trainer.step, self.lowest, trainer.state()), file)
        partial.replace(self.folder / "checkpoint.pickle")

    def load(self, trainer: Trainer) -> None:
        path = self.folder / "checkpoint.pickle"
        if path.exists():
            step, self.lowest, state = pickle.loads(path.read_bytes())  # noqa: S301 - our own file
            trainer.load_state(state, step)


def train(folder: Path, stages: Sequence[Stage]) -> None:
    """Train, or go on training, and print a line per checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    trainer, bank = Trainer(), training_bank()
    progress = _Progress(folder=folder, began=time.monotonic())
    progress.load(trainer)
    schedule = [entry for entry in _schedule(stages) if entry[0] >= trainer.step]
    validation: dict[tuple[int, int], Samples] = {}
    losses: list[float] = []
    with ThreadPoolExecutor(1) as renderer:
        coming = [renderer.submit(batch_of, bank, step, stage) for step, stage, _ in schedule[:2]]
        for index, (_, stage, share) in enumerate(schedule):
            samples = coming.pop(0).result()
            if index + 2 < len(schedule):
                next_step, next_stage, _ = schedule[index + 2]
                coming.append(renderer.submit(batch_of, bank, next_step, next_stage))
            losses.append(trainer.learn(samples, learning_rate(share)))
            if trainer.step % max(1, PIXELS_PER_CHECKPOINT // stage.pixels) and index + 1 < len(schedule):
                continue
            if stage.size not in validation:
                validation[stage.size] = render_samples(
                    bank, seed=VALIDATION_SEED, count=VALIDATION_COUNT, size=stage.size
                )
            loss = trainer.judge(validation[stage.size])
            progress.save(trainer, loss, is_last_stage=stage is stages[-1])
            print(
                f"step {trainer.step:6} {stage.size[0]}x{stage.size[1]} rate {learning_rate(share):.5f} "
                f"loss {np.mean(losses):.4f} validation {loss:.4f} "
                f"{(time.monotonic() - progress.began) / 60:.1f} min {os.times().user / 60:.1f} CPU min",
                flush=True,
            )
            losses.clear()


def main() -> None:
    """Parse and train."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stages", default=STAGES)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    train(options.folder, parse_stages(options.stages))


if __name__ == "__main__":
    main()
