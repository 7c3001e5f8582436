from __future__ import annotations

from shardgen.domain.identifiers import BatchIndex, SampleIndex
from shardgen.domain.receipt import DeadLetterReason
from shardgen.domain.suspicion import LONE_DEATHS, SuspectSample, SuspectState, Suspicion


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


def test_those_that_died_and_those_that_never_passed_go_first() -> None:
    nearly = LONE_DEATHS - 1
    found = suspicion(s0=(0, "passed"), s1=(0, "suspect"), s3=(nearly, "suspect"), s4=(1, "passed"))
    assert found.lone_order([SampleIndex(sample) for sample in range(6)]) == [3, 4, 1, 2, 5, 0]


def test_the_likeliest_to_pass_go_first_while_one_awaits_proof() -> None:
    found = suspicion(
        s1=(LONE_DEATHS, "suspect"), s2=(LONE_DEATHS, "dead"), s3=(0, "passed"), s6=(1, "passed")
    )
    assert found.condemned_in(range(8)) == [1]
    assert found.dead_in(range(8)) == [2]
    left = [SampleIndex(sample) for sample in (0, 3, 4, 5, 6, 7)]
    order = found.proof_order(left, SampleIndex(1), kinship=lambda sample: int(sample < 5))
    assert order == [3, 7, 5, 4, 0, 6]


def test_a_sample_that_passed_once_and_died_three_times_since_is_condemned() -> None:
    assert suspicion(s1=(LONE_DEATHS, "passed")).condemned_in(range(2)) == [1]
    assert not suspicion(s1=(1, "passed")).has_passed(SampleIndex(1))
