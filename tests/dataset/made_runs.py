"""Runs with real artifacts and made-up images, for tests of artifacts, merge and verify."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

from shardgen.artifacts.archive import BatchContent, build_artifact
from shardgen.artifacts.folder_store import FolderStore
from shardgen.artifacts.names import ArtifactName
from shardgen.dataset import verify
from shardgen.dataset.verify import Verification, verify_zip
from shardgen.domain.identifiers import BatchIndex, Fence, SampleIndex, WorkerId
from shardgen.domain.lease import Attempt
from shardgen.domain.plan import Output, Plan
from shardgen.domain.receipt import (
    DeadLetter,
    DeadLetterReason,
    Facts,
    OutputSums,
    Provenance,
    Receipt,
    Sums,
    total_sums,
)
from shardgen.domain.sample import member_name
from shardgen.recipes.base import Files
from shardgen.recipes.composites.plan import CompositesPlan
from shardgen.recipes.composites.recipe import CompositesRecipe
from shardgen.settings.plan_file import parse_plan
from shardgen.storage.files import make_folders

WORKER = WorkerId("host-42-0abc1234")
PROVENANCE = Provenance.of(
    {
        "device_model": "cpu of a test",
        "tensorflow": "2.0",
        "opencv": "4.0",
        "precision": "float32",
        "micro_batch": 4,
    }
)


@cache
def image(name: str, sample: int) -> bytes:
    """Bytes of a different length and content for every image."""
    source = random.Random(f"{name}-{sample}")  # noqa: S311
    return source.randbytes(40 + source.randrange(80))


@lru_cache(maxsize=10_000)
def sums_of_image(output: Output, data: bytes) -> OutputSums:
    """Pretend that the bytes are pixel values: what decoding and adding up is in a real run."""
    pixels = len(data) // 3
    channels = [data[channel : 3 * pixels : 3] for channel in range(output.channels)]
    return OutputSums(
        images=1,
        pixels=pixels,
        sum=tuple(sum(channel) for channel in channels),
        squares=tuple(sum(value * value for value in channel) for channel in channels),
    )


def batch_content(
    plan: Plan, batch: int, *, dead: Sequence[int] = (), facts: Facts | None = None
) -> BatchContent:
    """A finished batch, with those of the facts that are of its samples, or with made-up ones."""
    members, parts = [], []
    for sample in plan.layout.batch_samples(BatchIndex(batch)):
        if sample in dead:
            continue
        sums: Sums = {}
        for output in plan.outputs:
            data = image(output.name, sample)
            members.append((member_name(output, SampleIndex(sample), digits=plan.name_digits), data))
            sums[output.name] = sums_of_image(output, data)
        parts.append(sums)
    letters = tuple(
        DeadLetter(sample=SampleIndex(sample), reason=DeadLetterReason.COMPOSE, detail="a traceback")
        for sample in plan.layout.batch_samples(BatchIndex(batch))
        if sample in dead
    )
    return BatchContent(
        batch=BatchIndex(batch),
        members=members,
        sums=total_sums(plan.outputs, parts),
        dead_letters=letters,
        provenance=PROVENANCE,
        facts={
            sample: made_facts(plan, sample) if facts is None else facts[sample]
            for sample in map(SampleIndex, plan.layout.batch_samples(BatchIndex(batch)))
            if sample not in dead and (facts is None or sample in facts)
        },
    )


def made_facts(plan: Plan, sample: SampleIndex) -> tuple[int, ...]:
    """As many as there are people; of neighbours other ones."""
    at = sample % 7  # canvases of tests are small
    of_one = (at, at + 1, 4, 3, 10, 900, at, at, 2, 1, 2)
    return of_one * len(CompositesPlan(plan).people(sample))


class MadeRecipe(CompositesRecipe):
    """Composites whose images are made-up bytes; the contact sheet shows which samples it was given."""

    def contact_sheet(self, samples: Sequence[tuple[int, Files]]) -> bytes:
        return json.dumps([sample for sample, _ in samples]).encode()

    def recount(self, output: Output, data: bytes) -> OutputSums:
        return sums_of_image(output, data)


def verify_made(path: Path, *, recipe: type[CompositesRecipe] = MadeRecipe, **options: Any) -> Verification:
    """Verify a zip of made-up images, decoding them its recipe's way."""
    with patch.object(verify, "recipe_of", recipe):
        return verify_zip(path, decode=True, **options)


@dataclass
class MadeRun:
    """Artifacts in a folder and their receipts in a list: what a manifest would hold."""

    plan: Plan
    store: FolderStore
    rows: list[Receipt] = field(default_factory=list)

    def receipts(self) -> Iterator[Receipt]:
        return iter(sorted(self.rows, key=lambda row: row.record.batch))

    def dead_letters(self) -> Iterator[DeadLetter]:
        for row in self.receipts():
            yield from row.record.dead_letters

    def content(self, batch: int, *, dead: Sequence[int], facts: Facts | None) -> BatchContent:
        return batch_content(self.plan, batch, dead=dead, facts=facts)

    def publish(
        self,
        batches: range,
        *,
        fence: int = 1,
        dead: Sequence[int] = (),
        count: range | None = None,
        facts: Facts | None = None,
    ) -> list[Receipt]:
        """Publish one artifact of these batches; receipts for those in `count` (all)."""
        layout = self.plan.layout
        shard = layout.shard_of_batch(BatchIndex(batches[0]))
        slice_ = layout.slice_of_batch(BatchIndex(batches[0]))
        attempt = Attempt(shard=shard, slice=slice_, fence=Fence(fence), worker=WORKER)
        contents = [self.content(batch, dead=dead, facts=facts) for batch in batches]
        data, inside = build_artifact(self.plan.fingerprint_of(BatchIndex(batches[0])), attempt, contents)
        name = ArtifactName(
            shard=shard,
            batches=batches,
            fence=Fence(fence),
            worker="0abc1234",
            random=f"{len(self.rows):08d}",
        )
        ref = self.store.publish(name, data)
        rows = [
            Receipt(shard=shard, slice=slice_, fence=Fence(fence), worker=WORKER, artifact=ref, record=record)
            for record in inside.batches
            if count is None or record.batch in count
        ]
        self.rows += rows
        return rows


def make_run(plan: Plan, folder: Path, *, dead: Sequence[int] = (), per_artifact: int = 1) -> MadeRun:
    """Every batch of the plan, published and recorded: a copy of the files of `publish_run`."""
    files, rows = _published(plan.canonical_json, tuple(dead), per_artifact, image)
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return MadeRun(plan, FolderStore(folder), list(rows))


@cache
def _published(
    plan: bytes, dead: tuple[int, ...], per_artifact: int, of_images: Callable[[str, int], bytes]
) -> tuple[dict[str, bytes], tuple[Receipt, ...]]:
    del of_images  # `image`, which tests replace: what was made of other images is another run
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = publish_run(parse_plan(plan, where="plan.json"), folder, dead=dead, per_artifact=per_artifact)
        paths = [path for path in folder.rglob("*") if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in paths}, tuple(run.rows)


def publish_run(plan: Plan, folder: Path, *, dead: Sequence[int] = (), per_artifact: int = 1) -> MadeRun:
    """Publish and record every batch of the plan, as workers do."""
    make_folders(folder)
    run = MadeRun(plan, FolderStore(folder))
    batch = 0
    while batch < plan.layout.batch_count:
        shard_stop = plan.layout.shard_batches(plan.layout.shard_of_batch(BatchIndex(batch))).stop
        batches = range(batch, min(batch + per_artifact, shard_stop))
        run.publish(batches, dead=dead)
        batch = batches.stop
    return run
