"""docs/bucket.md tells the protocol; here every order of events is tried, with its rules and without each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import pytest

from shardgen.domain.slice_state import SliceState
from tests.bucket import model
from tests.bucket.model import Attempt, Bounds, Found, Rules, search

REAL = Rules()
ONE = Bounds(slices=1)


@cache
def with_all_rules(bounds: Bounds) -> Found:
    return search(bounds)


@pytest.mark.parametrize(
    ("bounds", "states"),
    [
        (Bounds(stalls=1), 4_000),
        (Bounds(crashes=1, lost_replies=1), 1_900),
        (Bounds(failures=1, releases=1), 5_000),
        (Bounds(crashes=1, requeues=1), 10_000),
        (replace(ONE, stalls=1, requeues=1), 5_000),
        (replace(ONE, stalls=1, sweeps=1), 1_500),
        pytest.param(Bounds(stalls=1, requeues=1), 60_000, marks=pytest.mark.slow),
        pytest.param(replace(ONE, stalls=1, requeues=1, sweeps=1), 30_000, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_in_every_order_of_events_nothing_is_lost_and_the_run_can_be_finished(
    bounds: Bounds, states: int
) -> None:
    found = with_all_rules(bounds)
    assert not found.wrong, f"\n{found}"
    assert found.states > states  # fewer would mean that something never happens


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """A rule taken out, what happens then, and what must happen for that."""

    name: str
    rules: Rules
    wrong: str
    bounds: Bounds = ONE

    def __str__(self) -> str:
        return self.name


def _lowest(fences: tuple[int, ...], undone: int) -> int:
    return min((one for one in fences if one > undone), default=0)


def _highest_of_all(fences: tuple[int, ...], undone: int) -> int:
    del undone
    return max(fences, default=0)


def _of_anybody(state: SliceState | None, is_done: bool, is_silent: bool) -> bool:  # noqa: FBT001
    del is_silent
    return not is_done and state is not SliceState.BLOCKED


def _never_from_the_silent(state: SliceState | None, is_done: bool, is_silent: bool) -> bool:  # noqa: FBT001
    del is_silent
    return not is_done and state in (None, SliceState.OPEN)


def _only_while_held(attempt: Attempt) -> bool:
    return attempt.is_held


BROKEN = (
    Broken(
        name="lists the receipts, then claims",
        rules=replace(REAL, claims_first=False),
        bounds=replace(ONE, stalls=1),
        wrong=model.AGAIN,
    ),
    Broken(
        name="no fence in a receipt's key",
        rules=replace(REAL, fence_in_key=False),
        bounds=replace(ONE, stalls=1, requeues=1),
        wrong=model.UNCOUNTED,
    ),
    Broken(
        name="sweeps what has no receipt and no live holder",
        rules=replace(REAL, may_still_count=_only_while_held),
        bounds=replace(ONE, stalls=1, sweeps=1),
        wrong=model.SWEPT_AWAY,
    ),
    Broken(
        name="the mark before the version",
        rules=replace(REAL, version_first=False),
        bounds=replace(ONE, crashes=1, requeues=1),
        wrong=model.TWO,
    ),
    Broken(
        name="a mark without a version",
        rules=replace(REAL, raises_fence=False),
        bounds=replace(ONE, stalls=1, requeues=1),
        wrong=model.TWO,
    ),
    Broken(
        name="takes 'it exists' for a loss without reading",
        rules=replace(REAL, reads_what_exists=False),
        bounds=replace(ONE, lost_replies=1),
        wrong=model.UNAWARE,
    ),
    Broken(
        name="leaves alone its own claim that it does not know",
        rules=replace(REAL, takes_back_own=False),
        bounds=replace(ONE, failures=1),
        wrong=model.STUCK,
    ),
    Broken(
        name="the receipt before the artifact",
        rules=replace(REAL, artifact_first=False),
        wrong=model.SWEPT_AWAY,
    ),
    Broken(name="overwrites claims", rules=replace(REAL, creates_claims=False), wrong=model.TWO),
    Broken(
        name="the next free version, not the one after what was seen",
        rules=replace(REAL, follows_what_was_seen=False),
        wrong=model.ROBBED,
    ),
    Broken(
        name="the lowest fence wins",
        rules=replace(REAL, best_fence=_lowest),
        bounds=replace(ONE, stalls=1),
        wrong=model.BACK,
    ),
    Broken(
        name="marks do not count",
        rules=replace(REAL, best_fence=_highest_of_all),
        bounds=replace(ONE, requeues=1),
        wrong=model.STILL,
    ),
    Broken(name="claims of anybody", rules=replace(REAL, may_claim=_of_anybody), wrong=model.ROBBED),
    Broken(
        name="never claims of the silent",
        rules=replace(REAL, may_claim=_never_from_the_silent),
        bounds=replace(ONE, crashes=1),
        wrong=model.STUCK,
    ),
)


@pytest.mark.parametrize("broken", BROKEN, ids=str)
def test_without_one_rule_the_fault_is_found(broken: Broken) -> None:
    assert not with_all_rules(broken.bounds).wrong
    found = search(broken.bounds, broken.rules)
    assert found.wrong == broken.wrong
    assert found.trace


def test_a_fault_is_told_step_by_step() -> None:
    found = search(replace(ONE, stalls=1), replace(REAL, claims_first=False))
    assert str(found).splitlines()[:-1] == [
        "  1. A looks at slice 0: version 0, may be claimed",
        "  2. A creates version 1 (leased to A) of slice 0",
        "  3. A puts the artifact of batch 0, fence 1, of slice 0",
        "  4. A stalls past its lease",
        "  5. B looks at slice 0: version 1, may be claimed",
        "  6. A wakes",
        "  7. A creates the receipt of batch 0, fence 1, of slice 0",
        "  8. B creates version 2 (leased to B) of slice 0",
        "  9. B puts the artifact of batch 0, fence 2, of slice 0",
        " 10. B creates the receipt of batch 0, fence 2, of slice 0",
    ]
