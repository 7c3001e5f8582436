"""`shardgen verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardgen.cli import render
from shardgen.cli.options import HERE, Json, remember, typed
from shardgen.cli.progress import counting, opening
from shardgen.domain.wording import counted
from shardgen.manifest.urls import is_meant_as_bucket

if TYPE_CHECKING:
    from shardgen.dataset.verify import Verification
    from shardgen.errors import ShardgenError
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
            callback=remember,
        ),
    ] = HERE,
    requeue: Annotated[
        bool,
        typer.Option(
            "--requeue",
            help="Put exactly the bad batches back to be made again; put the manifest's counters right.",
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
    Checks a run directory against its manifest, and the manifest against itself and the plan; a zip against
    itself alone. Exits with 20-29 if something is wrong.

    \b
    Example:
      shardgen verify people
      shardgen verify people.zip
    """
    with opening():
        from shardgen.coordination.open import open_directory
        from shardgen.operations.verify import check_run, check_zip, is_zip, put_back

        of_zip = not is_meant_as_bucket(subject) and is_zip(Path(subject))
        if of_zip and requeue:
            raise typer.BadParameter("--requeue needs a run directory: a zip has no manifest")
        run = None if of_zip else open_directory(subject)
    with counting("verifying", "sample") as on_progress:
        if run is None:
            found = check_zip(Path(subject), decode=not quick, on_progress=on_progress)
        else:
            found = check_run(run, on_progress=on_progress)
    requeued = None
    if run is not None and requeue and not found.is_damaged:
        requeued = put_back(run, found.bad_batches)
    error = _refusal(subject, found, is_requeued=requeued is not None)
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


def _refusal(subject: str, found: Verification, *, is_requeued: bool) -> ShardgenError | None:
    """ManifestCorrupt or ArtifactCorrupt if something is wrong, with what to do now."""
    from shardgen.errors import ArtifactCorrupt, ManifestCorrupt
    from shardgen.manifest.tables import REBUILD

    if not found.findings:
        return None
    if is_requeued:
        hint = f"make what is pending, then merge: shardgen run {typed(subject)}"
    else:
        hint = REBUILD if found.is_damaged else _remedy(subject, found.samples)
    kind = ManifestCorrupt if all(one.in_manifest for one in found.findings) else ArtifactCorrupt
    return kind(f"{subject}: {counted(len(found.findings), 'finding')}", hint=hint)


def _remedy(subject: str, samples: int) -> str:
    name = typed(subject)
    if is_meant_as_bucket(subject) or Path(subject).is_dir():
        return f"shardgen verify {name} --requeue puts exactly the bad batches back, and the manifest right"
    if samples:
        return f"its run directory can make it again: shardgen verify DIR, then shardgen merge DIR -o {name}"
    return "name a run directory, or a zip that `shardgen merge` wrote"
