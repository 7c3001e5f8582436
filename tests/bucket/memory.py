"""A bucket in this process's memory, in the place of every url; and one whose user is killed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from obstore.store import MemoryStore

from shardgen.coordination.bucket import run as bucket_run
from shardgen.coordination.bucket.objects import Objects


@dataclass
class Buckets:
    """A store for each url; `use` names what is opened of it."""

    stores: dict[str, MemoryStore] = field(default_factory=dict)
    use: type[Objects] = Objects

    def objects(self, url: str) -> Objects:
        return self.use(self.stores.setdefault(url, MemoryStore()), url)

    def clear(self) -> None:
        """Let all be empty, and what is open be forgotten."""
        self.stores.clear()
        bucket_run._opened.cache_clear()

    def keys(self, url: str, prefix: str = "") -> list[str]:
        return [one.key for one in self.objects(url).listed(prefix)]


@contextmanager
def in_memory() -> Iterator[Buckets]:
    """Let every url that this process opens name a store in memory."""
    buckets = Buckets()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Objects, "open", lambda url, **_options: buckets.objects(url))
        bucket_run._opened.cache_clear()
        yield buckets
    bucket_run._opened.cache_clear()


class Killed(BaseException):
    """The process ends here."""


class Mortal(Objects):
    """Its user is killed right after the request with the number `last`, counted by `asked`, was made."""

    last = 0
    asked = 0

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in ("create", "write", "read", "size", "pages", "remove"):
            return found

        def mortal(*arguments: Any, **options: Any) -> Any:
            result = found(*arguments, **options)
            if name == "pages":
                result = iter(list(result))
            Mortal.asked += 1
            if Mortal.asked == Mortal.last:
                raise Killed
            return result

        return mortal
