from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from shardgen.depth.base import Upsampling
from shardgen.depth.densedepth.network import Arithmetic, GraphShape, build_network
from shardgen.depth.densedepth.random_weights import draw_tensors
from shardgen.depth.densedepth.topology import tensor_shapes
from shardgen.depth.densedepth.weights_file import read_weights
from shardgen.depth.device import Device
from training.legacy_file import write_weights
from training.network import SMALL, build_model, load_tensors, multiply_adds, tensors_of
from training.rendering import Samples
from training.textures import held_out_bank
from training.train import Stage, Trainer, augmented, batch_of, learning_rate, parse_stages, train

SHALLOW = replace(SMALL, blocks=(1, 1, 1, 1))  # traced in a third of the time
pytestmark = pytest.mark.usefixtures("cpu")


def test_a_written_file_is_read_back_as_the_same_network(tmp_path: Path) -> None:
    tensors = draw_tensors(tensor_shapes(SMALL), seed=1)
    paths = [tmp_path / "one.h5", tmp_path / "two.h5"]
    for path in paths:
        write_weights(path, SMALL, tensors)
    found = read_weights(paths[0])
    assert found.topology == SMALL
    assert found.keras_version == "2.2.4"
    assert found.tensors.keys() == tensors.keys()
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(found.tensors[key], tensor)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_multiply_adds_are_counted_per_output_pixel_and_kernel() -> None:
    # The stem alone: 7x7x3 kernels at half the size; and everything is at least that.
    stem = 7 * 7 * 3 * SMALL.stem * 320 * 240
    total = multiply_adds(SMALL, (640, 480))
    assert stem < total
    assert multiply_adds(SMALL, (320, 480)) == pytest.approx(total / 2, rel=1e-9)


def test_flips_and_channel_swaps_keep_picture_and_depth_together() -> None:
    row = np.arange(64, dtype=np.uint8)
    images = np.broadcast_to(row[None, None, :, None], (200, 4, 64, 3)) + np.array([0, 60, 120], np.uint8)
    outputs = np.broadcast_to(row[None, None, ::2].astype(np.float32), (200, 2, 32))
    found = augmented(
        Samples(images=images.astype(np.uint8), outputs=outputs.copy()), np.random.default_rng(1)
    )
    flipped = found.images[:, 0, 0].min(axis=1) > 0
    assert 0.35 < flipped.mean() < 0.65
    assert ((found.outputs[:, 0, 0] > 0) == flipped).all()
    swapped = (np.diff(found.images[:, 0, 0].astype(int), axis=1) != 60).any(axis=1)
    assert 0.1 < swapped.mean() < 0.35


def test_the_learning_rate_falls_with_every_share() -> None:
    rates = [learning_rate(share) for share in np.linspace(0, 1, 11)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < rates[0] / 100


@pytest.mark.slow
def test_the_keras_model_and_the_pipelines_graph_are_one_network(cpu: Device, tmp_path: Path) -> None:
    tensors = draw_tensors(tensor_shapes(SMALL), seed=2)
    model = build_model(SMALL)
    load_tensors(model, tensors)
    write_weights(tmp_path / "small.h5", SMALL, tensors_of(model, SMALL))
    shape = GraphShape(
        micro_batch=2, input_size=(96, 64), upsampling=Upsampling.ALIGNED, arithmetic=Arithmetic.FLOAT32
    )
    network = build_network(read_weights(tmp_path / "small.h5"), shape)
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3)).astype(np.uint8)
    expected = np.asarray(model(images.astype(np.float32) / 255, training=False))[..., 0]
    np.testing.assert_allclose(np.asarray(network(images)), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_twenty_steps_on_sixteen_pictures_make_the_loss_fall_and_a_state_goes_on_exactly() -> None:
    samples = batch_of(held_out_bank(), 0, Stage(size=(96, 64), steps=1, batch=16))
    trainer = Trainer(SHALLOW, seed=1)
    losses = [trainer.learn(samples, 2e-3) for _ in range(20)]
    assert np.isfinite(losses).all()
    assert np.mean(losses[-3:]) < 0.7 * losses[0], losses
    state, step = trainer.state(), trainer.step
    expected = [trainer.learn(samples, 1e-3) for _ in range(3)]
    other = Trainer(SHALLOW, seed=2)
    other.load_state(state, step)
    assert [other.learn(samples, 1e-3) for _ in range(3)] == pytest.approx(expected, rel=1e-2)
    assert other.step == 23


@pytest.mark.slow
def test_an_interrupted_training_goes_on_where_it_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.train.Trainer", partial(Trainer, SHALLOW))
    train(tmp_path, parse_stages("64x64:1x4"))
    assert read_weights(tmp_path / "best.h5").topology == SHALLOW
    train(tmp_path, parse_stages("64x64:2x4"))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[1] for line in lines] == ["1", "2"]
    train(tmp_path, parse_stages("64x64:2x4"))
    assert capsys.readouterr().out == ""
