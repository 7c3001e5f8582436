"""What was wrong with the reader of weights files, each defect on its own; and files damaged at any byte."""

from __future__ import annotations

import json
import math
import os
import random
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardgen.depth.densedepth.model_config import ConfigRefused, read_model_config
from shardgen.depth.densedepth.trial import read_untrusted
from shardgen.depth.densedepth.weights_file import read_weights
from shardgen.errors import InputMissing, ShardgenError, WeightsRefused
from shardgen.machine import trial
from tests import warm
from tests.fuzzing.guarded import time_limit
from tests.fuzzing.mutating import EXTREMES
from tests.fuzzing.targets import network
from tests.fuzzing.test_readers import fuzz

BIAS = "model_weights/conv3/conv3/bias:0"
FEW_MEGABYTES = 300


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return network().write(tmp_path_factory.mktemp("whole") / "w.h5")


@pytest.fixture
def path(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(whole, tmp_path / "w.h5"))


def read_alone(path: Path) -> str:
    """Read in a process of its own, within little memory; what it said."""
    done = warm.run("tests.fuzzing.read_alone", [path], timeout=60)
    said, _, megabytes = done.stdout.rstrip().rpartition("\n")
    assert megabytes, done.stderr
    assert int(megabytes) < FEW_MEGABYTES
    return said


def replace_bias(path: Path, make: Callable[[h5py.File], object]) -> None:
    with h5py.File(path, "r+") as file:
        del file[BIAS]
        make(file)


def external_link(folder: Path, file: h5py.File) -> None:
    file[BIAS] = h5py.ExternalLink(str(folder / "pipe"), "x")


def external_group(folder: Path, file: h5py.File) -> None:
    del file["model_weights"]
    file["model_weights"] = h5py.ExternalLink(str(folder / "pipe"), "x")


def soft_link(_folder: Path, file: h5py.File) -> None:
    file[BIAS] = h5py.SoftLink("/model_weights/conv2/conv2/bias:0")


def circular_link(_folder: Path, file: h5py.File) -> None:
    file[BIAS] = h5py.SoftLink(f"/{BIAS}")


def external_storage(folder: Path, file: h5py.File) -> None:
    file.create_dataset(BIAS, shape=(1,), dtype="f4", external=[(str(folder / "pipe"), 0, 4)])


def password_file(_folder: Path, file: h5py.File) -> None:
    file.create_dataset(BIAS, shape=(1,), dtype="f4", external=[("/etc/passwd", 0, 4)])


def virtual(folder: Path, file: h5py.File) -> None:
    layout = h5py.VirtualLayout(shape=(1,), dtype="f4")
    layout[:] = h5py.VirtualSource(str(folder / "pipe"), "x", shape=(1,))
    file.create_virtual_dataset(BIAS, layout)


def virtual_without_end(folder: Path, file: h5py.File) -> None:
    layout = h5py.VirtualLayout(shape=(1,), dtype="f4", maxshape=(None,))
    source = h5py.VirtualSource(str(folder / "pipe"), "x", shape=(1,), maxshape=(None,))
    layout[: h5py.h5s.UNLIMITED] = source[: h5py.h5s.UNLIMITED]
    file.create_virtual_dataset(BIAS, layout)


LEADING_OUT = [
    external_link,
    external_group,
    soft_link,
    circular_link,
    external_storage,
    password_file,
    virtual,
    virtual_without_end,
]


@pytest.mark.parametrize("make", LEADING_OUT)
def test_nothing_that_leads_out_of_the_file_is_opened(
    path: Path, tmp_path: Path, make: Callable[[Path, h5py.File], None]
) -> None:
    """The pipe has no writer: whoever opens it waits for ever."""
    os.mkfifo(tmp_path / "pipe")
    replace_bias(path, lambda file: make(tmp_path, file))
    assert ": missing" in read_alone(path) or make is external_group


def never_written(file: h5py.File) -> None:
    file.create_dataset(BIAS, shape=(1,), dtype="f4", chunks=(1,))


def in_a_huge_chunk(file: h5py.File) -> None:
    chunk = 1 << 25
    quickly: dict[str, Any] = {"compression": "gzip", "compression_opts": 1}
    made = file.create_dataset(BIAS, shape=(1,), maxshape=(None,), dtype="f4", chunks=(chunk,), **quickly)
    made[0] = 1.0


def by_a_plug_in(file: h5py.File) -> None:
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_chunk((1,))
    creation.set_filter(32_015, h5py.h5z.FLAG_OPTIONAL, (3,))
    space = h5py.h5s.create_simple((1,))
    made = h5py.h5d.create(file.id, BIAS.encode(), h5py.h5t.NATIVE_FLOAT, space, dcpl=creation)
    made.write_direct_chunk((0,), b"\0\0\0\0", filter_mask=1)


def wide_floats(file: h5py.File) -> None:
    file.create_dataset(BIAS, data=np.zeros(1, np.longdouble))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (never_written, "was never written"),
        (in_a_huge_chunk, "stored in chunks of more than"),
        (by_a_plug_in, "compressed by filter 32015"),
        (wide_floats, "dtype"),
    ],
)
def test_storage_that_takes_memory_or_code_that_the_file_does_not_hold_is_refused(
    path: Path, make: Callable[[h5py.File], None], said: str
) -> None:
    replace_bias(path, make)
    assert f"conv3 bias: {said}" in read_alone(path)


def long_list(file: h5py.File) -> None:
    space = h5py.h5s.create_simple((20_001,))
    file["model_weights"].attrs.__delitem__("layer_names")
    kind = h5py.h5t.C_S1.copy()
    kind.set_size(1)
    h5py.h5a.create(file["model_weights"].id, b"layer_names", kind, space)


def texts_of_their_own(file: h5py.File) -> None:
    """Each of a thousand names could be the same gigabyte."""
    names = np.array(["conv3"] * 1000, dtype=h5py.string_dtype())
    file["model_weights"].attrs["layer_names"] = names


def list_of_lists(file: h5py.File) -> None:
    file["model_weights"].attrs["layer_names"] = np.array([[b"conv3"]])


def list_of_numbers(file: h5py.File) -> None:
    file["model_weights"].attrs["layer_names"] = np.arange(9)


def two_configurations(file: h5py.File) -> None:
    file.attrs["model_config"] = np.array([b"{}", b"{}"])


@pytest.mark.parametrize(
    "make", [long_list, texts_of_their_own, list_of_lists, list_of_numbers, two_configurations]
)
def test_names_are_a_short_list_of_bytes_as_keras_writes_it(
    path: Path, make: Callable[[h5py.File], None]
) -> None:
    with h5py.File(path, "r+", libver="latest") as file:
        make(file)
    assert "is not" in read_alone(path)


def test_a_large_network_in_a_small_file_is_refused(path: Path) -> None:
    """All its tensors could be one and the same, or compressed zeros."""
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        for layer in config["config"]["layers"]:
            if layer["class_name"] == "Conv2D" and layer["name"] != "conv3":
                layer["config"]["filters"] = 800
        file.attrs["model_config"] = json.dumps(config)
    assert "parameters in a file of" in read_alone(path)


def test_a_file_of_any_size_is_not_read_to_its_end(path: Path) -> None:
    os.truncate(path, 1 << 42)
    with time_limit(10), pytest.raises(WeightsRefused, match="at most"):
        read_weights(path)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "."])
def test_a_name_that_no_file_has_is_missing_input(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputMissing):
        read_weights(tmp_path / name)


def configuration(change: Callable[[dict[str, Any]], object]) -> str:
    document = json.loads(json.dumps(network().model_config()))
    change({layer["name"]: layer for layer in document["config"]["layers"]})
    return json.dumps(document)


def deep(value: object, depth: int = 900) -> object:
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "change",
    [
        lambda layers: layers["conv2"]["config"].update(strides=deep(1)),
        lambda layers: layers["conv2"].update(name=deep(1)),
        lambda layers: layers["bn"]["config"].update(epsilon=10**400),
        lambda layers: layers["bn"]["config"].update(epsilon=math.inf),
        lambda layers: layers["bn"]["config"].update(epsilon=math.nan),
        lambda layers: layers["bn"]["config"].update(epsilon=-1),
        lambda layers: layers["conv2"]["config"].update(filters=10**9),
        lambda layers: layers["conv2"].update(config="text"),
        lambda layers: layers["conv2"].update(config=None),
        lambda layers: layers["up1_upsampling2d"].update(class_name="UpSampling2D", config="text"),
        lambda layers: layers["conv2"].update(inbound_nodes=[[[None]]]),
        lambda layers: layers["conv2"].update(inbound_nodes=deep(0)),
        lambda layers: layers["conv2"].update(class_name=["Conv2D"]),
        lambda layers: layers["conv2"].update(name="x" * 10**6),
        lambda layers: layers["leaky_re_lu_1"]["config"].update(alpha=10**400),
    ],
)
def test_a_layer_of_another_kind_is_one_clear_error(change: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises(ConfigRefused) as caught:
        read_model_config(configuration(change))
    assert len(str(caught.value)) < 20_000


@pytest.mark.parametrize("epsilon", [math.inf, math.nan, -1.0, 0.0, 1.0, 10**400])
def test_an_epsilon_that_all_layers_share_is_looked_at_all_the_same(epsilon: float) -> None:
    def change(layers: dict[str, Any]) -> None:
        for layer in layers.values():
            if layer["class_name"] == "BatchNormalization":
                layer["config"]["epsilon"] = epsilon

    with pytest.raises(ConfigRefused, match=r"epsilon|too large"):
        read_model_config(configuration(change))


def test_two_names_that_claim_ten_million_layers_take_neither_time_nor_memory() -> None:
    document = json.loads(json.dumps(network().model_config()))  # others share it
    concat = next(layer for layer in document["config"]["layers"] if layer["name"] == "conv2_block1_concat")
    for block in range(2, 1000):
        document["config"]["layers"].append({**concat, "name": f"conv{block}_block9999_concat"})
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (64 << 30, hard))
    try:
        with time_limit(10), pytest.raises(ConfigRefused, match="not all of them"):
            read_model_config(json.dumps(document))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def damage(content: bytes, seed: int) -> bytes:
    """Up to four damages to bytes that are not zero: HDF5's own records and the texts, not the tensors."""
    source, data = random.Random(seed), bytearray(content)  # noqa: S311
    for _ in range(source.randrange(1, 5)):
        at = source.choice([place for place in source.sample(range(len(data) - 8), 16) if data[place]] or [0])
        width = source.choice([1, 2, 4, 8])
        if source.random() < 0.5:
            data[at] ^= 1 << source.randrange(8)
        else:
            value = source.choice([*EXTREMES, len(data), source.randrange(len(data))])
            data[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
    return bytes(data)


def read_in_a_child(path: Path) -> int:
    """Read in a forked process within limits; its status: 0 read, 1 refused, else what we did not want."""
    child = os.fork()
    if child == 0:
        status = 9
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (10, 10))
            read_weights(path)
            status = 0
        except ShardgenError:
            status = 1
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]


@fuzz(60)
@given(seed=st.integers(0, 2**31))
@pytest.mark.slow
def test_a_file_damaged_at_any_byte_raises_nothing_but_our_own_errors(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    """The library itself may hang or crash: that is what the trial is for."""
    path = tmp_path_factory.getbasetemp() / "damaged.h5"
    path.write_bytes(damage(whole.read_bytes(), seed))
    status = read_in_a_child(path)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) in (0, 1)


def heap_that_never_ends(path: Path) -> None:
    """A free space of size 0 in the heap of texts: HDF5 1.14.6 looks for the next one at the same place."""
    data = bytearray(path.read_bytes())
    at = data.index(b"GCOL") + 16
    for _ in range(2):  # two short texts, then the configuration
        at += 16 + (int.from_bytes(data[at + 8 : at + 16], "little") + 7) // 8 * 8
    data[at : at + 16] = bytes(16)
    path.write_bytes(data)


def test_a_file_that_the_library_reads_for_ever_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(trial.LIMIT_VARIABLE, "1")
    heap_that_never_ends(path)
    began = time.monotonic()
    with pytest.raises(WeightsRefused, match="damaged"):
        read_untrusted(path)
    assert time.monotonic() - began < 30


def test_a_file_that_ends_the_process_which_reads_it_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "h5py.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(WeightsRefused, match="ended with SIGSEGV") as caught:
        read_untrusted(path)
    assert caught.value.hint


def test_a_sound_file_and_a_refused_one_pass_the_trial_with_the_same_words(path: Path) -> None:
    assert read_untrusted(path).sha256 == read_weights(path).sha256
    replace_bias(path, lambda _file: None)
    with pytest.raises(WeightsRefused) as direct:
        read_weights(path)
    with pytest.raises(WeightsRefused) as tried:
        read_untrusted(path)
    assert str(tried.value) == str(direct.value)


def test_modules_in_the_folder_of_the_command_are_not_imported(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "h5py.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    read_untrusted(path)
    assert not (tmp_path / "ran").exists()
