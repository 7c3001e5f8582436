"""`shardgen merge`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardgen.cli import render
from shardgen.cli.extend import warn_of_unplanned
from shardgen.cli.options import HERE, AllowDeadLetters, Exclude, Json, Output, RunDir
from shardgen.cli.progress import counting, opening
from shardgen.domain.wording import counted, typed

if TYPE_CHECKING:
    from shardgen.dataset.merge import MergeResult
    from shardgen.settings.run_directory import RunDirectory


def merge(
    *,
    run_dir: RunDir = HERE,
    output: Output = None,
    exclude: Exclude = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Merge what is stored so far, even while workers run.")
    ] = False,
    allow_dead_letters: AllowDeadLetters = False,
    json: Json = False,
) -> None:
    """Assemble the final zip with labels and statistics.

    Refuses while samples are pending, unless --partial. The zip gets its name only when it is complete; the
    same run gives the same bytes every time. Without -o, a data set that is partial or excludes a photograph
    is dataset.partial.zip, dataset.excluded.zip or dataset.partial.excluded.zip; it never replaces a whole
    one. selection.json in it lists what is left out.

    \b
    Example:
      shardgen merge people -o people.zip
      shardgen merge people --partial
      shardgen merge people --exclude foregrounds/anna.png
    """
    with opening():
        from shardgen.coordination.open import open_directory

        run = open_directory(run_dir)
    warn_of_unplanned(run, run.plan(), {})
    result = merge_with_progress(
        run, output, allow_dead_letters=allow_dead_letters, exclude=tuple(exclude or ()), partial=partial
    )
    if json:
        from shardgen.cli.documents import MergeDocument, answer

        answer(MergeDocument.of(result))
        return
    show_merged(result)
    if exclude or partial:
        render.say(_missing(run, result))


def merge_with_progress(
    run: RunDirectory,
    output: Path | None,
    *,
    allow_dead_letters: bool,
    exclude: tuple[str, ...] = (),
    partial: bool = False,
) -> MergeResult:
    """Merge with a bar."""
    with counting("merging", "sample") as on_progress:
        from shardgen.operations.merge import merge_run

        return merge_run(
            run,
            output,
            allow_dead_letters=allow_dead_letters,
            exclude=exclude,
            partial=partial,
            on_progress=on_progress,
        )


def show_merged(result: MergeResult) -> None:
    """Print what was made."""
    render.result_is_a_file()
    render.stdout().print(render.merge_view(result))
    render.say(f"to check every byte of it: shardgen verify {typed(result.path)}")


def _missing(run: RunDirectory, result: MergeResult) -> str:
    selection = result.selection
    planned = counted(selection.planned, "sample")
    dead = counted(result.dead_letters, "dead letter") if result.dead_letters else ""
    if not selection.kinds:
        return f"nothing is pending: of {planned} " + (f"{dead} missing" if dead else "none is missing")
    parts = f"{selection.in_words} samples" + (f", and {dead}" if dead else "")
    rest = f"; shardgen run {typed(run.named)} makes the pending ones" if selection.pending else ""
    return f"left out, of {planned}: {parts}{rest}"
