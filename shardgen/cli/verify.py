"""`shardgen verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardgen.cli import render
from shardgen.cli.options import HERE, Json
from shardgen.cli.progress import counting, opening
from shardgen.domain.wording import counted, typed
from shardgen.manifest.urls import is_meant_as_bucket

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
    _show(found, json=json, is_zip=of_zip)
    requeued = None
    if run is not None and requeue and not found.is_damaged:
        requeued = put_back(run, found.bad_batches)
    _refuse(subject, found, requeued)


def _show(found: Verification, *, json: bool, is_zip: bool) -> None:
    if json:
        pending = {} if is_zip else {"pending": found.pending}
        findings = [{"subject": one.subject, "fact": one.fact, "batch": one.batch} for one in found.findings]
        render.print_json({"samples": found.samples, **pending, "findings": findings})
    else:
        render.echo_findings(found)
        if found.pending:
            render.echo(f"not made yet, so not checked: {counted(found.pending, 'sample')}")
    for remark in found.remarks:
        render.say(remark)


def _refuse(subject: str, found: Verification, requeued: Requeued | None) -> None:
    """Raise ManifestCorrupt or ArtifactCorrupt if something was wrong, with what to do now."""
    from shardgen.errors import ArtifactCorrupt, ManifestCorrupt
    from shardgen.manifest.tables import REBUILD

    if not found.findings:
        return
    if requeued is not None:
        if requeued.mended:
            render.say(f"put right {counted(requeued.mended, 'record')} of the manifest")
        batches = counted(len(requeued.batches), "batch")
        render.say(f"requeued {batches}, {counted(requeued.samples, 'sample')}")
        hint = f"make what is pending, then merge: shardgen run {typed(subject)}"
    else:
        hint = REBUILD if found.is_damaged else _remedy(subject, found.samples)
    kind = ManifestCorrupt if all(one.in_manifest for one in found.findings) else ArtifactCorrupt
    raise kind(f"{subject}: {counted(len(found.findings), 'finding')}", hint=hint)


def _remedy(subject: str, samples: int) -> str:
    name = typed(subject)
    if is_meant_as_bucket(subject) or Path(subject).is_dir():
        return f"shardgen verify {name} --requeue puts exactly the bad batches back, and the manifest right"
    if samples:
        return f"its run directory can make it again: shardgen verify DIR, then shardgen merge DIR -o {name}"
    return "name a run directory, or a zip that `shardgen merge` wrote"
