from __future__ import annotations

import compileall
import os
import shutil
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import URL

from shardgen.depth.densedepth import weights_file
from shardgen.depth.densedepth.family import SHIPPED
from shardgen.depth.densedepth.weights_file import WeightsFile, read_weights
from shardgen.depth.device import switch_on_onednn
from shardgen.domain.steps import BatchStep
from shardgen.settings.run_directory import RunDirectory
from tests import u2netp as released
from tests.bucket.servers import Store, running
from tests.postgres import Server, running_server
from tests.runs import die_at, make_run, plan_run, sha256_of, shardgen

PACKAGE = Path(__file__).parent.parent / "shardgen"
SHIPPED_FILES = frozenset(SHIPPED.values())
MEMORY = Path("/dev/shm")  # noqa: S108 - pytest makes a folder there that only this user may enter
ROOM_BYTES = 2 << 30  # ten times what the fast suite needs

# A process of tests imports TensorFlow once, for networks of many and of few channels, and commands that are
# forks of one share it. Let all compute as a fresh process computes the small network: it makes most samples.
switch_on_onednn()

# Each of hundreds of commands would compile the package for itself where Python is told to write no bytecode,
# as in many containers. Once is enough, before the test processes start.
if "PYTEST_XDIST_WORKER" not in os.environ:
    compileall.compile_dir(PACKAGE, quiet=2)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep the test modules as pytest compiles them, with the asserts rewritten: seconds in each process."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, False
    try:
        return (yield)
    finally:
        sys.dont_write_bytecode = before


def pytest_configure(config: pytest.Config) -> None:
    """Put the fast suite's files into memory where there is room: only processes die in it, no machines."""
    if config.getoption("markexpr") != "not slow" or not MEMORY.is_dir():
        return
    if shutil.disk_usage(MEMORY).free >= ROOM_BYTES:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


@pytest.fixture(scope="session", autouse=True)
def shipped_weights() -> Iterator[None]:
    """Those that the package brings are read once in a test process; what was read cannot be changed."""
    known: dict[Path, WeightsFile] = {}

    def read_once(path: Path) -> WeightsFile:
        if path not in SHIPPED_FILES:
            return read_weights(path)
        if path not in known:
            known[path] = read_weights(path)
        return known[path]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights_file, "read_weights", read_once)
        yield


@pytest.fixture(scope="session")
def postgres_servers() -> Iterator[Callable[[], URL]]:
    """One real server for all tests; it starts when the first test asks."""
    started: list[URL] = []
    with ExitStack() as stack:

        def server() -> URL:
            if not started:
                started.append(stack.enter_context(running_server()))
            return started[0]

        yield server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """A server for tests that stop it, or that need its password; they leave it running."""
    server = Server()
    yield server
    server.remove()


@pytest.fixture(scope="session")
def bucket_servers() -> Iterator[Callable[[str], Store]]:
    """One server of each kind for all tests of this process; it starts when the first test asks."""
    started: dict[str, Store] = {}
    with ExitStack() as stack:

        def server(name: str) -> Store:
            if name not in started:
                started[name] = stack.enter_context(running(name))
            return started[name]

        yield server


@pytest.fixture(scope="session")
def u2netp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real network of `cut-out`, downloaded once for all test processes of this run."""
    folder = tmp_path_factory.getbasetemp()
    return released.fetched_into(folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder)


@pytest.fixture(scope="session")
def planned_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A planned run, made once; tests work on copies of its run directory."""
    folder = tmp_path_factory.mktemp("template")
    plan_run(make_run(folder))
    return folder


@pytest.fixture
def run(planned_template: Path, tmp_path: Path) -> RunDirectory:
    path = tmp_path / "run"
    shutil.copytree(planned_template / "run", path)
    return RunDirectory.open(path)


@pytest.fixture(scope="session")
def undisturbed_zip(planned_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The zip of a run that nothing disturbed."""
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    shutil.copytree(planned_template / "run", path)
    done = shardgen("worker", path)
    assert done.returncode == 0, done.stderr
    merged = shardgen("merge", path)
    assert merged.returncode == 0, merged.stderr
    return path / "dataset.zip"


@pytest.fixture(scope="session")
def undisturbed_sha256(undisturbed_zip: Path) -> str:
    """Of that zip."""
    return sha256_of(undisturbed_zip)


@pytest.fixture(scope="session")
def disturbed_template(planned_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose every batch has a receipt, with an orphan and a staged file of a worker that was killed."""
    path = tmp_path_factory.mktemp("disturbed") / "run"
    shutil.copytree(planned_template / "run", path)
    die_at("worker", path, BatchStep.LINKED, nth=3)
    done = shardgen("worker", path)
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture
def finished_run(disturbed_template: Path, tmp_path: Path) -> RunDirectory:
    path = tmp_path / "finished"
    shutil.copytree(disturbed_template, path)
    return RunDirectory.open(path)
