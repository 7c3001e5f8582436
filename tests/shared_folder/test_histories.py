"""Histories of workers over a shared folder that lags, loses and doubles files, on a simulated clock.

SHARDGEN_TEST_HISTORIES=200 plays so many of them; without it 15.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from shardgen.artifacts.archive import member_bytes, read_artifact
from shardgen.artifacts.check import examine
from shardgen.artifacts.names import ArtifactName
from shardgen.coordination.folder.files import DiskFolder, FolderFiles
from shardgen.coordination.folder.notices import Requeue
from shardgen.coordination.folder.view import FolderView
from shardgen.domain.identifiers import Fence
from shardgen.domain.receipt import Receipt
from shardgen.errors import ArtifactCorrupt
from tests.shared_folder.double import Cloud, Faults
from tests.shared_folder.machines import MEMORY
from tests.shared_folder.playing import POLICY, Event, World

NO_FAULTS = Faults()


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        yield Path(name)


@cache
def undisturbed() -> str:
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        world = World(seed=0, faults=NO_FAULTS, folder=Path(name))
        world.start_worker(world.add_machine())
        world.play()
        assert world.duplicated == 0
        return world.merged()[0]


def share(most: float) -> st.SearchStrategy[float]:
    return st.sampled_from([0.0, most / 4, most])


FAULTS = st.builds(
    Faults,
    median_lag=st.sampled_from([2.0, 60.0, 300.0]),
    stuck=share(0.1),
    lost=share(0.2),
    late_content=share(0.5),
    cut=share(0.2),
    doubled=share(0.5),
    failing_calls=share(0.05),
    stale_listings=share(0.3),
)
EVENTS = st.lists(
    st.builds(
        Event,
        after=st.sampled_from([30.0, 130.0, 250.0, 400.0, 620.0, 900.0, 1500.0, 4000.0]),
        kind=st.sampled_from(["join", "kill", "lose", "restart", "requeue"]),
        which=st.integers(0, 7),
    ),
    max_size=8,
)


HISTORIES = {
    "seed": st.integers(0, 2**32),
    "faults": FAULTS,
    "events": EVENTS,
    "workers": st.integers(1, 3),
    "is_salted": st.booleans(),
}
PROFILE = settings(
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],  # a history that fails is short enough to read
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.slow
@given(**HISTORIES)
@settings(PROFILE, max_examples=int(os.environ.get("SHARDGEN_TEST_HISTORIES", "15")))
def test_many_histories_end_in_the_same_whole_result(
    *, seed: int, faults: Faults, events: list[Event], workers: int, is_salted: bool
) -> None:
    play(seed, faults, events, workers=workers, is_salted=is_salted)


def play(seed: int, faults: Faults, events: list[Event], *, workers: int, is_salted: bool) -> None:
    """One history; with `is_salted` every attempt has bytes of its own, so that two mergers must agree."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        world = World(seed=seed, faults=faults, folder=Path(name), is_salted=is_salted)
        for _ in range(workers):
            world.start_worker(world.add_machine())
        world.plan_events(events)
        world.play()
        world.finish()
        (first, view), (second, _) = world.merged(), world.merged()
        assert first == second
        if not is_salted:
            assert first == undisturbed()
        assert not world.undone_winners(view)
        if not faults.lost and not faults.cut:  # or somebody has what nobody else will ever have
            assert world.disagreeing() == []


def started(folder: Path, faults: Faults, workers: int, **options: object) -> World:
    world = World(seed=1, faults=faults, folder=folder, **options)  # type: ignore[arg-type]
    for _ in range(workers):
        world.start_worker(world.add_machine())
    return world


class TrustingView(FolderView):
    """Takes what is cut short for whole, as if a file's name were proof of its bytes."""

    def take_segment(self, path: str, name: ArtifactName, data: bytes) -> list[Receipt] | None:
        found = super().take_segment(path, name, data)
        if found is None:
            whole = next(file.data for (stored, _), file in CLOUDS[-1].files.items() if stored == path)
            found = examine(self.plan, name, whole, shown=path)
            self._add(path, found)
        return found


CLOUDS: list[Cloud] = []


def test_a_view_that_trusts_names_is_noticed(folder: Path) -> None:
    world = started(folder, Faults(median_lag=2.0, cut=0.9), 2, make_view=TrustingView)
    CLOUDS.append(world.cloud)
    world.play()
    with pytest.raises(ArtifactCorrupt):
        world.merged()


class HastyView(FolderView):
    """Of two attempts it keeps the one that it saw first."""

    @staticmethod
    def best(attempts: Sequence[Receipt], undone: Fence | None) -> Receipt | None:
        del undone
        return attempts[0]


@pytest.mark.parametrize("view", [FolderView, HastyView])
def test_views_that_saw_attempts_in_another_order_agree_unless_the_first_wins(
    folder: Path, view: type[FolderView]
) -> None:
    world = started(folder, Faults(median_lag=300.0), 3, is_salted=True, make_view=view)
    world.play()
    world.finish()
    assert world.duplicated > 0
    assert bool(world.disagreeing()) == (view is HastyView)


class ForgetfulView(FolderView):
    """Ignores requeues, as if their marks were not there."""

    def _take_mark(self, mark: Requeue) -> None:
        del mark


def test_a_view_that_ignores_requeues_is_noticed(folder: Path) -> None:
    world = started(folder, NO_FAULTS, 1, make_view=ForgetfulView)
    world.plan_events([Event(after=700.0, kind="requeue")])
    world.play()
    world.finish()
    assert world.undone_winners(world.merged()[1])


def test_a_requeue_is_made_again_and_earlier_attempts_lose(folder: Path) -> None:
    world = started(folder, NO_FAULTS, 1)
    world.plan_events([Event(after=700.0, kind="requeue")])
    world.play()
    world.finish()
    digest, view = world.merged()
    assert digest == undisturbed()
    assert world.duplicated == len(view.undone) == 2
    assert not world.undone_winners(view)


def test_what_a_done_notice_names_counts_only_when_it_is_there(folder: Path) -> None:
    world = started(folder, NO_FAULTS, 1)
    world.play()
    for key in [key for key in world.cloud.files if "shard-00001/" in key[0]]:
        del world.cloud.files[key]
    assert any(".done." in path for path, _ in world.cloud.files)
    assert not world.is_whole()
    world.start_worker(world.add_machine())
    world.play()
    assert world.is_whole()
    assert world.merged()[0] == undisturbed()


def test_a_lost_machine_costs_no_more_than_its_last_segment(folder: Path) -> None:
    world = started(folder, NO_FAULTS, 2)
    world.plan_events([Event(after=590.0, kind="lose")])
    world.play()
    world.finish()
    assert world.merged()[0] == undisturbed()
    per_segment = int(POLICY.segment.total_seconds() / world.batch_seconds)
    assert world.duplicated <= per_segment + 3


def test_what_was_seen_is_not_undone_by_its_absence(folder: Path) -> None:
    world = started(folder, NO_FAULTS, 1)
    world.play()
    view, index = world.add_machine().view()
    view.gather()
    world.cloud.files.clear()
    view.gather()
    assert len(view.winners) == world.plan.layout.batch_count
    index.close()


def test_two_attempts_meet_between_batches_never_inside_one(folder: Path) -> None:
    world = started(folder, Faults(median_lag=120.0), 3, is_salted=True)
    world.play()
    world.finish()
    (first, view), (second, _) = world.merged(), world.merged()
    assert first == second
    assert len({receipt.worker for receipt in view.winners.values()}) > 1
    for receipt in view.winners.values():
        data = view.files.read(receipt.artifact.name)
        entries, _ = read_artifact(data, name=receipt.artifact.name)
        start, stop = member_bytes(entries, receipt.record)
        for entry in entries:
            if start <= entry.offset < stop:
                assert data[entry.data_offset : entry.stop].endswith(receipt.worker.encode())


def test_a_drive_can_do_nothing_but_write_once_read_and_list() -> None:
    calls = {name for name in vars(FolderFiles) if not name.startswith("_")}
    assert calls == {"write", "read", "names", "is_uploaded"}


AUDITED = """
import sys
from pathlib import Path
from shardgen.coordination.folder.files import DiskFolder
seen = []
sys.addaudithook(lambda event, _: seen.append(event))
files = DiskFolder(Path(sys.argv[1]))
files.write("workers/one/notices-000/000000.beat.json", b"{}")
files.read("workers/one/notices-000/000000.beat.json")
files.names("workers")
wrong = {"os.rename", "os.link", "os.symlink", "os.remove", "os.truncate", "fcntl.flock"} & set(seen)
sys.exit(str(wrong) if wrong else 0)
"""


def test_a_folder_on_a_disk_is_only_written_once(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", AUDITED, tmp_path], check=False, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    with pytest.raises(FileExistsError):
        DiskFolder(tmp_path).write("workers/one/notices-000/000000.beat.json", b"other")
