from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardgen.manifest.database_url import DatabaseUrl
from shardgen.manifest.manifest import create_manifest
from tests.plans import make_plan

PACKAGE = Path(__file__).parent.parent / "shardgen"
MIDDLE = {"sources", "imaging", "depth", "artifacts", "folder", "manifest"}
LIBRARIES = {"cv2": "imaging", "tensorflow": "depth", "sqlalchemy": "manifest", "alembic": "manifest"}
VERSION_ONLY = {"diagnosing.py"}  # doctor prints SQLAlchemy's version
ALLOWED_CONFIG = {"cli"}


def _modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "migrations" not in path.parts)


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _layer(parts: tuple[str, ...]) -> str:
    """Of a path inside the package: a folder's name, or "verb" for a module, but for these few."""
    if len(parts) > 1:
        return parts[0]
    stem = parts[0].removesuffix(".py")
    own = ("errors", "config", "folders", "settings_errors", "urls", "caches", "reading", "cores", "__init__")
    return stem if stem in own else "verb"


def _may_import(layer: str, other: str) -> bool:
    if other in ("__init__", layer):
        return True
    allowed = {
        "domain": set(),
        "errors": {"domain"},
        "urls": {"errors"},
        "caches": set(),
        "reading": set(),
        "cores": set(),
        "folders": set(),
        "settings_errors": set(),
        "config": {"domain", "errors", "reading", "settings_errors", "urls"},
        "depth": {"domain", "errors", "caches", "cores", "folders", "reading"},
        "folder": {"domain", "errors", "folders", "reading"},
        "verb": {"domain", "errors", "config", "caches", "cores", "folders", "reading", *MIDDLE},
        "cli": {"verb", "domain", "errors", "config", *MIDDLE},
        "__main__": {"cli"},
    }
    return other in allowed.get(layer, {"domain", "errors", "folders", "reading"})


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    parts = path.relative_to(PACKAGE).parts
    layer = "cli" if parts == ("__main__.py",) else _layer(parts)
    for name in _imports(path):
        top, *rest = name.split(".")
        if top == "shardgen" and rest:
            target = PACKAGE.joinpath(*rest)
            is_module = target.is_dir() or target.with_suffix(".py").is_file()
            if not is_module:
                continue  # a name inside a module, whose own import was looked at
            other = rest[0] if (PACKAGE / rest[0]).is_dir() else _layer((f"{rest[0]}.py",))
            assert _may_import(layer, other), f"{path.name} ({layer}) imports {name} ({other})"
        if top in LIBRARIES and path.name not in VERSION_ONLY:
            assert layer == LIBRARIES[top], f"{path.name} ({layer}) imports {top}"
        if layer == "domain":
            assert top in (*sys.stdlib_module_names, "shardgen"), f"{path.name} imports {top}"


def test_nothing_inherits_methods_of_a_class_that_works() -> None:
    """Who reads through a class that also writes gets its writers, and they act on another folder."""
    classes = [
        node
        for path in _modules()
        if path.name != "errors.py"
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    ]
    named = {node.name: node for node in classes}
    inheriting = {
        f"{node.name}({base})": [
            method.name
            for method in named[base].body
            if isinstance(method, ast.FunctionDef) and not method.name.startswith("_")
        ]
        for node in classes
        for base in map(ast.unparse, node.bases)
        if base in named and not {"ABC", "Protocol"} & set(map(ast.unparse, named[base].bases))
    }
    assert {name: methods for name, methods in inheriting.items() if methods} == {}


def test_tensorflow_is_imported_inside_functions_only() -> None:
    for path in _modules():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] in ("tensorflow", "keras") for name in names), path


def test_status_starts_without_tensorflow_opencv_or_alembic(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from shardgen.cli import app\n"
        "sys.argv = ['shardgen', 'status', sys.argv[1]]\n"
        "try:\n    app.main()\nexcept SystemExit as ended:\n    code = ended.code\n"
        "heavy = {'tensorflow', 'keras', 'cv2', 'alembic', 'h5py'} & set(sys.modules)\n"
        "print(code, sorted(heavy))\n"
    )
    plan = make_plan()
    (tmp_path / "shardgen.toml").write_text('[compose]\nflips = "none"\n')
    (tmp_path / "plan.json").write_bytes(plan.canonical_json)
    create_manifest(DatabaseUrl(url="sqlite:///manifest.sqlite", run_dir=tmp_path), plan)
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "0 []", done.stdout + done.stderr
