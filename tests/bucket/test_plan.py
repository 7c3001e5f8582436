"""The plan in a bucket: which one counts, and what comes of a `plan` that is killed, or of two at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from shardgen.coordination.base import Seat
from shardgen.coordination.bucket import plan as planning
from shardgen.coordination.bucket.objects import Objects
from shardgen.coordination.open import open_directory, open_run
from shardgen.domain.plan import Plan, Shards
from shardgen.errors import InputMissing, ManifestCorrupt, ManifestMismatch, PlanConflict
from shardgen.machine.processes import new_identity
from shardgen.operations.plan import make_plan
from shardgen.recipes.registry import recipe_of
from shardgen.settings.run_directory import RunDirectory
from tests.bucket.memory import Buckets, Killed, Mortal, in_memory
from tests.pictures import make_pictures_run
from tests.plans import make_plan as some_plan

URL = "s3://bucket/people"
SETTINGS = f'[manifest]\nurl = "{URL}"\n[compose]\nflips = "none"\n'
OLD, NEW = some_plan(), some_plan(backgrounds=4)


@pytest.fixture
def buckets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Buckets]:
    monkeypatch.setenv("SHARDGEN_CACHE", str(tmp_path / "cache"))
    with in_memory() as found:
        yield found


@pytest.fixture
def objects(buckets: Buckets) -> Objects:
    return buckets.objects(URL)


def machine(folder: Path, settings: str = SETTINGS) -> RunDirectory:
    """A run directory of its own that names the bucket."""
    folder.mkdir()
    (folder / "shardgen.toml").write_text(settings, encoding="utf-8")
    return RunDirectory.open(folder)


def fetched(folder: Path) -> Plan:
    """What a machine gets that has the settings alone."""
    plan = open_directory(machine(folder).path).plan_here()
    assert plan is not None
    return plan


def test_a_machine_gets_the_plan_and_the_settings_by_the_url_alone(tmp_path: Path, objects: Objects) -> None:
    with pytest.raises(InputMissing, match="nothing is planned there yet") as missing:
        open_directory(URL)
    assert f"shardgen init people --bucket {URL}" in missing.value.hint
    put = planning.put_plan(objects, machine(tmp_path / "a"), OLD)
    assert (put.before, put.is_new) == (None, True)
    run = open_directory(URL)
    assert (run.plan_here(), run.named, run.url) == (OLD, URL, URL)
    assert (run.path / "shardgen.toml").read_text(encoding="utf-8") == SETTINGS
    assert run.path.is_relative_to(tmp_path / "cache")
    assert run.results == Path()


def test_planning_twice_changes_nothing_but_settings_that_are_no_plan(
    tmp_path: Path, objects: Objects, buckets: Buckets
) -> None:
    run = machine(tmp_path / "a")
    planning.put_plan(objects, run, OLD)
    before = buckets.keys(URL)
    again = planning.put_plan(objects, run, OLD)
    assert (again.before, again.is_new, buckets.keys(URL)) == (OLD, False, before)
    planning.begin(objects, OLD)
    (run.path / "shardgen.toml").write_text(f"{SETTINGS}[lease]\nseconds = 600\n", encoding="utf-8")
    planning.put_plan(objects, run, OLD)
    assert open_directory(URL).settings.engine.lease.seconds == 600


def test_another_plan_takes_its_place_until_somebody_has_begun(tmp_path: Path, objects: Objects) -> None:
    run = machine(tmp_path / "a")
    planning.put_plan(objects, run, OLD)
    assert fetched(tmp_path / "b") == OLD
    assert planning.put_plan(objects, run, NEW).before == OLD
    assert fetched(tmp_path / "c") == NEW
    assert open_directory(tmp_path / "b").plan_here() == NEW  # an older one of this run
    with pytest.raises(PlanConflict, match="the plan changed"):
        planning.begin(objects, OLD)
    assert not planning.is_begun(objects)
    planning.begin(objects, NEW)
    planning.begin(objects, NEW)
    assert planning.is_begun(objects)
    with pytest.raises(PlanConflict, match="differs from the plan"):
        planning.put_plan(objects, run, OLD)
    assert fetched(tmp_path / "d") == NEW


class Overtaken(Objects):
    """Others are quicker by one request: `first` is done once, right before it creates a version."""

    first: Callable[[], object]

    def create(self, key: str, data: bytes) -> bool:
        if not key.endswith(".toml"):
            first, self.first = self.first, lambda: None
            first()
        return super().create(key, data)


@pytest.fixture
def overtaken(buckets: Buckets, objects: Objects) -> Callable[..., Objects]:
    def make(*steps: Callable[[], object]) -> Objects:
        """In a bucket where OLD is planned."""
        found = Overtaken(buckets.stores[URL], URL)
        found.first = lambda: [step() for step in steps]
        return found

    return make


def test_of_a_planner_and_a_worker_at_the_same_moment_one_is_told(
    tmp_path: Path, objects: Objects, overtaken: Callable[..., Objects], buckets: Buckets
) -> None:
    run = machine(tmp_path / "a")
    planning.put_plan(objects, run, OLD)
    # A whole `plan`, its last look too, between a worker's look and its begin.
    with pytest.raises(PlanConflict, match="the plan changed after this process had read it") as conflict:
        planning.begin(overtaken(lambda: planning.put_plan(objects, run, NEW)), OLD)
    assert "start it again" in conflict.value.hint
    assert (fetched(tmp_path / "b"), planning.is_begun(objects)) == (NEW, False)
    # A worker's begin between a planner's look and its version.
    with pytest.raises(PlanConflict, match="differs from the plan"):
        planning.put_plan(overtaken(lambda: planning.begin(objects, NEW)), run, OLD)
    assert (fetched(tmp_path / "c"), planning.is_begun(objects)) == (NEW, True)
    assert buckets.keys(URL, "plan")[:3] == ["plan/0001.json", "plan/0002.json", "plan/0003.json"]
    assert "plan/0004.json" not in buckets.keys(URL, "plan")


def test_whoever_begins_or_plans_the_same_goes_on(
    tmp_path: Path, objects: Objects, overtaken: Callable[..., Objects]
) -> None:
    run = machine(tmp_path / "a")
    planning.put_plan(objects, run, OLD)
    there, back = (lambda plan=plan: planning.put_plan(objects, run, plan) for plan in (NEW, OLD))
    other = some_plan(backgrounds=5)
    assert not planning.put_plan(overtaken(there), run, NEW).is_new
    assert planning.put_plan(overtaken(back), run, other).before == OLD  # the later of two planners counts
    assert fetched(tmp_path / "b") == other
    planning.put_plan(objects, run, OLD)
    planning.begin(overtaken(there, back), OLD)
    planning.begin(objects, OLD)
    assert planning.is_begun(objects)


def test_two_workers_begin_the_same_plan_at_once(
    tmp_path: Path, objects: Objects, overtaken: Callable[..., Objects]
) -> None:
    planning.put_plan(objects, machine(tmp_path / "a"), OLD)
    planning.begin(overtaken(lambda: planning.begin(objects, OLD)), OLD)
    assert planning.is_begun(objects)


def test_a_worker_that_is_killed_after_any_request_has_begun_or_has_not(
    tmp_path: Path, buckets: Buckets
) -> None:
    run = machine(tmp_path / "a")
    buckets.use = Mortal
    for last in range(1, 9):
        buckets.clear()
        Mortal.last = 0
        planning.put_plan(buckets.objects(URL), run, OLD)
        Mortal.asked, Mortal.last = 0, last
        with suppress(Killed):
            planning.begin(buckets.objects(URL), OLD)
        is_done, Mortal.last = Mortal.asked < last, 0
        counts = OLD if planning.is_begun(buckets.objects(URL)) else NEW
        with suppress(PlanConflict):
            planning.put_plan(buckets.objects(URL), run, NEW)
        planning.begin(buckets.objects(URL), counts)
        assert open_directory(URL).plan_here() == counts
        if is_done:
            break
    assert 2 < last < 8


def test_a_plan_that_is_killed_after_any_request_is_repaired_by_planning_again(
    tmp_path: Path, buckets: Buckets
) -> None:
    first, second = machine(tmp_path / "a"), machine(tmp_path / "b")
    buckets.use = Mortal
    for last in range(1, 40):
        buckets.clear()
        Mortal.last = 0
        planning.put_plan(buckets.objects(URL), first, OLD)
        Mortal.asked, Mortal.last = 0, last
        try:
            planning.put_plan(buckets.objects(URL), second, NEW)
        except Killed:
            Mortal.last = 0
        else:
            break
        assert open_directory(URL).plan_here() in (OLD, NEW)  # whole, with its settings
        planning.put_plan(buckets.objects(URL), second, NEW)
        assert open_directory(URL).plan_here() == fetched(tmp_path / f"then-{last}") == NEW
    assert 4 < last < 39, "every request was the last of one"


def test_a_prefix_that_is_not_empty_is_left_alone(tmp_path: Path, objects: Objects, buckets: Buckets) -> None:
    run = machine(tmp_path / "a")
    objects.create("probe/0123/0", b"what a killed probe left")
    objects.create("plan/notes.txt", b"what a killed plan may have left")
    objects.create("holiday/beach.jpg", b"mine")
    before = buckets.keys(URL)
    with pytest.raises(PlanConflict, match="not empty, but holds no run of shardgen") as conflict:
        planning.put_plan(objects, run, OLD)
    assert "holiday/beach.jpg" in str(conflict.value)
    assert f"{URL}-2" in conflict.value.hint
    assert buckets.keys(URL) == before
    objects.remove(["holiday/beach.jpg"])
    assert planning.put_plan(objects, run, OLD).is_new


def test_the_plan_of_another_run_is_not_replaced(tmp_path: Path, objects: Objects) -> None:
    planning.put_plan(objects, machine(tmp_path / "a"), OLD)
    other = machine(tmp_path / "b")
    (other.path / "plan.json").write_bytes(NEW.canonical_json)
    with pytest.raises(PlanConflict, match="plan of another run") as conflict:
        open_directory(other.path)
    assert "another prefix" in conflict.value.hint


def test_damage_in_the_bucket_is_told_from_a_plan(tmp_path: Path, objects: Objects, buckets: Buckets) -> None:
    planning.put_plan(objects, machine(tmp_path / "a"), OLD)
    (key,) = [one for one in buckets.keys(URL, "plan") if one.endswith(".json")]
    not_canonical = OLD.canonical_json.replace(b",", b", ", 1)
    for data in (b"{}", b"[" + planning.begun_entry("f" * 64)[1:], not_canonical):
        objects.write(key, data)
        with pytest.raises(ManifestCorrupt, match=key):
            open_directory(URL)
    objects.write(key, OLD.canonical_json)
    planning.begin(objects, OLD)
    objects.write(key, replace(OLD, shards=Shards(size=32, slice_batches=1, batch=32)).canonical_json)
    with pytest.raises(ManifestCorrupt, match=f"{key}: not the plan that was begun"):
        open_directory(URL)
    objects.remove([key])
    with pytest.raises(ManifestCorrupt, match="names a plan that is not there"):
        open_directory(URL)


def test_a_plan_in_a_bucket_does_not_grow(tmp_path: Path, objects: Objects) -> None:
    with pytest.raises(ManifestMismatch, match="cannot grow"):
        planning.put_plan(objects, machine(tmp_path / "a"), NEW, grows=True)


def test_a_list_of_pictures_comes_with_the_plan_and_is_made_good(tmp_path: Path, buckets: Buckets) -> None:
    run = make_pictures_run(tmp_path, manifest=f'[manifest]\nurl = "{URL}"\n')
    plan = make_plan(open_directory(run.path), {}).plan
    (file,) = recipe_of(plan).files
    assert f"plan/{file.name}" in buckets.keys(URL)
    elsewhere = open_directory(URL)
    assert elsewhere.recipe(elsewhere.plan()).beside(file).size == file.bytes
    for path in (elsewhere.path, run.path):
        (path / file.name).unlink()
    assert open_directory(URL).recipe(plan).beside(file).size == file.bytes
    assert open_directory(run.path).recipe(plan).beside(file).size == file.bytes
    buckets.use = Mortal
    for last in range(1, 20):  # killed after any request, a first plan is none or has its list
        buckets.clear()
        Mortal.asked, Mortal.last = 0, last
        with suppress(Killed):
            planning.put_plan(buckets.objects(URL), open_directory(run.path), plan)
        is_done, Mortal.last = Mortal.asked < last, 0
        (elsewhere.path / file.name).unlink(missing_ok=True)
        with suppress(InputMissing):
            assert open_directory(URL).recipe(plan).beside(file).size == file.bytes
        if is_done:
            break
    assert 5 < last < 19
    assert open_directory(URL).recipe(plan).beside(file).size == file.bytes


def test_a_worker_of_a_bucket_asks_again_at_a_heartbeat_only(tmp_path: Path, objects: Objects) -> None:
    planned = machine(tmp_path / "a").planned(OLD)
    planning.put_plan(objects, planned, OLD)
    with open_run(planned).coordinator(Seat(identity=new_identity("one"))) as coordinator:
        policy = planned.settings.lease_policy
        assert coordinator.seconds_to_ask_again(policy) == policy.heartbeat.total_seconds()
