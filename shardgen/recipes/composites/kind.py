"""Composites as a kind of recipe: from settings and two folders of photographs to the parts of a plan."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from shardgen.depth.base import Quality
from shardgen.depth.families import find_family
from shardgen.domain.plan import Block, Plan
from shardgen.machine.cores import usable_cores
from shardgen.recipes.base import Draft, Folders, PlanEvents, Recipe, RecipeKind, RecipeTables, SizeEstimate
from shardgen.recipes.composites.plan import (
    KIND,
    Document,
    Flips,
    flip_count,
    sample_count,
)
from shardgen.recipes.composites.recipe import CompositesRecipe, network_choice
from shardgen.recipes.composites.tables import Tables
from shardgen.sources.inventory import Sources


class Composites(RecipeKind):
    """Foregrounds on backgrounds, their masks, and the depth of both together."""

    name = KIND
    folders = ("foregrounds", "backgrounds")
    tables = Tables
    document = Document
    sources = Sources

    def recipe(self, plan: Plan) -> Recipe:
        """The recipe of a plan of composites."""
        return CompositesRecipe(plan)

    def draft(self, tables: RecipeTables, folders: Folders, local: object, *, events: PlanEvents) -> Draft:
        """Photographs first: what is wrong with them is the user's to mend, with or without a network."""
        from shardgen.sources.scanning import SourceFolders, scan

        document = tables.document(None)
        if not isinstance(document, Document):
            raise TypeError(f"{tables!r} are not the tables of composites")
        choice = network_choice(local)
        inventory = scan(
            SourceFolders(foregrounds=folders["foregrounds"], backgrounds=folders["backgrounds"]),
            document.compose.mask,
            document.compose.canvas,
            threads=usable_cores(),
            on_file=events.on_file,
        )
        network = find_family(document.depth.model).find(choice, on_download=events.on_download)
        network.check_input(document.depth.input)
        weights = network.weights
        document = replace(document, depth=replace(document.depth, weights=weights))
        sources = inventory.sources
        return Draft(
            document=document,
            blocks=(Block(samples=sample_count(document.compose, sources), sources=sources),),
            facts=_facts(document, sources),
            warnings=inventory.warnings,
            notes=inventory.notes,
        )

    def estimate(self, recipe: Recipe, folders: Folders) -> SizeEstimate:
        """Compose a few samples; their depth is a guess."""
        from shardgen.recipes.composites.composer import Composer
        from shardgen.recipes.composites.estimate import estimate_sizes

        if not isinstance(recipe, CompositesRecipe):
            raise TypeError(f"{recipe!r} is not a recipe of composites")
        plan = recipe.composites
        return estimate_sizes(plan, Composer(plan, folders["foregrounds"], folders["backgrounds"]))


def _facts(document: Document, sources: Sources) -> tuple[tuple[str, str], ...]:
    compose, depth, weights = document.compose, document.depth, document.depth.weights
    columns, rows = compose.grid
    flips = ""
    if compose.flips is not Flips.NONE:
        flips = f" x {flip_count(compose)} flips ({compose.flips.value})"
    modes = Counter(foreground.mask.value for foreground in sources.foregrounds)
    network = [
        f"{depth.model} {weights.name}",
        *filter(None, [weights.structure]),
        f"{depth.upsampling.value} upsampling",
        depth.precision.value,
        f"sha256 {weights.sha256[:12]}…",
    ]
    facts = [
        (
            "made of",
            (
                f"{len(sources.backgrounds):,} backgrounds x {len(sources.foregrounds):,} foregrounds{flips} "
                f"x {columns}x{rows} places"
            ),
        ),
        ("masks", ", ".join(f"{count} by {mode}" for mode, count in sorted(modes.items()))),
        ("network", ", ".join(network)),
    ]
    if weights.quality is Quality.NOISE:
        facts.append(("NOT DEPTH", f"the weights are {weights.name}: depth images will be noise"))
    return tuple(facts)
