"""View: what one process knows of a run in a bucket from the names of its objects, and what follows."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from shardgen.artifacts.marks import parse_mark
from shardgen.artifacts.store import REQUEUED, is_mark
from shardgen.coordination.bucket import protocol
from shardgen.coordination.bucket.objects import ObjectMeta, Objects
from shardgen.coordination.bucket.protocol import ReceiptKey, VersionKey
from shardgen.coordination.bucket.rows import SignOfLife, Version, decoded
from shardgen.domain.claims import SliceId, Winners
from shardgen.domain.identifiers import BatchIndex, Fence, ShardIndex, SliceIndex
from shardgen.domain.plan import Plan
from shardgen.domain.slice_state import SliceState
from shardgen.errors import ManifestCorrupt

_LONG = 64  # done slices in a row that are passed over, not listed again


@dataclass(slots=True, kw_only=True)
class Sign:
    """A worker's sign of life: since when (monotonic) it has not changed, and when the store got it."""

    e_tag: str
    since: float
    modified: datetime


class BucketView:
    """One process's view; `look` brings it up to date, in pages, from the first slice on that is not done.

    Winners are known by their keys alone. Silence is measured by this process's own clock, from its first
    look on. Thread-safe.
    """

    def __init__(
        self, plan: Plan, objects: Objects, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.plan = plan
        self.latest: dict[SliceId, int] = {}
        self.notes: set[tuple[SliceId, int]] = set()
        self.signs: dict[str, Sign] = {}
        self.samples: Counter[ShardIndex] = Counter()  # of batches with a receipt
        self.dead: Counter[ShardIndex] = Counter()
        self.looked_at = float("-inf")
        self._race = Winners[ReceiptKey](batch=lambda one: one.batch, best=protocol.winner)
        self._objects = objects
        self._monotonic = monotonic
        self._seen_at: dict[SliceId, float] = {}
        self._versions: dict[SliceId, tuple[int, Version]] = {}
        self._said: dict[str, tuple[str, SignOfLife]] = {}
        self._recorded: Counter[SliceId] = Counter()
        self._stored_at: dict[BatchIndex, datetime] = {}  # of those that count or have counted
        self._done: set[SliceId] = set()
        self._heard_at = float("-inf")  # when signs of life were last listed
        self._marks: set[str] = set()
        self._lock = threading.RLock()

    # looking

    def look(self, *, anew: bool = False) -> None:
        """List what is new; `anew`: everything, so that of every batch the very highest fence is known."""
        with self._lock:
            self._look_for_marks()
            if anew:
                self._forget_receipts()
            self._look_for_signs()
            self._list(protocol.CLAIMS, self._take_version, protocol.slice_folder)
            self._list(protocol.RECEIPTS, self._take_receipt, self._first_receipt)
            self.looked_at = self._monotonic()

    def look_at(self, slice_id: SliceId) -> None:
        """List what a requeue has undone and one slice's receipts: after a claim, to know what is left."""
        with self._lock:
            self._look_for_marks()
            batches = self.plan.layout.slice_batch_range(*slice_id)
            stop = protocol.receipt_prefix(batches.stop)
            for page in self._objects.pages(protocol.RECEIPTS, after=self._first_receipt(slice_id)):
                for one in page:
                    self._take_receipt(one)
                if page and page[-1].key >= stop:
                    break

    def look_for_signs(self) -> None:
        """List the signs of life alone."""
        with self._lock:
            self._look_for_signs()

    def _look_for_signs(self) -> None:
        now = self._monotonic()  # before they are listed: of what comes later nothing is known
        for one in self._objects.listed(protocol.WORKERS):
            name = one.key.removeprefix(f"{protocol.WORKERS}/").removesuffix(".json")
            known = self.signs.get(name)
            if known is None:
                self.signs[name] = Sign(e_tag=one.e_tag, since=now, modified=one.modified)
                continue
            if known.e_tag != one.e_tag:
                known.e_tag, known.since, known.modified = one.e_tag, now, one.modified
        self._heard_at = now

    def _look_for_marks(self) -> None:
        """Read the marks that are new; what they undo makes all receipts compete again."""
        folder = f"{protocol.ARTIFACTS}/{REQUEUED}"
        listed = [
            one.key for one in self._objects.listed(folder) if is_mark(one.key.removeprefix(f"{folder}/"))
        ]
        found = [(key, self._objects.read(key)) for key in listed if key not in self._marks]
        marks = [(key, parse_mark(key, data)) for key, data in found if data is not None]
        for key, (fingerprint, fence, batches) in marks:
            self._marks.add(key)
            for batch in batches if fingerprint in self.plan.fingerprints else ():
                self._race.undo(batch, fence)
        if marks:
            self._forget_receipts()
            self._list(protocol.RECEIPTS, self._take_receipt, self._first_receipt)

    def _forget_receipts(self) -> None:
        self._race.again(())
        for counter in (self.samples, self.dead, self._recorded):
            counter.clear()
        self._done.clear()

    def _list(self, folder: str, take: Callable[[ObjectMeta], None], first: Callable[[SliceId], str]) -> None:
        """List a folder whose keys sort as slices do, passing over long stretches of done ones."""
        start = self._next_open(None)
        while start is not None:
            restart: SliceId | None = None
            is_cut = False
            for page in self._objects.pages(folder, after=first(start)):
                for one in page:
                    take(one)
                restart, is_cut = self._jump(page[-1].key, first)
                if is_cut:
                    break
            start = restart if is_cut else None

    def _jump(self, last: str, first: Callable[[SliceId], str]) -> tuple[SliceId | None, bool]:
        """Where to go on after this key, and whether that is far enough to ask anew."""
        if len(self._done) < _LONG:
            return None, False
        where = self._slice_of(last)
        if where is None or where not in self._done:
            return None, False
        following = self._next_open(where)
        if following is None:
            return None, True
        return following, first(following) > last and self._distance(where, following) > _LONG

    def _slice_of(self, key: str) -> SliceId | None:
        if (version := VersionKey.parse(key)) is not None:
            return version.slice_id
        if (receipt := ReceiptKey.parse(key)) is not None and receipt.batch < self.plan.layout.batch_count:
            return self._place(receipt.batch)
        return None

    def _distance(self, start: SliceId | None, stop: SliceId) -> int:
        if start is None:
            return 0
        layout = self.plan.layout
        between = sum(layout.slice_count(ShardIndex(shard)) for shard in range(start[0], stop[0]))
        return between + stop[1] - start[1]

    def _next_open(self, after: SliceId | None) -> SliceId | None:
        return next((one for one in self.slices(after=after) if one not in self._done), None)

    def _first_receipt(self, slice_id: SliceId) -> str:
        return protocol.receipt_prefix(self.plan.layout.slice_batch_range(*slice_id).start)

    def _take_version(self, one: ObjectMeta) -> None:
        key = VersionKey.parse(one.key)
        if key is not None and key.is_note:
            self.notes.add((key.slice_id, key.number))
        elif key is not None:
            self.note_version(key.slice_id, key.number)

    def note_version(self, slice_id: SliceId, number: int) -> None:
        """A version is there."""
        with self._lock:
            if number > self.latest.get(slice_id, 0):
                self.latest[slice_id] = number
                self._seen_at[slice_id] = self._monotonic()

    def _take_receipt(self, one: ObjectMeta) -> None:
        key = ReceiptKey.parse(one.key)
        if key is not None and key.batch < self.plan.layout.batch_count:
            self.take(key, one.modified)

    def take(self, key: ReceiptKey, stored_at: datetime) -> None:
        """A receipt is there: let it count if it does."""
        with self._lock:
            before = self.winners.get(key.batch)
            if not self._race.offer(key):
                return
            self._stored_at[key.batch] = stored_at
            shard, slice_ = slice_id = self._place(key.batch)
            self.dead[shard] += key.dead - (0 if before is None else before.dead)
            if before is None:
                self.samples[shard] += len(self.plan.layout.batch_samples(key.batch))
                self._recorded[slice_id] += 1
                if self._recorded[slice_id] == len(self.plan.layout.slice_batch_range(shard, slice_)):
                    self._done.add(slice_id)

    def _place(self, batch: BatchIndex) -> SliceId:
        return self.plan.layout.shard_of_batch(batch), self.plan.layout.slice_of_batch(batch)

    # what follows

    @property
    def winners(self) -> Mapping[BatchIndex, ReceiptKey]:
        """Of each batch the receipt that counts."""
        return self._race.of

    def recorded(self) -> list[tuple[ReceiptKey, datetime]]:
        """The receipts that count, and when the store got each, by its clock."""
        with self._lock:
            return [(one, self._stored_at[one.batch]) for one in self.winners.values()]

    def batches_done(self, slice_id: SliceId) -> int:
        """How many batches of a slice have a receipt that counts."""
        return self._recorded[slice_id]

    @property
    def undone(self) -> Mapping[BatchIndex, Fence]:
        """Up to which fence attempts at a batch do not count."""
        return self._race.undone

    def sign_of(self, name: str, *, anew: bool = True) -> SignOfLife | None:
        """What a worker says of itself: read again if it has changed, or not if `anew` is false."""
        sign = self.signs.get(name)
        if sign is None or not sign.e_tag:
            return None
        known = self._said.get(name)
        if known is None or (anew and known[0] != sign.e_tag):
            key = sign_key(name)
            data = self._objects.read(key)
            try:
                known = self._said[name] = sign.e_tag, decoded(SignOfLife, key, data)
            except ManifestCorrupt:  # nothing depends on it
                return None
        return known[1]

    def slices(self, shard: ShardIndex | None = None, *, after: SliceId | None = None) -> Iterator[SliceId]:
        """Every slice of the plan, or of one shard, or those behind one."""
        layout = self.plan.layout
        first = 0 if after is None else after[0]
        for one in map(ShardIndex, range(first, layout.shard_count) if shard is None else [shard]):
            start = after[1] + 1 if after is not None and one == after[0] else 0
            for slice_ in range(start, layout.slice_count(one)):
                yield one, SliceIndex(slice_)

    def is_done(self, slice_id: SliceId) -> bool:
        """Whether every batch of it has a receipt that counts."""
        return slice_id in self._done

    def version(self, slice_id: SliceId) -> Version | None:
        """The latest version of a slice's row, read once; None when it has none."""
        return self.numbered(slice_id)[1]

    def numbered(self, slice_id: SliceId) -> tuple[int, Version | None]:
        """The same, and its number; 0 when there is none."""
        number = self.latest.get(slice_id, 0)
        if not number:
            return 0, None
        known = self._versions.get(slice_id)
        if known is None or known[0] != number:
            key = str(VersionKey(slice_id=slice_id, number=number))
            found = self._objects.read(key)
            known = number, decoded(Version, key, found)
            self._versions[slice_id] = known
        return known

    def begun(self) -> list[SliceId]:
        """The slices that have a version and are not done, in order."""
        return sorted(one for one in self.latest if one not in self._done)

    def is_silent(self, slice_id: SliceId, worker: str, seconds: float) -> bool:
        """Whether so long after this process first saw the claim of a slice nothing was heard of its holder.

        The first look never tells: by the clocks of others nothing is decided. Nor does time since the last
        listing of signs of life: a slow look, or a stop of this process, must not make others look silent.
        """
        heard = self._seen_at.get(slice_id)
        if heard is None:
            return False
        sign = self.signs.get(worker)
        return self._heard_at - max(heard, heard if sign is None else sign.since) >= seconds

    def note_sign(self, name: str, said: SignOfLife, e_tag: str, *, now: datetime) -> None:
        """A worker of this process has just written this sign of life; that waits for no look."""
        self.signs[name] = Sign(e_tag=e_tag, since=self._monotonic(), modified=now)
        self._said[name] = e_tag, said

    def note_created(self, slice_id: SliceId, number: int, version: Version) -> None:
        """This process has created a version."""
        with self._lock:
            self.note_version(slice_id, number)
            if self.latest[slice_id] == number:
                self._versions[slice_id] = number, version

    def is_noted(self, slice_id: SliceId, fence: int) -> bool:
        """Whether the holder of this grant must note its progress: the slice is suspect, or it has noted."""
        known = self._versions.get(slice_id)
        is_suspect = known is not None and known[0] == fence and known[1].is_suspect
        return is_suspect or (slice_id, fence) in self.notes

    def note_life(self, slice_id: SliceId) -> None:
        """This process holds a slice, and has just shown life."""
        self._seen_at[slice_id] = self._monotonic()

    def holders(self) -> Iterator[tuple[SliceId, Version]]:
        """The slices whose latest version is a grant, and that are not done."""
        for slice_id in self.begun():
            version = self.version(slice_id)
            if version is not None and version.state is SliceState.LEASED:
                yield slice_id, version


def sign_key(name: str) -> str:
    """Where a worker's sign of life lies."""
    return f"{protocol.WORKERS}/{name}.json"
