"""View: what one machine can see of a run in a shared folder, and what follows from it.

What was seen once stays known: there, "not found" is no proof of absence.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from shardgen.artifacts.check import examine, receipt_of_artifact, receipts_of
from shardgen.artifacts.names import ArtifactName
from shardgen.artifacts.receipt_json import parse_receipt_json, receipt_json
from shardgen.coordination.base import OnLook, unheard
from shardgen.coordination.folder import notices
from shardgen.coordination.folder.files import FolderFiles
from shardgen.coordination.folder.index import SegmentIndex
from shardgen.coordination.folder.notices import Kind, NoticeName, decoded, original_name
from shardgen.coordination.folder.seen import SeenClaim, SeenWorker
from shardgen.domain.claims import SliceId, Winners, counts, undone_up_to, winning_order
from shardgen.domain.identifiers import BatchIndex, Fence, ShardIndex, SliceIndex
from shardgen.domain.plan import Plan
from shardgen.domain.receipt import ArtifactRef, DeadLetter, Receipt
from shardgen.domain.worker import file_name
from shardgen.errors import ArtifactCorrupt

ELSEWHERE_DETAIL = "the text stayed on the machine that gave it up"
_FIRST_RETRY_SECONDS = 30.0  # of a file that is not whole yet; then twice as long each time
_LONGEST_RETRY_SECONDS = 1800.0
_LOOKING = "scanning the shared folder"
_LAGS = 200  # files whose delay is remembered


@dataclass(slots=True)
class _Retry:
    wait: float = _FIRST_RETRY_SECONDS
    at: float = 0.0


class FolderView:
    """One process's view. `gather` looks again; everything else tells what is known. One thread gathers."""

    def __init__(
        self,
        plan: Plan,
        files: FolderFiles,
        index: SegmentIndex,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.plan = plan
        self.files = files
        self.generations: dict[SliceId, int] = {}
        self.generation = 0
        self.workers: dict[str, SeenWorker] = {}
        self.claims: dict[SliceId, dict[tuple[str, int, int, int], SeenClaim]] = {}
        self.fences: dict[SliceId, int] = {}
        self.troubles: list[str] = []
        self.not_whole: dict[str, str] = {}
        self._race = Winners[Receipt](batch=lambda one: one.record.batch, best=self.best)
        self._index = index
        self._monotonic = monotonic
        self._wall = wall
        self._segments: dict[str, list[Receipt]] = {}
        self._begun: set[tuple[str, SliceId]] = set()
        self._marks: set[str] = set()
        self._retries: dict[str, _Retry] = {}
        self._lags: deque[float] = deque(maxlen=_LAGS)
        self._looks = 0
        self._on_look: OnLook = unheard
        for ref, receipt in index.all():
            self._take_indexed(ref, receipt)

    # looking

    def gather(self, *, on_look: OnLook = unheard) -> None:
        """Look through the whole folder once more. Raises OSError only when not even its root can be read.

        `on_look` is called after each listing and each file.
        """
        self.troubles = []
        self._on_look = on_look
        self._gather_requeues()
        for folder in notices.worker_folders(self.files.names(notices.WORKERS)):
            self._gather_worker(folder)
        self._looks += 1

    def _names(self, folder: str) -> list[str]:
        try:
            return self.files.names(folder)
        except OSError as error:
            self.troubles.append(f"{folder}: {error.strerror or error}")
            return []
        finally:
            self._on_look(_LOOKING)

    def _read(self, path: str) -> bytes | None:
        try:
            return self.files.read(path)
        except OSError as error:
            self.troubles.append(f"{path}: {error.strerror or error}")
            return None
        finally:
            self._on_look(_LOOKING)

    def _is_due(self, path: str) -> bool:
        retry = self._retries.get(path)
        return retry is None or self._monotonic() >= retry.at

    def _retry_later(self, path: str) -> None:
        retry = self._retries.setdefault(path, _Retry())
        retry.at = self._monotonic() + retry.wait
        retry.wait = min(2 * retry.wait, _LONGEST_RETRY_SECONDS)

    def _gather_requeues(self) -> None:
        is_new = False
        for name in self._names(notices.REQUEUE):
            path = f"{notices.REQUEUE}/{name}"
            if not notices.is_requeue(name) or path in self._marks or not self._is_due(path):
                continue
            data = self._read(path)
            mark = None if data is None else decoded(notices.Requeue, data)
            if mark is None:
                self._retry_later(path)
                continue
            self._marks.add(path)
            if mark.fingerprint == self.plan.fingerprint:
                is_new = True
                self._take_mark(mark)
        if is_new:
            self._race.again(receipt for receipts in self._segments.values() for receipt in receipts)

    def _take_mark(self, mark: notices.Requeue) -> None:
        self.generation = max(self.generation, mark.generation)
        fence = undone_up_to(mark.generation)
        layout = self.plan.layout
        for batch in mark.undone:
            if 0 <= batch < layout.batch_count:
                self._race.undo(batch, fence)
                slice_id = layout.shard_of_batch(batch), layout.slice_of_batch(batch)
                self.generations[slice_id] = max(mark.generation, self.generations.get(slice_id, 0))

    def _gather_worker(self, folder: str) -> None:
        now = self._monotonic()
        worker = self.workers.get(folder)
        if worker is None:
            worker = self.workers[folder] = SeenWorker(folder=folder, news=now)
        root = f"{notices.WORKERS}/{folder}"
        latest: tuple[int, str] | None = None
        for part in self._names(root):
            path = f"{root}/{part}"
            if part.startswith(notices.SEGMENTS):
                self._gather_segments(worker, path)
            elif part.startswith(notices.NOTICES):
                for name in self._names(path):
                    parsed = NoticeName.parse(name)
                    if parsed is None:
                        continue
                    if parsed.kind is not Kind.BEAT:
                        self._take_notice(worker, parsed, f"{path}/{name}")
                    elif latest is None or parsed.number > latest[0]:
                        latest = parsed.number, f"{path}/{name}"
        if latest is not None and latest[0] > worker.beat_number:
            self._take_beat(worker, *latest)

    def _is_news(self, worker: SeenWorker, path: str) -> bool:
        if path in worker.names:
            return False
        worker.names.add(path)
        worker.news = self._monotonic()
        return True

    def _take_notice(self, worker: SeenWorker, name: NoticeName, path: str) -> None:
        bare = name.claim(worker.folder)
        known = self.claims.setdefault(bare.slice_id, {})
        seen = known.get(bare.key)
        self.fences[bare.slice_id] = max(bare.fence, self.fences.get(bare.slice_id, 0))
        is_news = self._is_news(worker, path)
        if seen is None:
            has_segments = (worker.folder, bare.slice_id) in self._begun
            seen = known[bare.key] = SeenClaim(claim=bare, has_segments=has_segments)
        if name.kind is Kind.CLAIM:
            seen.number = name.number
        if name.kind is Kind.ENDED:
            seen.is_ended = True
        elif name.kind is Kind.DONE and seen.done_at is None:
            seen.done_at = self._monotonic()
        elif name.kind is Kind.CLAIM and (is_news or not seen.claim.written_at) and self._is_due(path):
            data = self._read(path)
            content = None if data is None else decoded(notices.Notice, data)
            if content is None:
                self._retry_later(path)  # meanwhile it counts as older than any other
            elif content.fingerprint == self.plan.fingerprint:
                seen.claim = name.claim(worker.folder, content.written_at)
                self._measure_lag(worker, content.written_at, is_news=is_news)
            else:
                seen.is_ended = True  # another plan's run once lay here

    def _take_beat(self, worker: SeenWorker, number: int, path: str) -> None:
        if not self._is_due(path):
            return
        is_news = self._is_news(worker, path)
        data = self._read(path)
        beat = None if data is None else decoded(notices.Beat, data)
        if beat is None or beat.fingerprint != self.plan.fingerprint:
            self._retry_later(path)
            return
        worker.beat, worker.beat_number = beat, number
        self._measure_lag(worker, beat.written_at, is_news=is_news)

    def _measure_lag(self, worker: SeenWorker, written_at: float, *, is_news: bool) -> None:
        worker.written_at = max(worker.written_at, written_at)
        if is_news and self._looks:  # what was there before the first look may be of any age
            self._lags.append(max(0.0, self._wall() - written_at))

    def _gather_segments(self, worker: SeenWorker, folder: str) -> None:
        shard = folder.rpartition("/")[2]
        for file in self._names(folder):
            path = f"{folder}/{file}"
            if path in self._segments or not self._is_due(path):
                continue
            name = ArtifactName.parse(f"{shard}/{original_name(file)}")
            if name is None:
                continue
            self._is_news(worker, path)
            data = self._read(path)
            if data is None:
                self._retry_later(path)
                continue
            self.take_segment(path, name, data)

    def take_segment(self, path: str, name: ArtifactName, data: bytes) -> list[Receipt] | None:
        """Let a segment's bytes count if it is whole; None: not yet, its bytes may still be arriving."""
        try:
            receipts = examine(self.plan, name, data, shown=path, detail=ELSEWHERE_DETAIL)
        except ArtifactCorrupt as error:
            self.not_whole[path] = str(error)
            self._retry_later(path)
            return None
        self.not_whole.pop(path, None)
        inside = receipt_of_artifact(self.plan, receipts)
        self._index.add(receipts[0].artifact, receipt_json(inside))
        self._add(path, receipts)
        return receipts

    def _take_indexed(self, ref: ArtifactRef, receipt: bytes) -> None:
        try:
            inside = parse_receipt_json(receipt)
        except ValueError:
            return  # it is read again
        if inside.fingerprint == self.plan.fingerprint_of(inside.batches[0].batch):
            self._add(ref.name, receipts_of(inside, ref, detail=ELSEWHERE_DETAIL))

    def _add(self, path: str, receipts: list[Receipt]) -> None:
        self._segments[path] = receipts
        first = receipts[0]
        slice_id = first.shard, first.slice
        self.fences[slice_id] = max(first.fence, self.fences.get(slice_id, 0))
        maker = file_name(first.worker)
        self._begun.add((maker, slice_id))
        for seen in list(self.claims.get(slice_id, {}).values()):
            seen.has_segments |= seen.claim.worker == maker
        for receipt in receipts:
            self._race.offer(receipt)

    # what follows

    @property
    def winners(self) -> Mapping[BatchIndex, Receipt]:
        """Of each batch the attempt that counts."""
        return self._race.of

    @property
    def undone(self) -> Mapping[BatchIndex, Fence]:
        """Up to which fence attempts at a batch do not count."""
        return self._race.undone

    def stands(self, seen: SeenClaim) -> bool:
        """Whether a claim is neither ended nor given up; of a silent worker it may stand for ever."""
        if seen.is_ended:
            return False
        worker = self.workers.get(seen.claim.worker)
        if seen.done_at is not None:
            return seen.claim.fence > undone_up_to(self.generations.get(seen.claim.slice_id, 0))
        return worker is None or not (worker.has_stopped or worker.is_gone or worker.has_given_up(seen))

    def is_live(self, seen: SeenClaim, silent_seconds: float) -> bool:
        """Whether somebody may be at work on this claim, or its bytes on their way."""
        if not self.stands(seen):
            return False
        if seen.done_at is not None:  # what it made may arrive later than the word that its worker stopped
            return self._monotonic() - seen.done_at < silent_seconds
        worker = self.workers.get(seen.claim.worker)
        return worker is None or self._monotonic() - worker.news < silent_seconds

    def rivals(self, slice_id: SliceId, own_folder: str, silent_seconds: float) -> list[SeenClaim]:
        """Others' live claims on a slice."""
        return [
            seen
            for seen in list(self.claims.get(slice_id, {}).values())
            if seen.claim.worker != own_folder and self.is_live(seen, silent_seconds)
        ]

    def missing(self, slice_id: SliceId) -> list[BatchIndex]:
        """The batches of a slice that no whole segment has."""
        batches = self.plan.layout.slice_batch_range(*slice_id)
        return [BatchIndex(batch) for batch in batches if batch not in self.winners]

    def slices(self, shard: ShardIndex | None = None) -> Iterator[SliceId]:
        """Every slice of the plan, or of one shard."""
        layout = self.plan.layout
        shards = range(layout.shard_count) if shard is None else [shard]
        for one in map(ShardIndex, shards):
            for slice_ in range(layout.slice_count(one)):
                yield one, SliceIndex(slice_)

    @property
    def lag_seconds(self) -> float | None:
        """The median delay after which others' files were seen here, by both clocks; None: none was yet."""
        return round(statistics.median(self._lags), 1) if self._lags else None

    @property
    def slowest_lag_seconds(self) -> float | None:
        """The longest such delay."""
        return round(max(self._lags), 1) if self._lags else None

    @property
    def duplicated_batches(self) -> int:
        """How many batches were made more often than once, each time counted, in this view."""
        attempts = {original_name(path): receipts for path, receipts in self._segments.items()}
        made = [one.record.batch for receipts in attempts.values() for one in receipts]
        return len(made) - len(set(made))

    # as merge and verify see it

    @staticmethod
    def best(attempts: Sequence[Receipt], undone: Fence | None) -> Receipt | None:
        """Of attempts at one batch the one that counts."""
        return min((one for one in attempts if counts(one.fence, undone)), key=_order, default=None)

    def receipts(self) -> Iterator[Receipt]:
        """The winner of every batch that has one, batches ascending."""
        for batch in sorted(self.winners):
            yield self.winners[batch]

    def dead_letters(self) -> Iterator[DeadLetter]:
        """Every dead letter of the winners, samples ascending."""
        for receipt in self.receipts():
            yield from sorted(receipt.record.dead_letters, key=lambda letter: letter.sample)


def _order(receipt: Receipt) -> tuple[tuple[int, str, str], str]:
    name = ArtifactName.parse("/".join(original_name(receipt.artifact.name).split("/")[-2:]))
    random = name.random if name is not None else ""
    # A doubled file of one attempt holds the same bytes; the path makes even that choice the same everywhere.
    return winning_order(receipt.fence, receipt.worker, random), receipt.artifact.name
