"""Read ahead: while one artifact is used, those after it are read and their digests compared."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

from shardgen.artifacts.store import ArtifactReader
from shardgen.domain.receipt import ArtifactRef

AHEAD_BYTES = 64 << 20
"""At most so much is on its way or waits to be used; one artifact may always be."""
_AHEAD_AT_HAND = 16  # artifacts of a store that makes nobody wait: some 3 MB, which a processor's cache holds

Item = TypeVar("Item")


class ReadAhead:
    """An ArtifactReader that is told what comes next; what is used, checked and in which order stays.

    A store that says `reads_at_once` 1 is at hand: one thread reads from it, and compares digests, a few
    artifacts ahead. Use it as a context manager.
    """

    def __init__(self, store: ArtifactReader) -> None:
        self._store = store
        self.reads_at_once = store.reads_at_once
        self._ahead = self.reads_at_once if self.reads_at_once > 1 else _AHEAD_AT_HAND
        self._coming: dict[ArtifactRef, Future[bytes]] = {}
        self._threads: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        self._threads = ThreadPoolExecutor(self.reads_at_once, thread_name_prefix="read-ahead")
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self._coming.clear()
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
            self._threads = None

    def over(self, items: Iterable[Item], ref_of: Callable[[Item], ArtifactRef]) -> Iterator[Item]:
        """The items as they come; the artifact of one is at hand until the next one is asked for."""
        if self._threads is None:
            raise RuntimeError("used as no context manager")
        waiting: deque[tuple[ArtifactRef, Item]] = deque()
        wanted = Counter[ArtifactRef]()

        def first() -> Iterator[Item]:
            """Pass it on, and then forget its artifact, unless another item has it, too."""
            ref, item = waiting.popleft()
            yield item
            wanted[ref] -= 1
            if not wanted[ref]:
                del wanted[ref]
                self._coming.pop(ref, None)

        size = 0
        for item in items:
            ref = ref_of(item)
            while waiting and (size + ref.size_bytes > AHEAD_BYTES or len(waiting) >= self._ahead):
                size -= waiting[0][0].size_bytes
                yield from first()
            waiting.append((ref, item))
            wanted[ref] += 1
            size += ref.size_bytes
            if ref not in self._coming:
                self._coming[ref] = self._threads.submit(self._store.read, ref)
        while waiting:
            yield from first()

    def read(self, ref: ArtifactRef) -> bytes:
        """As the store does."""
        coming = self._coming.get(ref)
        return self._store.read(ref) if coming is None else coming.result()
