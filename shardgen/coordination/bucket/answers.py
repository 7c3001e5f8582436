"""Answers: what a failing store says, in obstore's words, and what that means for a person."""

from __future__ import annotations

import re
from dataclasses import dataclass

from shardgen.errors import InputMissing, InvalidSettings, ShardgenError, StorageFailed, StoreRefuses

_STATUS = re.compile(r"status code: (\d{3}(?: [A-Z][A-Za-z]+)*)")
_CODE = re.compile(r"<Code>([A-Za-z]{1,60})</Code>|\"error\":\s*\"([a-z_]{1,60})\"")
_URL = re.compile(r"\b\w+://\S+")
_NO_BUCKET = re.compile(r"NoSuchBucket|ContainerNotFound|specified bucket does not exist")
_KEPT = "nothing recorded is lost"
_ENDPOINTS = {"s3": "AWS_ENDPOINT_URL", "gs": "GOOGLE_BASE_URL", "az": "AZURE_ENDPOINT"}
_KEYS = {
    "s3": "export AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=…; with a temporary key also AWS_SESSION_TOKEN",
    "gs": "export GOOGLE_APPLICATION_CREDENTIALS=FILE; or type: gcloud auth application-default login",
    "az": "export AZURE_STORAGE_ACCOUNT_NAME=… AZURE_STORAGE_ACCOUNT_KEY=…; or AZURE_STORAGE_SAS_TOKEN",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Meaning:
    """`of_all`: it is about the whole bucket, not about one object."""

    said: re.Pattern[str]
    kind: type[ShardgenError]
    fact: str
    hint: str
    of_all: bool = False


_PANIC = "PanicException"  # of Rust; its module cannot be imported, and it is a BaseException


# What stores and the library say. The first that is found tells most.
_MEANINGS = (
    _Meaning(
        said=re.compile(f"^{_PANIC}"),
        kind=StorageFailed,
        fact="the client library fails, perhaps because of an invalid address or key",
        hint="check {endpoint}, and: {keys}",
        of_all=True,
    ),
    _Meaning(  # a listing cannot go past it
        said=re.compile(r"invalid path|empty path segment|EmptySegment|illegal path segment|BadSegment"),
        kind=StoreRefuses,
        fact="an object there has a name that cannot be requested, for example with //",
        hint="remove that object with your store's own tool: shardgen uses no such names",
    ),
    _Meaning(
        said=re.compile(
            r"not (?:yet )?implemented.*conditional|conditional.*not implemented|^NotImplemented"
        ),
        kind=InvalidSettings,
        fact="objects that are created once only are turned off on this machine",
        hint="unset AWS_CONDITIONAL_PUT",
        of_all=True,
    ),
    _Meaning(
        said=_NO_BUCKET,
        kind=InputMissing,
        fact="there is no such bucket",
        hint="check the name and {endpoint}, or create the bucket: shardgen does not do that",
        of_all=True,
    ),
    _Meaning(
        said=re.compile(r"Account must be specified"),
        kind=InputMissing,
        fact="no account is named",
        hint="{keys}",
        of_all=True,
    ),
    _Meaning(
        said=re.compile(
            r"ExpiredToken|TokenRefreshRequired|RequestExpired|has expired|invalid_grant|"
            r"(?:HEAD|head) .*status code: 400"  # of a HEAD nothing else is told
        ),
        kind=StoreRefuses,
        fact="the credentials have expired",
        hint=f"renew them: {{keys}}; then run the same command again; {_KEPT}",
    ),
    _Meaning(
        said=re.compile(r"RequestTimeTooSkewed"),
        kind=StoreRefuses,
        fact="this machine's clock is wrong",
        hint="set the clock",
        of_all=True,
    ),
    _Meaning(  # the address of a cloud machine's own credentials, which is asked last
        said=re.compile(r"169\.254\.16[0-9.]+|metadata\.google\.internal|fd00:ec2|IDENTITY_ENDPOINT"),
        kind=StoreRefuses,
        fact="this machine has no credentials for it",
        hint="{keys}",
        of_all=True,
    ),
    _Meaning(
        said=re.compile(
            r"redirect without LOCATION|following redirect|PermanentRedirect|AuthorizationHeaderMalformed|"
            r"status code: 30"
        ),
        kind=StoreRefuses,
        fact="the bucket is not in the region that this machine uses",
        hint="export AWS_REGION=… {endpoint}=…; leave out the second for Amazon's own store",
        of_all=True,
    ),
    _Meaning(
        said=re.compile(r"status code: 40[13]|token request|OAuth"),
        kind=StoreRefuses,
        fact="the store refuses these credentials",
        hint=f"{{keys}}; they need the right to list, get, put and delete there; {_KEPT}",
    ),
    _Meaning(
        said=re.compile(
            r"extract metadata|invalid DeleteObjects|Invalid \w+ response|status code: (?:407|511)|<html",
            re.IGNORECASE,
        ),
        kind=StorageFailed,
        fact="what answers there is not a store",
        hint="look for a proxy or a login page between (NO_PROXY), or a wrong {endpoint}",
    ),
    _Meaning(
        said=re.compile(r"SlowDown|TooManyRequests|ServerBusy|status code: (?:429|503)"),
        kind=StorageFailed,
        fact="the store is overloaded, or asks for fewer requests",
        hint=f"wait some minutes, then run the same command again, with fewer workers; {_KEPT}",
    ),
    _Meaning(
        said=re.compile(r"status code: "),
        kind=StorageFailed,
        fact="the request fails",
        hint=f"run the same command again; if it still fails, ask who runs the store; {_KEPT}",
    ),
    *(
        _Meaning(
            said=re.compile(said, re.IGNORECASE),
            kind=StorageFailed,
            fact=fact,
            hint=f"check the network and {{endpoint}}, then run the same command again; {_KEPT}",
            of_all=True,
        )
        for said, fact in (
            (r"dns error|failed to lookup|name resolution", "its name is not known here (DNS)"),
            (r"certificate", "its certificate is not trusted here"),
            (r"connection refused|ConnectionRefused", "nothing answers there (connection refused)"),
            (r"timed out|TimedOut", "it does not answer in time"),
            (r"error sending request|HTTP error|connection", "the connection fails"),
        )
    ),
)


_OF_OPENING = 5
"""So many of them are also said of a url that cannot be opened."""


def is_panic(error: BaseException) -> bool:
    """Whether the client library has met what its authors held impossible."""
    return type(error).__name__ == _PANIC


def is_of_no_bucket(error: BaseException) -> bool:
    """Whether it says "not found" of the bucket, in which of course no object is."""
    return _NO_BUCKET.search(str(error)) is not None


def store_error(error: BaseException, shown: str, key: str = "") -> ShardgenError:
    """What a failed request means: one fact and one thing to do, and no secret in either."""
    is_named = isinstance(error, NotImplementedError) or is_panic(error)
    said = f"{type(error).__name__}: {error}" if is_named else str(error)
    scheme = shown.partition("://")[0]
    meaning = next((one for one in _MEANINGS if one.said.search(said)), None)
    where = f"{shown}/{key}" if key and not (meaning and meaning.of_all) else shown
    if meaning is None:
        return StorageFailed(f"{where}: {_first_line(said)}", hint=f"run the same command again; {_KEPT}")
    hint = meaning.hint.format(
        keys=_KEYS.get(scheme, "export the keys of the store"),
        endpoint=_ENDPOINTS.get(scheme, "the store's address"),
    )
    return meaning.kind(f"{where}: {meaning.fact}{_answer(said)}", hint=hint)


def unopened(error: BaseException, url: str) -> ShardgenError:
    """The error of a url that cannot even be opened, by what the environment says of it."""
    if any(one.said.search(str(error)) for one in _MEANINGS[:_OF_OPENING]):
        return store_error(error, url)
    keys = _KEYS.get(url.partition("://")[0], "the url")
    return InvalidSettings(
        f"{url}: cannot be opened: {_first_line(str(error))}", hint=f"check it, and: {keys}"
    )


def _answer(said: str) -> str:
    """` (503 Service Unavailable, SlowDown)`, or what of it was answered."""
    status, code = _STATUS.search(said), _CODE.search(said)
    parts = ([status[1]] if status else []) + ([code[1] or code[2]] if code else [])
    return f" ({', '.join(parts)})" if parts else ""


def _first_line(said: str) -> str:
    """The beginning of what was said, without urls: they may hold a signature."""
    return _URL.sub("…", said.strip().partition("\n")[0])[:200]
