"""Run a command in this process and write down each opening of its run directory's two files: LOG VERB…"""

from __future__ import annotations

import os
import sys

from shardgen.cli import app

LOG, *ARGUMENTS = sys.argv[1:]
NAMES = {b"plan.json", b"shardgen.toml"}


def main() -> None:
    # Opened here: whoever hears of every opening must open nothing; and a worker runs no exit handlers.
    log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)

    def hear(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            name = os.fsencode(arguments[0]).rpartition(b"/")[2]
            if name in NAMES:
                os.write(log, name + b"\n")

    sys.addaudithook(hear)
    sys.argv = ["shardgen", *ARGUMENTS]
    app.main()


if __name__ == "__main__":
    main()
