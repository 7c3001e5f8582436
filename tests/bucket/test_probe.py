"""What is tried of a store before a run rests on it, and what becomes of one that must not be trusted."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from obstore.store import MemoryStore

from shardgen.coordination.bucket import probe as probing
from shardgen.coordination.bucket.objects import ObjectMeta, Objects
from shardgen.coordination.bucket.probe import probe
from shardgen.coordination.open import open_directory, open_run
from shardgen.errors import InputMissing, ManifestMismatch
from shardgen.operations import doctor
from shardgen.operations.doctor import Verdict
from shardgen.operations.plan import make_plan
from shardgen.worker.worker import WorkerOptions, work
from tests.bucket import proxy
from tests.bucket.ignoring_server import ignoring_server
from tests.bucket.memory import Killed, Mortal
from tests.bucket.proxy import Proxy
from tests.bucket.servers import S3Server, Store
from tests.runs import make_run


@pytest.fixture
def ignoring(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[S3Server]:
    monkeypatch.setenv("SHARDGEN_CACHE", str(tmp_path / "cache"))
    with ignoring_server() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        yield server


def memory() -> Objects:
    return Objects(MemoryStore(), "s3://bucket/people")


FULL_REQUESTS, SHORT_REQUESTS = 30, 6  # docs/operating.md says so


@pytest.mark.parametrize("requests", [FULL_REQUESTS, SHORT_REQUESTS])
def test_a_good_store_is_trusted_and_left_as_it_was(requests: int) -> None:
    objects = memory()
    objects.create("plan/begun", b"mine")
    found = probe(objects, is_short=requests == SHORT_REQUESTS)
    assert [str(row) for row in found.rows if not row.is_good] == []
    assert found.is_trusted
    counts = {kind: count for kind, count in objects.requests.counted().items() if "bytes" not in kind}
    assert found.requests == requests == sum(counts.values()) - 1
    assert [one.key for one in objects.listed("")] == ["plan/begun"]


def test_two_independent_servers_are_trusted(store: Store) -> None:
    found = probe(Objects.open(store.new_url()))
    assert [str(row) for row in found.rows if not row.is_good] == []


def test_a_store_that_ignores_the_condition_holds_no_run(ignoring: S3Server, tmp_path: Path) -> None:
    url = ignoring.new_url()
    for is_short in (False, True):
        objects = Objects.open(url)
        with pytest.raises(ManifestMismatch, match="cannot hold a run") as refused:
            probe(objects, is_short=is_short).refuse()
        assert refused.value.exit_code == 13
        assert "create it again, with other bytes: made, must be: refused" in refused.value.problems
        assert str(refused.value) == (
            f"{url}: this store cannot hold a run: it lets a key be created twice, so two workers would get "
            "the same slice (create it again, with other bytes: made, must be: refused)"
        )
        assert "PostgreSQL" in refused.value.hint
        assert objects.listed("") == []
    run = make_run(tmp_path, changes={"manifest.url": f'"{url}"'})
    with pytest.raises(ManifestMismatch, match="cannot hold a run"):
        make_plan(open_directory(run.path), {})
    assert objects.listed("") == []
    lines = list(doctor._run(url))
    failing = [line for line in lines if line.verdict is Verdict.FAILS]
    assert [line.fact for line in failing] == [str(refused.value)]  # said once
    assert not [line for line in lines if "made, must be" in line.fact and line not in failing]
    assert "PostgreSQL" in failing[0].hint


def test_a_worker_tries_the_store_that_it_meets(ignoring: S3Server, tmp_path: Path) -> None:
    """What was planned elsewhere, or before a proxy came between, is no reason to trust it."""
    run = make_run(tmp_path, changes={"manifest.url": f'"{ignoring.new_url()}"'})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probing.Probed, "refuse", lambda _self: None)
        make_plan(open_directory(run.path), {})
    with pytest.raises(ManifestMismatch, match="cannot hold a run"):
        work(open_directory(run.path), WorkerOptions())


class Lagging(Objects):
    """Lists what is new only at the second look."""

    def listed(self, prefix: str, *, after: str = "") -> list[ObjectMeta]:
        found = super().listed(prefix, after=after)
        return [] if self.requests.counted()["listed"] == 1 else found


class Racing(Objects):
    """Heeds the condition unless two ask at the same time."""

    _gate = threading.Barrier(8)

    def create(self, key: str, data: bytes) -> bool:
        if not key.endswith("/1"):
            return super().create(key, data)
        self._gate.wait(10)
        self.write(key, data)
        return True


class Stale(Objects):
    """Reads what was there before."""

    _first: dict[str, bytes | None]

    def read(self, key: str, *, limit: int | None = None) -> bytes | None:
        self._first = getattr(self, "_first", {})
        return self._first.setdefault(key, super().read(key, limit=limit))


@pytest.mark.parametrize(
    ("store", "tried"),
    [(Lagging, "list its folder at once"), (Racing, "8 times at once"), (Stale, "replace it")],
)
def test_every_other_fault_is_found_too(store: type[Objects], tried: str) -> None:
    found = probe(store(MemoryStore(), "s3://bucket/people"))
    assert not found.is_trusted
    assert [tried in row.tried for row in found.rows if row.is_vital and not row.is_good] == [True]


def test_a_right_to_remove_is_missed_by_sweep_alone(ignoring: S3Server) -> None:
    class Kept(Objects):
        def remove(self, keys: Any) -> None:
            with Proxy(ignoring.port) as between, pytest.MonkeyPatch.context() as patch:
                between.refuse(proxy.DENIED)
                for name, value in ignoring.environment(between.port).items():
                    patch.setenv(name, value)
                Objects.open(self.shown).remove(keys)

    found = probe(Kept(MemoryStore(), "s3://bucket/people"))
    assert found.is_trusted
    (row,) = [one for one in found.rows if not one.is_good]
    assert "refuses these credentials (403" in row.found


def test_what_a_killed_probe_left_is_removed_by_a_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    objects = memory()
    Mortal.asked, Mortal.last = 0, 4
    with pytest.raises(Killed):
        probe(Mortal(objects._store, objects.shown))
    Mortal.last = 0
    (left,) = objects.listed("")
    probe(objects)
    assert [one.key for one in objects.listed("")] == [left.key]  # it may be under way
    monkeypatch.setattr(probing, "_ABANDONED", timedelta(0))
    probe(objects)
    assert objects.listed("") == []


def test_credentials_that_are_refused_at_the_start_are_for_a_person_to_renew(
    ignoring: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = make_run(tmp_path, changes={"manifest.url": f'"{ignoring.new_url()}"'})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probing.Probed, "refuse", lambda _self: None)
        make_plan(open_directory(run.path), {})
    planned = open_directory(run.path)
    with Proxy(ignoring.port) as between:
        for name, value in ignoring.environment(between.port).items():
            monkeypatch.setenv(name, value)
        between.refuse(proxy.DENIED)
        for ask in (
            lambda: open_directory(run.path),
            lambda: open_directory(planned.url),
            lambda: work(planned, WorkerOptions()),
            planned.check_outputs,
        ):
            with pytest.raises(InputMissing, match="refuses these credentials") as refused:
                ask()
            assert "AWS_SECRET_ACCESS_KEY" in refused.value.hint
    assert open_run(planned).plan == planned.plan()
