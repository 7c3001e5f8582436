from __future__ import annotations

import base64
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, quote_plus

import psycopg
import pytest
from sqlalchemy import MetaData, create_engine, select

from shardgen.settings.run_directory import RunDirectory
from tests.postgres import Server
from tests.runs import make_run, shardgen

pytestmark = pytest.mark.slow

LEFT, RIGHT = "pl4ntedLeft", "pl4ntedRight"
SECRET = f"{LEFT}@%/é:{RIGHT}"
USER, DATABASE = "planter", "planted"
BARE = f"postgresql://{USER}:{SECRET}@127.0.0.1/{DATABASE}"  # its @ makes a host of what is a password


def forms(secret: str) -> set[bytes]:
    """How a secret may be written: as it is, escaped, or encoded with whatever stands around it."""
    data = secret.encode()
    plain = [secret, repr(secret), ascii(secret), quote(secret, safe=""), quote_plus(secret)]
    found = {text.strip("'").encode() for text in plain} | {data.hex().encode()}
    for before in range(3):
        # Only the characters that no neighbour can change: the first and last ones mix with them.
        encoded = base64.b64encode(b"\0" * before + data)
        found.add(encoded[(0, 2, 3)[before] : len(encoded) // 4 * 4 - 4])
        found.add(
            encoded[(0, 2, 3)[before] : len(encoded) // 4 * 4 - 4].translate(bytes.maketrans(b"+/", b"-_"))
        )
    return found


FORMS = forms(SECRET) | forms(LEFT) | forms(RIGHT)


def finds(data: bytes) -> set[bytes]:
    """The forms of the secret that these bytes hold."""
    return {form for form in FORMS if form in data}


@dataclass(slots=True, kw_only=True)
class Planted:
    """A run whose database asks for the secret, and everything that its commands have said."""

    run: RunDirectory
    folder: Path
    port: int
    said: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return self.url_for(port=self.port)

    def url_for(self, *, port: int, secret: str = quote(SECRET, safe=""), database: str = DATABASE) -> str:
        return f"postgresql+psycopg://{USER}:{secret}@127.0.0.1:{port}/{database}"

    def environment(self, url: str | None = None) -> dict[str, str]:
        folders = {
            "HOME": self.folder / "home",
            "XDG_CACHE_HOME": self.folder / "cache",
            "TMPDIR": self.folder / "temporary",
        }
        for path in folders.values():
            path.mkdir(exist_ok=True)
        return {
            **{name: str(path) for name, path in folders.items()},
            "SHARDGEN_MANIFEST": self.url if url is None else url,
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def command(self, *words: str | Path, url: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command on the run, and look into what it said."""
        verb, *rest = words
        done = shardgen(verb, self.run.path, *rest, environment=self.environment(url))
        self.hear(done)
        return done

    def hear(self, done: subprocess.CompletedProcess[str]) -> None:
        assert finds(done.stdout.encode()) == set(), done.stdout
        assert finds(done.stderr.encode()) == set(), done.stderr

    def files_with_the_secret(self) -> list[str]:
        """Every file of the test's folder, with the members of those that are archives."""
        found = []
        for path in self.folder.rglob("*"):
            if finds(os.fsencode(path.name)):
                found.append(f"the name {path}")
            if not path.is_file():
                continue
            if finds(path.read_bytes()):
                found.append(str(path))
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    members = [name for name in archive.namelist() if finds(archive.read(name))]
                found += [f"{path}: {name}" for name in members]
        return found

    def rows_with_the_secret(self) -> list[str]:
        """Every row of every table, and what the server keeps of the sessions' names."""
        engine = create_engine(self.url)
        metadata = MetaData()
        metadata.reflect(engine)
        assert "run" in metadata.tables
        try:
            with engine.connect() as connection:
                return [
                    f"{table.name}: {row}"
                    for table in metadata.sorted_tables
                    for row in connection.execute(select(table))
                    if finds(repr(tuple(row)).encode()) or any(finds(str(value).encode()) for value in row)
                ]
        finally:
            engine.dispose()


@pytest.fixture(scope="module")
def planted(postgres_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Planted]:
    """A finished run on a database that asks for the secret."""
    admin = postgres_server.url.set(drivername="postgresql").render_as_string(hide_password=False)
    word = psycopg.sql.Literal(SECRET)
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(psycopg.sql.SQL("CREATE ROLE planter LOGIN PASSWORD {}").format(word))
        connection.execute("CREATE DATABASE planted OWNER planter")
    folder = tmp_path_factory.mktemp("planted")
    run = make_run(folder, changes={"manifest.url": '"${SHARDGEN_MANIFEST}"'})
    made = Planted(run=run, folder=folder, port=postgres_server.port)
    assert made.command("plan").returncode == 0
    done = made.command("run", "--workers", "1")
    assert done.returncode == 0, done.stderr
    yield made
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute("DROP DATABASE planted WITH (FORCE)")
        connection.execute("DROP ROLE planter")


def test_the_search_finds_every_form_of_the_secret() -> None:
    for text in (SECRET, quote(SECRET), quote_plus(SECRET), repr([SECRET]), ascii(SECRET)):
        assert finds(f"postgresql://me:{text}@host/db".encode())
    for padding in range(6):
        data = b"x" * padding + SECRET.encode() + b"@host"
        assert finds(base64.b64encode(data))
        assert finds(base64.urlsafe_b64encode(data))
    assert finds(SECRET.encode().hex().encode())
    assert not finds(b"postgresql://127.0.0.1/planted")


@pytest.mark.parametrize(
    "words",
    [
        ["status"],
        ["status", "--json"],
        ["doctor"],
        ["plan"],
        ["worker"],
        ["merge", "-o", "other.zip"],
        ["verify"],
        ["verify", "--json"],
        ["dead-letters"],
        ["requeue", "--batch", "0"],
        ["sweep", "--yes"],
        ["backup"],
        ["run"],
        ["rebuild"],
    ],
    ids=" ".join,
)
def test_no_command_says_or_writes_the_password(planted: Planted, words: list[str]) -> None:
    verb, *rest = words
    done = planted.command(verb, *[planted.folder / one if one.endswith(".zip") else one for one in rest])
    assert done.returncode == {"rebuild": 13, "backup": 12}.get(verb, 0), done.stderr
    assert planted.files_with_the_secret() == []
    assert planted.rows_with_the_secret() == []


def test_a_machine_without_a_plan_file_writes_no_password_either(planted: Planted, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    text = (planted.run.path / "shardgen.toml").read_text(encoding="utf-8")
    text = text.replace('url = "artifacts"', f'url = "{planted.run.artifacts}"')
    (other / "shardgen.toml").write_text(text, encoding="utf-8")
    done = shardgen("worker", other, environment=planted.environment())
    planted.hear(done)
    assert done.returncode == 0, done.stderr
    assert (other / "plan.json").is_file()
    assert not any(finds(path.read_bytes()) for path in other.rglob("*") if path.is_file())


@pytest.mark.parametrize("verb", ["plan", "worker"])
def test_the_help_of_a_command_does_not_show_the_environment(planted: Planted, verb: str) -> None:
    done = shardgen(verb, "--help", environment=planted.environment())
    assert done.returncode == 0
    planted.hear(done)


WRONG = f"not{LEFT}{RIGHT}"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"secret": WRONG}, 12),
        ({"secret": ""}, 12),
        ({"database": "nowhere"}, 11),
        ({"database": f"nowhere?password={LEFT}"}, 12),
        ({"database": f"{DATABASE}?sslmode=colour"}, 12),
        ({"database": f"{DATABASE}?colour={RIGHT}"}, 12),
    ],
    ids=[
        "wrong password",
        "no password",
        "wrong database",
        "password in the query",
        "wrong mode",
        "wrong key",
    ],
)
def test_a_server_that_refuses_is_reported_without_the_password(
    planted: Planted, change: dict[str, str], code: int
) -> None:
    done = planted.command("status", url=planted.url_for(port=planted.port, **change))
    assert "error:" in done.stderr
    assert done.returncode == code, done.stderr


@pytest.mark.parametrize("verb", ["plan", "worker", "run", "merge", "doctor"])
def test_no_command_repeats_a_wrong_password(planted: Planted, verb: str) -> None:
    done = planted.command(verb, url=planted.url_for(port=planted.port, secret=WRONG))
    assert done.returncode == (0 if verb == "doctor" else 12), done.stderr
    assert "refuses this user" in done.stderr + done.stdout


def test_a_server_that_is_down_is_reported_without_the_password(planted: Planted) -> None:
    done = planted.command("status", url=planted.url_for(port=1))
    assert done.returncode == 30
    assert "127.0.0.1" in done.stderr


@pytest.mark.parametrize(
    "url",
    [
        BARE,
        f"postgresql://{USER}:{LEFT}{RIGHT}",
        f"{USER}:{LEFT}{RIGHT}@127.0.0.1/{DATABASE}",
        f"{LEFT}{RIGHT}",
        f"oracle://{USER}:{LEFT}{RIGHT}@127.0.0.1/{DATABASE}",
        f"postgresql://{USER}:{LEFT}{RIGHT}@127.0.0.1:port/{DATABASE}",
        "",
    ],
)
def test_a_url_that_cannot_be_used_is_reported_without_the_password(planted: Planted, url: str) -> None:
    done = planted.command("status", url=url)
    assert done.returncode == 12, done.stderr
    assert "[manifest] url" in done.stderr


@pytest.mark.parametrize("verb", ["plan", "worker", "run", "doctor"])
def test_no_command_repeats_a_url_that_cannot_be_used(planted: Planted, verb: str) -> None:
    done = planted.command(verb, url=BARE)
    assert done.returncode == (19 if verb == "doctor" else 12), done.stderr
    assert "[manifest] url" in done.stderr + done.stdout


def test_a_password_written_into_the_settings_is_refused_and_not_repeated(
    planted: Planted, tmp_path: Path
) -> None:
    text = (planted.run.path / "shardgen.toml").read_text(encoding="utf-8")
    (tmp_path / "shardgen.toml").write_text(
        text.replace("${SHARDGEN_MANIFEST}", planted.url), encoding="utf-8"
    )
    for verb in ("plan", "status", "doctor"):
        done = shardgen(verb, tmp_path, environment=planted.environment())
        planted.hear(done)
        assert done.returncode == (19 if verb == "doctor" else 12), done.stderr
        assert "${SHARDGEN_MANIFEST}" in done.stderr + done.stdout


BUGS = {
    "while a batch is recorded": """
def record(self, lease, receipt):
    raise RuntimeError("a bug")
Receipts.record = record
""",
    "while an error of the server is explained": """
def translated(*arguments, **options):
    raise RuntimeError("a bug")
postgres.translated = translated
os.environ["SHARDGEN_MANIFEST"] = os.environ["SHARDGEN_MANIFEST"].replace("@127.0.0.1", "more@127.0.0.1")
""",
    "while the URL is read": """
def backend(self):
    raise RuntimeError("a bug")
DatabaseUrl.backend = property(backend)
""",
}
WITH_A_BUG = """
import os, sys
from shardgen.cli.app import main
from shardgen.manifest import postgres
from shardgen.manifest.receipts import Receipts
from shardgen.manifest.database_url import DatabaseUrl
{bug}
sys.argv = ["shardgen", *sys.argv[1:]]
main()
"""


@pytest.mark.parametrize("where", BUGS)
def test_the_traceback_of_a_bug_does_not_show_the_password(planted: Planted, where: str) -> None:
    if where == "while a batch is recorded":
        assert planted.command("requeue", "--batch", "1").returncode == 0
    done = subprocess.run(
        [sys.executable, "-c", WITH_A_BUG.format(bug=BUGS[where]), "worker", planted.run.path],
        env={**os.environ, **planted.environment()},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert "Traceback" in done.stderr
    assert "RuntimeError: a bug" in done.stderr
    # A slice that fails for an unknown reason is given back; everything else is a bug at the last door.
    assert done.returncode == (36 if where == "while a batch is recorded" else 1), done.stderr
    planted.hear(done)
    assert planted.files_with_the_secret() == []
    assert planted.rows_with_the_secret() == []
