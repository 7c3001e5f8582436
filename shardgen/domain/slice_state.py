"""A slice's states, and the table of everything that may change one: who may, and what must still be true."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class SliceState(StrEnum):
    """What a slice's row says. A slice that was never leased has no row, which the table calls None."""

    OPEN = "open"
    LEASED = "leased"
    DONE = "done"
    BLOCKED = "blocked"


class Event(StrEnum):
    """What happens to a slice."""

    BEGIN = "begin"
    GRANT = "grant"
    RENEW = "renew"
    RECORD = "record"
    RELEASE = "release"
    FAIL = "fail"
    BLOCK = "block"
    DIE = "die"
    WITHDRAW = "withdraw"
    ADOPT = "adopt"
    UNDO = "undo"
    UNBLOCK = "unblock"
    RESTORE = "restore"
    MEND = "mend"


class Actor(StrEnum):
    """Who may do it."""

    HOLDER = "the worker that holds it"
    ASKING = "a worker that asks for a slice"
    RUN = "`run`, of a worker that ended"
    OPERATOR = "an operator"
    INDEX = "the index of a shared folder"


class Guard(StrEnum):
    """What the statement that makes the change requires of the row; SEEN: what was just read, and locked."""

    NEW = "no such row"
    HELD = "the lease's worker and fence"
    SEEN = "state, worker and fence as read"


@dataclass(frozen=True, slots=True)
class Transition:
    """One row of the table; where an event has several, `when` tells which."""

    before: SliceState | None
    event: Event
    after: SliceState
    actors: tuple[Actor, ...]
    guard: Guard
    when: str = ""


_OPEN, _LEASED, _DONE, _BLOCKED = SliceState
_HOLDER, _OPERATOR, _INDEX = (Actor.HOLDER,), (Actor.OPERATOR,), (Actor.INDEX,)
_ENDING = (Actor.ASKING, Actor.RUN)
_UNDOING = (Actor.OPERATOR, Actor.INDEX)
_LEFT, _LAST = "batches are left", "it was the last batch"
_AGAIN, _TOO_OFTEN = "fewer than max_attempts in a row", "max_attempts in a row"
_IS_LEFT, _IS_DONE = "a batch has no receipt", "every batch has its receipt"

TRANSITIONS = (
    Transition(None, Event.BEGIN, _OPEN, (Actor.ASKING, Actor.INDEX), Guard.NEW),
    Transition(_OPEN, Event.GRANT, _LEASED, (Actor.ASKING,), Guard.SEEN),
    Transition(_LEASED, Event.RENEW, _LEASED, _HOLDER, Guard.HELD),
    Transition(_LEASED, Event.RECORD, _LEASED, _HOLDER, Guard.HELD, _LEFT),
    Transition(_LEASED, Event.RECORD, _DONE, _HOLDER, Guard.HELD, _LAST),
    Transition(_LEASED, Event.RELEASE, _OPEN, _HOLDER, Guard.HELD),
    Transition(_LEASED, Event.FAIL, _OPEN, _HOLDER, Guard.HELD, _AGAIN),
    Transition(_LEASED, Event.FAIL, _BLOCKED, _HOLDER, Guard.HELD, _TOO_OFTEN),
    Transition(_LEASED, Event.BLOCK, _BLOCKED, _HOLDER, Guard.HELD),
    Transition(_LEASED, Event.DIE, _OPEN, _ENDING, Guard.SEEN, _AGAIN),
    Transition(_LEASED, Event.DIE, _BLOCKED, _ENDING, Guard.SEEN, _TOO_OFTEN),
    Transition(_LEASED, Event.WITHDRAW, _OPEN, (Actor.RUN, Actor.OPERATOR), Guard.SEEN),
    Transition(_OPEN, Event.ADOPT, _OPEN, _INDEX, Guard.SEEN, _LEFT),
    Transition(_OPEN, Event.ADOPT, _DONE, _INDEX, Guard.SEEN, _LAST),
    Transition(_BLOCKED, Event.ADOPT, _BLOCKED, _INDEX, Guard.SEEN, _LEFT),
    Transition(_BLOCKED, Event.ADOPT, _DONE, _INDEX, Guard.SEEN, _LAST),
    Transition(_LEASED, Event.ADOPT, _LEASED, _HOLDER, Guard.HELD, _LEFT),
    Transition(_LEASED, Event.ADOPT, _DONE, _HOLDER, Guard.HELD, _LAST),
    Transition(_DONE, Event.UNDO, _OPEN, _UNDOING, Guard.SEEN),
    Transition(_OPEN, Event.UNDO, _OPEN, _UNDOING, Guard.SEEN),
    Transition(_BLOCKED, Event.UNDO, _BLOCKED, _UNDOING, Guard.SEEN),
    Transition(_BLOCKED, Event.UNBLOCK, _OPEN, _OPERATOR, Guard.SEEN),
    Transition(None, Event.RESTORE, _OPEN, _OPERATOR, Guard.NEW, _IS_LEFT),
    Transition(None, Event.RESTORE, _DONE, _OPERATOR, Guard.NEW, _IS_DONE),
    Transition(_OPEN, Event.MEND, _OPEN, _OPERATOR, Guard.SEEN, _IS_LEFT),
    Transition(_OPEN, Event.MEND, _DONE, _OPERATOR, Guard.SEEN, _IS_DONE),
    Transition(_LEASED, Event.MEND, _LEASED, _OPERATOR, Guard.SEEN, _IS_LEFT),
    Transition(_LEASED, Event.MEND, _OPEN, _OPERATOR, Guard.SEEN, f"{_IS_LEFT}, nobody holds it"),
    Transition(_LEASED, Event.MEND, _DONE, _OPERATOR, Guard.SEEN, _IS_DONE),
    Transition(_DONE, Event.MEND, _OPEN, _OPERATOR, Guard.SEEN, _IS_LEFT),
    Transition(_DONE, Event.MEND, _DONE, _OPERATOR, Guard.SEEN, _IS_DONE),
    Transition(_BLOCKED, Event.MEND, _BLOCKED, _OPERATOR, Guard.SEEN, _IS_LEFT),
    Transition(_BLOCKED, Event.MEND, _DONE, _OPERATOR, Guard.SEEN, _IS_DONE),
)

ONLY_IN = {"worker": SliceState.LEASED, "expires_at": SliceState.LEASED, "reason": SliceState.BLOCKED}
"""What a row has in this state, and in no other."""
EMPTY_IN = {"batches_left": SliceState.DONE}
"""What is 0 in this state, and in no other."""


def transitions(event: Event, before: SliceState | None, after: SliceState | None = None) -> list[Transition]:
    """The rows of the table for an event, to one state or to any. Raises ValueError if it has none."""
    found = [
        one
        for one in TRANSITIONS
        if (one.event, one.before) == (event, before) and after in (None, one.after)
    ]
    if not found:
        raise ValueError(f"no slice that is {before or 'never leased'} may {event} to {after or 'anything'}")
    return found


def starts_afresh(before: SliceState, after: SliceState) -> bool:
    """Whether deaths and suspicion are forgotten: it is done, or was blocked and is not any more."""
    return before is not after and (after is SliceState.DONE or before is SliceState.BLOCKED)
