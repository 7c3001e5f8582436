"""How TensorFlow is imported: without what it would bring along, and the rest of it when it is used."""

from __future__ import annotations

import ast
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder, SourceLoader
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from shardgen.errors import MachineUnfit
from shardgen.machine.collecting import importing

_AWAY = ("keras", "tf_keras", "scipy")
_API = "tensorflow._api.v2."


def import_tensorflow() -> Any:
    """The module. Raises MachineUnfit if it cannot be imported."""
    try:
        with _only_what_is_used(), _without_temporary_folder(), importing():
            import tensorflow as tf
    except ImportError as error:
        raise MachineUnfit(
            f"TensorFlow cannot be imported: {error}", hint='python -m pip install "tensorflow>=2.16"'
        ) from error
    except Exception as error:  # of any package that it imports: what fits together badly raises anything
        raise MachineUnfit(
            f"TensorFlow cannot be imported: {type(error).__name__}: {' '.join(str(error).split())[:300]}",
            hint="packages do not fit together; in a new environment: python -m pip install shardgen",
        ) from error
    return tf


class _Sparing(MetaPathFinder, Loader):
    """Refuses to load some packages, as if they were not installed, and puts off the parts of TensorFlow."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Of what is refused TensorFlow keeps the location, so that it can still be imported later."""
        is_part = fullname.startswith(_API) and "." not in fullname.removeprefix(_API)
        if not is_part and fullname not in _AWAY:
            return None
        found = PathFinder.find_spec(fullname, path, target)
        if found is None:
            return None
        if not is_part:
            return ModuleSpec(fullname, self, origin=found.origin)
        # One that has a package of its own beside it, like `tensorflow.lite`, is needed whole.
        namesake = f"tensorflow.{fullname.removeprefix(_API)}"
        has_package = PathFinder.find_spec(namesake, sys.modules["tensorflow"].__path__) is not None
        if isinstance(found.loader, SourceLoader) and not has_package:
            found.loader = _Part(found.loader)
        return found

    def exec_module(self, module: ModuleType) -> None:
        """Refuse."""
        raise ImportError(f"{module.__name__} is not needed", name=module.__name__)


class _Part(Loader):
    """Loads a part like `tf.nn`, which is a list of names and where each is from, name by name."""

    def __init__(self, whole: SourceLoader) -> None:
        self._whole = whole

    def exec_module(self, module: ModuleType) -> None:
        """Leave the names to whoever asks for one; what is no such list is loaded at once."""
        lines = ast.parse(self._whole.get_source(module.__name__) or "").body
        if not all(isinstance(line, ast.Import | ast.ImportFrom | ast.Expr) for line in lines):
            self._whole.exec_module(module)
            return
        listed = {
            name.asname or name.name: (line.module or "", name.name)
            for line in lines
            if isinstance(line, ast.ImportFrom)
            for name in line.names
        }

        def look_up(name: str) -> object:
            if name not in listed:
                raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
            where, its_name = listed[name]
            is_below = where == module.__name__
            value = (
                import_module(f"{where}.{its_name}") if is_below else getattr(import_module(where), its_name)
            )
            setattr(module, name, value)
            return value

        vars(module).update(__getattr__=look_up, __dir__=lambda: sorted({*vars(module), *listed}))


@contextmanager
def _only_what_is_used() -> Iterator[None]:
    """Let TensorFlow be imported without what it would load on the way and we do not use.

    A third of the time goes into parts that nobody asks for (TensorFlow 1, columns of features, signals) and
    what those import (SciPy). Keras fails if `keras.json` or a variable names another backend,
    imports what it finds (JAX, PyTorch, scikit-learn), and costs a second and 100 MB. The copy inside
    TensorFlow reads the same `keras.json` and writes one, into a folder named `~` if the home folder is
    unknown: so its folder is /dev/null; of the parts that we use none loads it.
    """
    sparing, before = _Sparing(), os.environ.get("KERAS_HOME")
    os.environ["KERAS_HOME"] = os.devnull  # nothing is in it or gets into it
    sys.meta_path.insert(0, sparing)
    try:
        yield
    finally:
        sys.meta_path.remove(sparing)
        if before is None:
            del os.environ["KERAS_HOME"]
        else:
            os.environ["KERAS_HOME"] = before


@contextmanager
def _without_temporary_folder() -> Iterator[None]:
    """Give an import some name of a temporary folder where there is none; TensorFlow only asks for it."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        tempfile.tempdir = os.devnull
    try:
        yield
    finally:
        if tempfile.tempdir == os.devnull:
            tempfile.tempdir = None
