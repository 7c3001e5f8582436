"""Read ahead: while one artifact is used, fetch the next ones from a remote store."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

from shardgen.artifacts.store import ArtifactReader
from shardgen.domain.receipt import ArtifactRef

AHEAD_BYTES = 64 << 20
"""At most so much is on its way or waits to be used; one artifact may always be."""

Item = TypeVar("Item")


class ReadAhead:
    """An ArtifactReader that is told what comes next; what is used, checked and in which order stays.

    A store that says `reads_at_once` 1 is asked when something is wanted, and no thread is started. Use it as
    a context manager.
    """

    def __init__(self, store: ArtifactReader) -> None:
        self._store = store
        self.reads_at_once = store.reads_at_once
        self._coming: dict[ArtifactRef, Future[bytes]] = {}
        self._threads: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        if self.reads_at_once > 1:
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
            yield from items
            return
        waiting: deque[tuple[ArtifactRef, Item]] = deque()
        size = 0
        for item in items:
            ref = ref_of(item)
            while waiting and (size + ref.size_bytes > AHEAD_BYTES or len(waiting) >= self.reads_at_once):
                size -= waiting[0][0].size_bytes
                yield from self._first(waiting)
            waiting.append((ref, item))
            size += ref.size_bytes
            if ref not in self._coming:
                self._coming[ref] = self._threads.submit(self._store.read, ref)
        while waiting:
            yield from self._first(waiting)

    def _first(self, waiting: deque[tuple[ArtifactRef, Item]]) -> Iterator[Item]:
        """Pass it on, and then forget its artifact, unless another item has it, too."""
        ref, item = waiting.popleft()
        yield item
        if all(other != ref for other, _ in waiting):
            self._coming.pop(ref, None)

    def read(self, ref: ArtifactRef) -> bytes:
        """As the store does."""
        coming = self._coming.get(ref)
        return self._store.read(ref) if coming is None else coming.result()

    def fill(self, ref: ArtifactRef, buffer: memoryview) -> None:
        """As the store does."""
        if ref in self._coming:
            buffer[:] = self.read(ref)
        else:
            self._store.fill(ref, buffer)
