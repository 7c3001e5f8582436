"""How samples fall into shards, slices and batches: pure arithmetic, for plans of any size."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

from shardgen.domain.identifiers import BatchIndex, SampleIndex, ShardIndex, SliceIndex


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockStart:
    """Where a block starts: its first sample, batch and shard, and how many samples it has."""

    sample: int
    batch: int
    shard: int
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Half-open ranges that tile `[0, sample_count)`.

    `blocks` are numbers of samples. Samples, batches and shards number on from one block to the next, and
    none of them spans two: a block's last batch, slice and shard may be short.
    """

    blocks: tuple[int, ...]
    shard_size: int
    batch_size: int
    slice_batches: int
    starts: tuple[BlockStart, ...] = field(init=False, repr=False, compare=False)
    sample_count: int = field(init=False, repr=False, compare=False)
    batch_count: int = field(init=False, repr=False, compare=False)
    shard_count: int = field(init=False, repr=False, compare=False)
    batches_per_shard: int = field(init=False, repr=False, compare=False)
    """Batches of a full shard: in a block, shard s's first one is the block's first plus s times this."""
    _samples: tuple[int, ...] = field(init=False, repr=False, compare=False)
    _batches: tuple[int, ...] = field(init=False, repr=False, compare=False)
    _shards: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.blocks or min(*self.blocks, self.shard_size, self.batch_size, self.slice_batches) < 1:
            raise ValueError(f"every size must be at least 1: {self}")
        per_shard = -(-self.shard_size // self.batch_size)
        starts: list[BlockStart] = []
        sample = batch = shard = 0
        for samples in self.blocks:
            starts.append(BlockStart(sample=sample, batch=batch, shard=shard, samples=samples))
            whole, rest = divmod(samples, self.shard_size)
            sample += samples
            batch += whole * per_shard + -(-rest // self.batch_size)
            shard += whole + (rest > 0)
        derived = {
            "starts": tuple(starts),
            "sample_count": sample,
            "batch_count": batch,
            "shard_count": shard,
            "batches_per_shard": per_shard,
            "_samples": tuple(start.sample for start in starts),
            "_batches": tuple(start.batch for start in starts),
            "_shards": tuple(start.shard for start in starts),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    def block_of_batch(self, batch: BatchIndex) -> int:
        """The number of the block that a batch belongs to; of one behind the last batch, the last block."""
        return bisect_right(self._batches, batch) - 1

    def block_of_shard(self, shard: ShardIndex) -> BlockStart:
        """The block that a shard belongs to."""
        return self.starts[bisect_right(self._shards, shard) - 1]

    def shard_samples(self, shard: ShardIndex) -> range:
        """The samples of a shard."""
        block = self.block_of_shard(shard)
        start = block.sample + (shard - block.shard) * self.shard_size
        return range(start, min(start + self.shard_size, block.sample + block.samples))

    def shard_batches(self, shard: ShardIndex) -> range:
        """The batches (global numbers) of a shard."""
        block = self.block_of_shard(shard)
        start = block.batch + (shard - block.shard) * self.batches_per_shard
        return range(start, start + -(-len(self.shard_samples(shard)) // self.batch_size))

    def slice_count(self, shard: ShardIndex) -> int:
        """How many slices a shard has."""
        return -(-len(self.shard_batches(shard)) // self.slice_batches)

    def slice_batch_range(self, shard: ShardIndex, slice_: SliceIndex) -> range:
        """The batches (global numbers) of a slice."""
        batches = self.shard_batches(shard)
        start = batches.start + slice_ * self.slice_batches
        return range(start, min(start + self.slice_batches, batches.stop))

    def batch_samples(self, batch: BatchIndex) -> range:
        """The samples of a batch."""
        # Written out, not by way of the shard's range: merge asks for every batch, several times.
        block = self.starts[bisect_right(self._batches, batch) - 1]
        shard, inside = divmod(batch - block.batch, self.batches_per_shard)
        first = block.sample + shard * self.shard_size
        start = first + inside * self.batch_size
        stop = min(start + self.batch_size, first + self.shard_size, block.sample + block.samples)
        return range(start, stop)

    def shard_of_batch(self, batch: BatchIndex) -> ShardIndex:
        """The shard that a batch belongs to."""
        block = self.starts[bisect_right(self._batches, batch) - 1]
        return ShardIndex(block.shard + (batch - block.batch) // self.batches_per_shard)

    def slice_of_batch(self, batch: BatchIndex) -> SliceIndex:
        """The slice, inside its shard, that a batch belongs to."""
        block = self.starts[bisect_right(self._batches, batch) - 1]
        return SliceIndex((batch - block.batch) % self.batches_per_shard // self.slice_batches)

    def batch_of_sample(self, sample: SampleIndex) -> BatchIndex:
        """The batch (global number) that a sample belongs to."""
        block = self.starts[bisect_right(self._samples, sample) - 1]
        shard, inside = divmod(sample - block.sample, self.shard_size)
        return BatchIndex(block.batch + shard * self.batches_per_shard + inside // self.batch_size)
