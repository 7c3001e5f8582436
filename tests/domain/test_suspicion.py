from __future__ import annotations

import pytest

from shardgen.domain.identifiers import BatchIndex, SampleIndex
from shardgen.domain.receipt import DeadLetterReason
from shardgen.domain.suspicion import LONE_DEATHS, SuspectSample, SuspectState, Suspicion, control_sample


def suspicion(**samples: tuple[int, str]) -> Suspicion:
    found = {}
    for name, (deaths, state) in samples.items():
        sample = SampleIndex(int(name.removeprefix("s")))
        found[sample] = SuspectSample(
            sample=sample,
            deaths=deaths,
            state=SuspectState(state),
            reason=DeadLetterReason.HUNG if deaths else None,
            detail="",
        )
    return Suspicion(deaths=1, batch=BatchIndex(0), samples=found)


def test_a_slice_is_suspect_after_a_death_or_while_a_batch_is_under_suspicion() -> None:
    assert not Suspicion().is_suspect
    assert Suspicion(deaths=1).is_suspect
    assert Suspicion(batch=BatchIndex(0)).is_suspect


def test_samples_go_alone_in_their_order_until_one_has_died_too_often() -> None:
    nearly = LONE_DEATHS - 1
    assert suspicion(s1=(0, "passed"), s3=(nearly, "suspect")).lone_order(range(6)) == [0, 1, 2, 3, 4, 5]


def test_the_likeliest_to_pass_go_first_while_one_awaits_proof() -> None:
    found = suspicion(s3=(0, "passed"), s1=(LONE_DEATHS, "suspect"), s2=(LONE_DEATHS, "dead"))
    assert found.condemned_in(range(6)) == [1]
    assert found.lone_order(range(6)) == [3, 5, 4, 0]
    assert found.passed_in(range(6)) == [3]
    assert found.passed_in(range(4, 6)) == []


@pytest.mark.parametrize(
    ("recorded", "pending", "expected"),
    [
        ([range(4), range(4, 8)], [range(12, 40)], 0),
        ([], [range(12, 16), range(16, 20)], 19),
        ([], [], None),
    ],
)
def test_the_control_is_the_farthest_sample_of_recorded_batches_first(
    recorded: list[range], pending: list[range], expected: int | None
) -> None:
    assert control_sample(range(8, 12), recorded=recorded, pending=pending) == expected
