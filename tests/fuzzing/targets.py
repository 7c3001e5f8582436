"""Every reader of bytes from outside as one function of bytes, with files of our own making to start from."""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from shardgen.artifacts.archive import build_artifact, read_whole
from shardgen.artifacts.check import wrong_members
from shardgen.artifacts.folder_store import FolderStore
from shardgen.artifacts.marks import read_marks
from shardgen.artifacts.receipt_json import parse_receipt_json
from shardgen.coordination.folder import notices
from shardgen.coordination.folder.notices import decoded, encoded
from shardgen.dataset.labels import label_rows
from shardgen.dataset.member_table import MemberTable
from shardgen.dataset.merge import MergeInputs, merge
from shardgen.depth.densedepth.model_config import ConfigRefused, read_model_config
from shardgen.depth.densedepth.topology import tensor_shapes
from shardgen.domain.identifiers import BatchIndex, Fence, SampleIndex, ShardIndex, SliceIndex
from shardgen.domain.lease import Attempt
from shardgen.errors import ShardgenError
from shardgen.imaging.codec import decode
from shardgen.recipes.composites.plan import Flips
from shardgen.recipes.registry import recipe_of
from shardgen.settings.plan_file import parse_plan
from shardgen.settings.run_directory import RunDirectory
from shardgen.settings.settings import FILE_NAME, read_settings, settings_differences
from shardgen.settings.template import settings_text
from tests.dataset.made_runs import WORKER, MadeRecipe, batch_content, make_run, verify_made
from tests.legacy_weights import LegacyNetwork
from tests.plans import make_plan

PLAN = make_plan(backgrounds=2, foregrounds=1, grid=(2, 2), flips=Flips.FOREGROUNDS, shard_size=12, batch=4)
DEAD = (2, 4, 5, 6, 7)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """`read` gives a value or raises ShardgenError, whatever the bytes are; it accepts all of `seeds`."""

    read: Callable[[bytes, Path], object]
    seeds: Callable[[], list[bytes]]
    is_zip: bool = False


def _settings(data: bytes, folder: Path) -> object:
    (folder / FILE_NAME).write_bytes(data)
    run = RunDirectory.open(folder)
    looks: tuple[Callable[[], object], ...] = (
        lambda: run.database.backend.shown,
        lambda: run.artifacts,
        lambda: run.local,
        lambda: run.folders({}),
        lambda: run.settings.lease_policy,
        lambda: settings_differences(PLAN, run.settings),
    )
    for look in looks:
        with suppress(ShardgenError):
            look()
    return read_settings(folder)


def _settings_seeds() -> list[bytes]:
    text = settings_text(foregrounds=Path("cut-outs"), backgrounds=Path("scenes"))
    bare = "\n".join(line.partition(" #")[0] for line in text.splitlines() if not line.startswith("#"))
    return [text.encode(), bare.encode(), b"", b'[depth]\nweights = "~/w.h5"\n[manifest]\nurl = "${HOME}"\n']


def _plan(data: bytes, _folder: Path) -> object:
    """Read, and use what was read as the other readers do."""
    plan = parse_plan(data, where="plan.json")
    layout = plan.layout
    recipe = recipe_of(plan)
    for number in {0, layout.batch_count - 1}:
        batch = BatchIndex(number)
        samples = layout.batch_samples(batch)
        label_rows(recipe, batch, without=(), facts=None)
        MemberTable(plan).header_sizes(np.arange(samples.start, samples.stop, dtype=np.int64))
        recipe.sources_of(SampleIndex(samples.start))
    return plan


def _artifact(data: bytes, _folder: Path) -> object:
    entries, receipt = read_whole(data, name="a.zip", fingerprint=PLAN.fingerprint)
    for record in receipt.batches:
        if record.batch < PLAN.layout.batch_count:
            wrong_members(PLAN, record, entries, data)
    return receipt


@cache
def artifact_seeds() -> list[bytes]:
    attempt = Attempt(shard=ShardIndex(0), slice=SliceIndex(0), fence=Fence(3), worker=WORKER)
    batches = [batch_content(PLAN, number, dead=DEAD) for number in range(3)]
    return [build_artifact(PLAN.fingerprint, attempt, some)[0] for some in (batches, batches[:1])]


def _zip(data: bytes, folder: Path) -> object:
    path = folder / "data.zip"
    path.write_bytes(data)
    return verify_made(path)


@cache
def zip_seeds() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(PLAN, Path(folder, "artifacts"), dead=DEAD)
        inputs = MergeInputs(recipe=MadeRecipe(PLAN), source=run, store=run.store, allow_dead_letters=True)
        return [merge(inputs, Path(folder, "out.zip")).path.read_bytes()]


def _receipt(data: bytes, _folder: Path) -> object:
    with suppress(ValueError):  # its contract: the archive's reader adds the file's name
        return parse_receipt_json(data)
    return None


def _receipt_seeds() -> list[bytes]:
    found = []
    for data in artifact_seeds():
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            found.append(archive.read("receipt.json"))
    return found


def _mark(data: bytes, folder: Path) -> object:
    store = FolderStore(folder / "artifacts")
    marks = store.root / "requeued"
    marks.mkdir(parents=True, exist_ok=True)
    (marks / "0001-0123abcd.json").write_bytes(data)
    undone = read_marks(PLAN, store)
    undone.includes(BatchIndex(0), Fence(1))
    return undone


def _mark_seeds() -> list[bytes]:
    mark = {"fingerprint": PLAN.fingerprint, "fence": 3, "batches": [0, 1, 2]}
    return [json.dumps(mark, sort_keys=True, separators=(",", ":")).encode()]


def _notice(data: bytes, _folder: Path) -> object:
    """Whatever a worker of another machine, or Drive's mount, leaves in a shared folder."""
    kinds = (notices.Notice, notices.Done, notices.Beat, notices.Requeue)
    return [decoded(kind, data) for kind in kinds]


def _notice_seeds() -> list[bytes]:
    ref = notices.SegmentRef(path="workers/w/shard-00000/x.zip", size_bytes=9, sha256="0" * 64)
    named: dict[str, Any] = {"fingerprint": PLAN.fingerprint, "written_at": 1.5}
    beat = notices.Beat(
        **named, worker="w", host="h", pid=1, process_started=1.0, started_at=1.0, state="working"
    )
    requeue = notices.Requeue(fingerprint=PLAN.fingerprint, generation=1, batches=(0, 1))
    return [encoded(one) for one in (notices.Done(**named, segments=(ref,)), beat, requeue)]


def _model_config(data: bytes, _folder: Path) -> object:
    try:
        config = read_model_config(data.decode("utf-8", "replace"))
    except ConfigRefused:  # its contract: the file's reader adds the file's name
        return None
    return tensor_shapes(config.topology)


@cache
def network() -> LegacyNetwork:
    """The smallest network there is."""
    return LegacyNetwork(blocks=(1, 1), growth=1, stem=2, width=2)


def _model_config_seeds() -> list[bytes]:
    return [json.dumps(network().model_config()).encode()]


def _photograph(data: bytes, _folder: Path) -> object:
    return decode(data).pixels.shape


@cache
def photograph_seeds() -> list[bytes]:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (9, 12, 4), dtype=np.uint8)
    found = []
    for suffix, shown in (
        (".jpg", pixels[..., :3]),
        (".png", pixels),
        (".png", pixels[..., 0]),
        (".webp", pixels),
        (".bmp", pixels[..., :3]),
        (".tiff", pixels[..., :3]),
    ):
        succeeded, data = cv2.imencode(suffix, np.ascontiguousarray(shown))
        assert succeeded, suffix
        found.append(data.tobytes())
    return found


TARGETS = {
    "settings": Target(read=_settings, seeds=_settings_seeds),
    "plan": Target(read=_plan, seeds=lambda: [PLAN.canonical_json]),
    "artifact": Target(read=_artifact, seeds=artifact_seeds, is_zip=True),
    "receipt": Target(read=_receipt, seeds=_receipt_seeds),
    "zip": Target(read=_zip, seeds=zip_seeds, is_zip=True),
    "mark": Target(read=_mark, seeds=_mark_seeds),
    "notice": Target(read=_notice, seeds=_notice_seeds),
    "model-config": Target(read=_model_config, seeds=_model_config_seeds),
    "photograph": Target(read=_photograph, seeds=photograph_seeds),
}
