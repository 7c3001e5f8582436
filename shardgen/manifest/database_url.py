"""Where a manifest is: which backend the settings' URL means."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from shardgen.domain.wording import nearest
from shardgen.errors import InputMissing, InvalidSettings
from shardgen.manifest.backend import Backend
from shardgen.manifest.sqlite import SqliteFile
from shardgen.manifest.urls import SHARED_FOLDER, has_own_index

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
            from shardgen.manifest.postgres import PostgresServer  # noqa: PLC0415 - no run in a file waits for it

            return PostgresServer(url.set(drivername="postgresql+psycopg"))
        raise InvalidSettings(
            f"[manifest] url: {url.drivername!r} is not a kind of database that this version knows",
            hint=_examples(url.drivername),
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


def _examples(written: str) -> str:
    meant = nearest(written, ("sqlite", "postgresql", SHARED_FOLDER))
    return f'did you mean "{meant}"? {_EXAMPLES}' if meant else _EXAMPLES


def _parsed(text: str) -> URL:
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        # Not chained: the cause may repeat the URL, and with it a password.
        raise InvalidSettings("[manifest] url: not a database URL", hint=_examples(text)) from None
    # What follows an @ inside a password would be taken for a host, a database or a query, and be shown.
    if url.get_backend_name() != "sqlite" and text.count("@") > 1:
        raise InvalidSettings(
            "[manifest] url: more than one @, so that host and password cannot be told apart",
            hint="inside a user or a password write %40 for @",
        )
    return url
