"""Probe: test, before trusting a store, the few requests that everything here depends on.

Many stores that speak S3 take `If-None-Match: *` and ignore it: there two workers would get one slice.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta

from shardgen.coordination.bucket.objects import Objects
from shardgen.errors import InputMissing, ManifestMismatch, StorageFailed, StoreRefuses

PROBE = "probe"
_AT_ONCE = 8
_ABANDONED = timedelta(hours=1)
_ONE, _OTHER = b"one", b"another"
_TWICE = "it lets a key be created twice, so two workers would get the same slice"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One thing that was tried, what must come of it, and what did. Not `is_vital`: only sweep needs it.

    `breaks`: what a run would suffer of it.
    """

    tried: str
    wanted: str
    found: str
    breaks: str = "others would not see exactly what a worker writes"
    is_vital: bool = True

    @property
    def is_good(self) -> bool:
        """Whether it is as it must be."""
        return self.found == self.wanted

    def __str__(self) -> str:
        return f"{self.tried}: {self.found}" + ("" if self.is_good else f", must be: {self.wanted}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """What a store did. `requests` is how many were made."""

    shown: str
    rows: tuple[Row, ...]
    requests: int

    @property
    def is_trusted(self) -> bool:
        """Whether a run may rest on it."""
        return all(row.is_good for row in self.rows if row.is_vital)

    def refuse(self) -> None:
        """Raise ManifestMismatch, with the whole table, for a store that must not be trusted."""
        if self.is_trusted:
            return
        wrong = next(row for row in self.rows if row.is_vital and not row.is_good)
        raise ManifestMismatch(
            f"{self.shown}: this store cannot hold a run: {wrong.breaks} ({wrong})",
            hint="use a store with conditional writes (Amazon S3, R2, MinIO, GCS, Azure), or a newer "
            "version of this one; or a PostgreSQL server",
            problems=tuple(map(str, self.rows)),
        )


def probe(objects: Objects, *, is_short: bool = False) -> Probed:
    """Try it under keys that nobody else has, and remove them; `is_short`: no more than creating needs.

    What killed probes left is removed, too, an hour later. Raises StorageFailed or StoreRefuses where nothing
    can be tried.
    """
    before = _requests(objects)
    folder = f"{PROBE}/{secrets.token_hex(8)}"
    keys = [f"{folder}/{number}" for number in range(1 if is_short else 2)]
    rows: list[Row] = []
    for row in _tried(objects, folder, keys, is_short=is_short):
        rows.append(row)
        if row.is_vital and not row.is_good:
            break
    rows.append(_removed(objects, folder, keys, is_short=is_short))
    return Probed(shown=objects.shown, rows=tuple(rows), requests=_requests(objects) - before)


def probe_before(objects: Objects, *, is_short: bool = False) -> None:
    """At the start of a command: refuse a store that must not be trusted, or that refuses this machine.

    Raises ManifestMismatch, InputMissing or StorageFailed.
    """
    try:
        probe(objects, is_short=is_short).refuse()
    except StoreRefuses as error:
        raise at_the_door(error) from None


def at_the_door(error: StoreRefuses) -> InputMissing:
    """A refusal when nothing has begun yet: nobody waits, somebody must change something."""
    return InputMissing(str(error), hint=error.hint)


def _tried(objects: Objects, folder: str, keys: list[str], *, is_short: bool) -> Iterator[Row]:
    first = keys[0]
    yield Row(
        tried="create an object",
        wanted="made",
        found="made" if objects.create(first, _ONE) else "refused",
    )
    yield Row(
        tried="create it again, with other bytes",
        wanted="refused",
        found="made" if objects.create(first, _OTHER) else "refused",
        breaks=_TWICE,
    )
    yield Row(tried="read it at once", wanted="the first bytes", found=_read(objects, first))
    listed = objects.listed(folder)
    yield Row(
        tried="list its folder at once",
        wanted="listed",
        found="listed" if [one.key for one in listed] == [first] else "missing",
    )
    if is_short:
        return
    yield Row(
        tried="create it again, with the same bytes",
        wanted="as it was",
        found="as it was" if objects.create(first, _ONE) and objects.read(first) == _ONE else "changed",
    )
    yield Row(
        tried=f"create one object {_AT_ONCE} times at once",
        wanted="made once",
        found=_at_once(objects, keys[1]),
        breaks=_TWICE,
    )
    objects.write(first, _OTHER)
    tags = {one.key: one.e_tag for one in objects.listed(folder)}
    is_seen = objects.read(first) == _OTHER and tags.get(first) != listed[0].e_tag
    yield Row(
        tried="replace it, read and list it at once",
        wanted="the new bytes, another ETag",
        found="the new bytes, another ETag" if is_seen else "as before",
    )


def _read(objects: Objects, key: str) -> str:
    data = objects.read(key)
    return {_ONE: "the first bytes", _OTHER: "the other bytes", None: "nothing"}.get(data, "something else")


def _at_once(objects: Objects, key: str) -> str:
    def create(number: int) -> bool:
        return objects.create(key, f"{number}".encode())

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        made = sum(pool.map(create, range(_AT_ONCE)))
    return "made once" if made == 1 else f"made {made} times"


def _removed(objects: Objects, folder: str, keys: list[str], *, is_short: bool) -> Row:
    """Remove what was made, and what was left by others long ago, by the store's own clock."""
    found = "removed"
    try:
        old: list[str] = []
        if not is_short:
            there = objects.listed(PROBE)
            now = max((one.modified for one in there if one.key in keys), default=None)
            old = [one.key for one in there if now is not None and now - one.modified > _ABANDONED]
        objects.remove([*keys, *old])
        if not is_short and objects.read(keys[0]) is not None:
            found = "still there"
    except (StoreRefuses, StorageFailed) as error:
        found = str(error).removeprefix(f"{objects.shown}/{folder}/")
    return Row(tried="remove it", wanted="removed", found=found, is_vital=False)


def _requests(objects: Objects) -> int:
    return sum(count for kind, count in objects.requests.counted().items() if not kind.startswith("bytes"))
