from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from shardgen.domain.receipt import DeadLetterReason
from shardgen.domain.worker import ShownState
from shardgen.operations.page.look import Look, Seen
from shardgen.operations.page.metrics import metrics
from tests.page.looks import EVIL, PLAN, look_at, worker


def samples(seen: Seen) -> dict[tuple[str, str], float]:
    """What Prometheus itself reads."""
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(metrics(seen))
        for sample in family.samples
    }


def of(look: Look) -> dict[tuple[str, str], float]:
    return samples(Seen(look=look, version=1))


def test_prometheus_reads_what_the_run_is_like() -> None:
    found = of(
        look_at(worker("a"), worker("b", ShownState.DEAD), stored=20, dead=3, states=["done", "leased"])
    )
    assert found["shardgen_up", ""] == 1
    assert found["shardgen_planned_samples", ""] == PLAN.samples
    states = {state: found["shardgen_samples", state] for state in ("stored", "dead_letters", "pending")}
    assert states == {"stored": 20, "dead_letters": 3, "pending": PLAN.samples - 23}
    assert found["shardgen_samples_per_second", ""] == 2
    assert {state: found["shardgen_workers", state] for state in ShownState} == {
        state: float(state in (ShownState.WORKING, ShownState.DEAD)) for state in ShownState
    }
    assert {reason: found["shardgen_dead_letters", reason] for reason in DeadLetterReason} == {
        reason: 3.0 if reason is DeadLetterReason.UNREADABLE else 0.0 for reason in DeadLetterReason
    }
    assert found["shardgen_seconds_since_last_receipt", ""] == 12
    assert found["shardgen_eta_seconds", ""] == (PLAN.samples - 23) / 2
    assert all(name.startswith("shardgen_") for name, _ in found)


def test_what_is_not_known_is_left_out() -> None:
    found = of(look_at())
    assert ("shardgen_eta_seconds", "") not in found
    assert ("shardgen_seconds_since_last_receipt", "") not in found


def test_a_run_that_cannot_be_read_is_down() -> None:
    assert samples(Seen()) == {("shardgen_up", ""): 0}
    assert samples(Seen(look=look_at(), failure="locked"))["shardgen_up", ""] == 0


def test_no_name_of_a_worker_is_in_it() -> None:
    assert "script" not in metrics(Seen(look=look_at(worker(EVIL, note=EVIL), text=EVIL, dead=1)))
