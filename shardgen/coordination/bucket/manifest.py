"""The manifest of a run in a bucket: what a database decides in one transaction, decided by versions of rows.

A change of a slice's row is made by the same SQL as in a database, on a copy of the row in a small SQLite
file of this process. What comes of it becomes the row's next version in the bucket, unless another process
was quicker; then it never happened here either.
"""

from __future__ import annotations

import hashlib
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
from shardgen.domain.overview import BlockedSlice, Overview, ShardState, SliceCounts
from shardgen.domain.plan import Plan
from shardgen.domain.receipt import Provenance
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
        if session.monotonic() - view.looked_at >= min(_LOOK_SECONDS, session.beat_seconds):
            view.look()
        now = session.now()
        session.read_ahead(None)
        signs = session.all_signs()
        places: dict[str, SliceId] = {}
        counts: dict[ShardIndex, Counter[str]] = {}
        blocked: list[BlockedSlice] = []
        for slice_id in view.slices():
            state, version = self._state(slice_id, now, signs)
            counts.setdefault(slice_id[0], Counter())[state] += 1
            if version is None:
                continue
            if version.state is SliceState.BLOCKED and len(blocked) < BLOCKED_LISTED:
                blocked.append(
                    BlockedSlice(shard=slice_id[0], slice=slice_id[1], reason=version.reason or "")
                )
            elif version.state is SliceState.LEASED and version.worker is not None:
                places[version.worker] = slice_id
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
                    slices=SliceCounts(
                        **{name: counts[shard][name] for name in SliceCounts.__dataclass_fields__}
                    ),
                )
                for shard in map(ShardIndex, range(session.layout.shard_count))
            ),
            blocked=tuple(blocked),
            workers=self._worker_rows(signs, places, now),
            mixture=tuple((Provenance(text=text), count) for text, count in made.most_common()),
        )

    def _state(
        self, slice_id: SliceId, now: datetime, signs: dict[str, SignOfLife]
    ) -> tuple[str, Version | None]:
        """A slice's state for people, and its latest version if it is not done."""
        view = self._session.view
        if view.is_done(slice_id):
            return SliceState.DONE.value, None
        version = view.version(slice_id)
        if version is None:
            return "never_leased", None
        if version.state is not SliceState.LEASED:
            return version.state.value, version
        name = file_name(version.worker or "")
        sign, said = view.signs.get(name), signs.get(name)
        is_live = (
            sign is not None
            and said is not None
            and said.state not in ENDED_STATES
            and not gone([said.identity])
            and (now - sign.modified).total_seconds() < self._session.silent_seconds
        )
        return (SliceState.LEASED.value if is_live else "expired"), version

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
