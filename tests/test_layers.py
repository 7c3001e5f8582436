from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from shardgen.errors import IMAGE_LIBRARIES
from shardgen.manifest.database_url import DatabaseUrl
from shardgen.manifest.manifest import create_manifest
from tests.plans import make_plan

PACKAGE = Path(__file__).parent.parent / "shardgen"

# From the door down. Folders of one floor do not import each other.
FLOORS = (
    ("__main__",),
    ("cli", "notebook", "__init__"),
    ("operations",),
    ("launch",),
    ("worker",),
    ("coordination", "dataset"),
    ("settings",),
    ("recipes",),
    ("manifest", "artifacts", "sources", "depth"),
    ("imaging", "storage", "machine"),
    ("errors",),
    ("domain",),
)
# All arrows that there are. Whoever adds one says here that it is meant.
ARROWS = {
    "__main__": {"cli", "machine"},
    "__init__": {"operations", "coordination", "dataset", "errors", "domain"},
    "cli": {
        *("operations", "launch", "worker", "coordination", "dataset", "settings", "recipes"),
        *("manifest", "depth", "storage", "machine", "errors", "domain"),
    },
    "notebook": {"operations", "worker", "coordination", "errors", "domain"},
    "operations": {
        *("launch", "coordination", "dataset", "settings", "recipes", "manifest", "artifacts", "sources"),
        *("depth", "imaging", "storage", "machine", "errors", "domain"),
    },
    "launch": {
        *("worker", "coordination", "settings", "recipes", "manifest", "storage", "machine", "errors"),
        "domain",
    },
    "worker": {
        *("coordination", "settings", "recipes", "manifest", "artifacts", "storage", "machine", "errors"),
        "domain",
    },
    "coordination": {
        *("settings", "recipes", "manifest", "artifacts", "storage", "machine", "errors", "domain"),
    },
    "dataset": {"settings", "recipes", "artifacts", "storage", "errors", "domain"},
    "settings": {"recipes", "manifest", "artifacts", "storage", "errors", "domain"},
    "recipes": {"sources", "depth", "imaging", "storage", "machine", "errors", "domain"},
    "manifest": {"storage", "machine", "errors", "domain"},
    "artifacts": {"storage", "errors", "domain"},
    "sources": {"imaging", "storage", "errors", "domain"},
    "depth": {"storage", "machine", "errors", "domain"},
    "imaging": {"errors", "domain"},
    "storage": {"errors", "domain"},
    "machine": {"errors", "domain"},
    "errors": {"domain"},
    "domain": set[str](),
}
LIBRARIES = {
    **{name: {"imaging"} for name in IMAGE_LIBRARIES},
    # The network's; and `DataSet.as_tf_data`, for those who train with it, imports it when it is called.
    "tensorflow": {"depth", "dataset"},
    "h5py": {"depth"},
    "alembic": {"manifest"},
    "jinja2": {"operations"},
    "markupsafe": {"operations"},
    "pyarrow": {"dataset"},
    "obstore": {"coordination"},
    "ray": {"launch"},
    "sqlalchemy": {"manifest", "coordination"},  # the index of a shared folder is a database of its own
}
VERSION_ONLY = {"doctor.py"}  # it prints SQLAlchemy's version


def _modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "migrations" not in path.parts)


def _folder(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def _imports(path: Path) -> list[str]:
    return list(_imported(_tree(path), path))


def _imported(tree: ast.Module, path: Path) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module == "shardgen")


def _arrows() -> dict[tuple[str, str], list[str]]:
    found: dict[tuple[str, str], list[str]] = {}
    for path in _modules():
        for name in _imports(path):
            top, *rest = name.split(".")
            if top == "shardgen" and rest and rest[0] != _folder(path) and not rest[0].startswith("__"):
                found.setdefault((_folder(path), rest[0]), []).append(f"{path.relative_to(PACKAGE)}: {name}")
    return found


def test_every_import_is_an_arrow_that_is_allowed() -> None:
    stray = {
        arrow: names for arrow, names in _arrows().items() if arrow[1] not in ARROWS.get(arrow[0], set())
    }
    assert stray == {}


def test_every_allowed_arrow_is_used() -> None:
    allowed = {(folder, other) for folder, others in ARROWS.items() for other in others}
    assert allowed - set(_arrows()) == set()


def test_arrows_point_down_one_floor_or_more() -> None:
    level = {folder: number for number, floor in enumerate(FLOORS) for folder in floor}
    assert set(level) == set(ARROWS)
    wrong = [(one, other) for one, others in ARROWS.items() for other in others if level[one] >= level[other]]
    assert wrong == []


def test_a_worker_knows_no_data_set_and_a_merge_no_worker() -> None:
    assert "dataset" not in ARROWS["worker"]
    assert "worker" not in ARROWS["dataset"]


def test_every_folder_has_a_floor_and_nothing_else_lies_beside_them() -> None:
    beside = {path.name for path in PACKAGE.iterdir() if path.name not in ("__pycache__", "migrations")}
    folders = {folder for floor in FLOORS for folder in floor} - {
        "__init__",
        "__main__",
        "errors",
        "notebook",
    }
    assert beside == folders | {"__init__.py", "__main__.py", "errors.py", "notebook.py", "py.typed"}


def test_a_library_is_imported_where_it_is_wrapped() -> None:
    imported = [(path, name.partition(".")[0]) for path in _modules() for name in _imports(path)]
    elsewhere = {
        f"{path.relative_to(PACKAGE)} imports {top}"
        for path, top in imported
        if top in LIBRARIES and path.name not in VERSION_ONLY and _folder(path) not in LIBRARIES[top]
    }
    assert elsewhere == set()
    impure = {
        f"{path.relative_to(PACKAGE)} imports {top}"
        for path, top in imported
        if _folder(path) == "domain" and top not in (*sys.stdlib_module_names, "shardgen")
    }
    assert impure == set()


def test_one_module_asks_a_bucket_and_no_command_that_has_none_imports_it(tmp_path: Path) -> None:
    asking = {str(path.relative_to(PACKAGE)) for path in _modules() if "obstore" in _tops(path)}
    assert asking == {"coordination/bucket/objects.py"}
    script = "import sys, shardgen.cli.app, shardgen.operations.sweep, shardgen.coordination.open; "
    script += "assert 'obstore' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60, cwd=tmp_path)


def _tops(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in _imports(path)}


def test_nothing_inherits_methods_of_a_class_that_works() -> None:
    """Who reads through a class that also writes gets its writers, and they act on another folder."""
    classes = [
        node
        for path in _modules()
        if path.name != "errors.py"
        for node in _tree(path).body
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
        for node in _tree(path).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] in ("tensorflow", "keras") for name in names), path


def test_status_starts_without_what_it_does_not_need(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from shardgen.cli import app\n"
        "sys.argv = ['shardgen', 'status', sys.argv[1]]\n"
        "try:\n    app.main()\nexcept SystemExit as ended:\n    code = ended.code\n"
        "heavy = {'tensorflow', 'keras', 'cv2', 'PIL', 'alembic', 'h5py', 'numpy', 'rich', 'psutil',"
        " 'tenacity', 'http.client', 'shardgen.recipes.pictures.kind', 'shardgen.cli.plan'}"
        " & set(sys.modules)\n"
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
