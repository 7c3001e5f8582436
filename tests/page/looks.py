"""Looks at runs that exist as values only: of any size, and with names that want to be code."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

from shardgen.coordination.report import Report, ShownWorker
from shardgen.domain.identifiers import SampleIndex, ShardIndex, SliceIndex, WorkerId
from shardgen.domain.overview import (
    SLICE_WORDS,
    BlockedSlice,
    DeadLetterGroup,
    Details,
    FolderNews,
    Overview,
    ShardState,
    ShownSlice,
    count_slices,
)
from shardgen.domain.plan import Plan
from shardgen.domain.receipt import DeadLetter, DeadLetterReason
from shardgen.domain.worker import ShownState, WorkerIdentity, WorkerRow, WorkerState
from shardgen.operations.page.look import Look
from shardgen.operations.page.pictures import ShownSample, SmallPicture
from tests.plans import make_plan

NOW = datetime(2026, 3, 1, 15, 4, 30, tzinfo=UTC)
EVIL = "<script>window.pwned = 1</script>\"'><img src=x onerror=window.pwned=1>"
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360606060000000"
    "0500017a5eab3f0000000049454e44ae426082"
)
PLAN = make_plan(shard_size=30, slice_batches=2, batch=5)


def worker(
    name: str,
    state: ShownState = ShownState.WORKING,
    *,
    node: str = "gpu-1",
    rate: float = 2.0,
    note: str = "",
) -> ShownWorker:
    """One that holds slice 0 of shard 0, last seen a second ago."""
    row = WorkerRow(
        identity=WorkerIdentity(
            id=WorkerId(name), host=f"boot/ns/{node}", pid=1, process_started=1.0, device="A100"
        ),
        state=WorkerState.WORKING,
        shard=ShardIndex(0),
        slice=SliceIndex(0),
        lease_expires_at=None,
        started_at=NOW,
        last_beat_at=NOW,
        last_progress_at=NOW,
        samples_done=1234,
        samples_per_second=rate,
        note=note,
    )
    return ShownWorker(row=row, state=state, last_beat_seconds=1.0)


def slices_of(plan: Plan, states: Iterable[str] = (), *, holder: str = "") -> list[ShownSlice]:
    """All slices of a plan: the first ones in these states, the others untouched."""
    given = iter(states)
    return [
        ShownSlice(
            shard=ShardIndex(shard),
            slice=SliceIndex(number),
            state=(state := next(given, "never_leased")),
            batches=2,
            batches_done=2 if state == "done" else 0,
            worker=holder if state == "leased" else "",
        )
        for shard in range(plan.layout.shard_count)
        for number in range(plan.layout.slice_count(ShardIndex(shard)))
    ]


def look_at(
    *workers: ShownWorker,
    plan: Plan = PLAN,
    stored: int = 0,
    dead: int = 0,
    states: Sequence[str] = (),
    text: str = "Traceback (most recent call last)",
    blocked: Sequence[str] = (),
    pace: Sequence[int] = (),
    samples: int = 0,
    picture_bytes: int = 0,
    folder: FolderNews | None = None,
    named: str = "people",
) -> Look:
    """What is shown of such a run; the counters go to its first shard. `pace` ends in this minute."""
    slices = slices_of(plan, states, holder=text)
    counts = count_slices(slices)
    shards = tuple(
        ShardState(
            shard=ShardIndex(shard),
            stored=stored if shard == 0 else 0,
            dead=dead if shard == 0 else 0,
            slices=counts[ShardIndex(shard)],
        )
        for shard in range(plan.layout.shard_count)
    )
    letter = DeadLetter(sample=SampleIndex(7), reason=DeadLetterReason.UNREADABLE, detail=text)
    minute = NOW.replace(second=0)
    details = Details(
        slices=tuple(slices),
        pace=tuple((minute - timedelta(minutes=len(pace) - 1 - n), count) for n, count in enumerate(pace)),
        last_stored_at=NOW - timedelta(seconds=12) if stored else None,
        newest=(),
        dead_letters=(
            (DeadLetterGroup(reason=DeadLetterReason.UNREADABLE, count=dead, first=(letter,)),)
            if dead
            else ()
        ),
    )
    overview = Overview(
        fingerprint=plan.fingerprint,
        taken_at=NOW,
        shards=shards,
        blocked=tuple(
            BlockedSlice(shard=ShardIndex(0), slice=SliceIndex(number), reason=reason)
            for number, reason in enumerate(blocked)
        ),
        workers=tuple(one.row for one in workers),
        mixture=(),
    )
    return Look(
        named=named,
        report=Report(plan=plan, overview=overview, workers=workers, folder=folder),
        details=details,
        samples=tuple(
            ShownSample(
                sample=number,
                made_of=text,
                pictures=(SmallPicture(what="mask", data=PIXEL + bytes([number]) * (1 + picture_bytes)),),
            )
            for number in range(samples)
        ),
    )


def large() -> Look:
    """A thousand workers on 125 nodes, 8,000 slices, long texts everywhere, and pictures of noise."""
    plan = make_plan(backgrounds=40, foregrounds=100, grid=(5, 4), shard_size=1000, slice_batches=2, batch=5)
    assert len(slices_of(plan)) == 8_000
    states = list(SLICE_WORDS) * 500
    text = "what went wrong, at great length & with <signs> " * 400
    workers = [
        worker(
            f"gpu-{number // 8:03}-{number:08x}",
            list(ShownState)[number % 8],
            node=f"gpu-{number // 8:03}",
            note=text,
        )
        for number in range(1000)
    ]
    return look_at(
        *workers,
        plan=plan,
        stored=100,
        dead=7,
        states=states,
        text=text,
        blocked=[text] * 20,
        pace=[100] * 2000,
        samples=12,
        picture_bytes=40_000,
    )


def troubled() -> Look:
    """A small run in which everything is wrong."""
    text = 'Traceback (most recent call last):\n  File "x.py", line 3, in made\nOSError: no room'
    workers = [
        worker(f"{state}-{number:08x}", state, node=f"gpu-{number % 3}", note=text)
        for number, state in enumerate([*ShownState, *ShownState])
    ]
    return look_at(
        *workers,
        stored=50,
        dead=7,
        states=[*SLICE_WORDS],
        text=text,
        blocked=[text, text],
        pace=[20, 0, 40, 30],
        samples=3,
    )
