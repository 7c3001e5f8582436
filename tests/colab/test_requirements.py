"""Installing shardgen on Colab replaces nothing that is there, and adds no second `cv2`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

HERE = Path(__file__).parent
PYPROJECT = HERE.parent.parent / "pyproject.toml"
WHOLE = "preinstalled-2026-06"  # lists all that the requirements reach, so nothing new may be needed


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """A hosted runtime: its Python, and versions by canonical name."""

    name: str
    python: str
    versions: dict[str, Version]

    @property
    def markers(self) -> dict[str, str]:
        return {"python_version": self.python, "python_full_version": f"{self.python}.0", "extra": ""}


def read_runtime(path: Path) -> Runtime:
    text = path.read_text(encoding="utf-8")
    python = re.search(r"^# python (3\.\d+)$", text, re.MULTILINE)
    assert python is not None
    lines = [line.split("==") for line in text.splitlines() if not line.startswith("#")]
    versions: dict[str, Version] = {canonicalize_name(name): Version(version) for name, version in lines}
    return Runtime(name=path.stem, python=python[1], versions=versions)


RUNTIMES = [read_runtime(path) for path in sorted(HERE.glob("preinstalled-*.txt"))]
each_runtime = pytest.mark.parametrize("runtime", RUNTIMES, ids=lambda one: one.name)


def requirements() -> list[Requirement]:
    """What the notebook may install: with the extra for a bucket."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    lines = project["dependencies"] + project["optional-dependencies"]["bucket"]
    return [Requirement(line) for line in lines]


def brings_cv2(name: str) -> bool:
    return canonicalize_name(name).startswith("opencv")


def unsatisfied(wanted: list[Requirement], runtime: Runtime) -> list[str]:
    """What a runtime would have to replace: by requirements, and by those of what it lacks, all the way."""
    found: list[str] = []
    seen: set[str] = set()
    pending = [(requirement, "shardgen") for requirement in wanted]
    while pending:
        requirement, whose = pending.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker is not None and not requirement.marker.evaluate(runtime.markers):
            continue
        if name in runtime.versions:
            if not requirement.specifier.contains(runtime.versions[name], prereleases=True):
                found.append(f"{whose} wants {requirement}, {runtime.name} has {runtime.versions[name]}")
        elif brings_cv2(name):
            found.append(f"{whose} adds {name}")
        elif name not in seen:
            seen.add(name)
            try:
                lines = distribution(name).requires or []
            except PackageNotFoundError:
                found.append(f"{whose} wants {name}, whose requirements cannot be read here")
                continue
            pending += [(Requirement(line), name) for line in lines]
    return found


@each_runtime
def test_the_lists_are_of_the_runtimes_that_they_name(runtime: Runtime) -> None:
    assert {"tensorflow", "numpy", "protobuf", "opencv-python", "sqlalchemy"} <= set(runtime.versions)
    assert len([name for name in runtime.versions if brings_cv2(name)]) == 3


@each_runtime
def test_every_requirement_that_colab_has_is_met_by_the_version_that_it_has(runtime: Runtime) -> None:
    assert unsatisfied(requirements(), runtime) == []


@each_runtime
def test_colabs_python_is_supported(runtime: Runtime) -> None:
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    assert Requirement(f"python{project['requires-python']}").specifier.contains(f"{runtime.python}.0")


@each_runtime
@pytest.mark.parametrize(
    "line",
    [
        "tensorflow>=2.21",
        "numpy<2",
        "opencv-python<4.9",
        "opencv-python-rolling",
        "sqlalchemy>=2.1",
        "tf_keras>=2.21",  # not there: it would be new, and itself asks for a newer tensorflow
    ],
)
def test_the_check_sees_a_requirement_that_would_replace_or_add(runtime: Runtime, line: str) -> None:
    assert unsatisfied([Requirement(line)], runtime)


def test_requirements_are_lower_bounds_and_one_of_them_brings_cv2() -> None:
    for requirement in requirements():
        assert {one.operator for one in requirement.specifier} == {">="}, requirement
    assert [one.name for one in requirements() if brings_cv2(one.name)] == ["opencv-python"]


@pytest.mark.slow
@each_runtime
def test_a_resolver_that_may_change_nothing_of_colabs_finds_a_way(runtime: Runtime, tmp_path: Path) -> None:
    """Needs an index; nothing is installed. With a list that is not whole, only what is new is looked for."""
    wanted, alone = requirements(), []
    if runtime.name != WHOLE:
        wanted = [one for one in wanted if canonicalize_name(one.name) not in runtime.versions]
        alone = ["--no-deps"]
    constraints = tmp_path / "constraints.txt"
    constraints.write_text(
        "".join(f"{name}=={version.public}\n" for name, version in runtime.versions.items()), encoding="utf-8"
    )
    report = tmp_path / "report.json"
    tag = runtime.python.replace(".", "")
    platforms = ["manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed"),
            *("--target", str(tmp_path / "nowhere"), "--report", str(report), "-c", str(constraints)),
            *("--only-binary=:all:", "--implementation", "cp", "--python-version", runtime.python),
            *("--abi", f"cp{tag}", "--abi", "abi3", "--abi", "none"),
            *(word for name in platforms for word in ("--platform", f"{name}_x86_64")),
            *alone,
            *map(str, wanted),
        ],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = {
        canonicalize_name(one["metadata"]["name"]): Version(one["metadata"]["version"])
        for one in json.loads(report.read_text(encoding="utf-8"))["install"]
    }
    assert {canonicalize_name(one.name) for one in wanted} <= set(found)
    new = set(found) - set(runtime.versions)
    assert {name: found[name] for name in found if name not in new} == {
        name: runtime.versions[name] for name in found if name not in new
    }
    if runtime.name == WHOLE:
        assert [name for name in found if brings_cv2(name)] == ["opencv-python"]
        added = {"imagecodecs", "obstore", "simplejpeg", "tifffile"}
        assert new == added, "what the notebook adds to a runtime"
