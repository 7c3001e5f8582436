"""Make a worker's Composer note each sample that it begins, and the kill fall on it."""

from __future__ import annotations

import sys

from benchmarks.beside import notes
from shardgen.domain.identifiers import SampleIndex
from shardgen.recipes.composites.composer import ComposedSample, Composer


def install() -> None:
    """From now on, in this process, if it is a worker: a merge composes for its contact sheet."""
    if "worker" not in sys.orig_argv:
        return
    compose = Composer.compose

    def noted_compose(self: Composer, sample: SampleIndex) -> ComposedSample:
        notes.begin(sample)
        return compose(self, sample)

    Composer.compose = noted_compose  # type: ignore[method-assign]
