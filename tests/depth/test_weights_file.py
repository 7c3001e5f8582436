from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from shardgen.depth.densedepth.weights_file import facts_of, read_weights
from shardgen.errors import InputMissing, WeightsRefused
from tests.legacy_weights import LegacyNetwork, write_legacy_weights

Defect = Callable[[LegacyNetwork], object]


def _set(layer: str, part: str, change: Callable[[Any], Any]) -> Defect:
    def apply(network: LegacyNetwork) -> None:
        network.arrays[layer][part] = change(network.arrays[layer][part])

    return apply


def _setting(layer: str, name: str, value: object) -> Defect:
    return lambda network: network.layer(layer)["config"].update({name: value})


def _lambda_layer(network: LegacyNetwork) -> None:
    network.layer("relu").update(
        class_name="Lambda", config={"name": "relu", "function": ["4wEAAA==", None, None]}
    )


def _take_from(layer: str, *sources: str) -> Defect:
    nodes = [[[source, 0, 0, {}] for source in sources]]
    return lambda network: network.layer(layer).update(inbound_nodes=nodes)


def _with_nan(array: Any) -> Any:
    array = array.copy()
    array.flat[3] = np.nan
    return array


DEFECTS: list[tuple[str, Defect, str]] = [
    ("a missing tensor", lambda n: n.arrays["conv3"].pop("bias"), "conv3 bias: missing"),
    ("a missing layer's tensors", lambda n: n.arrays.pop("up2_convA"), "up2_convA kernel: missing"),
    (
        "an extra tensor",
        lambda n: n.arrays["conv1/conv"].update(bias=np.zeros(16, np.float32)),
        "conv1/conv bias: unexpected tensor",
    ),
    (
        "an extra layer's tensors",
        lambda n: n.arrays.update(dense_1={"kernel": np.zeros((2, 2), np.float32)}),
        "dense_1: stored weights of a layer that model_config lacks",
    ),
    ("a misshapen tensor", _set("conv2", "kernel", lambda a: a[..., :-1]), "conv2 kernel: shape (1, 1, "),
    ("a NaN", _set("conv2", "kernel", _with_nan), "conv2 kernel: 1 of "),
    ("integers", _set("conv2", "bias", lambda a: a.astype(np.int32)), "conv2 bias: dtype int32"),
    (
        "a negative variance",
        _set("bn", "moving_variance", lambda a: -a),
        "bn moving_variance: a variance below 0",
    ),
    ("code in a Lambda layer", _lambda_layer, "relu: unknown layer class Lambda (never executed)"),
    ("a saturating ReLU", _setting("relu", "activation", "relu6"), "relu: activation 'relu6'"),
    ("a linear layer with tanh", _setting("conv3", "activation", "tanh"), "conv3: activation is 'tanh'"),
    ("another stride", _setting("conv2", "strides", [2, 2]), "conv2: strides is (2, 2)"),
    ("another padding", _setting("pool1", "padding", "same"), "pool1: padding is 'same'"),
    ("another epsilon", _setting("bn", "epsilon", 1.0), "epsilon"),
    ("another skip layer", _take_from("up1_concat", "up1_upsampling2d", "pool1"), "up1: concatenates pool1"),
    ("a skipped layer", _take_from("conv2", "bn"), "conv2: takes bn (expected relu)"),
    (
        "nearest upsampling",
        _setting("up1_upsampling2d", "interpolation", "nearest"),
        "up1_upsampling2d: interpolation is 'nearest'",
    ),
    (
        "another number of activations in one block",
        _setting("leaky_re_lu_1", "alpha", 7),
        "LeakyReLU slope 7.0",
    ),
]


def test_topology_and_tensors_come_from_the_file(tmp_path: Path) -> None:
    path = write_legacy_weights(
        tmp_path / "w.h5", blocks=(1, 3, 2), growth=4, stem=12, width=24, activations=2
    )
    weights = read_weights(path)
    assert weights.topology.blocks == (1, 3, 2)
    assert (weights.topology.growth, weights.topology.stem) == (4, 12)
    assert (weights.topology.decoder_width, weights.topology.activations) == (24, 2)
    assert [up.skip for up in weights.topology.ups] == ["pool2_pool", "pool1", "conv1/relu"]
    with h5py.File(path) as file:
        stored = file["model_weights/conv1/conv/conv1/conv/kernel:0"][()]
    np.testing.assert_array_equal(weights.tensors["conv1/conv", "kernel"], stored)


def test_the_released_layout_has_617_layers_and_42816089_parameters_at_width_1664() -> None:
    network = LegacyNetwork(blocks=(6, 12, 32, 32), growth=32, stem=64, width=1664)
    parameter_count = sum(array.size for arrays in network.arrays.values() for array in arrays.values())
    assert len(network.layers) == 617
    assert parameter_count == 42_816_089


@pytest.mark.parametrize(("defect", "said"), [d[1:] for d in DEFECTS], ids=[d[0] for d in DEFECTS])
def test_a_file_with_one_defect_is_refused_by_name(tmp_path: Path, defect: Defect, said: str) -> None:
    path = write_legacy_weights(tmp_path / "w.h5", defects=[defect])
    with pytest.raises(WeightsRefused) as caught:
        read_weights(path)
    assert any(said in problem for problem in caught.value.problems), caught.value.problems
    assert caught.value.hint


def test_every_problem_is_listed_but_the_message_stays_short(tmp_path: Path) -> None:
    def drop_all(network: LegacyNetwork) -> None:
        for arrays in network.arrays.values():
            arrays.clear()

    path = write_legacy_weights(tmp_path / "w.h5", defects=[drop_all])
    with pytest.raises(WeightsRefused) as caught:
        read_weights(path)
    assert len(caught.value.problems) > 100
    assert str(caught.value).endswith(" more")
    assert len(str(caught.value)) < 1000


def test_an_activation_that_the_blocks_do_not_share_is_refused(tmp_path: Path) -> None:
    def drop_one(network: LegacyNetwork) -> None:
        network.layers.remove(network.layer("leaky_re_lu_2"))
        network.arrays.pop("leaky_re_lu_2")
        _take_from("up3_upsampling2d", "up2_convB")(network)

    path = write_legacy_weights(tmp_path / "w.h5", defects=[drop_one])
    with pytest.raises(WeightsRefused, match="differ in their activations"):
        read_weights(path)


def test_a_file_without_model_config_is_refused_instead_of_guessing(tmp_path: Path) -> None:
    path = write_legacy_weights(tmp_path / "w.h5")
    with h5py.File(path, "r+") as file:
        del file.attrs["model_config"]
    with pytest.raises(WeightsRefused, match="no model_config"):
        read_weights(path)


@pytest.mark.parametrize(
    "config", ["{", "[]", '{"class_name": "Sequential", "config": {"layers": []}}', "[" * 10**5]
)
def test_a_foreign_model_config_is_one_clear_error(tmp_path: Path, config: str) -> None:
    path = write_legacy_weights(tmp_path / "w.h5")
    with h5py.File(path, "r+", libver="latest") as file:
        file.attrs["model_config"] = config[:60_000]
    with pytest.raises(WeightsRefused, match="model_config"):
        read_weights(path)


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.99])
def test_a_truncated_file_is_one_clear_error(tmp_path: Path, kept: float) -> None:
    path = write_legacy_weights(tmp_path / "w.h5")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(WeightsRefused, match="damaged or truncated") as caught:
        read_weights(path)
    assert "weights fetch" in caught.value.hint


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"\n <!DOCTYPE html><html>403</html>", "web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"PK\x03\x04 a zip", "not HDF5"),
    ],
)
def test_what_is_not_hdf5_is_called_by_its_name(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "w.h5"
    path.write_bytes(content)
    with pytest.raises(WeightsRefused, match=said):
        read_weights(path)


def test_a_missing_file_is_missing_input(tmp_path: Path) -> None:
    with pytest.raises(InputMissing, match="no such weights file"):
        read_weights(tmp_path / "none.h5")


def test_a_tensor_that_lives_in_another_file_is_refused(tmp_path: Path) -> None:
    path, other = write_legacy_weights(tmp_path / "w.h5"), write_legacy_weights(tmp_path / "other.h5")
    name = "model_weights/conv3/conv3/bias:0"
    with h5py.File(path, "r+") as file:
        del file[name]
        file[name] = h5py.ExternalLink(str(other), name)
    with pytest.raises(WeightsRefused, match="conv3 bias: missing"):
        read_weights(path)


def test_a_huge_tensor_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = write_legacy_weights(tmp_path / "w.h5")
    name = "model_weights/conv3/conv3/bias:0"
    with h5py.File(path, "r+") as file:
        del file[name]
        file.create_dataset(name, shape=(1 << 40,), dtype=np.float32, chunks=(1 << 20,))
    with pytest.raises(WeightsRefused, match="conv3 bias: shape"):
        read_weights(path)


def test_scopes_that_tensorflow_made_unique_do_not_matter(tmp_path: Path) -> None:
    path = write_legacy_weights(tmp_path / "w.h5")
    with h5py.File(path, "r+") as file:
        group = file["model_weights/conv3"]
        group.move("conv3", "conv3_1")
        group.attrs["weight_names"] = np.array([b"conv3_1/kernel:0", b"conv3_1/bias:0"])
    assert read_weights(path).topology.decoder_width == 16


def test_the_report_names_what_decides_the_depth(tmp_path: Path) -> None:
    weights = read_weights(write_legacy_weights(tmp_path / "w.h5"))
    facts = facts_of(weights)
    assert facts["keras version"] == "2.2.4"
    assert (facts["activations"], facts["decoder width"], facts["blocks"]) == (1, 16, (2, 2, 2, 2))
    assert facts["bytes"] == (tmp_path / "w.h5").stat().st_size
    assert facts["parameters"] == weights.parameters > 10_000
