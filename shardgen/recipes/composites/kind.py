"""Composites as a kind of recipe: from settings and two folders of photographs to the parts of a plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, TypeVar

from shardgen.domain.plan import Block, Plan
from shardgen.domain.remarks import Remark, grouped
from shardgen.domain.wording import counted
from shardgen.machine.cores import usable_cores
from shardgen.recipes.base import (
    Beside,
    Draft,
    Folders,
    PlanEvents,
    Recipe,
    RecipeKind,
    RecipeTables,
    SizeEstimate,
)
from shardgen.recipes.composites.placement import heights
from shardgen.recipes.composites.plan import (
    KIND,
    CompositesPlan,
    Document,
    Flips,
    flip_count,
    place_count,
    sample_count,
    sample_counts,
)
from shardgen.recipes.composites.recipe import CompositesRecipe
from shardgen.recipes.composites.tables import Tables
from shardgen.recipes.composites.template import PRESETS, TEMPLATE
from shardgen.sources.inventory import Background, Foreground, Sources

if TYPE_CHECKING:
    from shardgen.sources.scanning import Inventory

Entry = TypeVar("Entry", Background, Foreground)

_NAMED = 3  # in a line of the printed plan
# Of the canvas. At the default sizes that is 20x20 of 200x200 stored pixels, hardly more than one of the
# 16x16 blocks in which JPEG stores colours.
_SPECK_SHARE = 0.01
_CAMERA_PIXELS = 4_000_000  # above which resizing takes longer than all else of a picture
_WHOLE = 1000  # per mille
_ENLARGED = 2  # times in one direction; beyond it a photograph is plainly softer than those beside it


class Composites(RecipeKind):
    """Foregrounds on backgrounds, their masks, and the depth of both together."""

    name = KIND
    folders = ("foregrounds", "backgrounds")
    tables = Tables
    document = Document
    sources = Sources
    template = TEMPLATE
    presets = PRESETS

    def recipe(self, plan: Plan, beside: Beside | None = None) -> Recipe:
        """The recipe of a plan of composites."""
        return CompositesRecipe(plan, beside)

    def draft(self, tables: RecipeTables, folders: Folders, local: object, *, events: PlanEvents) -> Draft:
        """Photographs first: what is wrong with them is the user's to mend, with or without a network."""
        from shardgen.recipes.composites.composer import fitted
        from shardgen.recipes.composites.estimate import AtHand
        from shardgen.recipes.network import with_weights
        from shardgen.sources.scanning import SourceFolders, scan

        document = tables.document(None)
        if not isinstance(document, Document):
            raise TypeError(f"{tables!r} are not the tables of composites")
        at_hand = AtHand(document)
        inventory = scan(
            SourceFolders(foregrounds=folders["foregrounds"], backgrounds=folders["backgrounds"]),
            document.compose.mask,
            partial(fitted, compose=document.compose),
            threads=usable_cores(),
            on_file=events.on_file,
            keeper=at_hand,
        )
        lacks, network = None, []
        if document.depth is not None:
            depth, lacks = with_weights(document.depth, local, events)
            document = replace(document, depth=depth)
            network = [*depth.facts(is_known=lacks is None)]
        sources = inventory.sources
        return Draft(
            document=document,
            blocks=(Block(samples=sample_count(document.compose, sources), sources=sources),),
            facts=(*_facts(document, sources), *_looks(document, inventory), *network),
            warnings=(
                *inventory.warnings,
                *_specks(document, inventory),
                *_coarse(document, sources),
                *_oversized(document, sources),
                *_odd(document, sources),
            ),
            notes=inventory.notes,
            lacks=lacks,
            at_hand=at_hand,
        )

    def arrange(self, planned: Recipe, draft: Draft) -> Draft:
        """Photographs go by their names; new ones are sorted by name among themselves."""
        found = CompositesPlan(replace(planned.plan, blocks=draft.blocks)).sources
        backgrounds = {one.name: one for one in found.backgrounds}
        foregrounds = {one.name: one for one in found.foregrounds}
        composites = CompositesPlan(planned.plan)
        blocks = [
            Sources(
                backgrounds=_taken(backgrounds, (one.name for one in block.backgrounds)),
                foregrounds=_taken(foregrounds, (one.name for one in block.foregrounds)),
            )
            for block in composites.blocks
        ]
        if backgrounds or foregrounds:
            blocks.append(
                Sources(
                    backgrounds=_taken(backgrounds, sorted(backgrounds, key=str.encode)),
                    foregrounds=_taken(foregrounds, sorted(foregrounds, key=str.encode)),
                )
            )
        counts = sample_counts(composites.compose, blocks)
        arranged = (
            Block(samples=samples, sources=sources) for samples, sources in zip(counts, blocks, strict=True)
        )
        return replace(draft, blocks=tuple(arranged))

    def estimate(self, recipe: Recipe, folders: Folders, *, at_hand: object = None) -> SizeEstimate:
        """Compose a few samples; their depth is a guess."""
        from shardgen.recipes.composites.composer import Composer
        from shardgen.recipes.composites.estimate import AtHand, ComposerAtHand, estimate_sizes

        if not isinstance(recipe, CompositesRecipe):
            raise TypeError(f"{recipe!r} is not a recipe of composites")
        plan, where = recipe.composites, (folders["foregrounds"], folders["backgrounds"])
        composer = Composer(plan, *where)
        if isinstance(at_hand, AtHand) and at_hand.compose == plan.compose:
            composer = ComposerAtHand(plan, *where, at_hand=at_hand)
        return estimate_sizes(plan, composer, threads=usable_cores())


def _taken(entries: dict[str, Entry], names: Iterable[str]) -> tuple[Entry, ...]:
    """Take those of these names out of the entries, in the order of the names."""
    return tuple(entries.pop(name) for name in names if name in entries)


def _facts(document: Document, sources: Sources) -> tuple[tuple[str, str], ...]:
    compose = document.compose
    flips = ""
    if compose.flips is not Flips.NONE:
        flips = f" x {flip_count(compose)} flips ({compose.flips.value})"
    places = f"{counted(place_count(compose), 'place')} at random"
    if compose.grid is not None:
        places = f"{compose.grid[0]}x{compose.grid[1]} places"
    modes = Counter(foreground.mask.value for foreground in sources.foregrounds)
    facts = [
        (
            "made of",
            (
                f"{len(sources.backgrounds):,} backgrounds x {len(sources.foregrounds):,} foregrounds{flips} "
                f"x {places}"
            ),
        ),
        ("masks", ", ".join(f"{count} by {mode}" for mode, count in sorted(modes.items()))),
    ]
    least, most = compose.foregrounds_per_sample
    if most > 1:
        people = counted(most, "foreground") if least == most else f"{least} to {most} foregrounds"
        facts.append(("in a sample", f"{people}, drawn at random"))
    return tuple(facts)


def _looks(document: Document, inventory: Inventory) -> list[tuple[str, str]]:
    """What the pictures will look like: worth a look before hours are spent, and no part of the plan."""
    sources, (width, height) = inventory.sources, document.compose.canvas
    covered = _covered(document, inventory)
    least = min(covered, key=lambda name: covered[name])
    facts = [
        (
            "foregrounds",
            (
                f"cover {_percent(median(covered.values()))} of the picture (median), "
                f"the smallest {_percent(covered[least])}: {least}"
            ),
        )
    ]
    halved = [one for one in sources.foregrounds if one.placed_width < one.width]
    if halved and document.compose.foreground_height is None:
        total = counted(len(sources.foregrounds), "foreground")
        facts.append(("halved", f"{len(halved):,} of {total}, until they fit {width}x{height}"))
    enlarged = {
        "foreground": [one.name for one in sources.foregrounds if one.placed_height > _ENLARGED * one.height],
        "background": [
            one.name
            for one in sources.backgrounds
            if width > _ENLARGED * one.width or height > _ENLARGED * one.height
        ],
    }
    counts = {"foreground": len(sources.foregrounds), "background": len(sources.backgrounds)}
    for kind, found in enlarged.items():
        if found:
            names = ", ".join(found[:_NAMED]) + (", …" if found[_NAMED:] else "")
            facts.append(
                ("enlarged", f"{len(found):,} of {counted(counts[kind], kind)}, more than twice: {names}")
            )
    return facts


def _covered(document: Document, inventory: Inventory) -> dict[str, float]:
    """The share of the canvas that each foreground's mask covers, by its name."""
    width, height = document.compose.canvas
    names = (foreground.name for foreground in inventory.sources.foregrounds)
    return {
        name: pixels / (width * height) for name, pixels in zip(names, inventory.covered_pixels, strict=True)
    }


def _specks(document: Document, inventory: Inventory) -> tuple[Remark, ...]:
    covered = sorted(_covered(document, inventory).items(), key=lambda pair: pair[1])
    return grouped(
        Remark(
            folder="foregrounds",
            names=(name,),
            details=(_percent(share),),
            reason=f"under {_SPECK_SHARE:.0%} of the picture: a speck",
            hint="use larger cut-outs, a smaller canvas, or foreground_height in [compose]",
        )
        for name, share in covered
        if share < _SPECK_SHARE
    )


def _coarse(document: Document, sources: Sources) -> tuple[Remark, ...]:
    width, height = document.output.size
    return grouped(
        Remark(
            folder="backgrounds",
            names=(one.name,),
            details=(f"{one.width}x{one.height}",),
            reason=f"smaller than the stored picture of {width}x{height}, so it will be blurred",
            hint="use larger photographs, or a smaller size in [output]",
        )
        for one in sources.backgrounds
        if one.width < width or one.height < height
    )


def _oversized(document: Document, sources: Sources) -> tuple[Remark, ...]:
    """Of a range of heights every picture resizes whole cut-outs, so a camera's full size costs time."""
    compose = document.compose
    if not isinstance(compose.foreground_height, tuple):
        return ()
    height = 2 * heights(compose.foreground_height, compose.canvas)[1]
    return grouped(
        Remark(
            folder="foregrounds",
            names=(one.name,),
            details=(f"{one.width}x{one.height}",),
            reason="much larger than it is placed, and resized anew for each picture: that is slow",
            hint=f"use copies that are about {height} pixels high",
        )
        for one in sources.foregrounds
        if one.width * one.height > _CAMERA_PIXELS and one.height > 2 * height
    )


def _odd(document: Document, sources: Sources) -> Iterator[Remark]:
    """Settings that can hardly be meant."""
    compose, (width, height) = document.compose, document.compose.canvas
    most, there = compose.foregrounds_per_sample[1], len(sources.foregrounds)
    if most > there:
        reason = f"only {there:,}, so no sample has {most:,} of them"
        yield Remark(folder="foregrounds", reason=reason, hint="see foregrounds_per_sample in [compose]")
    if isinstance(compose.foreground_height, int) and compose.foreground_height > height:
        reason = f"not {compose.foreground_height:,} pixels high, but as high as fits {width}x{height}"
        yield Remark(folder="foregrounds", reason=reason, hint="see foreground_height in [compose]")
    if compose.overhang == _WHOLE:
        reason = "may lie outside the picture altogether"
        yield Remark(folder="foregrounds", reason=reason, hint="see overhang in [compose]")


def _percent(share: float) -> str:
    return f"{share:.1%}"
