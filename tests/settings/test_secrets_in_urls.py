from __future__ import annotations

from pathlib import Path

import pytest

from shardgen.errors import InvalidSettings
from shardgen.manifest.database_url import DatabaseUrl
from shardgen.settings.settings import parse_settings

LEFT, RIGHT = "hunter", "zwei"


def url_of(text: str) -> str:
    return parse_settings({"manifest": {"url": text}}, where="shardgen.toml").manifest_url()


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://me:{LEFT}{RIGHT}@host/db",
        f"postgresql+psycopg://me:{LEFT}/{RIGHT}@host:5432/db",
        f"postgresql://:{LEFT}{RIGHT}@host/db",
        f"postgresql://me:{LEFT}${{SECRET}}{RIGHT}@host/db",
        f"postgresql://me:{LEFT}@{RIGHT}@host/db",
        f"postgresql://host/db?user=me&password={LEFT}{RIGHT}",
        f"postgresql://host/db?user=me&Pass%77ord={LEFT}{RIGHT}",
        f"postgresql://host/db?sslpassword={LEFT}{RIGHT}&sslkey=key",
        f"mysql://me:{LEFT}{RIGHT}@host/db",
        f"${{SCHEME}}://me:{LEFT}{RIGHT}@host/db",
    ],
)
def test_a_password_in_the_settings_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(InvalidSettings, match="secrets may come only from the environment") as error:
        url_of(url)
    for word in ("SHARDGEN_MANIFEST", "PGPASSWORD", "pgpass"):
        assert word in error.value.hint
    assert LEFT not in str(error.value) + error.value.hint
    assert RIGHT not in str(error.value) + error.value.hint


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("${SECRET}", "pass word"),
        ("postgresql://me:${SECRET}@host/db", "postgresql://me:pass word@host/db"),
        ("postgresql://${SECRET}@host/db", "postgresql://pass word@host/db"),
        ("postgresql://me:${SECRET}${SECRET}@host/db", "postgresql://me:pass wordpass word@host/db"),
        ("postgresql://me@host/db?password=${SECRET}", "postgresql://me@host/db?password=pass word"),
        ("postgresql://me@host:5432/db", "postgresql://me@host:5432/db"),
        ("postgresql://me:@host/db", "postgresql://me:@host/db"),
        ("postgresql:///db?host=/run/pg&passfile=/home/me/.pgpass", None),
        ("sqlite:///a:b@c/manifest.sqlite", None),
    ],
)
def test_a_password_that_the_environment_holds_is_fine(
    url: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "pass word")
    assert url_of(url) == (url if expected is None else expected)


def test_a_variable_that_is_not_set_is_named() -> None:
    with pytest.raises(InvalidSettings, match=r"names \$\{NOT_SET_ANYWHERE\}, which is not set") as error:
        url_of("postgresql://me:${NOT_SET_ANYWHERE}@host/db")
    assert error.value.hint == "export NOT_SET_ANYWHERE=…"


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://me:{LEFT}@{RIGHT}@host/db",
        f"postgresql://me:{LEFT}@{RIGHT}/more@host/db",
        f"postgresql://me:{LEFT}@{RIGHT}?more@host/db",
        f"postgresql://me:{LEFT}@{RIGHT}:more@host/db",
        f"postgresql://me:{LEFT}{RIGHT}",
        f"me:{LEFT}{RIGHT}@host/db",
        f"postgresql:/me:{LEFT}{RIGHT}@host/db",
        f"oracle://me:{LEFT}{RIGHT}@host/db",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_showing_any_of_it(url: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings) as error:
        _ = DatabaseUrl(url=url, run_dir=tmp_path).backend
    assert error.value.hint
    assert error.value.__cause__ is None
    for word in (LEFT, RIGHT):
        assert word not in str(error.value) + error.value.hint


def test_a_password_may_hold_an_at_sign_when_it_is_escaped(tmp_path: Path) -> None:
    backend = DatabaseUrl(url=f"postgresql://me:{LEFT}%40{RIGHT}@host/db", run_dir=tmp_path).backend
    assert backend.shown == "postgresql://host/db"


@pytest.mark.parametrize(
    "document",
    [
        {"manifest": f"postgresql://me:{LEFT}@host/db"},
        {"manifest": {"url": [f"postgresql://me:{LEFT}@host/db"]}},
        {"manifest": {"url": {"url": f"postgresql://me:{LEFT}@host/db"}}},
        {"manifest": {"urls": f"postgresql://me:{LEFT}@host/db"}},
        {"manifest": {"url": "", "password": LEFT}},
    ],
)
def test_a_manifest_table_of_another_form_is_refused_without_its_values(document: dict[str, object]) -> None:
    with pytest.raises(InvalidSettings, match="manifest") as error:
        parse_settings(document, where="shardgen.toml")
    assert LEFT not in str(error.value) + error.value.hint
