"""What lies in the artifact folder, by name alone: published files, staged ones, and what is not ours."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shardgen.artifacts.names import ArtifactName, staged_artifact
from shardgen.artifacts.store import IDENTITY, REQUEUED, STAGING, refuse_link
from shardgen.domain.layout import Layout
from shardgen.storage.files import entries


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundFile:
    """A file that some attempt wrote; `path` is relative to the artifact folder."""

    path: str
    name: ArtifactName
    is_staged: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Every artifact and staged file, and the paths that none of ours has."""

    files: tuple[FoundFile, ...]
    strangers: tuple[str, ...]


def list_files(root: Path, layout: Layout) -> Listing:
    """List the artifact folder; marks of requeues and its identity are neither artifacts nor strangers.

    Raises ArtifactCorrupt for a link in the place of one of its folders.
    """
    files: list[FoundFile] = []
    strangers: list[str] = []
    for path in _below(root):
        folder, _, file = path.rpartition("/")
        is_staged = folder == STAGING
        name = staged_artifact(file, layout) if is_staged else ArtifactName.parse(path)
        if name is not None and name.slice_in(layout) is not None:
            files.append(FoundFile(path=path, name=name, is_staged=is_staged))
        else:
            strangers.append(path)
    return Listing(files=tuple(files), strangers=tuple(strangers))


def staged_names(root: Path, layout: Layout) -> Iterator[ArtifactName]:
    """What the files in the staging folder were to become. Raises ArtifactCorrupt for a link in its place."""
    refuse_link(root / STAGING)
    for entry in entries(root / STAGING):
        name = staged_artifact(entry.name, layout)
        if name is not None and name.slice_in(layout) is not None:
            yield name


def _below(root: Path) -> Iterator[str]:
    for entry in entries(root):
        is_ours = entry.name == STAGING or entry.name.startswith("shard-")
        # The identity may have been left half written by a kill, under a name that begins with a dot.
        if entry.name == REQUEUED or entry.name.removeprefix(".").startswith(IDENTITY):
            continue
        if is_ours:
            refuse_link(Path(entry.path))
        if not is_ours or not entry.is_dir(follow_symlinks=False):
            yield entry.name
            continue
        for inner in entries(Path(entry.path)):
            yield f"{entry.name}/{inner.name}" + ("/" if inner.is_dir(follow_symlinks=False) else "")
