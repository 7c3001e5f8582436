"""The notes of suspect mode: fenced, so that a death falls on what its process was making."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, delete, func, insert, select, update

from shardgen.domain.identifiers import BatchIndex, SampleIndex, ShardIndex, SliceIndex
from shardgen.domain.lease import Lease
from shardgen.domain.receipt import DeadLetterReason
from shardgen.domain.suspicion import LONE_DEATHS, SuspectSample, SuspectState, Suspicion
from shardgen.manifest import lookups
from shardgen.manifest.session import Part, reading, writing
from shardgen.manifest.slices import held, lease_lost
from shardgen.manifest.tables import DEAD_LETTER, RECEIPT, SLICE, SUSPECT_SAMPLE, decoding

_DETAIL_CHARACTERS = 16_000  # the stacks of three hung processes; the newest are kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """How an attempt at a slice ended without being released."""

    shard: ShardIndex
    slice: SliceIndex
    reason: DeadLetterReason
    detail: str


class Suspicions(Part):
    """What suspect mode notes and judges."""

    @reading
    def read(self, connection: Connection, lease: Lease) -> Suspicion:
        """What earlier attempts at the leased slice left. Raises LeaseLost."""
        row = connection.execute(select(SLICE.c.deaths, SLICE.c.suspect_batch).where(held(lease))).first()
        if row is None:
            raise lease_lost(lease)
        deaths, batch = row
        found = connection.execute(select(SUSPECT_SAMPLE).where(*_of_slice(lease))).mappings()
        letters = select(DEAD_LETTER.c.sample).join(RECEIPT, RECEIPT.c.batch == DEAD_LETTER.c.batch)
        letters = letters.where(RECEIPT.c.shard == lease.shard, RECEIPT.c.slice == lease.slice)
        with decoding(f"what is suspected in shard {lease.shard} slice {lease.slice}"):
            return Suspicion(
                deaths=deaths,
                dead_letters=frozenset(SampleIndex(one) for one in connection.execute(letters).scalars()),
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

    @writing
    def note_batch(self, connection: Connection, lease: Lease, batch: BatchIndex) -> None:
        """From now on a death falls on this batch. Raises LeaseLost."""
        _note(connection, lease, noted_batch=batch, noted_sample=None)

    @writing
    def note_sample(self, connection: Connection, lease: Lease, sample: SampleIndex) -> None:
        """From now on a death falls on this sample alone; it may be another slice's. Raises LeaseLost."""
        _note(connection, lease, noted_sample=sample)
        known = select(SUSPECT_SAMPLE.c.sample).where(*_of_slice(lease), SUSPECT_SAMPLE.c.sample == sample)
        if connection.execute(known).first() is None:
            connection.execute(
                insert(SUSPECT_SAMPLE),
                {
                    "sample": sample,
                    "shard": lease.shard,
                    "slice": lease.slice,
                    "deaths": 0,
                    "state": SuspectState.SUSPECT.value,
                    "detail": "",
                },
            )

    def note_pass(self, lease: Lease, sample: SampleIndex, *, made: bool) -> list[SampleIndex]:
        """The noted sample survived; returns the samples that are given up by that. Raises LeaseLost."""
        return self.session.write(
            lambda connection: _note_pass(connection, lease, sample, made=made),
            lambda connection, dead: lookups.are_given_up(connection, lease, dead),
        )


def _of_slice(one: Lease | Death) -> tuple[ColumnElement[bool], ...]:
    return (SUSPECT_SAMPLE.c.shard == one.shard, SUSPECT_SAMPLE.c.slice == one.slice)


def _note_pass(connection: Connection, lease: Lease, sample: SampleIndex, *, made: bool) -> list[SampleIndex]:
    """The noted sample survived; returns the samples that became dead by this proof. Raises LeaseLost.

    One that was really `made` proves that the machine works, so that the samples that died alone too often
    are given up. That is progress, and so is the first time that a sample is made; never again, or a sample
    that only sometimes kills would go on for ever.
    """
    _note(connection, lease, noted_sample=None)
    same = (*_of_slice(lease), SUSPECT_SAMPLE.c.sample == sample)
    connection.execute(update(SUSPECT_SAMPLE).where(*same).values(deaths=0))
    if not made:
        return []
    passed, given_up = SuspectState.PASSED.value, SuspectState.DEAD.value
    is_new = connection.execute(
        update(SUSPECT_SAMPLE).where(*same, SUSPECT_SAMPLE.c.state != passed).values(state=passed)
    ).rowcount
    dead = list(
        connection.execute(
            update(SUSPECT_SAMPLE)
            .where(*_of_slice(lease), SUSPECT_SAMPLE.c.state != given_up)
            .where(SUSPECT_SAMPLE.c.deaths >= LONE_DEATHS)
            .values(state=given_up)
            .returning(SUSPECT_SAMPLE.c.sample)
        ).scalars()
    )
    if is_new or dead:
        connection.execute(update(SLICE).where(held(lease)).values(deaths=0))
    return [SampleIndex(one) for one in sorted(dead)]


def _note(connection: Connection, lease: Lease, **notes: int | None) -> None:
    if connection.execute(update(SLICE).where(held(lease)).values(notes)).rowcount != 1:
        raise lease_lost(lease)


def blame_death(connection: Connection, death: Death) -> bool:
    """Let a death fall on what was noted: the slice's row must still hold the notes.

    Returns whether it condemned a sample while no other awaited proof: that explains all deaths so far, so
    they must not count towards blocking the slice, whose other samples are still to be made.
    """
    same = (SLICE.c.shard == death.shard, SLICE.c.slice == death.slice)
    batch, sample = connection.execute(select(SLICE.c.noted_batch, SLICE.c.noted_sample).where(*same)).one()
    if batch is not None:
        connection.execute(update(SLICE).where(*same).values(suspect_batch=batch))
    connection.execute(update(SLICE).where(*same).values(noted_batch=None, noted_sample=None))
    # In a row: a death elsewhere clears the others, unless they have been condemned.
    connection.execute(
        update(SUSPECT_SAMPLE)
        .where(*_of_slice(death), SUSPECT_SAMPLE.c.deaths < LONE_DEATHS)
        .where(SUSPECT_SAMPLE.c.sample != (-1 if sample is None else sample))
        .values(deaths=0)
    )
    if sample is None:
        return False
    same_sample = (*_of_slice(death), SUSPECT_SAMPLE.c.sample == sample)
    deaths, before = connection.execute(
        select(SUSPECT_SAMPLE.c.deaths, SUSPECT_SAMPLE.c.detail).where(*same_sample)
    ).one()
    detail = f"{before}\n{death.detail}".strip() if deaths else death.detail
    connection.execute(
        update(SUSPECT_SAMPLE)
        .where(*same_sample)
        .values(deaths=deaths + 1, reason=death.reason.value, detail=detail[-_DETAIL_CHARACTERS:])
    )
    condemned = select(func.count()).where(
        *_of_slice(death),
        SUSPECT_SAMPLE.c.deaths >= LONE_DEATHS,
        SUSPECT_SAMPLE.c.state != SuspectState.DEAD.value,
    )
    return deaths + 1 == LONE_DEATHS and connection.execute(condemned).scalar_one() == 1


def forget_samples(connection: Connection, lease: Lease, samples: range) -> None:
    """Their batch has its receipt: none of them is under suspicion any more."""
    within = SUSPECT_SAMPLE.c.sample.between(samples[0], samples[-1])
    connection.execute(delete(SUSPECT_SAMPLE).where(*_of_slice(lease), within))
