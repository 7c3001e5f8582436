"""`shardgen verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardgen.cli import render
from shardgen.cli.options import HERE, Json
from shardgen.cli.progress import counting, opening
from shardgen.domain.wording import counted
from shardgen.errors import WrongOption

if TYPE_CHECKING:
    from shardgen.dataset.verify import Verification
    from shardgen.operations.requeue import Requeued


def verify(
    *,
    subject: Annotated[
        str,
        typer.Argument(
            metavar="RUN_DIR|ZIP",
            envvar="SHARDGEN_RUN",
            help="A run directory, its bucket (s3://bucket/people), or a finished zip.",
            show_default=False,
        ),
    ] = HERE,
    requeue: Annotated[
        bool,
        typer.Option(
            "--requeue",
            help="Put exactly the bad batches back to be made again, and correct the manifest's counters.",
        ),
    ] = False,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="For a zip: check structure and CRCs, without decoding every image."),
    ] = False,
    json: Json = False,
) -> None:
    """Read every byte again and name what is wrong.

    Changes nothing without --requeue.
    Checks a run directory against its manifest, and the manifest against itself and the plan; a zip only
    against itself. Exits with 20-29 if something is wrong.

    \b
    Example:
      shardgen verify people
      shardgen verify people.zip
    """
    with opening():
        from shardgen.operations.verify import check, open_subject, put_back, what_is_wrong

        opened = open_subject(subject)
    if requeue and isinstance(opened, Path):
        raise WrongOption("requeue", "needs a run directory: a zip has no manifest")
    with counting("verifying", "sample") as on_progress:
        found = check(opened, quick=quick, on_progress=on_progress)
    requeued = None
    if requeue and not isinstance(opened, Path) and not found.is_damaged:
        requeued = put_back(opened, found.bad_batches)
    error = what_is_wrong(subject, found, requeued)
    if error is not None:
        error.name_run(subject)
    if json:
        from shardgen.cli.documents import VerifyDocument, answer

        answer(VerifyDocument.of(found, subject=subject, requeued=requeued, error=error), error)
        return
    _show(found, requeued)
    if error is not None:
        raise error


def _show(found: Verification, requeued: Requeued | None) -> None:
    render.echo_findings(found)
    if found.pending:
        render.echo(f"not made yet, so not checked: {counted(found.pending, 'sample')}")
    for remark in found.remarks:
        render.say(remark)
    if requeued is not None and requeued.mended:
        render.say(f"put right {counted(requeued.mended, 'record')} of the manifest")
    if requeued is not None and found.findings:
        batches = counted(len(requeued.batches), "batch")
        render.say(f"requeued {batches}, {counted(requeued.samples, 'sample')}")
