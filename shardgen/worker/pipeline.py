"""A slice's batches on their way: prepared, computed, encoded, published and recorded, three at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Self

from shardgen.domain.identifiers import BatchIndex
from shardgen.domain.lease import Lease
from shardgen.worker.batch import BatchMaker


class Pipeline:
    """Batch k+1 is being prepared while k is on the device and k-1 is encoded, published and recorded.

    At most two batches have been through the device without a receipt, and one is prepared: the loss bound.
    Use it as a context manager; `make` is called from one thread.
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
        preparing = self._preparing.submit(maker.prepare, batches[0])
        try:
            for following in range(1, len(batches) + 1):
                if not self._begin_batch():
                    break
                maker.stages.heartbeat.check_lease()
                prepared = preparing.result()
                if following < len(batches):
                    preparing = self._preparing.submit(maker.prepare, batches[following])
                computed = maker.compute(prepared)
                finishing.result()
                finishing = self._finishing.submit(maker.finish, lease, computed)
            else:
                finishing.result()
                return True
        finally:
            wait([finishing])  # whatever happens to the next batch, this one is recorded under the lease
        finishing.result()
        return False
