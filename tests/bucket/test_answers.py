"""What a failing store says, and what a person reads: one fact, one thing to do, and no secret."""

from __future__ import annotations

import os
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest

from shardgen.coordination.bucket import objects as asking
from shardgen.coordination.bucket.answers import store_error, unopened
from shardgen.coordination.bucket.objects import Objects
from shardgen.errors import InputMissing, InvalidSettings, ShardgenError, StorageFailed, StoreRefuses
from tests.bucket.ignoring_server import ignoring_server
from tests.bucket.proxy import Proxy, Refusal
from tests.bucket.servers import S3Server

HIDDEN = "hunter2"
URL = "s3://bucket/people"
Asked = Callable[[Refusal], ShardgenError]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask again at once what may pass by itself."""
    moment = timedelta(milliseconds=1)
    quickly = {"init_backoff": moment, "max_backoff": moment, "base": 2}
    monkeypatch.setattr(asking, "_FIRST_RETRY", {**asking._FIRST_RETRY, "backoff": quickly})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with ignoring_server() as started:
        for name, value in started.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", HIDDEN)
        yield started


@pytest.mark.parametrize(
    ("refusal", "kind", "fact", "hint"),
    [
        (Refusal(403, "AccessDenied"), StoreRefuses, "refuses these credentials (403", "list, get, put"),
        (Refusal(403, "InvalidAccessKeyId"), StoreRefuses, "InvalidAccessKeyId", "AWS_ACCESS_KEY_ID"),
        (Refusal(403, "SignatureDoesNotMatch"), StoreRefuses, "SignatureDoesNotMatch", "AWS_SECRET_ACCESS"),
        (Refusal(401, "Unauthorized"), StoreRefuses, "refuses these credentials (401", "AWS_ACCESS_KEY_ID"),
        (Refusal(400, "ExpiredToken"), StoreRefuses, "have expired", "renew them"),
        (Refusal(403, "RequestTimeTooSkewed"), StoreRefuses, "clock is wrong", "set the clock"),
        (Refusal(301, "PermanentRedirect"), StoreRefuses, "not in the region", "AWS_REGION"),
        (Refusal(400, "AuthorizationHeaderMalformed"), StoreRefuses, "not in the region", "AWS_REGION"),
        (Refusal(404, "NoSuchBucket"), InputMissing, "there is no such bucket (404", "AWS_ENDPOINT_URL"),
        (Refusal(429, "TooManyRequests"), StorageFailed, "asks for fewer requests (429", "fewer workers"),
        (Refusal(503, "SlowDown"), StorageFailed, "asks for fewer requests (503", "nothing recorded is lost"),
        (Refusal(407, "Proxy"), StorageFailed, "what answers there is not a store (407", "NO_PROXY"),
        (Refusal(501, "NotImplemented"), StorageFailed, "the request fails (501", "ask who runs the store"),
    ],
    ids=lambda one: getattr(one, "code", None),
)
def test_each_answer_is_an_error_and_a_hint(
    server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    refusal: Refusal,
    kind: type[ShardgenError],
    fact: str,
    hint: str,
) -> None:
    with Proxy(server.port) as between:
        for name, value in server.environment(between.port).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", HIDDEN)
        objects = Objects.open(server.new_url(), is_patient=False)
        between.refuse(refusal)
        for ask in (
            lambda: objects.create("a/1", b"1"),
            lambda: objects.read("a/1"),
            lambda: objects.listed("a"),
        ):
            with pytest.raises(kind) as found:
                ask()
            assert fact in str(found.value)
            assert hint in found.value.hint
            said = str(found.value) + found.value.hint
            assert HIDDEN not in said
            assert "http://" not in said
            assert "\n" not in said


def test_no_connection_is_told_from_a_refusal(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    for endpoint, fact in (
        (f"http://127.0.0.1:{port}", "nothing answers there (connection refused)"),
        ("http://store.invalid", "its name is not known here (DNS)"),
    ):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(StorageFailed) as found:
            Objects.open(URL, is_patient=False).listed("plan")
        assert str(found.value) == f"{URL}: {fact}"
        assert "AWS_ENDPOINT_URL" in found.value.hint


def test_what_this_machine_lacks_is_named_by_its_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = "Error performing PUT http://169.254.169.254/latest/api/token in 1s - HTTP error: …"
    for url, variable in (
        ("s3://b/p", "AWS_ACCESS_KEY_ID"),
        ("gs://b/p", "GOOGLE_APPLICATION_CREDENTIALS"),
        ("az://b/p", "AZURE_STORAGE_ACCOUNT_KEY"),
    ):
        error = store_error(OSError(metadata), url, "plan")
        assert isinstance(error, StoreRefuses)
        assert str(error) == f"{url}: this machine has no credentials for it"
        assert variable in error.hint
    for name in ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_CONNECTION_STRING"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputMissing, match="no account is named") as missing:
        Objects.open("az://container/people")
    assert "AZURE_STORAGE_ACCOUNT_NAME" in missing.value.hint


def test_creating_once_may_not_be_turned_off(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CONDITIONAL_PUT", "disabled")
    with pytest.raises(InvalidSettings, match="turned off on this machine") as found:
        Objects.open(server.new_url()).create("a/1", b"1")
    assert found.value.hint == "unset AWS_CONDITIONAL_PUT"


def test_a_login_page_is_no_store() -> None:
    said = "Generic S3 error: Unable to extract metadata from headers: ETag Header missing from response"
    error = store_error(OSError(said), URL, "plan")
    assert (type(error), "not a store" in str(error)) == (StorageFailed, True)


def test_no_signature_in_a_url_is_repeated() -> None:
    said = f"odd: https://acc.blob/people/k?sv=1&sig={HIDDEN} was asked\n\nDebug source: {HIDDEN}"
    for error in (store_error(OSError(said), "az://b/p", "k"), unopened(OSError(said), "az://b/p")):
        assert HIDDEN not in str(error) + error.hint
        assert "was asked" in str(error)


@pytest.mark.parametrize(
    ("url", "name", "value", "fact", "hint"),
    [
        (URL, "AWS_ENDPOINT_URL", "anna:9000", "'anna:9000' is not an address", "=http://anna:9000"),
        (URL, "AWS_ENDPOINT_URL_S3", "localhost:PORT", "is not an address", "=http://HOST:PORT"),
        (URL, "AWS_ENDPOINT", "http://no such host", "is not an address", "=http://HOST:PORT"),
        (URL, "AWS_ENDPOINT_URL", "http://anna:9000/bucket", "is not an address", "=http://anna:9000"),
        (URL, "AWS_ENDPOINT_URL", "http://anna:9000\n", "is not an address", "=http://anna:9000"),
        (URL, "AWS_ENDPOINT_URL", f"http://key:{HIDDEN}@anna:9000", "contains a user", "=http://HOST:PORT"),
        (URL, "AWS_SECRET_ACCESS_KEY", f"{HIDDEN}\n", "contains a line end", "AWS_SECRET_ACCESS_KEY=…"),
        (URL, "AWS_SESSION_TOKEN", f"a\n{HIDDEN}", "contains a line end", "AWS_SESSION_TOKEN=…"),
        (URL, "AWS_ACCESS_KEY_ID", f" {HIDDEN}", "begins or ends with a space", "AWS_ACCESS_KEY_ID=…"),
        (URL, "AWS_REGION", "eu west", "'eu west' is not a region", "AWS_REGION=…"),
        ("gs://b/p", "GOOGLE_BASE_URL", "anna:4443", "is not an address", "=http://anna:4443"),
        ("az://b/p", "AZURE_ENDPOINT", "anna:10000", "is not an address", "=http://anna:10000"),
        ("az://b/p", "AZURE_STORAGE_SAS_TOKEN", f"{HIDDEN} ", "ends with a space", "AZURE_STORAGE_SAS_TOKEN"),
    ],
)
def test_what_the_environment_says_is_looked_at_first(
    monkeypatch: pytest.MonkeyPatch, url: str, name: str, value: str, fact: str, hint: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidSettings) as found:
        Objects.open(url)
    said = f"{found.value} {found.value.hint}"
    assert str(found.value).startswith(f"{name}: ")
    assert fact in str(found.value)
    assert hint in found.value.hint
    assert (HIDDEN in said, "\n" in said) == (False, False)


def test_what_is_set_and_empty_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "people")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "aGVsbG8=")
    for name in ("AZURE_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_SESSION_TOKEN", "AWS_REGION"):
        monkeypatch.setenv(name, "")
    Objects.open("az://container/people")
    assert "AWS_REGION" in os.environ  # another store's
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", "{\n}\n")
    Objects.open(URL)
    assert not {"AWS_ENDPOINT_URL", "AWS_SESSION_TOKEN", "AWS_REGION"} & os.environ.keys()


def test_where_the_library_breaks_down_there_is_an_error_and_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_check_environment", lambda _: None)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "anna:9000")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", HIDDEN)
    with pytest.raises(StorageFailed, match="the client library fails") as found:
        Objects.open(URL).create("a/1", b"1")
    assert "AWS_ENDPOINT_URL" in found.value.hint

    def panic(*_: object, **__: object) -> None:
        raise type("PanicException", (BaseException,), {})("called `Result::unwrap()`")

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(asking, "from_url", panic)
    with pytest.raises(StorageFailed, match="the client library fails"):
        Objects.open(URL)
    monkeypatch.setattr(asking, "from_url", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Objects.open(URL)


def test_a_connection_that_died_holds_no_small_request(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "_FIRST_RETRY", {**asking._FIRST_RETRY, "max_retries": 0})
    monkeypatch.setattr(asking, "_CLIENT", {"timeout": timedelta(seconds=10)})
    monkeypatch.setattr(asking, "_QUICK_CLIENT", {"timeout": timedelta(milliseconds=100)})
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # takes connections and never answers
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        objects = Objects.open(URL, is_patient=False)
        began = time.monotonic()
        for ask in (
            lambda: objects.write("workers/1", b"1"),
            lambda: objects.create("claims/1", b"1"),
            lambda: objects.size("claims/1"),
            lambda: objects.listed("claims"),
            lambda: objects.remove(["claims/1"]),
        ):
            with pytest.raises(StorageFailed, match="does not answer in time"):
                ask()
        assert time.monotonic() - began < 10


def test_a_name_with_two_slashes_is_told_with_what_to_do(server: S3Server) -> None:
    url = server.new_url()
    objects = Objects.open(url, is_patient=False)
    objects.create("claims/1", b"1")
    strange = f"{os.environ['AWS_ENDPOINT_URL']}/{url.removeprefix('s3://')}/claims//2"
    with urllib.request.urlopen(urllib.request.Request(strange, b"2", method="PUT")):  # noqa: S310 - the test's server
        pass
    with pytest.raises(StoreRefuses, match="a name that cannot be requested") as found:
        objects.listed("claims")
    assert "your store's own tool" in found.value.hint
