"""Where a manifest is: which backend the settings' URL means."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from shardgen.errors import InputMissing, InvalidSettings
from shardgen.manifest.backend import Backend
from shardgen.manifest.postgres import PostgresServer
from shardgen.manifest.sqlite import SqliteFile

SHARED_FOLDER = "folder:"
OWN_INDEX = {SHARED_FOLDER}
"""URLs that name no database: each machine has a manifest of its own, the index of what it sees of others."""
BUCKET_SCHEMES = ("s3://", "gs://", "az://")
_EXAMPLES = 'url = "sqlite:///manifest.sqlite", or "postgresql+psycopg://host/database" for several machines'


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseUrl:
    """The URL of the settings, and the run directory that relative file names start from.

    `index` is this machine's own folder for a run whose URL is one of OWN_INDEX.
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


def has_own_index(url: str) -> bool:
    """Whether each machine has an index of its own for a run of this url, which names no database."""
    return url in OWN_INDEX or is_bucket(url)
