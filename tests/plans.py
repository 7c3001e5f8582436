"""Plans for tests that need no photographs."""

from __future__ import annotations

from dataclasses import replace

from shardgen.depth.base import Precision, Quality, Upsampling, Weights
from shardgen.domain.plan import Block, Plan, Shards
from shardgen.imaging.options import Blend, DepthEncoding, ImageFormat, MaskMode
from shardgen.recipes.composites.placement import Height, Placement
from shardgen.recipes.composites.plan import Compose, Document, Flips, Formats, sample_count
from shardgen.recipes.depth import Depth
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
    sources = Sources(
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
    )
    document = Document(
        compose=on_grid(grid, flips=flips),
        depth=Depth(
            model="densedepth",
            weights=Weights(
                name="nyu", bytes=1, sha256="0" * 64, structure="two layers", quality=Quality.DEPTH
            ),
            input=(640, 480),
            upsampling=Upsampling.ALIGNED,
            precision=Precision.FLOAT32,
            encoding=DepthEncoding.INVERSE_MINMAX,
            format=ImageFormat.JPEG,
            quality=60,
            size=(200, 200),
        ),
        output=Formats(
            size=(200, 200),
            image=ImageFormat.JPEG,
            image_quality=25,
            mask=ImageFormat.PNG,
        ),
    )
    shards = Shards(size=shard_size, slice_batches=slice_batches, batch=batch)
    return plan_of(document, sources, shards)


def depth_in(plan: Plan) -> Depth:
    """What a plan of composites says of its depth."""
    assert isinstance(plan.recipe, Document)
    assert plan.recipe.depth is not None
    return plan.recipe.depth


def on_grid(
    grid: tuple[int, int] = (5, 4),
    *,
    canvas: tuple[int, int] = (600, 600),
    flips: Flips = Flips.NONE,
    blend: Blend = Blend.MASK,
    height: Height = None,
) -> Compose:
    """Places on a grid."""
    return Compose(
        canvas=canvas,
        placement=Placement.GRID,
        grid=grid,
        places=None,
        seed=None,
        foreground_height=height,
        overhang=0,
        foregrounds_per_sample=(1, 1),
        flips=flips,
        blend=blend,
        mask=MaskMode.AUTO,
    )


def plan_of(document: Document, sources: Sources, shards: Shards) -> Plan:
    """The plan with these parts."""
    block = Block(samples=sample_count(document.compose, sources), sources=sources)
    return Plan(recipe=document, outputs=document.outputs, shards=shards, blocks=(block,))


def grown(plan: Plan, *additions: tuple[int, int]) -> Plan:
    """The plan with one more block for each pair of numbers: of new backgrounds and new foregrounds."""
    for new_backgrounds, new_foregrounds in additions:
        parts = [block.sources for block in plan.blocks]
        assert isinstance(plan.recipe, Document)
        like = parts[0]
        assert isinstance(like, Sources)
        name = f"a_{len(parts)}"  # sorts before all earlier photographs
        sources = Sources(
            backgrounds=tuple(
                replace(like.backgrounds[0], name=f"{name}_{number}.jpg") for number in range(new_backgrounds)
            ),
            foregrounds=tuple(
                replace(like.foregrounds[0], name=f"{name}_{number}.png") for number in range(new_foregrounds)
            ),
        )
        known = [part for part in parts if isinstance(part, Sources)]
        backgrounds = sum(len(part.backgrounds) for part in known)
        foregrounds = sum(len(part.foregrounds) for part in known)
        pairs = (backgrounds + new_backgrounds) * (foregrounds + new_foregrounds) - backgrounds * foregrounds
        variants = plan.blocks[0].samples // (len(like.backgrounds) * len(like.foregrounds))
        block = Block(samples=pairs * variants, sources=sources)
        plan = replace(plan, blocks=(*plan.blocks, block))
    return plan


def changed(
    plan: Plan, *, sources: Sources | None = None, shards: Shards | None = None, **parts: object
) -> Plan:
    """A plan of composites with other parts: `compose`, `depth`, `output`, and these."""
    document, block = plan.recipe, plan.blocks[0]
    assert isinstance(document, Document)
    assert isinstance(block.sources, Sources)
    document = replace(document, **parts)  # type: ignore[arg-type]
    return plan_of(document, sources or block.sources, shards or plan.shards)
