from __future__ import annotations

import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

from shardgen.depth.importing import _Part


def part(folder: Path, text: str) -> ModuleType:
    """A module of this text as a part of TensorFlow is loaded."""
    (folder / "listed.py").write_text(text, encoding="utf-8")
    module = ModuleType("listed")
    _Part(SourceFileLoader("listed", str(folder / "listed.py"))).exec_module(module)
    return module


def test_a_name_of_a_part_is_imported_when_it_is_asked_for(tmp_path: Path) -> None:
    sys.modules.pop("colorsys", None)
    module = part(
        tmp_path, '"""Public."""\nimport sys as _sys\nfrom colorsys import rgb_to_hsv as hsv # line: 1\n'
    )
    assert "colorsys" not in sys.modules
    assert "hsv" in dir(module)
    assert module.hsv(1.0, 0.0, 0.0) == (0.0, 1.0, 1.0)
    assert "hsv" in vars(module)
    with pytest.raises(AttributeError, match="module 'listed' has no attribute 'rgb_to_hsv'"):
        module.rgb_to_hsv  # noqa: B018


def test_a_part_that_is_more_than_a_list_is_loaded_at_once(tmp_path: Path) -> None:
    module = part(tmp_path, "from colorsys import rgb_to_hsv\nif rgb_to_hsv:\n    number = 7\n")
    assert vars(module)["number"] == 7


@pytest.mark.slow
def test_all_of_tensorflow_is_there_for_whoever_asks() -> None:
    program = (
        "from shardgen.depth import device; device.prepare('cpu')\n"
        "import sys, tensorflow as tf\n"
        "print('tensorflow.python.keras' in sys.modules, 'scipy' in sys.modules)\n"
        "print(tf.nn.relu(tf.constant([-1.0, 1.0])).numpy(), tf.config.threading.__name__)\n"
        "print(tf.compat.v1.Session.__name__, tf.nn.RNNCellDropoutWrapper.__name__)\n"
        "print(tf.lite.Interpreter.__name__)\n"
        "print(list(tf.data.Dataset.range(3).as_numpy_iterator()), hasattr(tf.nn, 'nothing'))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "False False",
        "[0. 1.] tensorflow._api.v2.config.threading",
        "Session DropoutWrapper",
        "Interpreter",
        "[np.int64(0), np.int64(1), np.int64(2)] False",
    ]
