"""`shardgen verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shardgen.cli import render
from shardgen.cli.options import Json, remember, typed
from shardgen.domain.wording import counted

HELP = """Read every byte again and name what is wrong.

Repairs nothing.
Checks a run directory against its manifest, a zip against itself alone. Exits with 20-29 if something is
wrong.

\b
Example:
  shardgen verify people
  shardgen verify people.zip
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("verify", help=HELP)(verify)


def verify(
    *,
    subject: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_DIR|ZIP",
            envvar="SHARDGEN_RUN",
            help="A run directory or a finished zip.",
            show_default=False,
            callback=remember,
        ),
    ] = Path(),
    requeue: Annotated[
        bool, typer.Option("--requeue", help="Put exactly the bad batches back to be made again.")
    ] = False,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="For a zip: check structure and CRCs, without decoding every image."),
    ] = False,
    json: Json = False,
) -> None:
    """Call the verb."""
    from shardgen.errors import ArtifactCorrupt, InputMissing
    from shardgen.finishing import check_run, check_zip, put_back
    from shardgen.rundir import RunDirectory

    if subject.is_file() and requeue:
        raise typer.BadParameter("--requeue needs a run directory: a zip has no manifest")
    with render.progress_bar("verifying") as bar:
        task = bar.add_task("verifying", total=None)

        def on_progress(done: int, planned: int) -> None:
            bar.update(task, completed=done, total=planned)

        if not subject.exists():
            raise InputMissing(f"{subject}: there is no such run directory or zip", hint="check the name")
        if subject.is_file():
            found = check_zip(subject, decode=not quick, on_progress=on_progress)
        else:
            found = check_run(RunDirectory.open(subject), on_progress=on_progress)
    if json:
        render.print_json(
            {
                "samples": found.samples,
                "findings": [
                    {"subject": one.subject, "fact": one.fact, "batch": one.batch} for one in found.findings
                ],
            }
        )
    else:
        for one in found.findings:
            render.echo(f"{one.subject}: {one.fact}")
        render.echo(render.verified(found.samples, len(found.findings)))
    requeued = put_back(RunDirectory.open(subject), found.bad_batches) if requeue else None
    if not found.findings:
        return
    if requeued is not None:
        batches = counted(len(requeued.batches), "batch")
        render.say(f"requeued {batches}, {counted(requeued.samples, 'sample')}")
        hint = f"they are pending now: shardgen run {typed(subject)}"
    else:
        hint = _remedy(subject, found.samples)
    raise ArtifactCorrupt(f"{subject}: {counted(len(found.findings), 'finding')}", hint=hint)


def _remedy(subject: Path, samples: int) -> str:
    name = typed(subject)
    if subject.is_dir():
        return f"shardgen verify {name} --requeue puts exactly the bad batches back"
    if samples:
        return f"its run directory can make it again: shardgen verify DIR, then shardgen merge DIR -o {name}"
    return "name a run directory, or a zip that `shardgen merge` wrote"
