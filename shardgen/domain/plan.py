"""The plan: the immutable description of what will be made, its canonical JSON and its fingerprint.

The engine knows the envelope: how many samples, which outputs, how they fall into shards. What a sample is,
only the recipe knows; its document and its sources are values of its own that stand in the envelope.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any, Protocol

from shardgen.domain.identifiers import BatchIndex
from shardgen.domain.layout import Layout

PLAN_FORMAT = 3
_LEAST_DIGITS = 7  # of a sample's number in names
EARLIER = "finish it with the version that made it, or plan again in a new directory"
"""What to do with what an earlier version made: formats before this one are not read."""
SETTING = "setting"
"""Key of a field's metadata: its name in `shardgen.toml`, where that is not its path in the document."""
FOLLOWS = "follows"
"""The same: its value follows from settings, so that its changes are said by theirs."""
RANGE = "range"
"""The same: two numbers of it are the least and the largest, not a width and a height."""
NOTHING = "nothing"
"""The same: the word in `shardgen.toml` for None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One file of every sample: member `NAME/00012/0123456.SUFFIX` of the final zip.

    An image has `size` (width, height) in pixels, or None where that is each sample's own, `channels`, and
    `full_scale`, the value that counts as 1 in its statistics: 255 or 65535, or None for an image of numbers,
    which has none. What is no image has None, 0 and None, and no statistics.
    """

    name: str
    suffix: str
    channels: int
    size: tuple[int, int] | None
    full_scale: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shards:
    """`size` in samples, `slice_batches` in batches, `batch` in samples."""

    size: int
    slice_batches: int
    batch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanFile:
    """A file of lines beside `plan.json`, which holds its digest: what is too large to stand in the plan."""

    name: str
    lines: int
    bytes: int
    sha256: str


def plan_file_name(word: str, sha256: str) -> str:
    """Its name says what it is and holds: `pictures-0123456789abcdef.jsonl`."""
    return f"{word}-{sha256[:16]}.jsonl"


PLAN_FILE_NAME = re.compile(r"[a-z]{1,32}-[0-9a-f]{16}\.jsonl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A number of samples that were planned together, and the inventory that they are made of.

    `sources` is a frozen dataclass of the recipe's.
    """

    samples: int
    sources: object


class Document(Protocol):
    """A recipe's own part of the plan: a frozen dataclass of integers, texts and tuples of them."""

    @property
    def kind(self) -> str:
        """The recipe's name, as in `[recipe] kind`."""
        ...

    @property
    def outputs(self) -> tuple[Output, ...]:
        """The files of a sample, in the order in which they are stored; not part of its JSON."""
        ...


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What will be made. It holds nothing of the machine: no path, device, micro-batch or storage setting."""

    recipe: Document
    outputs: tuple[Output, ...]
    shards: Shards
    blocks: tuple[Block, ...]
    format: int = PLAN_FORMAT

    @property
    def samples(self) -> int:
        """How many samples are planned."""
        return self.layout.sample_count

    @cached_property
    def layout(self) -> Layout:
        """How samples fall into shards, slices and batches."""
        return Layout(
            blocks=tuple(block.samples for block in self.blocks),
            shard_size=self.shards.size,
            batch_size=self.shards.batch,
            slice_batches=self.shards.slice_batches,
        )

    @property
    def name_digits(self) -> int:
        """Digits of a sample's number in names, or more where it is longer: names outlive a growing plan."""
        return max(_LEAST_DIGITS, len(str(self.blocks[0].samples - 1)))

    def until(self, blocks: int) -> Plan:
        """The plan of the first so many blocks, at least one."""
        return self if blocks == len(self.blocks) else replace(self, blocks=self.blocks[:blocks])

    @cached_property
    def canonical_json(self) -> bytes:
        """UTF-8, sorted keys, no white space, every field written."""
        return _canonical_json(asdict(self))

    @cached_property
    def fingerprint(self) -> str:
        """Sha256 of the canonical JSON, 64 hexadecimal digits."""
        return hashlib.sha256(self.canonical_json).hexdigest()

    @cached_property
    def fingerprints(self) -> tuple[str, ...]:
        """For each block the fingerprint of the plan that ends with it; the last one is the plan's own."""
        if len(self.blocks) == 1:
            return (self.fingerprint,)
        # `blocks` is the first key: all these plans' JSON begins alike, and what is alike is hashed once.
        start = b'{"blocks":['
        behind = _canonical_json(asdict(replace(self, blocks=()))).removeprefix(start)
        begun = hashlib.sha256(start)
        found = []
        for number, block in enumerate(self.blocks):
            begun.update((b"," if number else b"") + _canonical_json(asdict(block)))
            whole = begun.copy()
            whole.update(behind)
            found.append(whole.hexdigest())
        return tuple(found)

    def fingerprint_of(self, batch: BatchIndex) -> str:
        """What an artifact of this batch carries: the fingerprint of the plan that ends with its block."""
        return self.fingerprints[self.layout.block_of_batch(batch)]


def differences(old: object, new: object, *, prefix: str = "") -> list[str]:
    """What changed between two values of the plan's types, a readable line each (`shards.size: 9 -> 8`)."""
    if isinstance(old, Plan) and isinstance(new, Plan):
        return _plan_differences(old, new)
    lines: list[str] = []
    if is_dataclass(old) and type(old) is type(new):
        for field in fields(old):
            before, after = getattr(old, field.name), getattr(new, field.name)
            if before == after or field.metadata.get(FOLLOWS):
                continue
            name = field.metadata.get(SETTING) or (f"{prefix}.{field.name}" if prefix else field.name)
            if RANGE in field.metadata or NOTHING in field.metadata:
                shown = [_in_words(value, field.metadata) for value in (before, after)]
                lines.append(f"{name}: {' -> '.join(shown)}")
            else:
                lines += differences(before, after, prefix=name)
        return lines
    if isinstance(old, tuple) and isinstance(new, tuple) and any(is_dataclass(entry) for entry in old + new):
        return _inventory_differences(old, new, prefix)
    if old != new:
        lines.append(f"{prefix}: {_shown(old)} -> {_shown(new)}")
    return lines


def is_larger(old: Plan, new: Plan) -> bool:
    """Whether the new plan has all sources of the old one, and more of them, and nothing else is changed."""
    if (old.recipe, old.outputs, old.shards) != (new.recipe, new.outputs, new.shards):
        return False
    before, after = _entries(old), _entries(new)
    return before.keys() == after.keys() and all(before[name] <= after[name] for name in before)


def _entries(plan: Plan) -> dict[str, frozenset[object]]:
    """All blocks' sources by their folder; of what is no list of sources its one value."""
    found: dict[str, frozenset[object]] = {}
    for block in plan.blocks:
        for field in fields(block.sources):  # type: ignore[arg-type]
            value = getattr(block.sources, field.name)
            entries = frozenset(value) if isinstance(value, tuple) else frozenset([value])
            found[field.name] = found.get(field.name, frozenset()) | entries
    return found


def _plan_differences(old: Plan, new: Plan) -> list[str]:
    """In the words of settings and folders; outputs and numbers of samples follow from these."""
    if old.recipe.kind != new.recipe.kind:
        return [f"recipe.kind: {old.recipe.kind} -> {new.recipe.kind}"]
    lines = differences(old.recipe, new.recipe) + differences(old.shards, new.shards, prefix="shards")
    before, after = _joined(old.blocks), _joined(new.blocks)
    for number in range(max(len(before), len(after))):
        pair = before[number : number + 1], after[number : number + 1]
        if not all(pair):
            lines.append(f"block {number} is {'gone' if pair[0] else 'new'}")
        else:
            lines += differences(pair[0][0], pair[1][0])
    if not lines and old.blocks != new.blocks:
        numbers = [" + ".join(f"{block.samples:,}" for block in plan.blocks) for plan in (old, new)]
        lines.append(f"blocks: the same sources in another order ({' -> '.join(numbers)} samples)")
    return lines


def _joined(blocks: tuple[Block, ...]) -> list[Any]:
    """The sources of all blocks as one; those of each block where they are more than lists of entries."""
    sources: list[Any] = [block.sources for block in blocks]
    parts = {
        field.name: [getattr(one, field.name) for one in sources]
        for one in sources[:1]
        for field in fields(one)
    }
    if not all(isinstance(part, tuple) for same in parts.values() for part in same):
        return sources
    return [
        replace(one, **{name: tuple(chain(*same)) for name, same in parts.items()}) for one in sources[:1]
    ]


def _canonical_json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _inventory_differences(old: tuple[Any, ...], new: tuple[Any, ...], prefix: str) -> list[str]:
    before = {entry.name: entry for entry in old}
    after = {entry.name: entry for entry in new}
    lines = [f"{prefix}: {name!r} is gone" for name in before if name not in after]
    lines += [f"{prefix}: {name!r} is new" for name in after if name not in before]
    for name, entry in before.items():
        if name in after and (changes := differences(entry, after[name])):
            lines.append(f"{prefix}: {name!r} has changed ({', '.join(changes)})")
    return lines


def _in_words(value: object, metadata: Mapping[str, Any]) -> str:
    if isinstance(value, tuple) and RANGE in metadata:
        return str(list(value))
    return metadata.get(NOTHING, "none") if value is None else _shown(value)


def _shown(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return "x".join(str(part) for part in value)
    if isinstance(value, str) and len(value) == 64:
        return value[:12] + "…"
    return str(value)
