from __future__ import annotations

import hashlib
import shutil
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from shardgen.domain.identifiers import SampleIndex
from shardgen.errors import (
    ComposeFailed,
    InputMissing,
    MachineUnfit,
    PlanConflict,
    SampleError,
    SourceUndecodable,
)
from shardgen.imaging.options import MaskMode
from shardgen.recipes.composites.composer import (
    CACHE_BYTES,
    ComposedSample,
    Composer,
    PreparedSources,
    fitted,
)
from shardgen.recipes.composites.plan import CompositesPlan, Flips
from shardgen.sources.scanning import SourceFolders, scan
from tests.photographs import heic, write_photographs
from tests.plans import at_random, changed, make_plan, on_grid


@pytest.fixture
def folders(tmp_path: Path) -> SourceFolders:
    foregrounds, backgrounds = write_photographs(tmp_path, foregrounds=2, backgrounds=3)
    return SourceFolders(foregrounds=foregrounds, backgrounds=backgrounds)


@pytest.fixture
def plan(folders: SourceFolders) -> CompositesPlan:
    compose = on_grid((2, 1), canvas=(100, 100), flips=Flips.FOREGROUNDS)
    sources = scan(folders, MaskMode.AUTO, partial(fitted, compose=compose), threads=2).sources
    made = make_plan()
    return CompositesPlan(changed(made, sources=sources, compose=compose))


def with_sources(plan: CompositesPlan, **sources: object) -> CompositesPlan:
    return CompositesPlan(changed(plan.plan, sources=replace(plan.sources, **sources)))  # type: ignore[arg-type]


def composer(plan: CompositesPlan, folders: SourceFolders, cache_bytes: int = CACHE_BYTES) -> Composer:
    return Composer(plan, folders.foregrounds, folders.backgrounds, cache_bytes=cache_bytes)


def all_samples(plan: CompositesPlan) -> list[SampleIndex]:
    return [SampleIndex(index) for index in range(plan.samples)]


def composed(composer: Composer, samples: Sequence[SampleIndex]) -> list[ComposedSample | SampleError]:
    """All of them at once, as a worker's threads do; what costs a sample stands in its place."""

    def compose(sample: SampleIndex) -> ComposedSample | SampleError:
        try:
            return composer.compose(sample)
        except SampleError as error:
            return error

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(compose, samples))


def pixels(samples: Sequence[ComposedSample | SampleError]) -> list[bytes]:
    return [
        made.picture.tobytes() + made.network_input.tobytes()
        for made in samples
        if isinstance(made, ComposedSample)
    ]


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_composed_sample_is_the_one_that_was_asked_for(
    plan: CompositesPlan, folders: SourceFolders
) -> None:
    made = composed(composer(plan, folders), all_samples(plan))
    assert [one.sample for one in made if isinstance(one, ComposedSample)] == all_samples(plan)
    assert made[0].network_input.shape == (480, 640, 3)  # type: ignore[union-attr]


def test_a_cache_too_small_for_one_source_changes_no_pixel(
    plan: CompositesPlan, folders: SourceFolders
) -> None:
    roomy = composed(composer(plan, folders), all_samples(plan))
    tight = composed(composer(plan, folders, cache_bytes=1), all_samples(plan))
    assert pixels(roomy) == pixels(tight)


def test_prepared_sources_are_kept_when_the_files_are_gone(
    plan: CompositesPlan, folders: SourceFolders
) -> None:
    shared = composer(plan, folders)
    first = composed(shared, all_samples(plan))
    shutil.rmtree(folders.backgrounds)
    shutil.rmtree(folders.foregrounds)
    assert pixels(composed(shared, all_samples(plan))) == pixels(first)


def test_a_source_is_made_once_when_eight_threads_ask_at_once() -> None:
    cache = PreparedSources(1 << 20)
    together = threading.Barrier(8)
    made: list[NDArray[np.uint8]] = []

    def make() -> NDArray[np.uint8]:
        made.append(np.zeros((10, 10, 3), np.uint8))
        return made[-1]

    def ask(_number: int) -> list[NDArray[np.uint8]]:
        found = []
        for index in range(50):
            together.wait()
            found.append(cache.get(("background", index, False), make))
        return found

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))
    assert len(made) == 50
    assert all(one is other for answer in answers for one, other in zip(answer, answers[0], strict=True))


def test_a_source_that_cannot_be_made_is_tried_again() -> None:
    cache = PreparedSources(1 << 20)

    def fail() -> NDArray[np.uint8]:
        raise SourceUndecodable("broken")

    for _ in range(2):
        with pytest.raises(SourceUndecodable):
            cache.get(("background", 0, False), fail)


def test_the_least_recently_used_sources_leave_first() -> None:
    cache = PreparedSources(700)  # two of 300 bytes
    made: list[int] = []

    def ask(index: int) -> None:
        def make() -> NDArray[np.uint8]:
            made.append(index)
            return np.zeros((10, 10, 3), np.uint8)

        cache.get(("background", index, False), make)

    for index in (0, 1, 0, 2, 0, 1):
        ask(index)
    assert made == [0, 1, 2, 1]


def test_kept_sources_say_how_often_they_were_at_hand() -> None:
    cache = PreparedSources(3 << 20)
    assert str(cache) == ""
    for index in (0, 0, 0, 1, 2, 3, 0):
        cache.get(("background", index, False), lambda: np.zeros((1 << 20,), np.uint8))
    assert str(cache) == "photographs kept in memory: 3 MiB (at most 3), at hand for 28.6% of 7 uses"


def test_a_file_that_changed_since_the_plan_stops_the_worker(
    plan: CompositesPlan, folders: SourceFolders
) -> None:
    damage(folders.backgrounds / plan.sources.backgrounds[0].name)
    with pytest.raises(PlanConflict, match="not the file that the plan was made from"):
        composed(composer(plan, folders), all_samples(plan))


def test_a_folder_that_vanished_is_no_samples_fault(plan: CompositesPlan, folders: SourceFolders) -> None:
    shared = composer(plan, folders)
    shutil.rmtree(folders.backgrounds)
    with pytest.raises(InputMissing, match="the folder is gone"):
        composed(shared, all_samples(plan))


def test_a_photograph_that_does_not_decode_costs_only_its_own_samples(
    plan: CompositesPlan, folders: SourceFolders
) -> None:
    broken = b"\xff\xd8\xff\xd9"
    bad = plan.sources.backgrounds[1]
    (folders.backgrounds / bad.name).write_bytes(broken)
    bad = replace(bad, bytes=len(broken), sha256=hashlib.sha256(broken).hexdigest())
    backgrounds = (plan.sources.backgrounds[0], bad, plan.sources.backgrounds[2])
    plan = with_sources(plan, backgrounds=backgrounds)
    made = composed(composer(plan, folders), all_samples(plan))
    assert [isinstance(one, SourceUndecodable) for one in made] == [False] * 8 + [True] * 8 + [False] * 8
    assert bad.name in str(made[8])


def test_a_machine_that_cannot_read_heic_is_at_fault_and_no_sample(
    plan: CompositesPlan, folders: SourceFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    background = plan.sources.backgrounds[0]
    data = heic(40, 30)
    (folders.backgrounds / background.name).write_bytes(data)
    changed = replace(background, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    heic_plan = with_sources(plan, backgrounds=(changed, *plan.sources.backgrounds[1:]))
    assert composer(heic_plan, folders).compose(SampleIndex(0)).picture.any()
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(MachineUnfit, match=background.name) as unfit:
        composer(heic_plan, folders).compose(SampleIndex(0))
    assert "shardgen[heic]" in unfit.value.hint


def test_a_placed_size_that_is_not_the_plans_is_that_samples_error(
    plan: CompositesPlan, folders: SourceFolders
) -> None:
    wrong = replace(plan.sources.foregrounds[0], placed_width=7)
    plan = with_sources(plan, foregrounds=(wrong, plan.sources.foregrounds[1]))
    made = composed(composer(plan, folders), all_samples(plan)[:8])
    assert [isinstance(one, ComposeFailed) for one in made] == [True] * 4 + [False] * 4


def test_a_background_is_not_changed_by_what_is_laid_on_it(
    plan: CompositesPlan, folders: SourceFolders
) -> None:
    shared = composer(plan, folders)
    first = pixels([shared.compose(SampleIndex(0))])
    composed(shared, all_samples(plan))
    assert pixels([shared.compose(SampleIndex(0))]) == first


def test_of_several_people_each_is_measured(folders: SourceFolders) -> None:
    compose = replace(at_random(people=(2, 2)), canvas=(100, 100))
    sources = scan(folders, MaskMode.AUTO, partial(fitted, compose=compose), threads=2).sources
    plan = CompositesPlan(changed(make_plan(), sources=sources, compose=compose))
    made = composer(plan, folders).compose(SampleIndex(3))
    assert len(made.measured.boxes) == 2
    assert made.measured.instances is not None
    assert made.measured.instances.shape == (200, 200)
