"""The notes of suspect mode: fenced, so that a death falls on what its process was making."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, delete, insert, select, update

from shardgen.domain.identifiers import BatchIndex, SampleIndex, ShardIndex, SliceIndex
from shardgen.domain.lease import Lease
from shardgen.domain.receipt import DeadLetterReason
from shardgen.domain.suspicion import LONE_DEATHS, SuspectSample, SuspectState, Suspicion
from shardgen.manifest.slices import held, lease_lost
from shardgen.manifest.tables import SLICE, SUSPECT_SAMPLE

_DETAIL_CHARACTERS = 16_000  # the stacks of three hung processes; the newest are kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """How an attempt at a slice ended without being released."""

    shard: ShardIndex
    slice: SliceIndex
    reason: DeadLetterReason
    detail: str


def read_suspicion(connection: Connection, lease: Lease) -> Suspicion:
    """What earlier attempts at the leased slice left. Raises LeaseLost."""
    row = connection.execute(select(SLICE.c.deaths, SLICE.c.suspect_batch).where(held(lease))).first()
    if row is None:
        raise lease_lost(lease)
    deaths, batch = row
    found = connection.execute(select(SUSPECT_SAMPLE).where(*_of_slice(lease.shard, lease.slice))).mappings()
    return Suspicion(
        deaths=deaths,
        batch=None if batch is None else BatchIndex(batch),
        samples={
            SampleIndex(one["sample"]): SuspectSample(
                sample=SampleIndex(one["sample"]),
                deaths=one["deaths"],
                state=SuspectState(one["state"]),
                reason=None if one["reason"] is None else DeadLetterReason(one["reason"]),
                detail=one["detail"],
            )
            for one in found
        },
    )


def _of_slice(shard: ShardIndex, slice_: SliceIndex) -> tuple[ColumnElement[bool], ...]:
    return (SUSPECT_SAMPLE.c.shard == shard, SUSPECT_SAMPLE.c.slice == slice_)


def note_batch(connection: Connection, lease: Lease, batch: BatchIndex) -> None:
    """From now on a death falls on this batch. Raises LeaseLost."""
    _note(connection, lease, noted_batch=batch, noted_sample=None)


def note_sample(connection: Connection, lease: Lease, sample: SampleIndex, batch: BatchIndex) -> None:
    """From now on a death falls on this sample (of that batch) alone. Raises LeaseLost."""
    _note(connection, lease, noted_sample=sample)
    known = select(SUSPECT_SAMPLE.c.sample).where(SUSPECT_SAMPLE.c.sample == sample)
    if connection.execute(known).first() is None:
        connection.execute(
            insert(SUSPECT_SAMPLE),
            {
                "sample": sample,
                "shard": lease.shard,
                "slice": lease.slice,
                "batch": batch,
                "deaths": 0,
                "state": SuspectState.SUSPECT.value,
                "detail": "",
            },
        )


def note_pass(connection: Connection, lease: Lease, sample: SampleIndex, *, made: bool) -> list[SampleIndex]:
    """The noted sample survived; returns the samples that became dead by this proof. Raises LeaseLost.

    The first pass of a sample is progress. One that was really `made` also proves that the machine works,
    so that the samples that died alone too often are given up; that is progress as well.
    """
    _note(connection, lease, noted_sample=None)
    of_slice = _of_slice(lease.shard, lease.slice)
    is_new = connection.execute(
        update(SUSPECT_SAMPLE)
        .where(SUSPECT_SAMPLE.c.sample == sample, SUSPECT_SAMPLE.c.state != SuspectState.PASSED.value)
        .values(state=SuspectState.PASSED.value, deaths=0)
    ).rowcount
    dead: list[int] = []
    if made:
        dead = list(
            connection.execute(
                update(SUSPECT_SAMPLE)
                .where(*of_slice, SUSPECT_SAMPLE.c.state == SuspectState.SUSPECT.value)
                .where(SUSPECT_SAMPLE.c.deaths >= LONE_DEATHS)
                .values(state=SuspectState.DEAD.value)
                .returning(SUSPECT_SAMPLE.c.sample)
            ).scalars()
        )
    if is_new or dead:
        connection.execute(update(SLICE).where(held(lease)).values(deaths=0))
    return [SampleIndex(one) for one in sorted(dead)]


def _note(connection: Connection, lease: Lease, **notes: int | None) -> None:
    if connection.execute(update(SLICE).where(held(lease)).values(notes)).rowcount != 1:
        raise lease_lost(lease)


def blame_death(connection: Connection, death: Death) -> None:
    """Let a death fall on what was noted: the slice's row must still hold the notes."""
    same = (SLICE.c.shard == death.shard, SLICE.c.slice == death.slice)
    batch, sample = connection.execute(select(SLICE.c.noted_batch, SLICE.c.noted_sample).where(*same)).one()
    if batch is not None:
        connection.execute(update(SLICE).where(*same).values(suspect_batch=batch))
    connection.execute(update(SLICE).where(*same).values(noted_batch=None, noted_sample=None))
    # In a row: a death elsewhere clears the others, unless they have been condemned.
    connection.execute(
        update(SUSPECT_SAMPLE)
        .where(*_of_slice(death.shard, death.slice), SUSPECT_SAMPLE.c.deaths < LONE_DEATHS)
        .where(SUSPECT_SAMPLE.c.sample != (-1 if sample is None else sample))
        .values(deaths=0)
    )
    if sample is None:
        return
    same_sample = SUSPECT_SAMPLE.c.sample == sample
    deaths, before = connection.execute(
        select(SUSPECT_SAMPLE.c.deaths, SUSPECT_SAMPLE.c.detail).where(same_sample)
    ).one()
    detail = f"{before}\n{death.detail}".strip() if deaths else death.detail
    connection.execute(
        update(SUSPECT_SAMPLE)
        .where(same_sample)
        .values(
            state=SuspectState.SUSPECT.value,
            deaths=deaths + 1,
            reason=death.reason.value,
            detail=detail[-_DETAIL_CHARACTERS:],
        )
    )


def forget_samples(connection: Connection, samples: range) -> None:
    """Their batch has its receipt: none of them is under suspicion any more."""
    connection.execute(delete(SUSPECT_SAMPLE).where(SUSPECT_SAMPLE.c.sample.between(samples[0], samples[-1])))


def forget_slice(connection: Connection, shard: ShardIndex, slice_: SliceIndex) -> None:
    """Start afresh: no sample of the slice is under suspicion."""
    connection.execute(delete(SUSPECT_SAMPLE).where(*_of_slice(shard, slice_)))
