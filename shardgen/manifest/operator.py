"""What an operator does to a manifest: check it, repair it, undo, unblock."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

from sqlalchemy import Connection

from shardgen.domain.identifiers import BatchIndex, Fence
from shardgen.manifest import consistency, leases, lookups, receipts
from shardgen.manifest.backend import Body, Damage
from shardgen.manifest.consistency import Audit, Contradiction
from shardgen.manifest.session import Part

Marks = dict[Fence, list[BatchIndex]]


class Operator(Part):
    """Whether a manifest can be believed, and what an operator undoes in it."""

    @property
    def shown(self) -> str:
        """For messages: the file, or the server and the database."""
        return self.session.database.shown

    def damage(self, *, seconds: float) -> Damage:
        """What the database finds wrong with its own file, in so many seconds at most."""
        return self.session.database.damage(seconds=seconds)

    def audit(self, *, seconds: float | None = None) -> Audit:
        """Compare counters, slices, receipts, dead letters and the plan; ends early when the time is over."""
        layout = self.session.layout
        looks: list[Body[list[Contradiction]]] = [
            lambda connection: consistency.find_strays(connection, layout),
            *(
                partial(consistency.find_contradictions, layout=layout, shards=page)
                for page in consistency.pages(layout)
            ),
            lambda connection: consistency.find_miscounted_provenances(connection, layout, refuse_late),
        ]
        began = time.monotonic()

        def refuse_late() -> None:
            if seconds is not None and time.monotonic() - began > seconds:
                raise TimeoutError

        found: list[Contradiction] = []
        try:
            for look in looks:
                refuse_late()
                found += self.session.read(look)
        except TimeoutError:
            return Audit(contradictions=tuple(found), is_complete=False)
        return Audit(contradictions=tuple(found))

    def refuse_contradictions(self, *, seconds: float | None = None) -> None:
        """Raise ManifestCorrupt when its records contradict each other or the plan."""
        self.audit(seconds=seconds).refuse(self.shown)

    def mend(self) -> int:
        """Make counters and slices what the receipts say; the plan's alone stay. Returns how many were wrong.

        Workers may be at work. Shard by shard: after a death in between it is done again.
        """
        layout = self.session.layout
        steps: list[Body[int]] = [
            partial(consistency.remove_stray_receipts, layout=layout),
            *(partial(consistency.mend, layout=layout, shards=page) for page in consistency.pages(layout)),
            partial(consistency.remove_stray_shards, layout=layout),
            partial(consistency.recount_provenances, layout=layout),
        ]

        def under_the_plan(connection: Connection, step: Body[int]) -> int:
            self.session.hold_plan(connection)  # by another one, what it has planned would look stray
            return step(connection)

        return sum(self.session.write(partial(under_the_plan, step=step)) for step in steps)

    def undo_receipts(self, batches: Sequence[BatchIndex], *, mark: Callable[[Marks], None]) -> int:
        """Delete these receipts; their batches are pending again. Returns how many there were.

        `mark` is called with the batches by the fence up to which attempts at them do not count. What it
        writes must be durable when it returns: it runs inside the transaction, after the last check and
        before any change. So there is no change without its mark; a death in between, or a commit that fails,
        leaves a mark without its change. A slice whose holder has expired is taken from it. Raises
        ManifestBusy while a worker holds one of them.
        """

        def undo(connection: Connection) -> int:
            now = self.session.now(connection)
            marks: Marks = {}
            for batch in sorted(batches):  # everybody locks slices in their order
                layout = self.session.layout
                shard, slice_ = layout.shard_of_batch(batch), layout.slice_of_batch(batch)
                fence = leases.fence_of_unheld_slice(connection, shard, slice_, now=now)
                marks.setdefault(fence, []).append(batch)
            mark(marks)
            return receipts.delete_receipts(connection, self.session.layout, batches)

        return self.session.write(
            undo, lambda connection, count: count > 0 and not receipts.recorded_among(connection, batches)
        )

    def unblock(self) -> int:
        """Open every blocked slice again, its deaths forgotten. Returns how many."""
        return self.session.write(leases.unblock, lookups.are_unblocked)
