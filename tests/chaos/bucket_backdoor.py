"""The way to a bucket that goes round shardgen, and what its store and its wire do to everybody at once."""

from __future__ import annotations

import os
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest

from shardgen.coordination.bucket.objects import Objects
from shardgen.coordination.bucket.protocol import ARTIFACTS, RECEIPTS, ReceiptKey, VersionKey
from shardgen.coordination.bucket.rows import Version
from shardgen.coordination.bucket.view import BucketView
from shardgen.domain.plan import Plan
from shardgen.domain.worker import file_name
from shardgen.settings.run_directory import RunDirectory
from tests.bucket import proxy
from tests.bucket.proxy import Proxy
from tests.bucket.servers import SERVERS, Store, running
from tests.chaos.backdoors import Backdoor, Row
from tests.chaos.crew import Crew
from tests.chaos.figures import Figures
from tests.stopping import stop

_CUT_SHARE = 0.5  # of the PUTs while the wire is bad
_BAD_SECONDS = 1.0
_LONGEST_AWAY_SECONDS = 4.0
_REFUSALS = (proxy.SLOW_DOWN, proxy.TOO_MANY, proxy.EXPIRED, None)  # None: nobody listens


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """A prefix of a store, and the wire that everybody but the harness's own look goes by."""

    store: Store
    wire: Proxy
    url: str

    @property
    def environment(self) -> dict[str, str]:
        """Of every process of the run."""
        return self.store.environment(self.wire.port)


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenServer:
    """Somebody's S3 server on loopback, where AWS_ENDPOINT_URL says; its keys are in the environment."""

    url: str
    port: int
    name: str = "given"

    def environment(self, port: int | None = None) -> dict[str, str]:
        keys = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        return keys | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port or self.port}", "AWS_ALLOW_HTTP": "true"}

    def new_url(self) -> str:
        return f"{self.url.rstrip('/')}/{secrets.token_hex(6)}"


@contextmanager
def bucket_on(place: str) -> Iterator[Bucket]:
    """A prefix on a server of one's own, by its name, or below a url, with a wire to be cut before it."""
    with ExitStack() as stack:
        store: Store
        if place in SERVERS:
            store = stack.enter_context(running(place))
        else:
            endpoint = urlsplit(os.environ.get("AWS_ENDPOINT_URL", ""))
            if not place.startswith("s3://") or endpoint.scheme != "http" or not endpoint.port:
                raise SystemExit(
                    f"{place}: needs AWS_ENDPOINT_URL=http://127.0.0.1:PORT, a server of loopback"
                )
            store = GivenServer(url=place, port=endpoint.port)
        yield Bucket(store=store, wire=stack.enter_context(Proxy(store.port)), url=store.new_url())


class BucketBackdoor(Backdoor):
    """To a bucket."""

    has_sessions = has_server = True

    def __init__(self, bucket: Bucket, plan: Plan) -> None:
        self.bucket = bucket
        with pytest.MonkeyPatch.context() as patch:
            for name, value in bucket.store.environment().items():
                patch.setenv(name, value)
            self.objects = Objects.open(bucket.url)
        self._plan = plan

    def slice_of(self, pid: int) -> Row | None:
        """By the latest version of each slice, and the notes of its holder."""
        view = BucketView(self._plan, self.objects)
        view.look()
        for slice_id, version in view.holders():
            sign = view.sign_of(file_name(version.worker or ""))
            if sign is None or sign.pid != pid:
                continue
            key = VersionKey(slice_id=slice_id, number=view.latest[slice_id], is_note=True)
            noted = self.objects.read(str(key)) if (slice_id, key.number) in view.notes else None
            return (version if noted is None else Version.model_validate_json(noted)).model_dump()
        return None

    def stop(self, pid: int) -> None:
        """There is no lock that it could hold."""
        stop(pid)

    def lose(self, source: random.Random) -> None:
        """The artifacts would be lost with it."""
        raise NotImplementedError

    def move_half_a_commit_away(self, said: str) -> bool:
        """There is none."""
        return False

    def artifact(self, run: RunDirectory, name: str) -> bytes:
        """From the bucket."""
        data = self.objects.read(f"{ARTIFACTS}/{name}")
        assert data is not None
        return data

    def spoil(self, run: RunDirectory, name: str, data: bytes | None) -> None:
        """In the bucket."""
        if data is None:
            self.objects.remove([f"{ARTIFACTS}/{name}"])
        else:
            self.objects.write(f"{ARTIFACTS}/{name}", data)

    def receipts(self) -> set[tuple[int, int]]:
        """Batch and fence of every receipt that there is."""
        found = [ReceiptKey.parse(one.key) for one in self.objects.listed(RECEIPTS)]
        return {(one.batch, one.fence) for one in found if one is not None}


@dataclass(slots=True)
class WireFaults:
    """As `ServerFaults`: each returns False when it cannot happen now; then it is to be tried again."""

    backdoor: BucketBackdoor
    crew: Crew
    figures: Figures
    _fault: threading.Thread | None = None

    def cut(self, source: random.Random) -> bool:
        """Cut half of all PUTs for a moment: before they arrive, or before their answer does."""
        return self._begin(lambda: self._cut(source))

    def restart(self, source: random.Random) -> bool:
        """Let the store refuse everything for a moment, or be away."""
        return self.crew.may_all_be_late() and self._begin(lambda: self._refuse(source))

    def join(self) -> None:
        """Wait until the wire is whole."""
        if self._fault is not None:
            self._fault.join()

    def _begin(self, fault: Callable[[], None]) -> bool:
        is_busy = self._fault is not None and self._fault.is_alive()
        if is_busy or not self.crew.victims(after=0):
            return False

        def body() -> None:
            began = time.monotonic()
            self.crew.bad_wire.append((began, began + 3600))
            fault()
            self.crew.bad_wire[-1] = (began, time.monotonic())

        self._fault = threading.Thread(target=body)
        self._fault.start()
        return True

    def _cut(self, source: random.Random) -> None:
        wire = self.backdoor.bucket.wire
        before = wire.cut
        wire.cuts = proxy.some(_CUT_SHARE, source)
        time.sleep(_BAD_SECONDS)
        wire.cuts = lambda _number, _path: None
        self.figures.counts["PUTs cut"] += wire.cut - before

    def _refuse(self, source: random.Random) -> None:
        wire = self.backdoor.bucket.wire
        refusal = source.choice(_REFUSALS)
        seconds = source.uniform(0, _LONGEST_AWAY_SECONDS)
        self.figures.counts["store away" if refusal is None else f"store says {refusal.status}"] += 1
        if refusal is None:
            wire.disconnect()
        else:
            wire.refuse(refusal)
        time.sleep(seconds)
        with suppress(OSError):
            wire.connect()
        wire.refuse(None)
