"""Objects: requests to a bucket, and how they are counted. The only module that imports obstore."""

from __future__ import annotations

import errno
import os
import re
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from shardgen.coordination.bucket.answers import is_of_no_bucket, is_panic, store_error, unopened
from shardgen.errors import InputMissing, InvalidSettings, ShardgenError, StorageFailed
from shardgen.storage.bounded import Irregular

try:
    import obstore
    from obstore.exceptions import AlreadyExistsError, BaseError
    from obstore.store import ObjectStore, from_url
except ImportError as missing:  # an extra
    raise InputMissing(
        f"a bucket needs obstore, which cannot be imported: {missing}",
        hint='python -m pip install "shardgen[bucket]"',
    ) from missing

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

_PAGE = 1_000  # keys; what S3, GCS and Azure give at most in one answer
# A pause is drawn between the shortest and `base` times the one before: half as long again on average. No
# signal is heeded meanwhile; a worker waits on by itself.
_RETRY: RetryConfig = {
    "max_retries": 60,
    "retry_timeout": timedelta(seconds=30),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=5), "base": 3},
}
_FIRST_RETRY: RetryConfig = {
    "max_retries": 3,
    "retry_timeout": timedelta(seconds=15),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 3},
}
# A request's time, with all its bytes. A connection that died is noticed only then, which a sign of life must
# not wait for: it would come later than a lease ends.
_CLIENT: ClientConfig = {"connect_timeout": timedelta(seconds=10), "timeout": timedelta(seconds=300)}
_QUICK_CLIENT: ClientConfig = {"connect_timeout": timedelta(seconds=10), "timeout": timedelta(seconds=20)}
_QUICK_BYTES = 1 << 20  # less than this a PUT sends in the quick client's time, by any network worth using
_CREATIONS = 5  # attempts, where a store says "exists" of what it then does not have
ENDPOINTS = (
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"),
    *("GOOGLE_BASE_URL", "AZURE_ENDPOINT", "AZURE_STORAGE_ENDPOINT"),
)
_VARIABLES = {"s3": "AWS_", "gs": "GOOGLE_", "az": "AZURE_"}
_HEEDED = re.compile(r"KEY|TOKEN|REGION|ACCOUNT|CREDENTIALS|CLIENT|TENANT|ENDPOINT|BASE_URL")
_JSON = "GOOGLE_SERVICE_ACCOUNT_KEY"  # has line ends


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectMeta:
    """What a listing says of an object; `key` begins behind the prefix. `modified` is by the store's clock.

    `e_tag` changes with the bytes; the same bytes written again may keep it.
    """

    key: str
    size_bytes: int
    e_tag: str
    modified: datetime


class Requests:
    """How often each kind of request was made, and bytes up and down. Thread-safe.

    Kinds: created, written, read, looked (HEAD), listed (pages), removed. A request that the client library
    repeats by itself counts once.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, kind: str, *, requests: int = 1, up: int = 0, down: int = 0) -> None:
        """Count one more."""
        with self._lock:
            self._counts[kind] += requests
            self._counts["bytes_up"] += up
            self._counts["bytes_down"] += down

    def counted(self) -> dict[str, int]:
        """A copy of the counts so far."""
        with self._lock:
            return dict(self._counts)


class Objects:
    """The objects under one prefix of a bucket; keys begin behind it. Thread-safe; never carried over a fork.

    Every method raises StorageFailed for what may pass by itself, StoreRefuses for what a person must change
    on this machine, InputMissing when there is no such bucket.
    """

    def __init__(self, store: ObjectStore, shown: str, quick: ObjectStore | None = None) -> None:
        """`quick`: the same store, by a client that soon gives up; for requests of few bytes."""
        self.shown = shown
        self.requests = Requests()
        self._store = store
        self._quick = quick or store

    @classmethod
    def open(cls, url: str, *, is_patient: bool = True) -> Objects:
        """The prefix that a url names, such as `s3://bucket/people`; keys and endpoint from the environment.

        Nothing is asked of the store yet. `is_patient`: what fails by itself is tried for half a minute,
        which suits work, not the first request of a command, whose settings are often wrong. Raises
        InvalidSettings, InputMissing without an account.
        """
        _check_environment(url)
        is_plain = any(os.environ.get(name, "").startswith("http://") for name in ENDPOINTS)
        retry = _RETRY if is_patient else _FIRST_RETRY

        def client(options: ClientConfig) -> ObjectStore:
            options = {**options, "allow_http": True} if is_plain else options
            return from_url(url, client_options=options, retry_config=retry)

        try:
            return cls(client(_CLIENT), url, client(_QUICK_CLIENT))
        except (BaseError, ValueError) as error:
            raise unopened(error, url) from None
        except BaseException as error:
            if not is_panic(error):
                raise
            raise store_error(error, url) from None

    def create(self, key: str, data: bytes) -> bool:
        """Make an object that must not exist (`If-None-Match: *`), in one request, whole or not at all.

        False: another's bytes are there. A reply that was lost lets the client try again and be told that the
        object exists, which it made itself: so that is settled by reading it.
        """
        for _ in range(_CREATIONS):
            self.requests.add("created", up=len(data))
            with self._asking(key):
                try:
                    obstore.put(self._by_size(data), key, data, mode="create", use_multipart=False)
                except AlreadyExistsError:
                    found = self.read(key)
                    if found is not None:
                        return found == data
                else:
                    return True
        raise StorageFailed(
            f"{self.shown}/{key}: exists, but could not be read in several attempts",
            hint="check the bucket's rules: does one of them remove new objects?",
        )

    def write(self, key: str, data: bytes) -> str:
        """Make or replace an object, for keys that have a single writer; returns its `e_tag`."""
        self.requests.add("written", up=len(data))
        with self._asking(key):
            return _bare(obstore.put(self._by_size(data), key, data, use_multipart=False)["e_tag"])

    def read(self, key: str, *, limit: int | None = None) -> bytes | None:
        """All bytes of an object; None when there is none. Raises Irregular for more than `limit` bytes."""
        with self._asking(key):
            try:
                found = obstore.get(self._store, key)
                is_larger = limit is not None and found.meta["size"] > limit
                data = b"" if is_larger else bytes(found.bytes())
            except FileNotFoundError as error:
                _refuse_no_bucket(error)
                self.requests.add("read")
                return None
        self.requests.add("read", down=len(data))
        if is_larger:
            raise Irregular(errno.EFBIG, f"more than {limit:,} bytes", f"{self.shown}/{key}")
        return data

    def size(self, key: str) -> int | None:
        """The bytes that an object has; None when there is none."""
        self.requests.add("looked")
        with self._asking(key):
            try:
                return int(obstore.head(self._quick, key)["size"])
            except FileNotFoundError as error:
                _refuse_no_bucket(error)
                return None

    def pages(self, prefix: str, *, after: str = "") -> Iterator[list[ObjectMeta]]:
        """The objects in a folder and below it whose keys come after one, ascending; each page is a request.

        No page is empty. Whoever stops asking asks for no further page.
        """
        stream = obstore.list(self._quick, prefix.rstrip("/") or None, offset=after or None, chunk_size=_PAGE)
        while True:
            self.requests.add("listed")
            with self._asking(prefix):
                page = next(stream, None)
            if page is None:
                return
            found = [
                ObjectMeta(
                    key=one["path"],
                    size_bytes=one["size"],
                    e_tag=_bare(one["e_tag"]),
                    modified=one["last_modified"],
                )
                for one in page
                if one["path"] > after  # Azurite does not heed the offset
            ]
            if found:
                yield sorted(found, key=lambda one: one.key)
            if len(page) < _PAGE:
                return

    def listed(self, prefix: str, *, after: str = "") -> list[ObjectMeta]:
        """All of `pages` at once."""
        return [one for page in self.pages(prefix, after=after) for one in page]

    def remove(self, keys: Iterable[str]) -> None:
        """Remove objects; one that is gone already is fine."""
        for key in keys:
            self.requests.add("removed")
            with self._asking(key):
                try:
                    obstore.delete(self._quick, key)
                except FileNotFoundError as error:
                    _refuse_no_bucket(error)

    def _by_size(self, data: bytes) -> ObjectStore:
        return self._quick if len(data) < _QUICK_BYTES else self._store

    @contextmanager
    def _asking(self, key: str) -> Iterator[None]:
        try:
            yield
        except ShardgenError:
            raise
        except (BaseError, OSError, NotImplementedError) as error:
            # Not chained: what the library says may repeat a url with its signature.
            raise store_error(error, self.shown, key) from None
        except BaseException as error:
            if not is_panic(error):
                raise
            raise store_error(error, self.shown, key) from None


def _check_environment(url: str) -> None:
    """Refuse what the client library would panic at, without repeating a secret. Raises InvalidSettings.

    What is set and empty is unset, for the library too, which takes it for an address of no letters.
    """
    prefix = _VARIABLES.get(url.partition("://")[0])
    if prefix is None:
        return
    for name in sorted(os.environ):
        if not name.startswith(prefix) or not _HEEDED.search(name) or name == _JSON:
            continue
        value = os.environ[name]
        if not value:
            del os.environ[name]
        elif name in ENDPOINTS:
            _check_address(name, value)
        elif not value.isprintable():
            raise InvalidSettings(f"{name}: contains a line end or a control character", hint=_anew(name))
        elif value != value.strip():
            raise InvalidSettings(f"{name}: begins or ends with a space", hint=_anew(name))
        elif "REGION" in name and " " in value:
            raise InvalidSettings(f"{name}: {value!r} is not a region: it contains a space", hint=_anew(name))


def _check_address(name: str, value: str) -> None:
    may_have_path = not name.startswith("AWS_")
    if _is_address(value, may_have_path=may_have_path):
        return
    bare = value.strip()
    attempts = [bare, f"http://{bare}", "/".join(bare.split("/", 3)[:3])]
    better = next((one for one in attempts if _is_address(one, may_have_path=may_have_path)), "")
    fact = f"{value!r} is not an address"
    if "@" in value or "?" in value:
        fact = "is not an address, or contains a user, a password or a query"
    raise InvalidSettings(
        f"{name}: {fact}", hint=f"export {name}={better or 'http://HOST:PORT; or https://HOST'}"
    )


def _is_address(text: str, *, may_have_path: bool) -> bool:
    if not text.isprintable() or " " in text or "@" in text or "?" in text or "#" in text:
        return False
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return False
    is_whole = parts.scheme in {"http", "https"} and bool(parts.hostname) and port != 0
    return is_whole and (may_have_path or parts.path in {"", "/"})


def _anew(name: str) -> str:
    return f"export {name}=… again, without it"


def _refuse_no_bucket(error: FileNotFoundError) -> None:
    """Of a bucket that is not there every object is "not found", too."""
    if is_of_no_bucket(error):
        raise error


def _bare(e_tag: str | None) -> str:
    """Without the quotes, which Azure's answers to a PUT have and its listings have not."""
    return (e_tag or "").strip('"')
