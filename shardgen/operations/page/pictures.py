"""The newest finished samples as small pictures, from the artifacts that the newest receipts name."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from shardgen.artifacts.archive import read_artifact
from shardgen.artifacts.store import ArtifactReader
from shardgen.artifacts.zip_records import Entry
from shardgen.domain.identifiers import SampleIndex
from shardgen.domain.receipt import Receipt
from shardgen.domain.sample import member_name
from shardgen.errors import IMAGE_LIBRARIES, ShardgenError, TransientError, missing_image_library
from shardgen.recipes.base import Recipe

RECEIPTS = 6  # that are looked into, newest first; of each one sample, as neighbours are much alike
_SECONDS = 10.0  # between two readings of artifacts
_PACE = 1 << 20  # bytes a second that are read of them on average: a bucket's owner pays for each
_MAX_ARTIFACT = 64 << 20  # bytes; what is larger is not read for two small pictures
_PNG = b"\x89PNG"


@dataclass(frozen=True, kw_only=True)
class SmallPicture:
    """What it shows, in a word or two, and its bytes: PNG or JPEG."""

    what: str
    data: bytes

    @cached_property
    def key(self) -> str:
        """A name that says nothing of the run; other bytes have another."""
        return hashlib.sha256(self.data).hexdigest()[:32]

    @property
    def media_type(self) -> str:
        """As in `image/png`."""
        return "image/png" if self.data.startswith(_PNG) else "image/jpeg"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownSample:
    """A finished sample: its number, what it is made of, its pictures."""

    sample: int
    made_of: str
    pictures: tuple[SmallPicture, ...]


class Album:
    """The newest samples of a run, read again only when newer ones are there. One thread uses it."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._known: dict[tuple[str, int], ShownSample | None] = {}
        self._next_reading = 0.0
        self._read_bytes = 0
        self.remark = ""
        """Why there are no pictures, where the machine cannot draw any."""

    @property
    def samples(self) -> tuple[ShownSample, ...]:
        """Those that are known, newest first."""
        return tuple(one for one in self._known.values() if one is not None and one.pictures)

    def newest(self, receipts: Sequence[Receipt], store: ArtifactReader) -> tuple[ShownSample, ...]:
        """Samples of these receipts, as far as they can be read: a damaged artifact is for `verify`."""
        if time.monotonic() >= self._next_reading and not self.remark:
            self._read_bytes = 0
            try:
                self._read(receipts[:RECEIPTS], store)
            except ImportError as error:
                if (error.name or "").partition(".")[0] not in IMAGE_LIBRARIES:
                    raise
                self.remark = str(missing_image_library(error))
            finally:
                self._next_reading = time.monotonic() + max(_SECONDS, self._read_bytes / _PACE)
        return self.samples

    def _read(self, receipts: Sequence[Receipt], store: ArtifactReader) -> None:
        known: dict[tuple[str, int], ShownSample | None] = {}
        name, data = "", b""  # on a shared folder an artifact holds several batches, mostly the next ones
        for receipt in receipts:
            key = receipt.artifact.sha256, receipt.record.batch
            if key in self._known:
                known[key] = self._known[key]
            elif receipt.artifact.size_bytes <= _MAX_ARTIFACT:
                try:
                    if receipt.artifact.name != name:
                        name, data = "", b""  # no two are held at once
                        data = store.read(receipt.artifact)
                        name, self._read_bytes = receipt.artifact.name, self._read_bytes + len(data)
                    known[key] = self._sample(receipt, data)
                except TransientError:
                    continue
                except (ShardgenError, LookupError):
                    known[key] = None
        self._known = known

    def _sample(self, receipt: Receipt, data: bytes) -> ShownSample | None:
        plan, record = self._recipe.plan, receipt.record
        entries, _ = read_artifact(data, name=receipt.artifact.name)
        members = {entry.name: entry for entry in entries[record.members_start : record.members_stop]}
        dead = {letter.sample for letter in record.dead_letters}
        stored = [sample for sample in plan.layout.batch_samples(record.batch) if sample not in dead]
        if not stored:
            return None
        sample = SampleIndex(stored[record.batch % len(stored)])
        files = {
            output.name: _bytes(members[member_name(output, sample, digits=plan.name_digits)], data)
            for output in plan.outputs
        }
        pictures = self._recipe.pictures_of(sample, files)
        made_of = ", ".join(f"{what} {name}" for what, name in self._recipe.describe(sample).items())
        return ShownSample(
            sample=sample,
            made_of=made_of,
            pictures=tuple(SmallPicture(what=what, data=one) for what, one in pictures.items()),
        )


def _bytes(entry: Entry, data: bytes) -> bytes:
    return data[entry.data_offset : entry.stop]
