"""The bucket's protocol as a state machine, searched to the last interleaving by the program's own rules.

Workers, an operator and a sweep act on a store of create-only keys, one request at a time, as docs/bucket.md
tells it. What is decided is decided by `Rules`: by default the functions of
`shardgen/coordination/bucket/protocol.py`; a test takes one out. Every order of steps is visited, breadth
first, up to bounds on what goes wrong. Workers are alike, and so are slices: of states that differ in their
names only one is kept.

`WRONG` lists what is asserted of every step. Of every state it is asserted that the workers that are awake
can finish the run from there, if nothing more goes wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from shardgen.coordination.bucket import protocol
from shardgen.coordination.bucket.protocol import ReceiptKey
from shardgen.domain.identifiers import BatchIndex, Fence
from shardgen.domain.slice_state import SliceState

NOBODY = -1
NAMES = "ABCDE"

LOST = "a recorded batch is not recorded any more"
BACK = "a winner is followed by a lower fence"
SWEPT_AWAY = "the artifact of a winner is not there"
UNCOUNTED = "what the slice's present holder recorded does not count"
AGAIN = "made again, although recorded before the slice was claimed"
ROBBED = "taken from a worker that shows signs of life"
UNAWARE = "holds a slice and does not know it"
TWO = "a batch is recorded twice under one fence"
STILL = "what a requeue has undone still counts"
STUCK = "cannot be finished any more"
WRONG = (LOST, BACK, SWEPT_AWAY, UNCOUNTED, AGAIN, ROBBED, UNAWARE, TWO, STILL, STUCK)


class Health(IntEnum):
    """Of a worker; one that is stalled shows no sign of life, and may wake at any time."""

    AWAKE = 0
    STALLED = 1
    DEAD = 2


class At(IntEnum):
    """What a worker does next: a request each."""

    LOOK = 0
    CLAIM = 1
    LIST = 2
    ARTIFACT = 3
    RECEIPT = 4
    RELEASE = 5


class Made(NamedTuple):
    """An artifact, or the receipt that names it; `copy` tells two under one fence apart, if there may be."""

    batch: int
    fence: int
    copy: int


class Slice(NamedTuple):
    """What the store has of a slice: how many versions of its row, what the last says, and the other keys.

    `undone[batch]` is the highest fence that a requeue's mark undoes.
    """

    versions: int
    state: SliceState | None
    holder: int
    receipts: tuple[Made, ...]
    artifacts: tuple[Made, ...]
    undone: tuple[int, ...]


class Worker(NamedTuple):
    """`number` is the version that was seen, then the fence; `recorded`: the winners before the grant."""

    health: Health
    at: At
    slice: int
    number: int
    left: tuple[int, ...]
    recorded: tuple[int, ...]


class Operator(NamedTuple):
    """A requeue of a batch under way: 1 its version is next, 2 its mark, 3 a version after the mark."""

    at: int
    slice: int
    batch: int
    number: int


class Sweep(NamedTuple):
    """A sweep of a slice under way: 1 it lists receipts and marks next, 2 it removes what it found."""

    at: int
    slice: int
    found: tuple[Made, ...]


class Left(NamedTuple):
    """How often may still go wrong, or be asked for."""

    stalls: int
    crashes: int
    lost_replies: int
    failures: int
    releases: int
    requeues: int
    sweeps: int


class State(NamedTuple):
    """All that there is."""

    slices: tuple[Slice, ...]
    workers: tuple[Worker, ...]
    operator: Operator
    sweep: Sweep
    left: Left


IDLE = Worker(Health.AWAKE, At.LOOK, 0, 0, (), ())
DEAD = IDLE._replace(health=Health.DEAD)
RESTING = Operator(0, 0, 0, 0)
SWEPT = Sweep(0, 0, ())


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How large the run is, and how often each thing may happen in it.

    A lost reply: the store did as it was told, and a second attempt hears that the key exists. A failure: the
    worker hears nothing, whether the store did or not, and begins anew. A release: it is told to stop, gives
    its slice back unfinished, and another takes its place.
    """

    workers: int = 3
    slices: int = 2
    batches: int = 2
    stalls: int = 0
    crashes: int = 0
    lost_replies: int = 0
    failures: int = 0
    releases: int = 0
    requeues: int = 0
    sweeps: int = 0


class Attempt(NamedTuple):
    """What a sweep knows of an artifact that no counting receipt names; `best` is 0 without one."""

    fence: int
    best: int
    undone: int
    is_held: bool


def best_fence(fences: tuple[int, ...], undone: int) -> int:
    """The winner's fence, by the program's rule; 0 for none."""
    keys = [ReceiptKey(batch=BatchIndex(0), fence=Fence(one)) for one in fences]
    found = protocol.winner(keys, undone or None)
    if found != protocol.winner(reversed(keys), undone or None):
        raise AssertionError("readers of the same keys do not agree")
    return 0 if found is None else found.fence


def may_still_count(attempt: Attempt) -> bool:
    """The program's rule."""
    return protocol.may_still_count(attempt.fence, best=attempt.best or None, undone=attempt.undone or None)


def may_claim(state: SliceState | None, is_done: bool, is_silent: bool) -> bool:  # noqa: FBT001 - a rule's form
    """The program's rule, where it is asked."""
    return not is_done and (state is None or protocol.may_claim(state, is_silent=is_silent))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What is decided, and in which order requests are made; a broken one is put in its place by a test."""

    best_fence: Callable[[tuple[int, ...], int], int] = best_fence
    may_claim: Callable[[SliceState | None, bool, bool], bool] = may_claim
    may_still_count: Callable[[Attempt], bool] = may_still_count
    claims_first: bool = True
    creates_claims: bool = True
    reads_what_exists: bool = True
    takes_back_own: bool = True
    follows_what_was_seen: bool = True
    artifact_first: bool = True
    fence_in_key: bool = True
    version_first: bool = True
    raises_fence: bool = True


class Step(NamedTuple):
    """What happens, where that leads, what is wrong with it, and whether nothing fails in it."""

    label: str
    state: State
    wrong: str = ""
    is_honest: bool = False


class Asked(NamedTuple):
    """What a worker asks for, the slice and the worker afterwards, and whether the key existed before."""

    label: str
    changed: Slice
    worker: Worker
    exists: bool = False


class Model:
    """The steps that may follow a state."""

    def __init__(self, bounds: Bounds, rules: Rules) -> None:
        self.bounds = bounds
        self.rules = rules
        self._winners: dict[tuple[tuple[Made, ...], tuple[int, ...]], tuple[int, ...]] = {}

    def first(self) -> State:
        """Nothing is claimed yet."""
        b = self.bounds
        nothing = Slice(0, None, NOBODY, (), (), (0,) * b.batches)
        left = Left(b.stalls, b.crashes, b.lost_replies, b.failures, b.releases, b.requeues, b.sweeps)
        return State((nothing,) * b.slices, (IDLE,) * b.workers, RESTING, SWEPT, left)

    def winners(self, one: Slice) -> tuple[int, ...]:
        """Of each batch the fence whose receipt counts, 0 for none."""
        key = one.receipts, one.undone
        found = self._winners.get(key)
        if found is None:
            found = self._winners[key] = tuple(
                self.rules.best_fence(
                    tuple(made.fence for made in one.receipts if made.batch == batch), undone
                )
                for batch, undone in enumerate(one.undone)
            )
        return found

    def is_finished(self, state: State) -> bool:
        """Whether every batch is recorded."""
        return all(all(self.winners(one)) for one in state.slices)

    def steps(self, state: State) -> Iterator[Step]:
        """Everything that may happen next."""
        for who, worker in enumerate(state.workers):
            if worker.health is Health.AWAKE:
                yield from self._work(state, who, worker)
                yield from self._fail(state, who, worker)
            elif worker.health is Health.STALLED:
                woken = worker._replace(health=Health.AWAKE)
                yield Step(f"{NAMES[who]} wakes", _with_worker(state, who, woken))
        yield from self._requeue(state)
        yield from self._sweep(state)

    # what a worker does

    def _work(self, state: State, who: int, worker: Worker) -> Iterator[Step]:
        if worker.at is At.LOOK:
            for index in range(len(state.slices)):
                yield from self._look(state, who, index)
            return
        if worker.at is At.ARTIFACT:
            yield from self._stop(state, who, worker)
        asked = self._ask(who, worker, state.slices[worker.slice])
        yield from self._answers(state, who, worker, asked)

    def _stop(self, state: State, who: int, worker: Worker) -> Iterator[Step]:
        name, one = NAMES[who], state.slices[worker.slice]
        if one.versions > worker.number:
            label = f"{name} sees that slice {worker.slice} was taken from it"
            yield Step(label, _with_worker(state, who, IDLE), is_honest=True)
        elif state.left.releases:
            spent = state._replace(left=state.left._replace(releases=state.left.releases - 1))
            stopping = worker._replace(at=At.RELEASE, left=(), recorded=())
            yield Step(f"{name} is told to stop", _with_worker(spent, who, stopping))

    def _answers(self, state: State, who: int, worker: Worker, asked: Asked) -> Iterator[Step]:
        """A request and its answer; or the answer is lost, or the request, too."""
        one, changed, left = state.slices[worker.slice], asked.changed, state.left
        label = f"{NAMES[who]} {asked.label} of slice {worker.slice}"
        wrong = self._wrong(one, changed) or self._wrong_record(worker, one, asked)
        if changed.versions > one.versions > worker.number and _is_live(state, one):
            wrong = ROBBED
        after = _with_slice(state, worker.slice, changed)
        if asked.exists:
            label = f"{label}: it exists"
        yield Step(label, _with_worker(after, who, asked.worker), wrong, is_honest=True)
        if asked.exists or changed is one:
            return
        if left.lost_replies:
            spent = after._replace(left=left._replace(lost_replies=left.lost_replies - 1))
            following = asked.worker
            if not self.rules.reads_what_exists:
                following = IDLE
                wrong = wrong or (UNAWARE if changed.holder == who else "")
            lost = f"{label}; the reply is lost, and then: it exists"
            yield Step(lost, _with_worker(spent, who, following), wrong)
        if left.failures:
            fewer = left._replace(failures=left.failures - 1)
            yield Step(f"{label}; no reply", _with_worker(after._replace(left=fewer), who, IDLE), wrong)
            unheard = _with_worker(state._replace(left=fewer), who, IDLE)
            yield Step(f"{label}; it does not arrive", unheard)

    def _look(self, state: State, who: int, index: int) -> Iterator[Step]:
        one = state.slices[index]
        is_own = one.holder == who
        is_live = _is_live(state, one)
        winners = self.winners(one)
        is_silent = self.rules.takes_back_own if is_own else not is_live
        if not self.rules.may_claim(one.state, all(winners), is_silent):
            return
        if is_own:
            held = Worker(Health.AWAKE, At.LIST, index, one.versions, (), winners)
            label = f"{NAMES[who]} looks at slice {index}: version {one.versions} is a claim of its own"
            yield Step(label, _with_worker(state, who, held), is_honest=True)
            return
        left = () if self.rules.claims_first else _without(winners)
        seen = Worker(Health.AWAKE, At.CLAIM, index, one.versions, left, ())
        label = f"{NAMES[who]} looks at slice {index}: version {one.versions}, may be claimed"
        wrong = ROBBED if one.state is SliceState.LEASED and is_live and not is_own else ""
        yield Step(label, _with_worker(state, who, seen), wrong, is_honest=True)

    def _ask(self, who: int, worker: Worker, one: Slice) -> Asked:
        if worker.at is At.CLAIM:
            return self._claim(who, worker, one)
        if worker.at is At.LIST:
            return Asked("lists the receipts", one, self._with_left(worker, _without(self.winners(one))))
        if worker.at is At.RELEASE:
            number = self._following(worker, one)
            label = f"creates version {number} (open)"
            if one.versions >= number:
                return Asked(label, one, IDLE, exists=True)
            return Asked(label, one._replace(versions=number, state=SliceState.OPEN, holder=NOBODY), IDLE)
        made = Made(worker.left[0], worker.number, 0 if self.rules.creates_claims else who + 1)
        return (
            self._publish(worker, one, made) if worker.at is At.ARTIFACT else self._record(worker, one, made)
        )

    def _publish(self, worker: Worker, one: Slice, made: Made) -> Asked:
        label = f"puts the artifact of batch {made.batch}, fence {made.fence},"
        after = self._with_left(worker, worker.left[1:])
        if self.rules.artifact_first:
            after = worker._replace(at=At.RECEIPT)
        return Asked(label, one._replace(artifacts=_added(one.artifacts, made)), after)

    def _record(self, worker: Worker, one: Slice, made: Made) -> Asked:
        label = f"creates the receipt of batch {made.batch}, fence {made.fence},"
        after = worker._replace(at=At.ARTIFACT)
        if self.rules.artifact_first:
            after = self._with_left(worker, worker.left[1:])
        of_batch = [known for known in one.receipts if known.batch == made.batch]
        if any(known.fence == made.fence or not self.rules.fence_in_key for known in of_batch):
            return Asked(label, one, after, exists=True)
        return Asked(label, one._replace(receipts=_added(one.receipts, made)), after)

    def _claim(self, who: int, worker: Worker, one: Slice) -> Asked:
        number = self._following(worker, one)
        label = f"creates version {number} (leased to {NAMES[who]})"
        if one.versions >= number and self.rules.creates_claims:
            return Asked(label, one, IDLE, exists=True)
        after = worker._replace(at=At.LIST, number=number, recorded=self.winners(one))
        if not self.rules.claims_first:
            after = self._with_left(after, worker.left)
        if one.versions > number:  # overwritten, and not the last one
            return Asked(label, one, after)
        return Asked(label, one._replace(versions=number, state=SliceState.LEASED, holder=who), after)

    def _following(self, worker: Worker, one: Slice) -> int:
        seen = worker.number if self.rules.follows_what_was_seen else one.versions
        return protocol.next_version(seen)

    def _with_left(self, worker: Worker, left: tuple[int, ...]) -> Worker:
        if not left:  # done, which the receipts say: no version does
            return IDLE
        return worker._replace(at=At.ARTIFACT if self.rules.artifact_first else At.RECEIPT, left=left)

    def _fail(self, state: State, who: int, worker: Worker) -> Iterator[Step]:
        name = NAMES[who]
        if worker.at is not At.LOOK and state.left.stalls:
            spent = state._replace(left=state.left._replace(stalls=state.left.stalls - 1))
            stalled = worker._replace(health=Health.STALLED)
            yield Step(f"{name} stalls past its lease", _with_worker(spent, who, stalled))
        if worker.at is not At.LOOK and state.left.crashes:
            spent = state._replace(left=state.left._replace(crashes=state.left.crashes - 1))
            yield Step(f"{name} crashes", _with_worker(spent, who, DEAD))

    # what an operator does

    def _requeue(self, state: State) -> Iterator[Step]:
        operator, rules = state.operator, self.rules
        if operator.at == 0:
            if not state.left.requeues:
                return
            left = state.left._replace(requeues=state.left.requeues - 1)
            for index, one in enumerate(state.slices):
                winners = self.winners(one)
                if _is_live(state, one) and not all(winners):
                    continue
                for batch, fence in enumerate(winners):
                    if fence:
                        at = 1 if rules.version_first and rules.raises_fence else 2
                        number = one.versions + (1 if rules.raises_fence else 0)
                        label = f"requeue looks at batch {batch} of slice {index}: version {one.versions}"
                        asked = Operator(at, index, batch, number)
                        yield Step(label, state._replace(operator=asked, left=left))
            return
        one, number = state.slices[operator.slice], operator.number
        resting = state._replace(operator=RESTING)
        if operator.at in (1, 3):
            label = f"requeue creates version {number} (open) of slice {operator.slice}"
            if one.versions >= number:
                yield Step(f"{label}: it exists", resting)
                return
            opened = one._replace(versions=number, state=SliceState.OPEN, holder=NOBODY)
            following = operator._replace(at=2) if operator.at == 1 else RESTING
            yield Step(label, _with_slice(state._replace(operator=following), operator.slice, opened))
            return
        yield Step("requeue is killed", resting)
        highest = max(number, one.undone[operator.batch])
        undone = (*one.undone[: operator.batch], highest, *one.undone[operator.batch + 1 :])
        following = RESTING if rules.version_first or not rules.raises_fence else operator._replace(at=3)
        label = (
            f"requeue writes its mark: batch {operator.batch} of slice {operator.slice} up to fence {number}"
        )
        marked = one._replace(undone=undone)
        wrong = STILL if 0 < self.winners(marked)[operator.batch] <= number else ""
        yield Step(label, _with_slice(state._replace(operator=following), operator.slice, marked), wrong)

    # what a sweep does

    def _sweep(self, state: State) -> Iterator[Step]:
        sweep = state.sweep
        if sweep.at == 0:
            if not state.left.sweeps:
                return
            left = state.left._replace(sweeps=state.left.sweeps - 1)
            for index, one in enumerate(state.slices):
                if one.artifacts:
                    label = f"sweep lists the artifacts of slice {index}"
                    yield Step(label, state._replace(sweep=Sweep(1, index, one.artifacts), left=left))
            return
        one = state.slices[sweep.slice]
        if sweep.at == 1:
            winners = self.winners(one)
            named = {made for made in one.receipts if made.fence == winners[made.batch]}
            is_live = _is_live(state, one)
            found = tuple(
                made
                for made in sweep.found
                if made not in named
                and not self.rules.may_still_count(
                    Attempt(
                        made.fence,
                        winners[made.batch],
                        one.undone[made.batch],
                        is_live and made.fence == one.versions,
                    )
                )
            )
            following = Sweep(2, sweep.slice, found) if found else SWEPT
            label = f"sweep lists receipts and marks of slice {sweep.slice}"
            yield Step(label, state._replace(sweep=following))
            return
        changed = one._replace(artifacts=tuple(made for made in one.artifacts if made not in sweep.found))
        label = f"sweep removes {', '.join(f'batch {made.batch} fence {made.fence}' for made in sweep.found)}"
        after = _with_slice(state._replace(sweep=SWEPT), sweep.slice, changed)
        yield Step(label, after, self._wrong(one, changed))

    # what is asserted

    def _wrong(self, before: Slice, after: Slice) -> str:
        """What must not come of any step but a requeue's."""
        if before is after:
            return ""
        old, new = self.winners(before), self.winners(after)
        for batch, fence in enumerate(old):
            if fence and not new[batch]:
                return LOST
            if fence > new[batch]:
                return BACK
        for made in after.receipts:
            if made.fence == new[made.batch] and made not in after.artifacts:
                return SWEPT_AWAY
        return ""

    def _wrong_record(self, worker: Worker, before: Slice, asked: Asked) -> str:
        if worker.at is not At.RECEIPT:
            return ""
        batch, fence = worker.left[0], worker.number
        is_present = before.versions == fence
        if asked.exists:
            if any(made.batch == batch and made.fence == fence for made in before.receipts):
                return TWO
            return UNCOUNTED if is_present and not self.winners(before)[batch] else ""
        if is_present and self.winners(asked.changed)[batch] != fence:
            return UNCOUNTED
        return AGAIN if worker.recorded[batch] > before.undone[batch] else ""


def _is_live(state: State, one: Slice) -> bool:
    """Whether the holder of a slice shows signs of life."""
    return one.holder != NOBODY and state.workers[one.holder].health is Health.AWAKE


def _without(winners: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(batch for batch, fence in enumerate(winners) if not fence)


def _added(some: tuple[Made, ...], one: Made) -> tuple[Made, ...]:
    return some if one in some else tuple(sorted((*some, one)))


def _with_worker(state: State, who: int, worker: Worker) -> State:
    workers = state.workers
    return state._replace(workers=(*workers[:who], worker, *workers[who + 1 :]))


def _with_slice(state: State, index: int, changed: Slice) -> State:
    slices = state.slices
    if slices[index] is changed:
        return state
    return state._replace(slices=(*slices[:index], changed, *slices[index + 1 :]))


def canonical(state: State) -> State:
    """The same state with workers, and slices, in an order that does not depend on their names.

    Of two that are alike in all that is compared, either may come first: that only costs a state.
    """
    slices, workers = state.slices, state.workers
    if len(slices) > 1:
        order = sorted(range(len(slices)), key=lambda index: _slice_key(state, index))
        if order != list(range(len(slices))):
            place = {old: new for new, old in enumerate(order)}
            slices = tuple(slices[index] for index in order)
            workers = tuple(
                one if one.at is At.LOOK else one._replace(slice=place[one.slice]) for one in workers
            )
            operator, sweep = state.operator, state.sweep
            state = State(
                slices,
                workers,
                operator._replace(slice=place[operator.slice]) if operator.at else operator,
                sweep._replace(slice=place[sweep.slice]) if sweep.at else sweep,
                state.left,
            )
    holders = [one.holder for one in slices]
    named = sorted(range(len(workers)), key=lambda who: (workers[who], [one == who for one in holders]))
    if named == list(range(len(workers))):
        return state
    name = {old: new for new, old in enumerate(named)}
    name[NOBODY] = NOBODY
    return state._replace(
        workers=tuple(workers[who] for who in named),
        slices=tuple(_renamed(one, name) for one in slices),
    )


def _renamed(one: Slice, name: dict[int, int]) -> Slice:
    one = one._replace(holder=name[one.holder])
    if not any(made.copy for made in one.artifacts):
        return one

    def renamed(some: tuple[Made, ...]) -> tuple[Made, ...]:
        return tuple(sorted(made._replace(copy=name[made.copy - 1] + 1) for made in some))

    return one._replace(artifacts=renamed(one.artifacts), receipts=renamed(one.receipts))


def _slice_key(state: State, index: int) -> tuple[object, ...]:
    one = state.slices[index]
    operator, sweep = state.operator, state.sweep
    return (
        one.versions,
        one.state or "",
        one.holder != NOBODY,
        one.receipts,
        one.artifacts,
        one.undone,
        sorted(worker[:2] + worker[3:] for worker in state.workers if worker.at and worker.slice == index),
        operator.at and operator.slice == index,
        sweep.at and sweep.slice == index,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """How many states and steps were visited; what is wrong ("": nothing), and the steps that lead there."""

    states: int
    steps: int
    wrong: str = ""
    trace: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{number:>3}. {label}" for number, label in enumerate(self.trace, start=1)]
        return "\n".join([*lines, f"=> {self.wrong or 'nothing is wrong'} ({self.states:,} states)"])


def search(bounds: Bounds, rules: Rules | None = None) -> Found:
    """Visit every state that can be reached; end at the first thing that is wrong, by the fewest steps."""
    model = Model(bounds, rules or Rules())
    first = canonical(model.first())
    numbers = {first: 0}
    states = [first]
    parents = [0]
    honest: list[list[int]] = [
        []
    ]  # to each state, those from which a step leads to it in which nothing fails
    steps = number = 0
    while number < len(states):
        for step in model.steps(states[number]):
            steps += 1
            if step.wrong:
                trace = _trace(model, _path(states, parents, number), step.wrong)
                return Found(states=len(states), steps=steps, wrong=step.wrong, trace=trace)
            after = canonical(step.state)
            known = numbers.get(after)
            if known is None:
                known = numbers[after] = len(states)
                states.append(after)
                parents.append(number)
                honest.append([])
            if step.is_honest:
                honest[known].append(number)
        number += 1
    stuck = _first_stuck(model, states, honest)
    if stuck is None:
        return Found(states=len(states), steps=steps)
    trace = _trace(model, _path(states, parents, stuck), "")
    return Found(states=len(states), steps=steps, wrong=STUCK, trace=trace)


def _first_stuck(model: Model, states: list[State], honest: list[list[int]]) -> int | None:
    """The first state from which no steps in which nothing fails lead to the end of the run."""
    waiting = [number for number, state in enumerate(states) if model.is_finished(state)]
    can_finish = bytearray(len(states))
    for number in waiting:
        can_finish[number] = 1
    while waiting:
        for before in honest[waiting.pop()]:
            if not can_finish[before]:
                can_finish[before] = 1
                waiting.append(before)
    found = can_finish.find(0)
    return None if found < 0 else found


def _path(states: list[State], parents: list[int], number: int) -> list[State]:
    path = [states[number]]
    while number:
        number = parents[number]
        path.append(states[number])
    return path[::-1]


def _trace(model: Model, path: list[State], wrong: str) -> tuple[str, ...]:
    """The labels of steps along a path of canonical states, with names that stay the same on the way."""
    state, labels = model.first(), []
    for following in path[1:]:
        step = next(one for one in model.steps(state) if not one.wrong and canonical(one.state) == following)
        labels.append(step.label)
        state = step.state
    if wrong:
        labels.append(next(one.label for one in model.steps(state) if one.wrong == wrong))
    return tuple(labels)
