"""What an answer of PostgreSQL means for the manifest: one table, by SQLSTATE."""

from __future__ import annotations

import re
from dataclasses import dataclass

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
from shardgen.manifest.tables import MEND


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A SQLSTATE, or how several begin; what it means, and what a person types when it stays so.

    `ends_session` says that the session is gone, and with it whatever was not committed; `elsewhere`, that
    another session may get another answer.
    """

    code: str
    fact: str
    kind: type[ShardgenError]
    hint: str
    ends_session: bool = False
    elsewhere: bool = False

    @property
    def passes(self) -> bool:
        """Whether it is waited for, as long as the caller has promised."""
        return self.kind is ManifestBusy


_REACH = "check that the server runs and that this machine can reach it; then run the command again"
_LOOK = "run the command again; if that does not help, check pg_stat_activity for a waiting session"
_ROOM = "free some space on the server, then run the command again; nothing recorded is lost"
_RESTORE = "restore it, or rebuild into a new database"
_AGAIN = "run the command again"

ANSWERS = (
    Answer(code="08", fact="no connection", kind=ManifestBusy, hint=_REACH, ends_session=True),
    Answer(
        code="22023",
        fact="the server does not accept this kind of connection",
        kind=InvalidSettings,
        hint="check the options that [manifest] url gives behind its ?",
    ),
    Answer(code="23", fact="its rows contradict its rules", kind=ManifestCorrupt, hint=MEND),
    Answer(
        code="25006",
        fact="the server is read-only (a failover, or a standby)",
        kind=ManifestBusy,
        hint="name the primary server in [manifest] url, or end default_transaction_read_only for this user",
        elsewhere=True,
    ),
    Answer(
        code="25P03",
        fact="the server ended a session that was idle in a transaction",
        kind=ManifestBusy,
        hint=_AGAIN,
        ends_session=True,
    ),
    Answer(
        code="25P04",
        fact="the server ended a transaction that took too long (transaction_timeout)",
        kind=ManifestBusy,
        hint="raise transaction_timeout for this user, then run the command again",
        ends_session=True,
    ),
    Answer(
        code="28",
        fact="the server refuses this user",
        kind=InvalidSettings,
        hint="check the user and the password ($PGPASSWORD, or the variable that [manifest] url names)",
    ),
    Answer(
        code="3D000",
        fact="there is no such database",
        kind=InputMissing,
        hint="create it on the server (createdb NAME), or check [manifest] url",
    ),
    Answer(code="40001", fact="other transactions came in between", kind=ManifestBusy, hint=_AGAIN),
    Answer(code="40P01", fact="transactions waited for each other", kind=ManifestBusy, hint=_AGAIN),
    Answer(
        code="42",
        fact="not a manifest of this version of shardgen",
        kind=ManifestMismatch,
        hint="check [manifest] url in shardgen.toml; each run needs a database (or a schema) of its own",
    ),
    Answer(
        code="42501",
        fact="this user lacks permission for that",
        kind=ManifestMismatch,
        hint="let the user connect to that database, and create and change tables in it",
    ),
    Answer(code="53", fact="the server is short of resources", kind=ManifestBusy, hint=_LOOK),
    Answer(code="53100", fact="the server's disk is full", kind=StorageFailed, hint=_ROOM),
    Answer(
        code="53300",
        fact="the server is full: all its connections are taken",
        kind=ManifestBusy,
        hint="raise max_connections on the server (or this user's or database's CONNECTION LIMIT), or start "
        "fewer workers; then run the command again",
        ends_session=True,
    ),
    Answer(code="55P03", fact="another session holds a lock", kind=ManifestBusy, hint=_LOOK),
    Answer(
        code="57014",
        fact="the server cancelled a statement (statement_timeout)",
        kind=ManifestBusy,
        hint="raise statement_timeout for this user, then run the command again",
    ),
    Answer(
        code="57P",
        fact="the server ended the session",
        kind=ManifestBusy,
        hint=_REACH,
        ends_session=True,
    ),
    Answer(
        code="57P03",
        fact="the server accepts no connections yet (it starts, stops or recovers)",
        kind=ManifestBusy,
        hint=_REACH,
        ends_session=True,
    ),
    Answer(code="58", fact="the server's disk or system fails", kind=StorageFailed, hint=_ROOM),
    Answer(code="XX000", fact="an internal error of the server", kind=ManifestBusy, hint=_AGAIN),
    Answer(code="XX001", fact="the database is damaged", kind=ManifestCorrupt, hint=_RESTORE),
    Answer(code="XX002", fact="the database is damaged", kind=ManifestCorrupt, hint=_RESTORE),
)
_BY_CODE = {answer.code: answer for answer in ANSWERS}
_NO_CODE = _BY_CODE["08"]
_OTHER = _BY_CODE["42"]

# While it connects, the driver passes on the words and drops the code. These are PostgreSQL's own texts, from
# where they begin, and only those that it never says for another reason. A server that speaks another
# language, and every text that is not here, is waited for: waiting too long beats giving up too soon.
_SERVERS_WORDS = (
    (r"sorry, too many clients already", "53300"),
    (r"remaining connection slots are reserved for ", "53300"),
    (r'too many connections for (?:role|database) "', "53300"),
    (r"the database system is ", "57P03"),
    (r'(?:password|Peer|certificate) authentication failed for user "', "28"),
    (r'role "[^\n]*" (?:does not exist|is not permitted to log in)', "28"),
    (r"no pg_hba\.conf entry for ", "28"),
    (r"pg_hba\.conf rejects connection for ", "28"),
    (r"connection requires a valid client certificate", "28"),
    (r'database "[^\n]*" does not exist', "3D000"),
    (r'permission denied for database "', "42501"),
    (r'unrecognized configuration parameter "', "22023"),
    (r'invalid value for parameter "', "22023"),
)
# libpq's and psycopg's, of what the URL asks for or leaves out; looked for outside quoted names.
_DRIVERS_WORDS = (
    (r"no password supplied", "28"),
    (r"session is read-only|server is in hot standby mode", "25006"),
    (r"connection option|invalid \S+ value|invalid port number|certificate|does not support SSL", "22023"),
)
_QUOTED = re.compile(r"\"[^\"\n]*\"|'[^'\n]*'")


def code_of(error: BaseException) -> str:
    """The SQLSTATE, or ""."""
    return getattr(_original(error), "sqlstate", None) or ""


def _original(error: BaseException) -> BaseException | None:
    return error.orig if isinstance(error, DBAPIError) else error


def _said(error: BaseException) -> str:
    return " ".join(str(_original(error)).split())


def answer_of(error: BaseException) -> Answer:
    """What the server or the driver means."""
    code = code_of(error)
    if code:
        found = next((_BY_CODE[code[:end]] for end in (5, 3, 2) if code[:end] in _BY_CODE), _OTHER)
    elif isinstance(error, DBAPIError):
        found = _NO_CODE  # in a session the driver itself speaks: it could not send, or not read
    else:
        found = _answer_from_words(str(error))
    return found


def _answer_from_words(text: str) -> Answer:
    """Of a failed attempt to connect, which may speak of several addresses: one that passes is enough."""
    bare = _QUOTED.sub("", text)
    heard = [_BY_CODE[code] for words, code in _SERVERS_WORDS if re.search(rf"FATAL:\s+(?:{words})", text)]
    heard += [_BY_CODE[code] for words, code in _DRIVERS_WORDS if re.search(words, bare)]
    return next((answer for answer in heard if answer.passes), heard[0] if heard else _NO_CODE)


def is_lost_connection(error: DBAPIError) -> bool:
    """Whether the session is gone, and with it whatever was not committed."""
    # Without a code only what SQLAlchemy calls operational is the wire's. It notices that by itself only of
    # connections that its pool has handed out, not of one that it is still setting up.
    is_mute = not code_of(error)
    by_answer = answer_of(error).ends_session and (not is_mute or isinstance(error, OperationalError))
    return error.connection_invalidated or by_answer


def passes_by_itself(error: BaseException) -> bool:
    """Whether the same may succeed soon, begun anew."""
    if isinstance(error, DBAPIError):
        return is_lost_connection(error) or (bool(code_of(error)) and answer_of(error).passes)
    return answer_of(error).passes


def translated(error: BaseException, shown: str, *, after: float | None = None) -> ShardgenError:
    """The deliberate error for one of the driver's; `after` so many seconds of waiting."""
    answer = answer_of(error)
    waited = "" if after is None else f"tried for {after:.0f} s: "
    return answer.kind(f"{shown}: {waited}{answer.fact} ({_said(error)})", hint=answer.hint)


def waiting_for(error: BaseException, shown: str, seconds: float) -> str:
    """One line for who waits."""
    return f"{shown}: {answer_of(error).fact}; trying again for up to {seconds:.0f} s ({_said(error)})"


def cut_off(error: BaseException, shown: str) -> ManifestBusy:
    """The error of what cannot be begun anew by itself after its connection is gone."""
    return ManifestBusy(
        f"{shown}: the connection was cut in the middle ({_said(error)})",
        hint="run the command again; if a rebuild then finds a manifest, the first one succeeded",
    )
