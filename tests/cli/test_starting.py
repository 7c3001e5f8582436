"""What a command may have imported: what it takes to start is guarded without a clock."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from shardgen.cli.commands import LINES
from tests.runs import make_run, plan_run

HEAVY = {"tensorflow", "keras", "cv2", "PIL", "numpy", "alembic", "h5py", "sqlalchemy", "rich", "psutil"}
# What TensorFlow brings along, and parts of it that no network of ours uses.
UNUSED = {
    *("keras", "scipy", "matplotlib", "pandas", "tensorboard", "rich", "jinja2", "psycopg"),
    *("tensorflow.python.keras", "tensorflow._api.v2.compat.v1", "tensorflow.python.feature_column"),
}


def modules_after(script: str, folder: Path) -> set[str]:
    """Those that a new interpreter has when the script ends, however it does."""
    program = (
        "import os, sys\n"
        "def tell():\n"
        "    with open('modules', 'w') as file:\n        file.write(chr(10).join(sys.modules))\n"
        f"try:\n    {script}\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "tell()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=folder, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return set((folder / "modules").read_text(encoding="utf-8").splitlines())


def typed(*words: str) -> str:
    """The command line in a script of one line."""
    return f"import shardgen.cli.app as app; sys.argv = {['shardgen', *words]!r}; app.main()"


@pytest.mark.parametrize("words", [("--help",), ("--version",)], ids=" ".join)
def test_the_list_of_commands_is_shown_without_importing_one(words: tuple[str, ...], tmp_path: Path) -> None:
    found = modules_after(typed(*words), tmp_path)
    assert found & {*HEAVY, "pydantic"} == set()
    commands = {f"shardgen.cli.{name.replace('-', '_')}" for name in LINES}
    assert found & commands == set()


@pytest.mark.parametrize("name", sorted(set(LINES) - {"status"}))
def test_something_moves_before_anything_heavy_is_imported(name: str, tmp_path: Path) -> None:
    """So a command's module has none of it at its top; `status` shows its result as soon."""
    found = modules_after(f"import shardgen.cli.{name.replace('-', '_')}", tmp_path)
    assert found & HEAVY == set()


@pytest.mark.parametrize(
    ("words", "is_looked_for"),
    [(("--help",), False), (("status", "RUN"), True), (("weights", "check", "no.h5"), True)],
)
def test_garbage_is_looked_for_from_a_command_s_own_work_on(
    tmp_path: Path, words: tuple[str, ...], *, is_looked_for: bool
) -> None:
    run = plan_run(make_run(tmp_path))
    typed = ["shardgen", *(str(run.path) if word == "RUN" else word for word in words)]
    program = (
        "import gc, sys\nfrom shardgen.__main__ import main\n"
        f"sys.argv = {typed!r}\n"
        "try:\n    main()\nfinally:\n    print(gc.isenabled(), gc.get_freeze_count() > 0, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == f"{is_looked_for} {is_looked_for}"


@pytest.mark.slow
def test_a_worker_imports_of_tensorflow_what_it_uses(tmp_path: Path) -> None:
    run = plan_run(make_run(tmp_path))
    end = "os._exit = lambda code: (tell(), sys.exit(code))"
    found = modules_after(f"{end}; {typed('worker', str(run.path))}", tmp_path)
    assert "tensorflow" in found
    assert found & UNUSED == set()
