"""What a failing store says, and what a person reads: one fact, one thing to do, and no secret."""

from __future__ import annotations

import socket
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
        (Refusal(301, "PermanentRedirect"), StoreRefuses, "in another region", "AWS_REGION"),
        (Refusal(400, "AuthorizationHeaderMalformed"), StoreRefuses, "another region", "AWS_REGION"),
        (Refusal(404, "NoSuchBucket"), InputMissing, "there is no such bucket (404", "AWS_ENDPOINT_URL"),
        (Refusal(429, "TooManyRequests"), StorageFailed, "asks for fewer requests (429", "fewer workers"),
        (Refusal(503, "SlowDown"), StorageFailed, "asks for fewer requests (503", "nothing recorded is lost"),
        (Refusal(407, "Proxy"), StorageFailed, "what answers is no store (407", "NO_PROXY"),
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
    assert (type(error), "no store" in str(error)) == (StorageFailed, True)


def test_no_signature_in_a_url_is_repeated() -> None:
    said = f"odd: https://acc.blob/people/k?sv=1&sig={HIDDEN} was asked\n\nDebug source: {HIDDEN}"
    for error in (store_error(OSError(said), "az://b/p", "k"), unopened(OSError(said), "az://b/p")):
        assert HIDDEN not in str(error) + error.hint
        assert "was asked" in str(error)
