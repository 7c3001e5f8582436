"""The plan in a bucket: which one counts, and what comes of a `plan` that is killed, or of two at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from shardgen.coordination.bucket import plan as planning
from shardgen.coordination.bucket.objects import Objects
from shardgen.coordination.open import open_directory
from shardgen.domain.plan import Plan, Shards
from shardgen.errors import InputMissing, ManifestCorrupt, ManifestMismatch, PlanConflict
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
    assert "shardgen plan" in missing.value.hint
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
    with pytest.raises(PlanConflict, match="planned anew"):
        planning.begin(objects, OLD)
    assert not planning.is_begun(objects)
    planning.begin(objects, NEW)
    planning.begin(objects, NEW)
    assert planning.is_begun(objects)
    with pytest.raises(PlanConflict, match="not what was planned here"):
        planning.put_plan(objects, run, OLD)
    assert fetched(tmp_path / "d") == NEW


def test_whoever_begins_while_another_plans_decides(
    tmp_path: Path, buckets: Buckets, objects: Objects
) -> None:
    """The two create at the same time: what is begun counts, and the other is told."""
    run = machine(tmp_path / "a")
    planning.put_plan(objects, run, OLD)

    class Overtaken(Objects):
        def create(self, key: str, data: bytes) -> bool:
            if key.endswith(".json"):  # the new plan: a worker is quicker by one request
                planning.begin(objects, OLD)
            return super().create(key, data)

    with pytest.raises(PlanConflict, match="not what was planned here"):
        planning.put_plan(Overtaken(buckets.stores[URL], URL), run, NEW)
    assert fetched(tmp_path / "b") == OLD

    class Late(Objects):
        def create(self, key: str, data: bytes) -> bool:
            if key == "plan/begun":
                planning.put_plan(objects, run, NEW)
            return super().create(key, data)

    buckets.clear()
    objects = buckets.objects(URL)
    planning.put_plan(objects, run, OLD)
    planning.begin(Late(buckets.stores[URL], URL), OLD)
    assert fetched(tmp_path / "c") == OLD
    with pytest.raises(PlanConflict, match="planned anew"):
        planning.begin(objects, NEW)

    class Later(Objects):
        def create(self, key: str, data: bytes) -> bool:
            if key == "plan/begun":
                planning.put_plan(objects, run, NEW)
                planning.begin(objects, NEW)
            return super().create(key, data)

    buckets.clear()
    objects = buckets.objects(URL)
    planning.put_plan(objects, run, OLD)
    with pytest.raises(PlanConflict, match="planned anew"):
        planning.begin(Later(buckets.stores[URL], URL), OLD)
    assert fetched(tmp_path / "d") == NEW


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
    assert 5 < last < 39, "every request was the last of one"


def test_a_prefix_that_is_not_empty_is_left_alone(tmp_path: Path, objects: Objects, buckets: Buckets) -> None:
    run = machine(tmp_path / "a")
    objects.create("probe/0123/0", b"what a killed probe left")
    objects.create("plan/notes.txt", b"what a killed plan may have left")
    objects.create("holiday/beach.jpg", b"mine")
    before = buckets.keys(URL)
    with pytest.raises(PlanConflict, match="not empty, and no run of shardgen") as conflict:
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
    for data in (b"{}", replace(OLD, shards=Shards(size=32, slice_batches=1, batch=32)).canonical_json):
        objects.write(key, data)
        with pytest.raises(ManifestCorrupt, match=key):
            open_directory(URL)
    objects.write(key, OLD.canonical_json)
    objects.create("plan/begun", b"f" * 64)
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
