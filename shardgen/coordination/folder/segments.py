"""Publish: batches that were made on this machine's disk become segments in a shared folder."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import groupby

from shardgen.artifacts.archive import BatchContent, build_artifact, member_bytes, read_whole
from shardgen.artifacts.names import ArtifactName
from shardgen.artifacts.store import ArtifactReader
from shardgen.coordination.base import OnLook, unheard
from shardgen.coordination.folder.notices import WORKERS, SegmentRef
from shardgen.coordination.folder.view import FolderView
from shardgen.domain.claims import FolderPolicy, SliceId, counts
from shardgen.domain.identifiers import BatchIndex
from shardgen.domain.receipt import ArtifactRef, Receipt
from shardgen.manifest.manifest import Manifest

_LOCK_LOOK_SECONDS = 1.0
_PUBLISHING = "publishing what is made"

Alone = Callable[[OnLook | None], AbstractContextManager[bool]]
"""Keeps this machine's other processes from publishing; tells whether it does.

It waits if it is given whom to tell so at each look, until TimeoutError.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """What one process needs to publish: its view, this machine's manifest and its checkpoints.

    Only one process of a machine publishes at a time: `alone` is held meanwhile, or nothing is done.
    `on_look` is told what the worker's thread waits for, at every look: no such wait is a hang.
    """

    view: FolderView
    manifest: Manifest
    checkpoints: ArtifactReader
    own_folder: str
    policy: FolderPolicy
    monotonic: Callable[[], float] = time.monotonic
    alone: Alone | None = None
    on_look: OnLook = unheard


class Publisher:
    """Packs what waits: a full segment at once, the rest after a while. Thread-safe."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.published: dict[SliceId, list[SegmentRef]] = {}
        self._waiting_since: dict[BatchIndex, float] = {}
        self._lock = threading.Lock()
        self._steps = 0  # of whichever thread publishes

    def publish(self, *, everything: bool = False, on_look: OnLook = unheard) -> int:
        """Publish what is due; returns how many batches. OSError: the rest waits for the next time.

        `on_look` is called with each file that is written, by whichever thread, and while another process
        of this machine publishes; but not while a file is being written: that may be a hang.
        """
        on_look(_PUBLISHING)
        self._acquire(on_look)
        try:
            if self.desk.alone is None:
                return self._publish(everything=everything, on_look=on_look)
            with self.desk.alone(on_look if everything else None) as is_alone:
                return self._publish(everything=everything, on_look=on_look) if is_alone else 0
        finally:
            self._lock.release()

    def _acquire(self, on_look: OnLook) -> None:
        seen = self._steps
        while not self._lock.acquire(timeout=_LOCK_LOOK_SECONDS):
            if self._steps != seen:  # the other thread's publishing goes on
                seen = self._steps
                on_look(_PUBLISHING)

    def _publish(self, *, everything: bool, on_look: OnLook) -> int:
        desk = self.desk
        now = desk.monotonic()
        waiting = desk.manifest.index.unpublished()
        self._waiting_since = {batch: self._waiting_since.get(batch, now) for batch in waiting}
        count = 0
        for run in self._segments(waiting):
            oldest = min(self._waiting_since[BatchIndex(batch)] for batch in run)
            is_due = (
                len(run) >= desk.policy.segment_batches or now - oldest >= desk.policy.segment.total_seconds()
            )
            if everything or is_due:
                count += self._publish_run(run, on_look)
        return count

    def _segments(self, waiting: Sequence[BatchIndex]) -> Iterator[range]:
        """Consecutive batches of one slice, at most a segment's worth."""
        layout, most = self.desk.view.plan.layout, self.desk.policy.segment_batches
        start = 0
        while start < len(waiting):
            stop = start + 1
            slice_ = layout.shard_of_batch(waiting[start]), layout.slice_of_batch(waiting[start])
            while (
                stop < len(waiting)
                and stop - start < most
                and waiting[stop] == waiting[stop - 1] + 1
                and (layout.shard_of_batch(waiting[stop]), layout.slice_of_batch(waiting[stop])) == slice_
            ):
                stop += 1
            yield range(waiting[start], waiting[stop - 1] + 1)
            start = stop

    def _publish_run(self, run: range, on_look: OnLook) -> int:
        """Publish these batches, in one segment for each attempt that they come from."""
        undone = self.desk.view.undone
        receipts = [
            one
            for one in self.desk.manifest.receipts.receipts_of(run)
            if counts(one.fence, undone.get(one.record.batch))
        ]
        count = 0
        for _, group in groupby(receipts, lambda one: (one.worker, one.fence)):
            attempt = list(group)
            winners = self.desk.view.winners
            wanted = [one for one in attempt if one.record.batch not in winners]
            for batch in [one.record.batch for one in attempt if one.record.batch in winners]:
                # Another attempt has won already: it is what this machine's receipt names from now on.
                self.desk.manifest.index.note_published([batch], winners[batch].artifact)
            for part in _consecutive(wanted):
                self._write(part)
                self._steps += 1
                on_look(_PUBLISHING)
                count += len(part)
        return count

    def _write(self, receipts: Sequence[Receipt]) -> None:
        view, first = self.desk.view, receipts[0]
        contents = [self._content(receipt) for receipt in receipts]
        data, _ = build_artifact(view.plan.fingerprint_of(first.record.batch), first, contents)
        name = ArtifactName.of(first, range(first.record.batch, receipts[-1].record.batch + 1))
        path = f"{WORKERS}/{self.desk.own_folder}/{name}"
        view.files.write(path, data)
        # Read again: only what is whole there is published. What is not goes there under another name.
        if view.take_segment(path, name, view.files.read(path)) is None:
            raise OSError(None, f"{path}: not what was written")
        ref = ArtifactRef(name=path, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        self.desk.manifest.index.note_published([receipt.record.batch for receipt in receipts], ref)
        found = SegmentRef(path=path, size_bytes=ref.size_bytes, sha256=ref.sha256)
        self.published.setdefault((first.shard, first.slice), []).append(found)

    def _content(self, receipt: Receipt) -> BatchContent:
        """A checkpoint's batch, its images as they were made."""
        ref, record = receipt.artifact, receipt.record
        data = self.desk.checkpoints.read(ref)
        fingerprint = self.desk.view.plan.fingerprint_of(record.batch)
        entries, inside = read_whole(data, name=ref.name, fingerprint=fingerprint)
        start, stop = member_bytes(entries, record)
        members = [
            (entry.name, data[entry.data_offset : entry.stop])
            for entry in entries
            if start <= entry.offset < stop
        ]
        return BatchContent(
            batch=record.batch,
            members=members,
            sums=record.sums,
            dead_letters=record.dead_letters,
            provenance=record.provenance,
            facts=next(one.facts for one in inside.batches if one.batch == record.batch),
        )


def _consecutive(receipts: Sequence[Receipt]) -> Iterator[list[Receipt]]:
    part: list[Receipt] = []
    for receipt in receipts:
        if part and receipt.record.batch != part[-1].record.batch + 1:
            yield part
            part = []
        part.append(receipt)
    if part:
        yield part
