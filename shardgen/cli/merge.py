"""`shardgen merge`."""

from __future__ import annotations

from pathlib import Path

from shardgen.cli import render
from shardgen.cli.extend import warn_of_unplanned
from shardgen.cli.options import HERE, AllowDeadLetters, Output, RunDir, typed
from shardgen.settings.run_directory import RunDirectory


def merge(
    *, run_dir: RunDir = HERE, output: Output = None, allow_dead_letters: AllowDeadLetters = False
) -> None:
    """Assemble the final zip with labels and statistics.

    Refuses while samples are pending. The zip gets its name only when it is complete; the same run gives the
    same bytes every time.

    \b
    Example:
      shardgen merge people -o people.zip
    """
    run = RunDirectory.open(run_dir)
    warn_of_unplanned(run, run.plan(), {})
    merge_and_show(run, output, allow_dead_letters=allow_dead_letters)


def merge_and_show(run: RunDirectory, output: Path | None, *, allow_dead_letters: bool) -> None:
    """Merge with a bar, and print what was made."""
    from shardgen.operations.merge import merge_run

    with render.counting("merging") as on_progress:
        result = merge_run(run, output, allow_dead_letters=allow_dead_letters, on_progress=on_progress)
    render.result_is_a_file()
    render.stdout().print(render.merge_view(result))
    render.say(f"to check every byte of it: shardgen verify {typed(result.path)}")
