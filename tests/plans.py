"""Plans for tests that need no photographs."""

from __future__ import annotations

from shardgen.depth.base import Precision, Upsampling, Weights
from shardgen.domain.plan import Plan, Shards
from shardgen.imaging.options import Blend, DepthEncoding, ImageFormat, MaskMode
from shardgen.recipes.composites.plan import Compose, Depth, Flips, Output
from shardgen.sources.inventory import Background, Foreground, Sources


def make_plan(
    *,
    backgrounds: int = 3,
    foregrounds: int = 2,
    grid: tuple[int, int] = (5, 4),
    flips: Flips = Flips.NONE,
    shard_size: int = 100_000,
    slice_batches: int = 16,
    batch: int = 32,
) -> Plan:
    """A plan over photographs that exist in name only."""
    return Plan(
        sources=Sources(
            mask=MaskMode.AUTO,
            backgrounds=tuple(
                Background(name=f"bg_{i:03}.jpg", bytes=1000 + i, sha256=f"{i:064x}", width=800, height=600)
                for i in range(backgrounds)
            ),
            foregrounds=tuple(
                Foreground(
                    name=f"fg_{i:03}.png",
                    bytes=500 + i,
                    sha256=f"{i + 4096:064x}",
                    width=120 + i % 400,
                    height=200,
                    placed_width=120 + i % 400,
                    placed_height=200,
                    mask=MaskMode.ALPHA,
                )
                for i in range(foregrounds)
            ),
        ),
        compose=Compose(canvas=(600, 600), grid=grid, flips=flips, blend=Blend.MASK),
        depth=Depth(
            model="densedepth",
            weights=Weights(name="nyu", bytes=1, sha256="0" * 64, activations=1, decoder_width=1664),
            input=(640, 480),
            upsampling=Upsampling.ALIGNED,
            precision=Precision.FLOAT32,
            encoding=DepthEncoding.INVERSE_MINMAX,
        ),
        output=Output(
            size=(200, 200),
            image=ImageFormat.JPEG,
            image_quality=25,
            mask=ImageFormat.PNG,
            depth=ImageFormat.JPEG,
            depth_quality=60,
        ),
        shards=Shards(size=shard_size, slice_batches=slice_batches, batch=batch),
    )
