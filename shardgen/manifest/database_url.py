"""Where a manifest is: which backend the settings' URL means."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from shardgen.errors import InputMissing, InvalidSettings
from shardgen.manifest.backend import Backend
from shardgen.manifest.postgres import PostgresServer
from shardgen.manifest.sqlite import SqliteFile
from shardgen.storage.files import is_there

SHARED_FOLDER = "folder:"
OWN_INDEX = {SHARED_FOLDER}
"""URLs that name no database: each machine has a manifest of its own, the index of what it sees of others."""
BUCKET_SCHEMES = ("s3://", "gs://", "az://")
BUCKET_EXAMPLE = "write s3://bucket/people, or gs:// (Google), az:// (Azure, whose container is the bucket)"
_LIKE_A_BUCKET = re.compile(r"\s*(s3[an]?|r2|gs|gcs|az|azure|abfss?|minio)\s*:", re.IGNORECASE)
_NO_COLON = re.compile(r"(s3|gs|az)/+(.+)", re.IGNORECASE)
_SEGMENT = re.compile(r"[A-Za-z0-9_=+-][A-Za-z0-9._=+-]*")
_EXAMPLES = 'url = "sqlite:///manifest.sqlite", or "postgresql+psycopg://host/database" for several machines'


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseUrl:
    """The URL of the settings, and the run directory that relative file names start from.

    `index` is this machine's own folder for a run whose URL names no database.
    """

    url: str
    run_dir: Path
    index: Path | None = None

    @property
    def backend(self) -> Backend:
        """What the URL means. Raises InvalidSettings, without repeating a password."""
        if has_own_index(self.url):
            return SqliteFile(self.path)
        url = _parsed(self.url)
        if url.get_backend_name() == "sqlite":
            return SqliteFile(self.path)
        if url.drivername in {"postgresql", "postgres", "postgresql+psycopg"}:
            return PostgresServer(url.set(drivername="postgresql+psycopg"))
        raise InvalidSettings(
            f"[manifest] url: {url.drivername!r} is no database that this version knows", hint=_EXAMPLES
        )

    @property
    def path(self) -> Path:
        """The file of a `sqlite:///` URL; a relative one is relative to the run directory."""
        if has_own_index(self.url):
            if self.index is None:
                raise InputMissing(
                    f"{self.run_dir}: nothing is planned here yet", hint="shardgen plan RUN_DIR"
                )
            return self.index / "manifest.sqlite"
        url = _parsed(self.url)
        if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
            raise InvalidSettings("[manifest] url: it must name a file", hint=_EXAMPLES)
        return self.run_dir / url.database


def _parsed(text: str) -> URL:
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        # Not chained: the cause may repeat the URL, and with it a password.
        raise InvalidSettings("[manifest] url: not a database URL", hint=_EXAMPLES) from None
    # What follows an @ inside a password would be taken for a host, a database or a query, and be shown.
    if url.get_backend_name() != "sqlite" and text.count("@") > 1:
        raise InvalidSettings(
            "[manifest] url: more than one @, so that host and password cannot be told apart",
            hint="inside a user or a password write %40 for @",
        )
    return url


def is_bucket(url: str) -> bool:
    """Whether a url names a prefix of a bucket."""
    return url.startswith(BUCKET_SCHEMES)


def is_meant_as_bucket(text: str) -> bool:
    """Whether a text is such a url, or one that somebody has mistyped."""
    return is_bucket(text) or _LIKE_A_BUCKET.match(text) is not None


def refuse_mistyped_url(text: str) -> None:
    """Raise InputMissing for a path that is not there and was meant as a url: `s3//people`, `s3/people`."""
    found = _NO_COLON.fullmatch(text)
    if found and not is_there(Path(text)):
        raise InputMissing(
            f"{text}: there is no such folder, and it looks like a url",
            hint=f"write {found[1].lower()}://{found[2]}",
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
        fact = "holds a user, a password or a port, and keys come from the environment only"
        hint = "export AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=…; a port goes into AWS_ENDPOINT_URL"
    elif "?" in rest or "#" in rest:
        fact = "holds a query (what follows ? or #), and options come from the environment only"
        hint = "export AWS_REGION=… AWS_ENDPOINT_URL=…; and leave the query out"
    elif not bucket:
        fact = "names no bucket"
    elif rest.endswith("/"):
        fact, hint = "ends with a slash", f"write {url.rstrip('/')}"
    elif not all(map(_SEGMENT.fullmatch, [bucket, *(prefix.split("/") if prefix else [])])):
        fact = "bucket and prefix may hold letters, digits and . _ = + - between slashes"
    else:
        return
    raise InvalidSettings(f"{where}: {fact}", hint=hint)
