"""The `shardgen` command, and `python -m shardgen`."""

from __future__ import annotations

from shardgen.machine import collecting


def main() -> None:
    """Run the command line; a command's own work begins in `cli/options.py`."""
    collecting.put_off()
    from shardgen.cli.app import main as run  # noqa: PLC0415 - after collecting is put off

    run()


if __name__ == "__main__":
    main()
