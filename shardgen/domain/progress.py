"""The one line that says how far something is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from shardgen.domain.wording import byte_unit, counted

BYTES = "byte"
"""What is counted where sizes are shown."""
STARTING, MAKING = "starting the workers", "making samples"
"""What `run` is doing, until the first worker is ready and from then on."""
_RATE_WIDTH, _BYTE_RATE_WIDTH = len("1,234/s"), len("999 bytes/s")
_CLOCK_WIDTH = len("99 d 23 h")
_SEPARATOR = " · "


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """So many `thing`s of `total` (None: not known yet) are done, `rate` a second (None: not known).

    `doing` is "cutting out", "reading the sources", "fetching the weights", "calibrating", "loading the
    network, up to a minute" (of a preview), "starting the workers" (until one has loaded what it needs),
    "making samples", "merging", "verifying" or "exporting"; "" where nobody said it. `dead` letters are among
    those done. `workers` are at work, and `own` samples are by the one that speaks; None where there is no
    such thing.
    """

    done: int
    total: int | None
    thing: str = "sample"
    doing: str = ""
    rate: float | None = None
    dead: int = 0
    workers: int | None = None
    own: int | None = None

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left."""
        return self.total is not None and self.done >= self.total

    @property
    def seconds_left(self) -> float | None:
        """Until the end at this rate; None while nobody knows, or there is no end to wait for."""
        if self.total is None or not self.rate or self.is_complete:
            return None
        return (self.total - self.done) / self.rate

    def line(self, *, width: int | None = None, is_aligned: bool = False, separator: str = _SEPARATOR) -> str:
        """`26 %  512/2,000 samples · 14.4/s · 1:43 left · 3 workers`, without what nobody knows.

        Where it would be wider than `width` columns, parts are dropped from the right. Aligned, a part has
        the same place in every line with the same total: numbers stand to the right, and what is not known
        leaves its place empty.
        """
        count = self._count(is_aligned=is_aligned)
        parts = [f"{self._percent(is_aligned=is_aligned)}  {count}" if self.total is not None else count]
        left = self.seconds_left
        rate_width = _BYTE_RATE_WIDTH if self.thing == BYTES else _RATE_WIDTH
        numbers = [
            ("" if self.rate is None else self._rate(), rate_width),
            ("" if left is None else f"{clock(left)} left", _CLOCK_WIDTH + len(" left")),
        ]
        parts += [text.rjust(size) if is_aligned else text for text, size in numbers if text or is_aligned]
        parts += self._people()
        while parts[1:] and width is not None and len(_joined(parts, separator)) > width:
            parts.pop()
        found = _joined(parts, separator)
        if width is not None and len(found) > width:
            found = self._percent(is_aligned=is_aligned) if self.total is not None else found
        return found if width is None else found[:width]

    def _people(self) -> list[str]:
        parts = []
        if self.dead:
            parts.append(counted(self.dead, "dead letter"))
        if self.workers is not None and not self.is_complete:
            parts.append(counted(self.workers, "worker") if self.workers else "no workers")
        if self.own is not None:
            parts.append(f"{self.own:,} by this one")
        return parts

    def _percent(self, *, is_aligned: bool) -> str:
        share = 100 if self.is_complete else 100 * self.done // (self.total or 1)
        return f"{share:3} %" if is_aligned else f"{share} %"

    def _count(self, *, is_aligned: bool) -> str:
        most = self.done if self.total is None else self.total
        if self.thing == BYTES:
            factor, unit = byte_unit(most)
            numbers = [f"{one / factor:.{0 if factor == 1 else 1}f}" for one in (self.done, most)]
        else:
            unit = counted(most, self.thing).partition(" ")[2]
            numbers = [f"{one:,}" for one in (self.done, most)]
        if self.total is None:
            return f"{numbers[0]} {unit}"
        return f"{numbers[0].rjust(len(numbers[1])) if is_aligned else numbers[0]}/{numbers[1]} {unit}"

    def _rate(self) -> str:
        rate = self.rate or 0.0
        if self.thing == BYTES:
            factor, unit = byte_unit(rate)
            return f"{rate / factor:.{0 if factor == 1 else 1}f} {unit}/s"
        return f"{rate:,.0f}/s" if rate >= 100 else f"{rate:.1f}/s" if rate >= 1 else f"{rate:.2f}/s"


OnProgress = Callable[[Progress], None]
"""Called now and then while something takes long."""


class Count:
    """Makes `Progress` of bare counts; the rate is that from the first count to the last."""

    def __init__(self, thing: str, *, doing: str = "") -> None:
        self.thing, self.doing = thing, doing
        self.began: float | None = None
        self.at = 0.0
        self.before = self.done = 0
        self.total: int | None = None

    def begin(self, done: int) -> None:
        """Measure the rate from here."""
        self.began, self.before = time.monotonic(), done

    def take(self, done: int, total: int | None) -> None:
        """So many are done now, of so many (None: not known yet)."""
        if self.began is None:
            self.begin(done)
        self.done, self.total, self.at = done, total, time.monotonic()

    def progress(self) -> Progress:
        """The present state."""
        seconds, made = self.at - (self.began or 0.0), self.done - self.before
        rate = made / seconds if made > 0 and seconds > 0 else None
        return Progress(done=self.done, total=self.total, thing=self.thing, doing=self.doing, rate=rate)


def counter(on_progress: OnProgress, doing: str, thing: str) -> Callable[[int, int | None], None]:
    """Call what is returned with how many are done, and how many there are (None: not known yet)."""
    count = Count(thing, doing=doing)

    def on_count(done: int, total: int | None) -> None:
        count.take(done, total)
        on_progress(count.progress())

    return on_count


def clock(seconds: float) -> str:
    """`0:09`, `1:43`, `2:05:10`; from a day on `3 d 4 h`."""
    whole = round(seconds)
    if whole >= 86400:
        return f"{whole // 86400} d {whole % 86400 // 3600} h"
    if whole >= 3600:
        return f"{whole // 3600}:{whole % 3600 // 60:02}:{whole % 60:02}"
    return f"{whole // 60}:{whole % 60:02}"


def _joined(parts: list[str], separator: str) -> str:
    """Where a place is empty, so is that of its separator."""
    blank = " " * len(separator)
    line = parts[0] + "".join((separator if part.strip() else blank) + part for part in parts[1:])
    return line.rstrip()
