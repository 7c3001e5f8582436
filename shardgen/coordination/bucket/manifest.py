"""The manifest of a run in a bucket: versions of rows decide what a database decides in a transaction.

A change of a slice's row is made by the same SQL as in a database, on a copy of the row in a small SQLite
file of this process. What comes of it becomes the row's next version in the bucket, unless another process
was quicker; then it never happened here either.
"""

from __future__ import annotations

import hashlib
import heapq
import os
import shutil
import tempfile
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from shardgen.coordination.bucket.leases import BucketLeases
from shardgen.coordination.bucket.objects import Objects
from shardgen.coordination.bucket.operator import BucketOperator
from shardgen.coordination.bucket.protocol import ReceiptKey
from shardgen.coordination.bucket.records import (
    BucketFolder,
    BucketMicroBatches,
    BucketReceipts,
    BucketSuspicions,
    BucketWorkers,
)
from shardgen.coordination.bucket.rows import SignOfLife, Version
from shardgen.coordination.bucket.session import BucketSession
from shardgen.domain.claims import SliceId
from shardgen.domain.identifiers import ShardIndex
from shardgen.domain.lease import LeasePolicy
from shardgen.domain.overview import (
    BlockedSlice,
    Details,
    Overview,
    ShardState,
    ShownSlice,
    count_by_minute,
    count_slices,
    group_letters,
)
from shardgen.domain.plan import Plan
from shardgen.domain.receipt import Provenance, Receipt
from shardgen.domain.slice_state import SliceState
from shardgen.domain.worker import ENDED_STATES, LISTED_AFTER_END, WorkerRow, file_name
from shardgen.machine.processes import gone, host_id, is_running, process_start
from shardgen.manifest.database_url import DatabaseUrl
from shardgen.manifest.manifest import Manifest, create_manifest
from shardgen.manifest.overview import BLOCKED_LISTED
from shardgen.manifest.session import Clock
from shardgen.manifest.slices import to_seconds

_SCRATCH = "shardgen-rows-"
_LOOK_SECONDS = 10.0  # between two looks of whoever asks for the state again and again; each is four listings


class BucketManifest:
    """The manifest of a run in a bucket. Thread-safe; never carried over a fork. Close it."""

    def __init__(
        self, objects: Objects, plan: Plan, *, clock: Clock | None = None, policy: LeasePolicy | None = None
    ) -> None:
        self._scratch = _new_scratch()
        try:
            url = DatabaseUrl(url="sqlite:///rows.sqlite", run_dir=Path(self._scratch.name))
            create_manifest(url, plan)
            self._rows = Manifest(url, plan, clock=clock)
        except BaseException:
            self._scratch.cleanup()
            raise
        self._session = session = BucketSession(plan, objects, self._rows, clock)
        if policy is not None:
            session.beat_seconds = policy.heartbeat.total_seconds()
            session.silent_seconds = policy.duration.total_seconds()
        self.objects = objects
        self.workers = BucketWorkers(session)
        self.micro_batches = BucketMicroBatches(session)
        self.folder = BucketFolder(session)
        self.leases = BucketLeases(session)
        self.suspicion = BucketSuspicions(session)
        self.receipts = BucketReceipts(session)
        self.operator = BucketOperator(session)
        self._receipts_read: dict[ReceiptKey, Receipt] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove this process's copies."""
        self._rows.close()
        self._scratch.cleanup()

    @property
    def shown(self) -> str:
        """The url."""
        return self.objects.shown

    def now(self) -> datetime:
        """This machine's clock: only shown, and never what a lease ends by."""
        return self._session.now()

    def overview(self) -> Overview:
        """The state of the run, in O(shards + workers) objects and the pages of names."""
        session, view = self._session, self._session.view
        self._look()
        now = session.now()
        signs = session.all_signs()
        slices = self._slices(now, signs)
        counts = count_slices(slices)
        blocked = [
            BlockedSlice(shard=one.shard, slice=one.slice, reason=version.reason or "")
            for one in slices
            if one.state == SliceState.BLOCKED and (version := view.version((one.shard, one.slice)))
        ]
        places = {one.worker: (one.shard, one.slice) for one in slices if one.worker}
        made: Counter[str] = Counter()
        for sign in signs.values():
            made.update(sign.made)
        return Overview(
            fingerprint=session.plan.fingerprint,
            taken_at=now,
            shards=tuple(
                ShardState(
                    shard=shard,
                    stored=view.samples[shard] - view.dead[shard],
                    dead=view.dead[shard],
                    slices=counts[shard],
                )
                for shard in map(ShardIndex, range(session.layout.shard_count))
            ),
            blocked=tuple(blocked[:BLOCKED_LISTED]),
            workers=self._worker_rows(signs, places, now),
            mixture=tuple((Provenance(text=text), count) for text, count in made.most_common()),
        )

    def details(self, *, newest: int) -> Details:
        """What else a person wants to see; reads these receipts and those with dead letters, each once."""
        session, layout = self._session, self._session.layout
        self._look()
        recorded = session.view.recorded()
        last = heapq.nlargest(newest, recorded, key=lambda one: (one[1], one[0].batch))
        letters = [key for key, _ in recorded if key.dead]
        self._read({*letters, *(key for key, _ in last)})
        return Details(
            slices=tuple(self._slices(session.now(), session.all_signs())),
            pace=count_by_minute(
                (stored_at, len(layout.batch_samples(key.batch)) - key.dead) for key, stored_at in recorded
            ),
            last_stored_at=max((stored_at for _, stored_at in recorded), default=None),
            newest=tuple(self._receipts_read[key] for key, _ in last),
            dead_letters=group_letters(
                letter for key in letters for letter in self._receipts_read[key].record.dead_letters
            ),
        )

    def _look(self) -> None:
        """Look at what is new, unless that was done a moment ago, and read what it names."""
        if self.is_look_due:
            self._session.view.look()
        self._session.read_ahead(None)

    @property
    def is_look_due(self) -> bool:
        """Whether whoever asks for the state now is told what is in the bucket, not what was seen last."""
        session = self._session
        return session.monotonic() - session.view.looked_at >= min(_LOOK_SECONDS, session.beat_seconds)

    def _read(self, keys: set[ReceiptKey]) -> None:
        """Let exactly these receipts be known here."""
        known = {key: receipt for key, receipt in self._receipts_read.items() if key in keys}
        new = sorted(keys - known.keys(), key=lambda one: one.batch)
        known.update(zip(new, self._session.read_receipts(new), strict=True))
        self._receipts_read = known

    def _slices(self, now: datetime, signs: dict[str, SignOfLife]) -> list[ShownSlice]:
        view = self._session.view
        found = []
        for slice_id in view.slices():
            version = None if view.is_done(slice_id) else view.version(slice_id)
            found.append(
                ShownSlice(
                    shard=slice_id[0],
                    slice=slice_id[1],
                    state=self._state(slice_id, version, now, signs),
                    batches=len(view.plan.layout.slice_batch_range(*slice_id)),
                    batches_done=view.batches_done(slice_id),
                    worker=version.worker or "" if version and version.state is SliceState.LEASED else "",
                )
            )
        return found

    def _state(
        self, slice_id: SliceId, version: Version | None, now: datetime, signs: dict[str, SignOfLife]
    ) -> str:
        """A slice's state for people; by its latest version, if it is not done."""
        view = self._session.view
        if version is None:
            return SliceState.DONE.value if view.is_done(slice_id) else "never_leased"
        if version.state is not SliceState.LEASED:
            return version.state.value
        name = file_name(version.worker or "")
        sign, said = view.signs.get(name), signs.get(name)
        is_live = (
            sign is not None
            and said is not None
            and said.state not in ENDED_STATES
            and not gone([said.identity])
            and (now - sign.modified).total_seconds() < self._session.silent_seconds
        )
        return SliceState.LEASED.value if is_live else "expired"

    def _worker_rows(
        self, signs: dict[str, SignOfLife], places: dict[str, SliceId], now: datetime
    ) -> tuple[WorkerRow, ...]:
        rows = []
        for name, sign in signs.items():
            modified = self._session.view.signs[name].modified
            shard, slice_ = places.get(sign.worker, (None, None))
            if shard is None and now - modified > LISTED_AFTER_END:
                continue
            progress = to_seconds(modified) - sign.seconds_since_progress
            rows.append(
                WorkerRow(
                    identity=sign.identity,
                    state=sign.state,
                    shard=shard,
                    slice=slice_,
                    lease_expires_at=None,
                    started_at=datetime.fromtimestamp(sign.started_at, UTC),
                    last_beat_at=modified,
                    last_progress_at=datetime.fromtimestamp(progress, UTC),
                    samples_done=sign.samples_done,
                    samples_per_second=sign.samples_per_second,
                    note=sign.note,
                )
            )
        return tuple(sorted(rows, key=lambda row: (row.started_at, row.identity.id)))


def _new_scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for this process's copies; those of killed processes of this host go."""
    host = hashlib.sha256(host_id().encode()).hexdigest()[:8]  # others may share the folder, not the pids
    for path in Path(tempfile.gettempdir()).glob(f"{_SCRATCH}{host}-*"):
        pid, _, started = path.name.removeprefix(f"{_SCRATCH}{host}-").partition("-")
        with suppress(ValueError):
            if not is_running(int(pid), float(started.partition("-")[0])):
                shutil.rmtree(path, ignore_errors=True)
    mine = f"{_SCRATCH}{host}-{os.getpid()}-{process_start(os.getpid())}-"
    return tempfile.TemporaryDirectory(prefix=mine, ignore_cleanup_errors=True)
