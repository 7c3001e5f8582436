"""Makes pictures as they are stored and their depth; a picture is encoded as soon as it is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shardgen.depth.base import Begun, Picture, RawOutput
from shardgen.domain.identifiers import SampleIndex
from shardgen.domain.receipt import OutputSums, Provenance
from shardgen.errors import SourceUndecodable
from shardgen.imaging.codec import VERSIONS
from shardgen.imaging.compose import network_input
from shardgen.imaging.opencv import resize, switches, use_one_thread
from shardgen.imaging.outputs import depth_picture, picture
from shardgen.recipes.base import Between, Encoded, Maker
from shardgen.recipes.depth import DEPTH
from shardgen.recipes.network import DepthMap, DepthStage
from shardgen.recipes.pictures.plan import IMAGE, PicturesPlan
from shardgen.sources.checking import read_planned


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PreparedPicture:
    """A picture's file and its sums, its own size (width, height), and the network's input.

    Three batches of pictures at full size would take more memory than the network.
    """

    image: bytes
    sums: OutputSums
    size: tuple[int, int]
    network_input: NDArray[np.uint8]


def prepare_picture(plan: PicturesPlan, folder: Path, sample: SampleIndex) -> PreparedPicture:
    """Read, check, decode, resize and encode one picture; alpha is dropped.

    Raises SampleError when this picture cannot be used; PlanConflict, InputMissing and StorageFailed, which
    are no fault of this sample.
    """
    planned, output = plan.picture(sample), plan.output
    photo = read_planned(folder, planned)
    size = photo.width, photo.height
    if size != (planned.width, planned.height):
        raise SourceUndecodable(
            f"{planned.name}: decodes to {size[0]}x{size[1]} pixels, "
            f"but its headers said {planned.width}x{planned.height}"
        )
    image, sums = picture(resize(photo.pixels, output.size or size), output.image, output.image_quality)
    return PreparedPicture(
        image=image,
        sums=sums,
        size=size,
        network_input=network_input(photo.pixels, plan.depth.input),
    )


def encode_depth(
    plan: PicturesPlan, prepared: PreparedPicture, relative_depth: DepthMap
) -> tuple[bytes, OutputSums]:
    """The file of a picture's depth, and its sums. Raises EncodeFailed."""
    depth = plan.depth
    size = depth.size or prepared.size
    return depth_picture(relative_depth, size, depth.encoding, depth.format, depth.quality)


class PicturesMaker(Maker[PreparedPicture, RawOutput]):
    """One plan's pictures, with the depth network on one device."""

    def __init__(self, plan: PicturesPlan, folder: Path, depth: DepthStage) -> None:
        use_one_thread()
        self._plan = plan
        self._folder = folder
        self._depth = depth

    @property
    def device_model(self) -> str:
        """What the network runs on."""
        return self._depth.device_model

    def prepare(self, sample: SampleIndex) -> PreparedPicture:
        """Its file and the network's input."""
        return prepare_picture(self._plan, self._folder, sample)

    def begin(self, batch: Sequence[PreparedPicture | None]) -> Begun | None:
        """Give the network their pictures."""
        return self._depth.begin(_inputs(batch))

    def compute(
        self, batch: Sequence[PreparedPicture | None], *, between: Between, begun: object = None
    ) -> Sequence[RawOutput | None]:
        """The network's outputs."""
        ahead = begun if isinstance(begun, Begun) else None
        return self._depth.compute(_inputs(batch), between=between, begun=ahead)

    def encode(self, sample: SampleIndex, prepared: PreparedPicture, computed: RawOutput) -> Encoded:
        """Both files, and sums over their pixels as a reader will see them."""
        del sample
        depth, sums = encode_depth(self._plan, prepared, self._depth.depth_of(computed))
        return Encoded(
            files={IMAGE: prepared.image, DEPTH: depth},
            sums={IMAGE: prepared.sums, DEPTH: sums},
        )

    def check(self) -> None:
        """Put one black image through the network."""
        self._depth.check()

    def provenance(self) -> Provenance:
        """What decides the bytes."""
        return Provenance.of({**VERSIONS, **switches(), **self._depth.provenance()})


def _inputs(batch: Sequence[PreparedPicture | None]) -> list[Picture | None]:
    return [None if one is None else one.network_input for one in batch]
