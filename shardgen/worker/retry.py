"""Retry problems that may pass by themselves: a full disk, an unmounted folder, a busy manifest."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, wait_exponential

from shardgen.errors import InputMissing, ManifestBusy, ManifestGone, StorageFailed, StoreRefuses

# A mount comes back, somebody frees space; longer, and the slice had better be given back.
WAIT_SECONDS = 120.0
_LOG = logging.getLogger(__name__)
_PAUSES = wait_exponential(multiplier=0.5, max=5)  # seconds

Found = TypeVar("Found")


def may_pass(error: BaseException) -> bool:
    """Whether the same call may succeed without anybody at this computer: storage and manifest, no device."""
    if isinstance(error, ManifestGone):  # deleted from a folder that is still there: only a rebuild helps
        return False
    return isinstance(error, ManifestBusy | StorageFailed | InputMissing)


class Retry:
    """One worker's: each call is tried again for `limit_seconds` after its first failure; thread-safe.

    An attempt that is under way then is waited for: on a server it may take 30 s more.

    Once a call has failed for that long, later ones are tried only once: the worker is about to end.
    `between` is called after each pause and may raise to end the wait.
    """

    def __init__(
        self,
        *,
        between: Callable[[], None] = lambda: None,
        limit_seconds: float = WAIT_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._between = between
        self._limit_seconds = limit_seconds
        self._monotonic = monotonic
        self._sleep = sleep
        self._lock = threading.Lock()
        self._waiting = 0  # threads
        self._waiting_since = 0.0
        self._is_over = False

    def __call__(self, call: Callable[[], Found], *, between: Callable[[], None] | None = None) -> Found:
        """Call it until it succeeds; raises what it raised last, and at once what does not pass."""
        failing_since: list[float] = []

        def has_waited(_state: RetryCallState) -> bool:
            if not failing_since:
                failing_since.append(self._monotonic())
            return self._is_over or self._monotonic() - failing_since[0] >= self._limit_seconds

        def pause(seconds: float) -> None:
            self._sleep(seconds)
            (between or self._between)()

        retrying = Retrying(
            retry=retry_if_exception(may_pass),
            stop=has_waited,
            wait=_PAUSES,
            sleep=pause,
            before_sleep=lambda state: self._begin(state) if state.attempt_number == 1 else None,
            reraise=True,
        )
        try:
            found = retrying(call)
        except BaseException as error:
            if failing_since:
                self._is_over = self._is_over or may_pass(error)
                self._end(is_well=False)
            raise
        if failing_since:
            self._end(is_well=True)
        return found

    def _begin(self, state: RetryCallState) -> None:
        """Of several threads that wait for the same disk one speaks."""
        with self._lock:
            self._waiting += 1
            if self._waiting > 1:
                return
            self._waiting_since = self._monotonic()
        error = state.outcome and state.outcome.exception()
        # What passes by a person's hand, that person should know.
        what_to_do = f"; {error.hint}" if isinstance(error, StoreRefuses) else ""
        _LOG.warning("%s; trying again for about %g minutes%s", error, self._limit_seconds / 60, what_to_do)

    def _end(self, *, is_well: bool) -> None:
        with self._lock:
            was_waiting, self._waiting = self._waiting, max(0, self._waiting - 1)
            seconds = self._monotonic() - self._waiting_since
        if is_well and was_waiting == 1:
            _LOG.info("continuing after %.0f s", seconds)
