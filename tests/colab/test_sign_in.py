"""The cell that signs in for a bucket, and which of the credentials that Colab leaves obstore then uses."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.test_notebooks import PACKAGES, WORKER, cell_with

ROOT = Path(__file__).parent.parent.parent
ASKED_FOR = "/computeMetadata/v1/instance/service-accounts/default/token"
USE = """
from shardgen.coordination.bucket.objects import Objects

print("created", Objects.open(BUCKET).create("claim", b"mine"))
"""


class Google(ThreadingHTTPServer):
    """A runtime's metadata server, and a store that takes every object; `asked` is what came."""

    def __init__(self, *, gives_tokens: bool) -> None:
        self.asked: list[tuple[str, str, str]] = []  # method and path, token, condition
        self.gives_tokens = gives_tokens
        super().__init__(("127.0.0.1", 0), Answer)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    server: Google

    def do_GET(self) -> None:
        body = json.dumps({"access_token": "of the runtime", "expires_in": 3600}).encode()
        is_known = self.server.gives_tokens and self.headers["Metadata-Flavor"] == "Google"
        self.answer(200 if is_known else 404, body)

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(200, b"")

    def answer(self, status: int, body: bytes) -> None:
        said = self.headers.get("Authorization", ""), self.headers.get("x-goog-if-generation-match", "")
        self.server.asked.append((f"{self.command} {self.path.partition('?')[0]}", *said))
        self.send_response(status)
        headers = {"Content-Length": str(len(body)), "ETag": '"1"', "x-goog-generation": "1"}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def google(request: pytest.FixtureRequest) -> Iterator[Google]:
    with Google(gives_tokens=getattr(request, "param", True)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def sign_in(
    folder: Path, bucket: str, environment: dict[str, str], *, secrets: dict[str, object], then: str = USE
) -> subprocess.CompletedProcess[str]:
    """Run the cell as the notebook's kernel does, and more code after it."""
    journal = folder / "journal"
    journal.touch()
    return subprocess.run(
        [sys.executable, "-c", f"BUCKET = {bucket!r}\n{cell_with(WORKER, 'userdata')}\n{then}"],
        env={
            "PYTHONPATH": f"{PACKAGES}:{ROOT}",
            "HOME": str(folder),
            "FAKE_JOURNAL": str(journal),
            "FAKE_SECRETS": json.dumps(secrets),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_who_signs_in_works_with_the_tokens_of_the_runtime(google: Google, tmp_path: Path) -> None:
    environment = {
        "USE_AUTH_EPHEM": "1",
        "GCE_METADATA_HOST": google.host,
        "GOOGLE_BASE_URL": f"http://{google.host}",
    }
    done = sign_in(tmp_path, "gs://bucket/people", environment, secrets={})
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "created True"), done.stderr
    assert (tmp_path / "journal").read_text(encoding="utf-8") == "authenticate\n"
    assert google.asked == [
        (f"GET {ASKED_FOR}", "", ""),
        (f"GET {ASKED_FOR}", "", ""),
        ("PUT /bucket/people%2Fclaim", "Bearer of the runtime", "0"),
    ]


def test_who_signs_in_to_a_file_works_with_that_file(tmp_path: Path) -> None:
    opened = "from shardgen.coordination.bucket.objects import Objects\nObjects.open(BUCKET)"
    done = sign_in(tmp_path, "gs://bucket/people", {"USE_AUTH_EPHEM": "0"}, secrets={}, then=opened)
    assert done.returncode == 0, done.stderr
    # Another kind of file is refused, so this one was read.
    file = "open(os.environ['GOOGLE_APPLICATION_CREDENTIALS'], 'w')"
    other = f"with {file} as file:\n    json.dump({{'type': 'external_account'}}, file)"
    then = f"{other}\n{opened}"
    done = sign_in(tmp_path, "gs://bucket/people", {"USE_AUTH_EPHEM": "0"}, secrets={}, then=then)
    assert "external_account" in done.stderr


def test_the_key_of_a_service_account_signs_nobody_in(google: Google, tmp_path: Path) -> None:
    key: dict[str, object] = dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
    key |= {"type": "service_account", "gcs_base_url": f"http://{google.host}", "disable_oauth": True}
    secrets: dict[str, object] = {"GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(key)}
    http = {"GOOGLE_BASE_URL": f"http://{google.host}"}
    done = sign_in(tmp_path, "gs://bucket/people", http, secrets=secrets)
    assert (done.returncode, done.stdout) == (0, "created True\n"), done.stderr
    assert (tmp_path / "journal").read_text(encoding="utf-8") == ""
    assert [path for path, _, _ in google.asked] == ["PUT /bucket/people%2Fclaim"]


@pytest.mark.parametrize("google", [False], indirect=True)
def test_a_runtime_that_gives_no_token_is_told_at_once(google: Google, tmp_path: Path) -> None:
    environment = {"USE_AUTH_EPHEM": "1", "GCE_METADATA_HOST": google.host}
    done = sign_in(tmp_path, "gs://bucket/people", environment, secrets={}, then="print('went on')")
    assert "as the secret GOOGLE_SERVICE_ACCOUNT_KEY" in done.stderr
    assert "went on" not in done.stdout


def test_keys_of_s3_come_from_the_secrets_and_are_not_printed(tmp_path: Path) -> None:
    keys: dict[str, object] = {"AWS_ACCESS_KEY_ID": "who", "AWS_SECRET_ACCESS_KEY": "hush"}
    names = "print({name: os.environ.get(name) == value for name, value in GIVEN.items()})"
    done = sign_in(tmp_path, "s3://bucket/people", {}, secrets=keys, then=f"GIVEN = {keys!r}\n{names}")
    assert done.stdout.splitlines() == [
        "no secret AWS_REGION",
        "no secret AWS_ENDPOINT_URL",
        "{'AWS_ACCESS_KEY_ID': True, 'AWS_SECRET_ACCESS_KEY': True}",
    ]
    assert "hush" not in done.stdout + done.stderr
    assert (tmp_path / "journal").read_text(encoding="utf-8") == ""  # no Drive, nobody signed in


def test_a_secret_that_the_notebook_may_not_use_stops_it(tmp_path: Path) -> None:
    done = sign_in(tmp_path, "s3://bucket/people", {}, secrets={"AWS_ACCESS_KEY_ID": None}, then="")
    assert "does not have access to secret AWS_ACCESS_KEY_ID" in done.stderr
