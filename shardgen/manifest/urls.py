"""What a manifest's URL says by its text alone: a shared folder, a bucket, or a database."""

from __future__ import annotations

import re
from pathlib import Path

from shardgen.errors import InputMissing, InvalidSettings
from shardgen.storage.files import is_there

SHARED_FOLDER = "folder:"
OWN_INDEX = {SHARED_FOLDER}
"""URLs that name no database: each machine has a manifest of its own, the index of what it sees of others."""
BUCKET_SCHEMES = ("s3://", "gs://", "az://")
BUCKET_EXAMPLE = "write s3://bucket/people, or gs:// (Google), az:// (Azure, whose container is the bucket)"
_LIKE_A_BUCKET = re.compile(r"\s*(s3[an]?|r2|gs|gcs|az|azure|abfss?|minio)\s*:", re.IGNORECASE)
_NO_COLON = re.compile(r"(s3|gs|az)/+(.+)", re.IGNORECASE)
_SERVER = re.compile(r"postgres(ql)?(\+\w+)?:/", re.IGNORECASE)
_SEGMENT = re.compile(r"[A-Za-z0-9_=+-][A-Za-z0-9._=+-]*")


def is_bucket(url: str) -> bool:
    """Whether a url names a prefix of a bucket."""
    return url.startswith(BUCKET_SCHEMES)


def is_meant_as_bucket(text: str) -> bool:
    """Whether a text is such a url, or one that somebody has mistyped."""
    return is_bucket(text) or _LIKE_A_BUCKET.match(text) is not None


def refuse_mistyped_url(text: str) -> None:
    """Raise InputMissing for what was meant as a url: `s3//people`, `s3/people`, or a database server's."""
    if _SERVER.match(text):
        raise InputMissing(
            "the address of a PostgreSQL server is not a run directory",
            hint="name the run directory; its shardgen.toml names the server, in [manifest] url",
        )
    found = _NO_COLON.fullmatch(text)
    if found and not is_there(Path(text)):
        raise InputMissing(
            f"{text}: there is no such folder, and it looks like a url",
            hint=f"write {found[1].lower()}://{found[2]}",
        )


def refuse_mistyped_bucket(text: str, folder: Path, *, where: str) -> None:
    """Raise InvalidSettings for a folder's name that was meant as a bucket's url, as in `s3:/bucket/people`.

    Unless there is such a `folder`. `where` names the setting; the text may hold a secret.
    """
    is_mistyped = is_meant_as_bucket(text) or ("//" in text and _NO_COLON.fullmatch(text))
    if is_mistyped and not is_there(folder):
        raise InvalidSettings(
            f"{where}: there is no such folder, and it looks like a bucket's url", hint=BUCKET_EXAMPLE
        )


def has_own_index(url: str) -> bool:
    """Whether it names no database: each machine has an index of its own, if any."""
    return url in OWN_INDEX or is_bucket(url)


def check_bucket_url(url: str, *, where: str) -> None:
    """Refuse what is meant as a bucket's url and is none; `where` names it. Raises InvalidSettings.

    One url for one place: machines recognise a run by it. Nothing is repeated that may hold a secret.
    """
    scheme, slashes, rest = url.partition("://")
    bucket, _, prefix = rest.partition("/")
    hint = BUCKET_EXAMPLE
    if f"{scheme}://" not in BUCKET_SCHEMES or not slashes:
        fact = "a bucket's url begins with s3://, gs:// or az://, in lower case"
    elif "@" in rest or ":" in bucket:
        fact = "contains a user, a password or a port; keys may come only from the environment"
        hint = "export AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=…; a port goes into AWS_ENDPOINT_URL"
    elif "?" in rest or "#" in rest:
        fact = "contains a query (after ? or #); options may come only from the environment"
        hint = "export AWS_REGION=… AWS_ENDPOINT_URL=…; and leave the query out"
    elif not bucket:
        fact = "names no bucket"
    elif rest.endswith("/"):
        fact, hint = "ends with a slash", f"write {url.rstrip('/')}"
    elif not all(map(_SEGMENT.fullmatch, [bucket, *(prefix.split("/") if prefix else [])])):
        fact = "bucket and prefix may contain letters, digits and . _ = + - between slashes"
    else:
        return
    raise InvalidSettings(f"{where}: {fact}", hint=hint)
