from __future__ import annotations

from shardgen.launch.launcher import LastWords, Relay


def test_an_error_is_said_once_and_again_after_a_while() -> None:
    said, now = list[str](), [0.0]
    relay = Relay(said.append, monotonic=lambda: now[0])

    def hear(name: str) -> LastWords:
        words = LastWords()
        for line in (f"[{name}] ready", f"[{name}] error: the disk is full", f"[{name}] hint: make room"):
            relay.hear(name, line, words)
        return words

    assert not hear("worker-0").is_repeated
    repeated = hear("worker-1")
    assert repeated.is_repeated
    assert (repeated.error, repeated.hint) == ("the disk is full", "make room")
    again = hear("worker-0")
    assert (again.is_known, again.is_repeated) == (True, False)
    assert (again.error, again.hint) == ("the disk is full", "make room")
    assert [line for line in said if "worker-1" in line] == ["[worker-1] ready"]
    assert said.count("[worker-0] hint: make room") == 1
    now[0] = 600.0
    assert not hear("worker-1").is_repeated
    assert said[-2:] == ["[worker-1] error: the disk is full", "[worker-1] hint: make room"]


def test_where_a_log_is_is_kept_for_whoever_has_use_for_it() -> None:
    said, words = list[str](), LastWords()
    relay = Relay(said.append)
    assert words.log_named == ""
    for line in ("log: people/logs/worker-0-1234.log", "[worker-0] ready"):
        relay.hear("worker-0", line, words)
    assert said == ["[worker-0] ready"]
    assert words.log_named == "; log: people/logs/worker-0-1234.log"
