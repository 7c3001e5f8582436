"""What `shardgen ray` refuses before it asks a cluster."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from shardgen.errors import InputMissing, InvalidSettings, ShardgenError
from shardgen.launch.ray import connected
from shardgen.settings.run_directory import RunDirectory
from tests.runs import shardgen
from tests.warm import ROOT


@pytest.mark.parametrize(
    ("address", "variable", "error", "fact"),
    [
        ("127.0.0.1:1", "", InputMissing, "--address 127.0.0.1:1: no Ray cluster answers there"),
        ("auto", "127.0.0.1:1", InputMissing, "auto, RAY_ADDRESS=127.0.0.1:1: no Ray cluster answers"),
        ("ray://127.0.0.1:1", "", InvalidSettings, "a client's connection is lost when its machine sleeps"),
        (
            "auto",
            "ray://127.0.0.1:1",
            InvalidSettings,
            "RAY_ADDRESS=ray://127.0.0.1:1: a client's connection",
        ),
        ("http://127.0.0.1:1", "", InvalidSettings, "is not HOST:PORT"),
        ("local", "", InvalidSettings, "is not HOST:PORT"),
        ("127.0.0.1:gcs", "", InvalidSettings, "is not HOST:PORT"),
        ("127.0.0.1:99999", "", InputMissing, "no Ray cluster answers there"),
    ],
)
def test_an_address_without_a_cluster_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, address: str, variable: str, error: type[ShardgenError], fact: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", variable)
    with pytest.raises(error, match=re.escape(fact)) as refused, connected(address):
        pass
    assert refused.value.hint


def test_without_ray_it_says_how_to_install_it(run: RunDirectory, tmp_path: Path) -> None:
    folder = tmp_path / "without"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text("import sys\nsys.modules['ray'] = None\n", encoding="utf-8")
    done = shardgen("ray", run.path, environment={"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"})
    assert done.returncode == 18
    assert done.stderr.splitlines() == [
        "error: Ray is not installed",
        'hint: python -m pip install "shardgen[ray]"',
    ]
