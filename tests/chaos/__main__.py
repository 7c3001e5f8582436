"""`python -m tests.chaos --seconds 1200 --seed 7`: exit code 0 only if every promise held."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sqlalchemy import make_url

from tests.bucket.servers import SERVERS
from tests.chaos.bucket_backdoor import bucket_on
from tests.chaos.harness import SQLITE, Chaos, ChaosOptions
from tests.chaos.worker import UNFENCED, UNPUBLISHED
from tests.postgres import Server, new_schema


def main() -> int:
    """Parse, run, print the figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--seconds", type=float, default=120.0, help="of chaos; start and end come on top")
    parser.add_argument("--seed", type=int, default=1, help="the same seed gives the same schedule")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--samples", type=int, default=4800)
    manifest = parser.add_mutually_exclusive_group()
    manifest.add_argument("--manifest", default=SQLITE, metavar="URL", help="on PostgreSQL: in a new schema")
    manifest.add_argument(
        "--bucket",
        metavar="SERVER|URL",
        help=f"on a server of its own ({', '.join(SERVERS)}), or below an s3:// url at AWS_ENDPOINT_URL",
    )
    manifest.add_argument("--postgres", action="store_true", help="on a server of its own, restarted as well")
    parser.add_argument("--folder", type=Path, help="kept afterwards; without one, kept only when red")
    parser.add_argument("--verbose", action="store_true", help="print the schedule and what happens")
    parser.add_argument("--broken", default="", choices=["", UNPUBLISHED, UNFENCED], help="must turn it red")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="shardgen-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        bucket = None if given.bucket is None else stack.enter_context(bucket_on(given.bucket))
        url, server = stack.enter_context(_manifest(given.manifest, on_a_server=given.postgres))
        options = ChaosOptions(
            seconds=given.seconds,
            seed=given.seed,
            workers=given.workers,
            samples=given.samples,
            manifest=url if bucket is None else bucket.url,
            server=server,
            bucket=bucket,
            verbose=given.verbose,
            broken=given.broken,
        )
        figures = Chaos(folder, options, say=lambda line: print(line, file=sys.stderr, flush=True)).run()
        print(figures.table(), flush=True)
    if figures.violations:
        print(f"everything is kept in {folder}", file=sys.stderr)
    elif given.folder is None:
        shutil.rmtree(folder)
    return 1 if figures.violations else 0


@contextmanager
def _manifest(url: str, *, on_a_server: bool) -> Iterator[tuple[str, Server | None]]:
    """Where the run's manifest is to be, and the server if it is this program's own."""
    if on_a_server:
        server = Server()
        try:
            with new_schema(server.url) as schema:
                yield schema, server
        finally:
            server.remove()
    elif url.startswith("postgres"):
        with new_schema(make_url(url).set(drivername="postgresql+psycopg")) as schema:
            yield schema, None
    else:
        yield url, None


if __name__ == "__main__":
    sys.exit(main())
