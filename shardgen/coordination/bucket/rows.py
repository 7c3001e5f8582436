"""Rows: what the objects of a bucket hold: versions of slices' rows, receipts, signs of life."""

from __future__ import annotations

import json
import secrets
from dataclasses import replace
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import Connection, delete, insert, select

from shardgen.artifacts.receipt_json import Sha256, parse_receipt_json, receipt_json
from shardgen.domain.claims import SliceId
from shardgen.domain.identifiers import MAX_NUMBER, BatchIndex, Fence, WorkerId
from shardgen.domain.layout import Layout
from shardgen.domain.plan import Plan
from shardgen.domain.receipt import ArtifactReceipt, ArtifactRef, DeadLetterReason, Receipt
from shardgen.domain.slice_state import SliceState
from shardgen.domain.suspicion import SuspectState
from shardgen.domain.worker import WorkerIdentity, WorkerState
from shardgen.errors import ManifestCorrupt
from shardgen.manifest.slices import move
from shardgen.manifest.tables import DEAD_LETTER, RECEIPT, SLICE, SUSPECT_SAMPLE

Number = Annotated[int, Field(ge=0, le=MAX_NUMBER)]
FAR = 4e9  # UTC seconds since 1970: an expiry that never comes
Content = TypeVar("Content", bound=BaseModel)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Sample(_Strict):
    """A sample under suspicion, as `manifest.tables.SUSPECT_SAMPLE` has it."""

    sample: Number
    deaths: Number
    state: SuspectState
    reason: DeadLetterReason | None
    detail: str


class Version(_Strict):
    """A version of a slice's row, after an event; `fence` is that of the last grant, which may be earlier."""

    fingerprint: str
    event: str
    written_at: float = Field(allow_inf_nan=False)
    state: SliceState
    fence: Number
    deaths: Number
    worker: str | None
    reason: str | None
    noted_batch: Number | None
    noted_sample: Number | None
    suspect_batch: Number | None
    samples: tuple[Sample, ...]

    @property
    def is_suspect(self) -> bool:
        """Whether its holder makes the slice's batches one at a time, each after a note."""
        return self.deaths > 0 or self.suspect_batch is not None


class SignOfLife(_Strict):
    """What a worker says of itself. `made` counts its batches by provenance."""

    worker: str
    host: str
    pid: int
    process_started: float
    device: str = ""
    started_at: float
    beat: int
    state: WorkerState
    samples_done: Number = 0
    samples_per_second: float = 0.0
    seconds_since_progress: float = 0.0
    note: str = ""
    made: dict[str, int] = Field(default_factory=dict)

    @property
    def identity(self) -> WorkerIdentity:
        """The process."""
        return WorkerIdentity(
            id=WorkerId(self.worker),
            host=self.host,
            pid=self.pid,
            process_started=self.process_started,
            device=self.device,
        )


class Agreement(_Strict):
    """How many images the network takes at once on a model of device, and what memory last sufficed for."""

    device_model: str
    micro_batch: Number
    shrunk_to: Number | None


class _Artifact(_Strict):
    name: str
    size_bytes: Number
    sha256: Sha256


class _ReceiptObject(_Strict):
    artifact: _Artifact
    receipt: dict[str, Any]
    details: dict[str, str]


def encoded(content: BaseModel, **more: object) -> bytes:
    """As it is written: sorted keys, no white space."""
    document = content.model_dump(mode="json") | more
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def version_bytes(version: Version) -> bytes:
    """As no two writers write it: whoever reads it back knows whether it is its own."""
    return encoded(version, nonce=secrets.token_hex(8))


def decoded(kind: type[Content], key: str, data: bytes | None) -> Content:
    """Read an object. Raises ManifestCorrupt for one that is gone, or none of ours."""
    hint = "put it back from a copy; if it is lost: shardgen rebuild RUN_DIR"
    if data is None:
        raise ManifestCorrupt(f"{key}: was listed but is gone", hint=hint)
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise ManifestCorrupt(f"{key}: is not what was written there", hint=hint) from error


def receipt_bytes(plan: Plan, receipt: Receipt) -> bytes:
    """A receipt, with what its dead letters say and without facts, which lie in the artifact."""
    record = replace(receipt.record, facts={})
    inside = ArtifactReceipt(
        shard=receipt.shard,
        slice=receipt.slice,
        worker=receipt.worker,
        fence=receipt.fence,
        fingerprint=plan.fingerprint_of(record.batch),
        batches=(record,),
    )
    artifact = receipt.artifact
    return encoded(
        _ReceiptObject(
            artifact=_Artifact(name=artifact.name, size_bytes=artifact.size_bytes, sha256=artifact.sha256),
            receipt=json.loads(receipt_json(inside)),
            details={str(one.sample): one.detail for one in record.dead_letters if one.detail},
        )
    )


def parse_receipt(plan: Plan, key: str, data: bytes | None, *, batch: BatchIndex, fence: Fence) -> Receipt:
    """Read a receipt back. Raises ManifestCorrupt when it is not one of this plan, batch and fence."""
    found = decoded(_ReceiptObject, key, data)
    text = json.dumps(found.receipt, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    again = f"shardgen requeue RUN_DIR --batch {batch}"
    try:
        inside = parse_receipt_json(text.encode())
    except ValueError as error:
        raise ManifestCorrupt(f"{key}: {error}", hint=again) from error
    record = inside.batches[0]
    named = record.batch, inside.fence, inside.fingerprint, len(inside.batches)
    if named != (batch, fence, plan.fingerprint_of(batch), 1):
        raise ManifestCorrupt(f"{key}: is of another plan, batch or fence", hint=again)
    letters = tuple(
        replace(one, detail=found.details.get(str(one.sample), "")) for one in record.dead_letters
    )
    return Receipt(
        shard=inside.shard,
        slice=inside.slice,
        fence=inside.fence,
        worker=inside.worker,
        artifact=ArtifactRef(
            name=found.artifact.name, size_bytes=found.artifact.size_bytes, sha256=found.artifact.sha256
        ),
        record=replace(record, dead_letters=letters),
    )


def load(
    connection: Connection, layout: Layout, slice_id: SliceId, version: Version | None, *, expires_at: float
) -> None:
    """Let a slice's row be what a version says, None: open; nothing of it is recorded here then."""
    drop(connection, slice_id)
    shard, slice_ = slice_id
    state = SliceState.OPEN if version is None else version.state
    row: dict[str, object] = {"fence": 0, "deaths": 0}
    if version is not None:
        row = version.model_dump(
            include={"fence", "deaths", "worker", "reason", "noted_batch", "noted_sample", "suspect_batch"}
        )
    row |= {
        "shard": shard,
        "slice": slice_,
        "state": state.value,
        "batches_left": len(layout.slice_batch_range(shard, slice_)),
        "expires_at": expires_at if state is SliceState.LEASED else None,
    }
    connection.execute(insert(SLICE), row)
    move(connection, shard, {state: 1}, next_slice=1)
    if version is not None and version.samples:
        rows = [one.model_dump(mode="json") | {"shard": shard, "slice": slice_} for one in version.samples]
        connection.execute(insert(SUSPECT_SAMPLE), rows)


def drop(connection: Connection, slice_id: SliceId) -> None:
    """Forget a slice's row, with all that hangs on it; of finished samples the view knows better."""
    shard, slice_ = slice_id
    same = (SLICE.c.shard == shard, SLICE.c.slice == slice_)
    receipts = (RECEIPT.c.shard == shard, RECEIPT.c.slice == slice_)
    suspects = (SUSPECT_SAMPLE.c.shard == shard, SUSPECT_SAMPLE.c.slice == slice_)
    connection.execute(delete(SUSPECT_SAMPLE).where(*suspects))
    batches = select(RECEIPT.c.batch).where(*receipts)
    connection.execute(delete(DEAD_LETTER).where(DEAD_LETTER.c.batch.in_(batches)))
    connection.execute(delete(RECEIPT).where(*receipts))
    state = connection.execute(select(SLICE.c.state).where(*same)).scalar_one_or_none()
    if state is not None:
        connection.execute(delete(SLICE).where(*same))
        move(connection, shard, {SliceState(state): -1}, next_slice=-1)


def dump(connection: Connection, plan: Plan, slice_id: SliceId, event: str, *, now: float) -> Version:
    """A slice's row as a version."""
    same = (SLICE.c.shard == slice_id[0], SLICE.c.slice == slice_id[1])
    row = connection.execute(select(SLICE).where(*same)).mappings().one()
    suspects = (SUSPECT_SAMPLE.c.shard == slice_id[0], SUSPECT_SAMPLE.c.slice == slice_id[1])
    samples = connection.execute(
        select(SUSPECT_SAMPLE).where(*suspects).order_by(SUSPECT_SAMPLE.c.sample)
    ).mappings()
    return Version.model_validate(
        dict(row)
        | {
            "fingerprint": plan.fingerprint,
            "event": event,
            "written_at": now,
            "samples": [dict(one) for one in samples],
        }
    )
