"""Stores on loopback for tests: two independent S3 servers, each in an environment of its own, and Azurite.

None of the servers' many dependencies comes into the environment that shardgen is tested in. Theirs are made
once, from the package index, and kept in the user's cache. Where one cannot be made, the tests fail.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import hmac
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Protocol

import platformdirs

AZURITE = "SHARDGEN_TEST_AZURITE"  # the path of the program `azurite-blob`
BUCKET = "people"
_INSTALL_SECONDS = 600.0
_START_SECONDS = 60.0
# Both are in Azurite's documentation, for everybody.
_AZURITE_ACCOUNT = "devstoreaccount1"
_AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


class Store(Protocol):
    """A store with one bucket, as tests use it."""

    @property
    def name(self) -> str:
        """Of the program."""

    @property
    def port(self) -> int:
        """Of loopback."""

    def environment(self, port: int | None = None) -> dict[str, str]:
        """What reaches it, for every process that is to; `port`: by way of a proxy there."""

    def new_url(self) -> str:
        """Of a prefix that nothing uses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A server program: what is installed for it, and how it is told its port."""

    name: str
    requirements: tuple[str, ...]
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


MINISTACK = Kind(
    name="ministack",
    requirements=("ministack>=1.5,<2",),
    command=("ministack",),
    environment={"SERVICES": "s3", "BIND_HOST": "127.0.0.1", "GATEWAY_PORT": "{port}"},
)
# One request at a time: moto looks for a key and then writes it, with nothing to keep two threads apart, so
# that now and then two create the same.
_ONE_AT_A_TIME = """
from moto import server
real = server.run_simple
server.run_simple = lambda *words, **options: real(*words, **(options | dict(threaded=False)))
server.main(["-H", "127.0.0.1", "-p", "{port}"])
"""
# The extra `server` would bring what 200 other services need, and take a minute.
MOTO = Kind(
    name="moto",
    requirements=("moto[s3]>=5,<6", "flask", "flask-cors"),
    command=("python", "-c", _ONE_AT_A_TIME),
)
S3_KINDS = {one.name: one for one in (MINISTACK, MOTO)}
SERVERS = (*S3_KINDS, *(["azurite"] if AZURITE in os.environ else []))


def programs_of(kind: Kind) -> Path:
    """The folder of its programs; processes that ask at the same time wait for the first."""
    cache = platformdirs.user_cache_path("shardgen-tests")
    what = "\n".join([sys.version, *kind.requirements])
    folder = cache / f"{kind.name}-{hashlib.sha256(what.encode()).hexdigest()[:12]}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        finished = folder / "finished"
        if not finished.exists():
            _run(sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder))
            _run(
                sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"),
                "install", "--quiet", "--no-compile", *kind.requirements,
            )  # fmt: skip
            finished.touch()
    return folder / "bin"


def _run(*command: str) -> None:
    done = subprocess.run(
        command, check=False, capture_output=True, encoding="utf-8", timeout=_INSTALL_SECONDS
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Server:
    """One that speaks S3."""

    name: str
    port: int

    def environment(self, port: int | None = None) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port or self.port}",
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": "tests",
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
        }

    def new_url(self) -> str:
        return f"s3://{BUCKET}/{secrets.token_hex(6)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureServer:
    """Azurite."""

    name: str
    port: int

    def environment(self, port: int | None = None) -> dict[str, str]:
        return {
            "AZURE_STORAGE_ACCOUNT_NAME": _AZURITE_ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": _AZURITE_KEY,
            "AZURE_ENDPOINT": f"http://127.0.0.1:{port or self.port}/{_AZURITE_ACCOUNT}",
            "AZURE_ALLOW_HTTP": "true",
        }

    def new_url(self) -> str:
        return f"az://{BUCKET}/{secrets.token_hex(6)}"


@contextmanager
def running(name: str) -> Iterator[Store]:
    """The server of that name, with an empty bucket, as long as this block runs."""
    port = free_port()
    if name == "azurite":
        with tempfile.TemporaryDirectory(prefix="azurite-") as folder:
            command = [
                os.environ[AZURITE], "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", folder,
                "--silent", "--skipApiVersionCheck",
            ]  # fmt: skip
            with _process(command, port, {}):
                _put(port, f"/{_AZURITE_ACCOUNT}/{BUCKET}?restype=container", _azure_headers())
                yield AzureServer(name=name, port=port)
        return
    kind = S3_KINDS[name]
    program, *arguments = (one.format(port=port) for one in kind.command)
    settings = {setting: value.format(port=port) for setting, value in kind.environment.items()}
    with _process([str(programs_of(kind) / program), *arguments], port, settings):
        _put(port, f"/{BUCKET}", {})
        yield S3Server(name=name, port=port)


@contextmanager
def _process(command: list[str], port: int, environment: Mapping[str, str]) -> Iterator[None]:
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C ends the tests first, and they end it
        )
        try:
            deadline = time.monotonic() + _START_SECONDS
            while not _answers(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    output.seek(0)
                    raise RuntimeError(f"{' '.join(command)} does not run: {output.read().decode()}")
                time.sleep(0.05)
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


def _put(port: int, path: str, headers: Mapping[str, str]) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", method="PUT", headers=dict(headers), data=b""
    )
    with urllib.request.urlopen(request, timeout=_START_SECONDS):  # noqa: S310
        pass


def _azure_headers() -> dict[str, str]:
    """Those that sign the making of the container."""
    date, version = formatdate(usegmt=True), "2021-08-06"
    kind = "application/x-www-form-urlencoded"  # urllib's own for what has a body, if only an empty one
    signed = "\n".join(
        [
            "PUT", "", "", "", "", kind, "", "", "", "", "", "",
            f"x-ms-date:{date}", f"x-ms-version:{version}",
            f"/{_AZURITE_ACCOUNT}/{_AZURITE_ACCOUNT}/{BUCKET}", "restype:container",
        ]
    )  # fmt: skip
    digest = hmac.digest(base64.b64decode(_AZURITE_KEY), signed.encode(), "sha256")
    return {
        "x-ms-date": date,
        "x-ms-version": version,
        "Content-Type": kind,
        "Authorization": f"SharedKey {_AZURITE_ACCOUNT}:{base64.b64encode(digest).decode()}",
    }


def free_port() -> int:
    """One of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
