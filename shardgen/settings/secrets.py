"""URLs in settings: their `${NAME}` parts come from the environment, and so do all secrets."""

from __future__ import annotations

import os
import re
from urllib.parse import parse_qsl

from shardgen.errors import InvalidSettings
from shardgen.manifest.urls import check_bucket_url, is_meant_as_bucket

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_PASSWORD = re.compile(r"[^:/]*:([^@]*)@")  # between user and host, as the database library reads it
_SECRETS = ("password", "sslpassword")  # in the query
_HINT = 'write url = "${SHARDGEN_MANIFEST}" and export SHARDGEN_MANIFEST=…, or use $PGPASSWORD or ~/.pgpass'


def expanded(url: str, *, where: str) -> str:
    """The URL with its `${NAME}` parts taken from the environment; `where` names it in errors.

    Raises InvalidSettings, without repeating a value: for a variable that is not set, and for a password
    that is written out instead of named.
    """
    if not is_meant_as_bucket(url) and _has_literal_secret(url):
        raise InvalidSettings(
            f"{where}: contains a password; secrets may come only from the environment", hint=_HINT
        )

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise InvalidSettings(f"{where} names ${{{name}}}, which is not set", hint=f"export {name}=…")
        return os.environ[name]

    found = _VARIABLE.sub(value, url)
    if is_meant_as_bucket(found):
        check_bucket_url(found, where=where)
    return found


def named_in(url: str) -> set[str]:
    """The variables that a URL names."""
    return set(_VARIABLE.findall(url))


def _has_literal_secret(url: str) -> bool:
    scheme, _, rest = url.partition("://")
    if scheme.startswith("sqlite"):
        return False  # the rest is a path
    password = _PASSWORD.match(rest)
    given = [password[1]] if password is not None else []
    query = parse_qsl(rest.partition("?")[2], keep_blank_values=True)
    given += [value for name, value in query if name.lower() in _SECRETS]
    return any(_VARIABLE.sub("", value) for value in given)
