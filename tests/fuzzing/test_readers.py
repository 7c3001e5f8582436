"""Whatever the bytes are: a value or one of our own errors, soon, in little memory, no other file touched."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardgen.imaging.containers import base
from tests.fuzzing.guarded import guarded_read
from tests.fuzzing.mutating import damaged, rearranged, refielded
from tests.fuzzing.targets import TARGETS

EXAMPLES = int(os.environ.get("SHARDGEN_FUZZ_EXAMPLES", "0"))
JSON = ("plan", "receipt", "mark", "notice", "model-config")
ZIPS = tuple(name for name, target in TARGETS.items() if target.is_zip)


def fuzz(examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """So many examples, always the same; $SHARDGEN_FUZZ_EXAMPLES of others each time, where it is set."""
    return settings(
        max_examples=EXAMPLES or examples,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(autouse=True)
def _small_photographs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "MAX_PIXELS", 4_000_000)


@pytest.mark.parametrize("name", TARGETS)
def test_the_seeds_are_accepted(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    for data in target.seeds():
        assert guarded_read(target, data, tmp_path) is None


@pytest.mark.parametrize("name", TARGETS)
@fuzz(60)
@given(st.data())
def test_bytes_that_are_damaged(name: str, data: st.DataObject) -> None:
    target = TARGETS[name]
    _read(name, data.draw(damaged(target.seeds())))


@pytest.mark.parametrize("name", TARGETS)
@fuzz(15)
@given(content=st.binary(max_size=200))
def test_bytes_that_are_anything(name: str, content: bytes) -> None:
    _read(name, content)


@pytest.mark.parametrize("name", JSON)
@fuzz(40)
@given(st.data())
def test_documents_with_other_fields(name: str, data: st.DataObject) -> None:
    _read(name, data.draw(refielded(TARGETS[name].seeds())))


@pytest.mark.parametrize("name", JSON)
@fuzz(120)
@given(st.data())
@pytest.mark.slow
def test_more_documents_with_other_fields(name: str, data: st.DataObject) -> None:
    _read(name, data.draw(refielded(TARGETS[name].seeds())))


@pytest.mark.parametrize("name", ZIPS)
@fuzz(100)
@given(st.data())
@pytest.mark.slow
def test_archives_whose_checksums_are_right(name: str, data: st.DataObject) -> None:
    _read(name, data.draw(rearranged(TARGETS[name].seeds())))


def _read(name: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        guarded_read(TARGETS[name], content, Path(folder))
        written = {path.name for path in Path(folder).iterdir()}
        assert written <= {"shardgen.toml", "data.zip", "artifacts"}
