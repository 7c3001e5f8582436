"""What an operator does to a run in a bucket: undo receipts, open blocked slices, restore what was lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from sqlalchemy import Connection

from shardgen.artifacts.store import ArtifactReader
from shardgen.coordination.bucket import protocol
from shardgen.coordination.bucket.protocol import ReceiptKey
from shardgen.coordination.bucket.rows import FAR, Version, load, parse_receipt, receipt_bytes
from shardgen.coordination.bucket.session import BucketSession
from shardgen.domain.claims import SliceId
from shardgen.domain.identifiers import BatchIndex, Fence
from shardgen.domain.receipt import Receipt
from shardgen.domain.slice_state import Event, SliceState
from shardgen.domain.worker import ENDED_STATES, file_name
from shardgen.errors import CorruptionError, ManifestBusy, ManifestCorrupt
from shardgen.machine.processes import gone as processes_gone
from shardgen.manifest.backend import Damage
from shardgen.manifest.consistency import Audit
from shardgen.manifest.leases import unblock as unblock_all
from shardgen.manifest.operator import Marks
from shardgen.manifest.slices import lock_slice, to_seconds, transition


class BucketOperator:
    """What an operator undoes: versions of rows, then a mark."""

    def __init__(self, session: BucketSession) -> None:
        self._session = session

    @property
    def shown(self) -> str:
        """The url."""
        return self._session.objects.shown

    def damage(self, *, seconds: float) -> Damage:
        """A store watches its own bytes."""
        del seconds
        return Damage(is_looked_for=False)

    def audit(self, *, seconds: float | None = None) -> Audit:
        """There are no counters that could contradict anything."""
        del seconds
        return Audit(contradictions=())

    def refuse_contradictions(self, *, seconds: float | None = None) -> None:
        """There are none."""

    def mend(self) -> int:
        """There is nothing to put right."""
        return 0

    def undo_receipts(self, batches: Sequence[BatchIndex], *, mark: Callable[[Marks], None]) -> int:
        """Undo these batches' receipts: a new version of each slice, then the mark. How many there were.

        The version comes first: whoever claims after it has a higher fence than the mark undoes. A death in
        between leaves a slice that is free, and nothing undone. Raises ManifestBusy while a worker holds one
        of the slices.
        """
        session = self._session
        session.view.look(anew=True)  # of slices that are done, too, the latest version
        recorded = [batch for batch in sorted(batches) if batch in session.view.winners]
        places = {
            batch: (session.layout.shard_of_batch(batch), session.layout.slice_of_batch(batch))
            for batch in recorded
        }
        fences: dict[SliceId, Fence] = {}
        for slice_id in sorted(set(places.values())):
            self._refuse_live(slice_id)
        for slice_id in sorted(set(places.values())):
            fences[slice_id] = self._fence_off(slice_id)
        marks: Marks = {}
        for batch in recorded:
            marks.setdefault(fences[places[batch]], []).append(batch)
        if marks:
            mark(marks)
            session.view.look()
        return len(recorded)

    def _refuse_live(self, slice_id: SliceId) -> None:
        """Raise ManifestBusy when a worker seems to hold a slice that is not done: by the store's clock."""
        session, view = self._session, self._session.view
        version = view.version(slice_id)
        if view.is_done(slice_id) or version is None or version.state is not SliceState.LEASED:
            return
        worker = version.worker or ""
        shown, sign = view.signs.get(file_name(worker)), view.sign_of(file_name(worker))
        if sign is not None and (sign.state in ENDED_STATES or processes_gone([sign.identity])):
            return
        last = version.written_at if shown is None else to_seconds(shown.modified)
        age = to_seconds(session.store_now()) - last
        if age < session.silent_seconds:
            raise ManifestBusy(
                f"shard {slice_id[0]} slice {slice_id[1]}: worker {worker} holds it, with a sign of life "
                f"{max(0.0, age):.0f} s ago",
                hint="stop that worker (or wait until it has finished the slice), then run the command again",
            )

    def _fence_off(self, slice_id: SliceId) -> Fence:
        session = self._session
        seen, row = session.row(slice_id)
        number = protocol.next_version(seen)

        def withdraw(connection: Connection) -> None:
            load(connection, session.layout, slice_id, row, expires_at=FAR)
            if row is not None and row.state is SliceState.LEASED:
                transition(connection, Event.WITHDRAW, lock_slice(connection, *slice_id))

        if session.change(slice_id, number, Event.UNDO, withdraw) is None:
            raise ManifestBusy(
                f"shard {slice_id[0]} slice {slice_id[1]}: a worker has just claimed it",
                hint="wait until it has finished the slice, then run the command again",
            )
        return Fence(number)

    def unblock(self) -> int:
        """Open every blocked slice again, its deaths forgotten. Returns how many."""
        session = self._session
        session.view.look()
        opened = 0
        for slice_id in session.view.begun():
            seen, row = session.row(slice_id)
            if row is None or row.state is not SliceState.BLOCKED:
                continue

            def unblock(connection: Connection, slice_id: SliceId = slice_id, row: Version = row) -> int:
                load(connection, session.layout, slice_id, row, expires_at=FAR)
                return unblock_all(connection)

            number = protocol.next_version(seen)
            opened += session.change(slice_id, number, Event.UNBLOCK, unblock) is not None
        return opened

    def restore(self, receipts: Iterable[Receipt], store: ArtifactReader) -> None:
        """Let whole artifacts have their receipts, and no other receipt outrank those; twice is harmless.

        Workers may be at work: a receipt is removed only if what it names is read now and is not whole. Of a
        slice whose row is damaged another version says that it is open.
        """
        session = self._session
        session.view.look(anew=True)
        whole = {receipt.record.batch: receipt for receipt in receipts}
        for batch, key in sorted(session.view.winners.items()):
            if (found := whole.get(batch)) is None or found.fence < key.fence:
                self._remove_unless_whole(key, store)
        for batch, receipt in whole.items():
            key = ReceiptKey(batch=batch, fence=receipt.fence, dead=len(receipt.record.dead_letters))
            if session.view.winners.get(batch) != key:
                session.objects.create(str(key), receipt_bytes(session.plan, receipt))
        for slice_id in session.view.begun():
            try:
                session.row(slice_id)
            except ManifestCorrupt:
                self._reopen(slice_id)

    def _remove_unless_whole(self, key: ReceiptKey, store: ArtifactReader) -> None:
        session = self._session
        try:
            data = session.objects.read(str(key))
            store.read(parse_receipt(session.plan, str(key), data, batch=key.batch, fence=key.fence).artifact)
        except (ManifestCorrupt, CorruptionError):
            session.objects.remove([str(key)])

    def _reopen(self, slice_id: SliceId) -> None:
        session = self._session
        number = protocol.next_version(session.view.latest[slice_id])
        session.change(
            slice_id,
            number,
            Event.RESTORE,
            lambda connection: load(connection, session.layout, slice_id, None, expires_at=FAR),
        )
