"""How samples fall into shards, slices and batches: pure arithmetic, for plans of any size."""

from __future__ import annotations

from dataclasses import dataclass

from shardgen.domain.identifiers import BatchIndex, SampleIndex, ShardIndex, SliceIndex


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Half-open ranges that tile `[0, sample_count)`; the last one may be short."""

    sample_count: int
    shard_size: int
    batch_size: int
    slice_batches: int

    def __post_init__(self) -> None:
        if min(self.sample_count, self.shard_size, self.batch_size, self.slice_batches) < 1:
            raise ValueError(f"every size must be at least 1: {self}")

    @property
    def shard_count(self) -> int:
        """How many shards there are."""
        return -(-self.sample_count // self.shard_size)

    @property
    def batches_per_shard(self) -> int:
        """Batches of a full shard; batch numbers of shard s start at s times this."""
        return -(-self.shard_size // self.batch_size)

    @property
    def batch_count(self) -> int:
        """How many batches there are."""
        return self.shard_batches(ShardIndex(self.shard_count - 1)).stop

    def shard_samples(self, shard: ShardIndex) -> range:
        """The samples of a shard."""
        start = shard * self.shard_size
        return range(start, min(start + self.shard_size, self.sample_count))

    def shard_batches(self, shard: ShardIndex) -> range:
        """The batches (global numbers) of a shard."""
        start = shard * self.batches_per_shard
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
        shard, inside = divmod(batch, -(-self.shard_size // self.batch_size))
        first = shard * self.shard_size
        start = first + inside * self.batch_size
        return range(start, min(start + self.batch_size, first + self.shard_size, self.sample_count))

    def shard_of_batch(self, batch: BatchIndex) -> ShardIndex:
        """The shard that a batch belongs to."""
        return ShardIndex(batch // self.batches_per_shard)

    def slice_of_batch(self, batch: BatchIndex) -> SliceIndex:
        """The slice, inside its shard, that a batch belongs to."""
        return SliceIndex(batch % self.batches_per_shard // self.slice_batches)

    def batch_of_sample(self, sample: SampleIndex) -> BatchIndex:
        """The batch (global number) that a sample belongs to."""
        shard, inside = divmod(sample, self.shard_size)
        return BatchIndex(shard * self.batches_per_shard + inside // self.batch_size)
