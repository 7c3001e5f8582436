"""Nothing that comes from outside is run: not from a weights file, and no module of ours could."""

from __future__ import annotations

import ast
import base64
import marshal
import os
import pickle
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from shardgen.depth.densedepth.trial import read_untrusted
from shardgen.depth.densedepth.weights_file import read_weights
from shardgen.errors import WeightsRefused
from tests.legacy_weights import LegacyNetwork, write_legacy_weights
from tests.runs import shardgen

PACKAGE = Path(__file__).parent.parent.parent / "shardgen"
MODULES = {
    "cloudpickle", "code", "codeop", "dill", "imp", "joblib", "jsonpickle", "keras", "marshal", "pickle",
    "runpy", "shelve", "tarfile", "tf_keras", "yaml",
}  # fmt: skip
NAMES = {"eval", "exec", "compile", "__import__", "breakpoint"}
ATTRIBUTES = {
    "allow_pickle", "deserialize", "enable_unsafe_deserialization", "extract", "extractall", "fromfile",
    "from_config", "import_module", "load_model", "load_weights", "memmap", "mktemp", "model_from_config",
    "model_from_json", "popen", "saved_model", "system", "unsafe_load",
}  # fmt: skip
ALLOWED = {
    "__init__.py": ["import_module"],  # of the package's own modules, by the list in that file
    # An export writes headers of tars; nothing opens one, and what would is still found.
    "dataset/export/webdataset.py": ["tarfile"],
    "cli/commands.py": ["import_module"],  # of the package's own commands, by the list in that file
    "depth/importing.py": ["import_module"],  # of what TensorFlow's own files list
}
NUMPY_READERS = {"load", "genfromtxt", "loadtxt"}


def findings(source: str) -> Iterator[str]:
    """Whatever in a module could run, or deserialise as code, what it reads."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").split(".")[0] in MODULES:
                yield node.module or ""
            yield from (alias.name for alias in node.names if alias.name in ATTRIBUTES | NAMES)
        elif isinstance(node, ast.Name) and node.id in NAMES:
            yield node.id
        elif isinstance(node, ast.Attribute):
            is_numpy = isinstance(node.value, ast.Name) and node.value.id in {"np", "numpy"}
            if node.attr in ATTRIBUTES or (is_numpy and node.attr in NUMPY_READERS):
                yield node.attr
        elif isinstance(node, ast.keyword) and node.arg in {"allow_pickle", "shell"}:
            yield node.arg


def test_no_module_can_run_or_deserialise_what_it_reads() -> None:
    modules = [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "migrations").rglob("*.py")]
    assert len(modules) > 100
    found = {path: list(findings(path.read_text(encoding="utf-8"))) for path in modules}
    assert {path: names for path, names in found.items() if names} == {
        PACKAGE / path: names for path, names in ALLOWED.items()
    }


def test_of_tarfile_only_what_writes_is_used() -> None:
    source = (PACKAGE / "dataset/export/webdataset.py").read_text(encoding="utf-8")
    used = {
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "tarfile"
    }
    assert used == {"TarInfo", "USTAR_FORMAT", "BLOCKSIZE", "RECORDSIZE"}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import yaml\nyaml.load(data)",
        "eval(text)",
        "__builtins__.get('x')\nexec(text)",
        "compile(text, '', 'exec')",
        "import marshal as m",
        "from tensorflow.keras.models import load_model",
        "tf.keras.models.load_model(path)",
        "tf.keras.layers.deserialize(config)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "numpy.fromfile(path)",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
        "archive.extractall(folder)",
        "tempfile.mktemp()",
        "importlib.import_module(name)",
    ],
)
def test_what_could_is_found(source: str) -> None:
    assert list(findings(source))


def planted_code(marker: Path) -> types.CodeType:
    """A function's code that leaves a file behind when it runs."""
    module = compile(
        f"def planted(x):\n    open({str(marker)!r}, 'w').close()\n    return x\n", "planted", "exec"
    )
    return next(constant for constant in module.co_consts if isinstance(constant, types.CodeType))


def as_keras_stores_it(code: types.CodeType) -> str:
    return base64.encodebytes(marshal.dumps(code)).decode("ascii")


def test_the_planted_code_would_leave_its_file(tmp_path: Path) -> None:
    text = as_keras_stores_it(planted_code(tmp_path / "ran"))
    code = marshal.loads(base64.decodebytes(text.encode()))  # noqa: S302 - the control: what must not happen
    types.FunctionType(code, {"open": open})(1)
    assert (tmp_path / "ran").exists()


Plant = Callable[[LegacyNetwork, str], object]


def in_a_lambda_layer(network: LegacyNetwork, code: str) -> None:
    config = {"name": "relu", "function": [code, None, None], "function_type": "lambda", "trainable": True}
    network.layer("relu").update(class_name="Lambda", config=config)


def in_a_lambda_of_keras_3(network: LegacyNetwork, code: str) -> None:
    function = {"class_name": "__lambda__", "config": {"code": code, "defaults": None, "closure": None}}
    network.layer("relu").update(class_name="Lambda", config={"name": "relu", "function": function})


def in_an_activation(network: LegacyNetwork, code: str) -> None:
    activation = {"class_name": "__lambda__", "config": {"code": code}}
    network.layer("conv2")["config"].update(activation=activation)


def in_an_initializer(network: LegacyNetwork, code: str) -> None:
    """What decides nothing here is not looked at, and so cannot run."""
    initializer = {"class_name": "__lambda__", "config": {"code": code}}
    network.layer("conv2")["config"].update(kernel_initializer=initializer)


def in_a_module(network: LegacyNetwork, code: str) -> None:
    network.layer("conv2").update(
        module="planted", registered_name="planted>Evil", build_config={"code": code}
    )


REFUSED: list[tuple[Plant, str]] = [
    (in_a_lambda_layer, "relu: unknown layer class Lambda (never executed)"),
    (in_a_lambda_of_keras_3, "relu: unknown layer class Lambda (never executed)"),
    (in_an_activation, "conv2: activation is "),
]


@pytest.mark.parametrize(("plant", "said"), REFUSED)
def test_code_planted_in_a_weights_file_does_not_run_and_the_file_is_refused(
    tmp_path: Path, plant: Plant, said: str
) -> None:
    marker = tmp_path / "ran"
    code = as_keras_stores_it(planted_code(marker))
    path = write_legacy_weights(tmp_path / "w.h5", defects=[lambda network: plant(network, code)])
    for read in (read_weights, read_untrusted):
        with pytest.raises(WeightsRefused) as caught:
            read(path)
        assert any(said in problem for problem in caught.value.problems), caught.value.problems
    assert not marker.exists()


@pytest.mark.parametrize("plant", [in_an_initializer, in_a_module])
def test_code_planted_where_nothing_is_read_is_ignored(tmp_path: Path, plant: Plant) -> None:
    marker = tmp_path / "ran"
    code = as_keras_stores_it(planted_code(marker))
    path = write_legacy_weights(tmp_path / "w.h5", defects=[lambda network: plant(network, code)])
    assert read_weights(path).topology.decoder_width == 16
    assert not marker.exists()


def test_the_command_that_checks_a_file_does_not_run_it_either(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    code = as_keras_stores_it(planted_code(marker))
    path = write_legacy_weights(tmp_path / "w.h5", defects=[lambda network: in_a_lambda_layer(network, code)])
    done = shardgen("weights", "check", path)
    assert done.returncode == 17
    assert "never executed" in done.stderr
    assert not marker.exists()


class Planted:
    """Pickled, it makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._marker),)


def test_pickled_attributes_and_tensors_are_not_unpickled(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    pickled = pickle.dumps(Planted(marker))
    path = write_legacy_weights(tmp_path / "w.h5")
    with h5py.File(path, "r+") as file:
        file.attrs["training_config"] = np.void(pickled)
        file.attrs["keras_version"] = np.void(pickled)
    read_weights(path)
    with h5py.File(path, "r+") as file:
        del file["model_weights/conv3/conv3/bias:0"]
        file["model_weights/conv3/conv3/bias:0"] = np.void(pickled)
    with pytest.raises(WeightsRefused, match="conv3 bias: dtype"):
        read_weights(path)
    assert not marker.exists()
    pickle.loads(pickled)  # noqa: S301 - the control
    assert marker.exists()


def test_a_configuration_is_parsed_as_json_and_as_nothing_else(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    path = write_legacy_weights(tmp_path / "w.h5")
    for text in (f"open({str(marker)!r}, 'w')", f"!!python/object/apply:builtins.open [{marker}, w]"):
        with h5py.File(path, "r+") as file:
            file.attrs["model_config"] = text
        with pytest.raises(WeightsRefused, match="not a Keras model as JSON"):
            read_weights(path)
    assert not marker.exists()
