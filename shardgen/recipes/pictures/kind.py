"""Depth of existing pictures, as a kind of recipe: its settings, and from a folder to parts of a plan."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from shardgen.depth.base import NetworkChoice
from shardgen.domain import plan as domain
from shardgen.domain.plan import Block, Plan
from shardgen.domain.remarks import Remark
from shardgen.domain.sample import spread_samples
from shardgen.domain.wording import counted
from shardgen.errors import InputMissing, PlanConflict, SampleError, ShardgenError
from shardgen.imaging.options import ImageFormat
from shardgen.machine.cores import usable_cores
from shardgen.recipes.base import (
    Beside,
    Draft,
    Folders,
    PlanEvents,
    Preset,
    Recipe,
    RecipeKind,
    RecipeTables,
    SizeEstimate,
    Table,
)
from shardgen.recipes.depth import AS_SIZE, DEPTH, DEPTH_KEYS, NO_DEPTH, DepthSize, DepthTable, Percent, Side
from shardgen.recipes.pictures.plan import FOLDER, IMAGE, KIND, Document, Formats, plan_file
from shardgen.recipes.pictures.recipe import PicturesRecipe
from shardgen.sources.inventory import Picture, PictureList

if TYPE_CHECKING:
    from shardgen.sources.scanning import FoundPictures

SOURCE: Literal["source"] = "source"
_PROBES = 24  # pictures that are encoded for the estimate
_LABEL_BYTES = 20  # of a row, beside the picture's name
_TEMPLATE = f"""\
[recipe]
kind = "depth"          # (plan) what a sample is: one of your pictures, and its depth

[sources]
# A folder of pictures of any size (JPEG, PNG, WebP, BMP, TIFF; HEIC with the extra "heic"), subfolders too.
# A relative path is relative to this file. $SHARDGEN_PICTURES overrides it.
pictures = ""

[depth]
model = "densedepth"    # (plan) the kind of network; densedepth is the only one
{DEPTH_KEYS}
[output]
size = "source"         # (plan) width, height of the stored images in pixels | "source": the picture's own
image = "jpeg"          # (plan) jpeg | webp | png, here and below
image_quality = 90      # (plan) 1-100
depth = "jpeg"          # (plan)
depth_quality = 90      # (plan) 1-100
depth_size = "size"     # (plan) width, height of the depth images in pixels | "size": same as above
"""

_PRESETS = {"depth-of-folder": Preset(makes="the depth of every picture in a folder")}


class SourcesTable(Table):
    """Where the pictures lie on this machine."""

    pictures: str = ""


class OutputTable(Table):
    """Sizes (width, height) in pixels, formats and qualities; `source`: each picture keeps its own size.

    Depth is as large as the picture unless `depth_size` says otherwise.
    """

    size: Annotated[
        Literal["source"] | tuple[Side, Side],
        Field(description='"source", for that of each picture, or a list of two numbers, as in [640, 480]'),
    ] = SOURCE
    image: ImageFormat = ImageFormat.JPEG
    image_quality: Percent = 90
    depth: ImageFormat = ImageFormat.JPEG
    depth_quality: Percent = 90
    depth_size: DepthSize = AS_SIZE


class Tables(RecipeTables):
    """All of them."""

    sources: SourcesTable = Field(default_factory=SourcesTable)
    depth: DepthTable = Field(default_factory=DepthTable)
    output: OutputTable = Field(default_factory=OutputTable)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.depth.is_wanted:
            raise ValueError(f'depth.model: with "{NO_DEPTH}" this recipe makes nothing')
        self.depth.refuse_narrow(self.output)
        return self

    def document(self, planned: domain.Document | None) -> Document:
        """The recipe's part of the plan; digest and structure of the weights are the plan's."""
        output = self.output
        size = None if output.size == SOURCE else output.size
        known = planned.depth if isinstance(planned, Document) else None
        return Document(
            depth=self.depth.plan(output, size, known),
            output=Formats(size=size, image=output.image, image_quality=output.image_quality),
        )

    def source_folders(self) -> Mapping[str, str]:
        """`[sources]` as written."""
        return {FOLDER: self.sources.pictures}

    def local(self, resolve: Callable[[str, str], Path]) -> NetworkChoice:
        """Which weights file this machine has, and its micro-batch."""
        return self.depth.local(resolve)


class Pictures(RecipeKind):
    """The pictures of a folder, and the depth of each."""

    name = KIND
    folders = (FOLDER,)
    tables = Tables
    document = Document
    sources = PictureList
    template = _TEMPLATE
    presets = _PRESETS

    def recipe(self, plan: Plan, beside: Beside | None = None) -> Recipe:
        """The recipe of a plan of pictures."""
        return PicturesRecipe(plan, beside)

    def draft(self, tables: RecipeTables, folders: Folders, local: object, *, events: PlanEvents) -> Draft:
        """Pictures first: what is wrong with them is the user's to mend, with or without a network."""
        from shardgen.recipes.network import with_weights
        from shardgen.sources.scanning import scan_pictures

        document = tables.document(None)
        if not isinstance(document, Document):
            raise TypeError(f"{tables!r} are not the tables of pictures")
        found = scan_pictures(folders[FOLDER], threads=usable_cores(), on_file=events.on_file)
        depth, lacks = with_weights(document.depth, local, events)
        size = document.output.size
        stored = "at its own size" if size is None else f"at {size[0]}x{size[1]}"
        made_of = counted(found.sources.count, "picture")
        if found.unreadable:
            made_of += f", {found.unreadable:,} of them unreadable"
        return Draft(
            document=replace(document, depth=depth),
            blocks=(_block(found.sources),),
            facts=(
                ("made of", made_of),
                ("stored", f"each picture {stored}, without transparency"),
                *depth.facts(is_known=lacks is None),
            ),
            warnings=(*found.warnings, *_too_long(document, found)),
            lacks=lacks,
            files={plan_file(found.sources).name: found.lines},
        )

    def arrange(self, planned: Recipe, draft: Draft) -> Draft:
        """Pictures go by their names; new ones are sorted by name among themselves.

        One block's lines may be lost, and are made of what no other block has. Raises what opening them does
        when that would be another block.
        """
        if not isinstance(planned, PicturesRecipe):
            raise TypeError(f"{planned!r} is not a recipe of pictures")
        pictures = map(Picture.of, b"".join(draft.files.values()).splitlines())
        found = {one.name: one for one in pictures}
        arranged, lost = list[list[Picture]](), dict[int, ShardgenError]()
        for number, start in enumerate(planned.plan.layout.starts):
            samples = range(start.sample, start.sample + start.samples)
            try:
                names = list(planned.pictures.names(samples))
            except (InputMissing, PlanConflict) as error:
                names, lost[number] = [], error
            arranged.append([found.pop(name) for name in names if name in found])
        for number, loss in lost.items():
            # It held what no other block has, if nothing has changed since.
            if len(lost) > 1 or _sources_of(found.values())[0] != planned.pictures.lists[number]:
                raise loss
            arranged[number] = list(found.values())
            found.clear()
        if found:
            arranged.append(list(found.values()))
        blocks, files = list[Block](), dict[str, bytes]()
        for block in arranged:
            sources, data = _sources_of(block)
            blocks.append(_block(sources))
            files[plan_file(sources).name] = data
        return replace(draft, blocks=tuple(blocks), files=files)

    def estimate(self, recipe: Recipe, folders: Folders, *, at_hand: object = None) -> SizeEstimate:
        """Encode a few pictures; their depth is a guess. None is at hand, since a scan decodes none."""
        del at_hand
        from shardgen.recipes.network import likely_depth
        from shardgen.recipes.pictures.maker import encode_depth, prepare_picture

        if not isinstance(recipe, PicturesRecipe):
            raise TypeError(f"{recipe!r} is not a recipe of pictures")
        plan, image, depth, names = recipe.pictures, list[int](), list[int](), list[int]()
        for sample in spread_samples(recipe.plan.samples, _PROBES):
            names.append(len(plan.picture(sample).name.encode()))
            try:
                prepared = prepare_picture(plan, folders[FOLDER], sample)
            except SampleError:
                continue
            image.append(len(prepared.image))
            depth_file, _sums = encode_depth(plan, prepared, likely_depth(prepared.network_input))
            depth.append(len(depth_file))
        count = max(1, len(image))
        return SizeEstimate(
            outputs={IMAGE: sum(image) / count, DEPTH: sum(depth) / count},
            labels=_LABEL_BYTES + sum(names) / max(1, len(names)),
            remark="depth is a guess",
        )


def _too_long(document: Document, found: FoundPictures) -> Iterator[Remark]:
    """Pictures that have a longer side than the format of what is made of them holds."""
    output, depth = document.output, document.depth
    stored = (("image", output.size, output.image), ("depth", depth.size, depth.format))
    for image_format in ImageFormat:
        longest = image_format.longest_side
        keys = [
            f'{key} = "png"' for key, size, stored_as in stored if size is None and stored_as is image_format
        ]
        if not keys or longest is None or found.longest_side <= longest:
            continue
        pictures = map(Picture.of, found.lines.splitlines())
        yield Remark(
            folder=FOLDER,
            names=tuple(one.name for one in pictures if max(one.width, one.height) > longest),
            reason=f"will be a dead letter: {image_format.upper()} has at most {longest:,} pixels a side",
            hint=f"[output] {' and '.join(keys)}, or give [output] a size",
        )


def _sources_of(pictures: Collection[Picture]) -> tuple[PictureList, bytes]:
    """A block's sources, and their lines."""
    data = b"".join([one.line + b"\n" for one in pictures])
    return PictureList.of(data, pixels=(one.width * one.height for one in pictures)), data


def _block(sources: PictureList) -> Block:
    return Block(samples=sources.count, sources=sources)
