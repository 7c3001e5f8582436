from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.plans import make_plan

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_an_installed_wheel_creates_a_manifest_with_the_migrations_inside_it(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", str(tmp_path), str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("shardgen-*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    names = {path.relative_to(installed).as_posix() for path in installed.rglob("*") if path.is_file()}
    inside = {"shardgen/migrations/env.py", "shardgen/py.typed", "shardgen/depth/densedepth/small.h5"}
    page = ROOT / "shardgen" / "operations" / "page"
    of_page = [path for folder in ("static", "templates") for path in (page / folder).iterdir()]
    assert len(of_page) > 4
    inside |= {path.relative_to(ROOT).as_posix() for path in of_page}
    assert inside <= names
    assert not any(name.startswith(("tests/", "benchmarks/", "training/")) for name in names)
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path\n"
        "import shardgen; assert shardgen.__file__.startswith(sys.argv[1]), shardgen.__file__\n"
        "from shardgen.manifest.manifest import create_manifest\n"
        "from shardgen.manifest.database_url import DatabaseUrl\n"
        "from shardgen.settings.plan_file import parse_plan\n"
        "plan = parse_plan(Path(sys.argv[2]).read_bytes(), where='plan')\n"
        "print(create_manifest(DatabaseUrl(url='sqlite:///m.sqlite', run_dir=Path(sys.argv[1])), plan))\n"
    )
    plan_file = tmp_path / "plan.json"
    plan_file.write_bytes(make_plan().canonical_json)
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, str(installed), str(plan_file)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.stdout.strip() == "True", done.stderr
    shutil.rmtree(installed)
