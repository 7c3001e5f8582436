"""The names that things are addressed by; shards, slices and batches count from 0."""

from __future__ import annotations

from typing import NewType

MAX_NUMBER = 10**15 - 1
"""No index and no fence is larger: names have room for 15 digits, and every database stores it."""

SampleIndex = NewType("SampleIndex", int)
ShardIndex = NewType("ShardIndex", int)
SliceIndex = NewType("SliceIndex", int)
"""A slice's position inside its shard: a slice is addressed by (shard, slice)."""
BatchIndex = NewType("BatchIndex", int)
"""A batch's position in the whole plan, not in its shard."""
Fence = NewType("Fence", int)
"""+1 at every grant of a slice, never reused; 1 is the first grant."""
WorkerId = NewType("WorkerId", str)
