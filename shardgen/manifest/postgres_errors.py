"""What an error of PostgreSQL means for the manifest; decided on SQLSTATE codes, where there are any."""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError, OperationalError

from shardgen.errors import (
    InputMissing,
    InvalidSettings,
    ManifestBusy,
    ManifestCorrupt,
    ManifestMismatch,
    ShardgenError,
    StorageFailed,
)

# While it connects, the driver gives the server's words only. These do not pass by themselves; with others,
# such as those of a server that starts, ends or is full, waiting too long beats giving up too soon.
_LASTING_WORDS = ("authentication", "password", "does not exist", "pg_hba.conf", "permission", "role")
# The driver's own words for what does not pass by itself either: options that the URL gives, or leaves out.
_UNUSABLE = ("connection option", "mode value", "certificate", "does not support SSL")
_LOST = (
    "08",  # connection exceptions
    "57P01",  # an administrator ended the session, or the server shuts down
    "57P02",  # the server crashed
    "57P03",  # it cannot be connected to now
    "57P05",  # it ended an idle session
    "25P03",  # it ended a session that was idle in a transaction
    "53300",  # too many connections
)
_UNDONE = ("40001", "40P01")  # serialization failure, deadlock: the server has rolled back
_READ_ONLY = "25006"  # a standby that has not been promoted

_OPTIONS = "check the options that [manifest] url gives behind its ?"

_Meaning = tuple[type[ShardgenError], str, str]
_FULL: _Meaning = (
    StorageFailed,
    "the server's disk is full or failing",
    "free some space on the server, then run the command again; nothing recorded is lost",
)
_BUSY: _Meaning = (
    ManifestBusy,
    "held by another session, or short of resources, for too long",
    "run the command again; if it stays so, look at pg_stat_activity for a session that waits",
)
_FOREIGN: _Meaning = (
    ManifestMismatch,
    "not this shardgen's manifest",
    "check [manifest] url in shardgen.toml; each run needs a database (or a schema) of its own",
)
_MEANINGS: dict[str, _Meaning] = {
    "3D000": (
        InputMissing,
        "there is no such database",
        "create it on the server (createdb NAME), or check [manifest] url",
    ),
    "28": (
        InvalidSettings,
        "the server refuses this user",
        "check the user and the password ($PGPASSWORD, or the variable that [manifest] url names)",
    ),
    "42501": (
        ManifestMismatch,
        "this user may not do that there",
        "let the user create and change tables in that database",
    ),
    _READ_ONLY: (
        ManifestMismatch,
        "a read-only server (a standby?)",
        "name the primary server in [manifest] url",
    ),
    "23": (
        ManifestCorrupt,
        "its rows contradict its rules",
        "keep a copy of it and report this; artifacts and plan.json are untouched",
    ),
    "XX001": (ManifestCorrupt, "the database is damaged", "restore it, or rebuild into a new database"),
    "XX002": (ManifestCorrupt, "the database is damaged", "restore it, or rebuild into a new database"),
    "55P03": _BUSY,
    "57014": _BUSY,
    "53100": _FULL,
    "58030": _FULL,
    "53": _BUSY,
    "42": _FOREIGN,
}


def code_of(error: BaseException) -> str:
    """The SQLSTATE, or ""."""
    original = error.orig if isinstance(error, DBAPIError) else error
    return getattr(original, "sqlstate", None) or ""


def is_lost_connection(error: DBAPIError) -> bool:
    """Whether the session is gone, and with it whatever was not committed."""
    code = code_of(error)
    # Without a code the driver itself speaks: it could not send, or not read. SQLAlchemy notices that only
    # of connections that its pool has handed out, not of one that it is still setting up.
    silent = not code and isinstance(error, OperationalError)
    return error.connection_invalidated or silent or code.startswith(_LOST)


def is_undone(error: DBAPIError) -> bool:
    """Whether the server has rolled the transaction back in favour of another; to be run again."""
    return code_of(error) in _UNDONE


def passes_by_itself(connecting: BaseException) -> bool:
    """Whether a failed attempt to connect may succeed soon: nobody answers, or nobody is let in yet."""
    code, text = code_of(connecting), str(connecting)
    if code:
        return code.startswith(_LOST)
    is_refused = "FATAL" in text and any(words in text for words in _LASTING_WORDS)
    return not is_refused and not any(words in text for words in ("no password supplied", *_UNUSABLE))


def translated(error: BaseException, shown: str, *, connecting: bool = False) -> ShardgenError:
    """The deliberate error for one of the driver's."""
    code = code_of(error)
    original = error.orig if isinstance(error, DBAPIError) else error
    said = " ".join(str(original).split())
    if not code and connecting:
        if "FATAL" not in said and any(words in said for words in _UNUSABLE):
            return InvalidSettings(f"{shown}: cannot be connected to like that ({said})", hint=_OPTIONS)
        code = _code_from_words(said)
    for known in (code, code[:2]):
        if known in _MEANINGS:
            kind, fact, hint = _MEANINGS[known]
            return kind(f"{shown}: {fact} ({said})", hint=hint)
    kind, fact, hint = _FOREIGN if code else _BUSY
    return kind(f"{shown}: {fact} ({said})", hint=hint)


def _code_from_words(said: str) -> str:
    """The server's refusal, as far as its words tell; a user who reads another language sees them anyway."""
    if "does not exist" in said and "database" in said:
        return "3D000"
    return "28"


def cut_off(error: DBAPIError, shown: str) -> ManifestBusy:
    """The error of what cannot be begun anew by itself after its connection is gone."""
    said = " ".join(str(error.orig).split())
    return ManifestBusy(
        f"{shown}: the connection was cut in the middle ({said})",
        hint="run the command again; a rebuild that then finds a manifest there had come through",
    )


def unreachable(error: BaseException, shown: str, seconds: float) -> ManifestBusy:
    """The error of a server that did not come back."""
    said = " ".join(str(error.orig if isinstance(error, DBAPIError) else error).split())
    return ManifestBusy(
        f"{shown}: no connection for {seconds:.0f} s ({said})",
        hint="look whether the server runs and this machine can reach it; then run the command again",
    )
