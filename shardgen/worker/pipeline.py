"""A slice's batches on their way: prepared, computed, encoded, published and recorded, three at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Self

from shardgen.domain.identifiers import BatchIndex
from shardgen.domain.lease import Lease
from shardgen.worker.batch import BatchMaker, Prepared


@dataclass(frozen=True, slots=True)
class _Taken:
    """A batch whose turn it is, and what the device's queue gave for it."""

    prepared: Prepared
    begun: object | None


class Pipeline:
    """Batch k+1 is being prepared while k is on the device and k-1 is encoded, published and recorded.

    A device with a queue gets k+1 as soon as it is prepared, so that it never waits between two batches; k+2
    is prepared only when k is fetched. So three batches at most are without a receipt: the loss bound. Use it
    as a context manager; `make` is called from one thread.
    """

    def __init__(self, maker: BatchMaker, *, begin_batch: Callable[[], bool]) -> None:
        self._maker = maker
        self._begin_batch = begin_batch
        self._preparing = ThreadPoolExecutor(1, "prepare")
        self._finishing = ThreadPoolExecutor(1, "finish")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in (self._preparing, self._finishing):
            pool.shutdown(wait=True, cancel_futures=True)

    def make(self, lease: Lease, batches: Sequence[BatchIndex]) -> bool:
        """Make these batches of the leased slice, in order; False when stopped before all were made.

        Raises LeaseLost, or whatever is no single sample's fault.
        """
        maker = self._maker
        finishing: Future[None] = Future()
        finishing.set_result(None)
        left = deque(batches)
        coming = self._preparing.submit(maker.prepare, left[0])

        def take() -> _Taken | None:
            """The next batch, on the device's queue if it has one; None when there is no room for it."""
            if not left or not self._begin_batch():
                return None
            maker.stages.heartbeat.check_lease()
            prepared = coming.result()
            left.popleft()
            return _Taken(prepared, maker.begin(prepared))

        try:
            taken = take()
            while taken is not None:
                if left:
                    coming = self._preparing.submit(maker.prepare, left[0])
                has_queue = taken.begun is not None
                following = take() if has_queue else None
                computed = maker.compute(taken.prepared, taken.begun)
                finishing.result()
                finishing = self._finishing.submit(maker.finish, lease, computed)
                taken = following if has_queue else take()
        finally:
            wait([finishing])  # whatever happens to the next batch, this one is recorded under the lease
        finishing.result()
        return not left
