"""What an export passes to its writers, whatever the format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from shardgen.domain.identifiers import SampleIndex
from shardgen.recipes.base import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSample:
    """A stored sample: `files` by the names of its outputs, `labels` as `Metadata.values` gives them."""

    number: SampleIndex
    files: Mapping[str, bytes]
    labels: Mapping[str, Any]


class ShardWriter(ABC):
    """Writes one file of many samples; who drives it stages, syncs and renames the file."""

    suffix: ClassVar[str]
    """Of its files, as in `tar`."""

    @abstractmethod
    def __init__(self, recipe: Recipe, path: Path) -> None:
        """Create the staged file at `path`."""

    @classmethod
    @abstractmethod
    def is_whole(cls, path: Path) -> bool:
        """Whether a regular file ends as one that was finished does; what lies between is not read."""

    @abstractmethod
    def add(self, sample: ExportSample) -> None:
        """Write the next sample; their numbers ascend."""

    @abstractmethod
    def finish(self) -> None:
        """Write what is left, and close: everything is in the file, if not on the disk."""

    @abstractmethod
    def abandon(self) -> None:
        """Close without finishing; also after `add` or `finish` raised."""
