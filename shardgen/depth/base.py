"""The port between a recipe and depth networks; imports nothing heavy, so that settings can say it.

A `Family` is a kind of network, as `[depth] model` names it. A `Network` is one of them with its weights at
hand, for everything that needs no device. An `Estimator` is a network on a device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

from shardgen.depth.device import Device
from shardgen.domain.plan import SETTING
from shardgen.domain.wording import nearest
from shardgen.errors import InvalidSettings, WeightsRefused
from shardgen.storage.released import OnDownload

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Picture: TypeAlias = "NDArray[np.uint8]"
"""uint8 (H, W, 3) RGB, of a network's input size."""
RawOutput: TypeAlias = "NDArray[np.float32]"
"""A network's output for one picture, float32 (h, w); only its family knows what it means."""
FILE = "file"
"""The plan's name for weights given by their path in `shardgen.toml`: a plan holds no paths."""


class Upsampling(StrEnum):
    """Bilinear upsampling inside the network: with aligned corners, or with half-pixel centres."""

    ALIGNED = "aligned"
    HALF_PIXEL = "half-pixel"


class Precision(StrEnum):
    """`fast` computes in 16 bits wherever the family finds them good enough."""

    FLOAT32 = "float32"
    FAST = "fast"


class Quality(StrEnum):
    """What a network's output is good for: a data set, trying the pipeline, or nothing."""

    DEPTH = "depth"
    TRIAL = "trial"
    NOISE = "noise"


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """`name` is one of the family's or `file`; the digest, not the path, says which file.

    `structure` describes the weights' network in the family's words; it is only for people.
    """

    name: str = field(metadata={SETTING: "depth.weights"})
    bytes: int
    sha256: str
    structure: str
    quality: Quality


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkPlan:
    """What a plan says about its network; `input` is (width, height) in pixels."""

    model: str
    weights: Weights
    input: tuple[int, int]
    upsampling: Upsampling
    precision: Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkChoice:
    """`[depth] weights` and `micro_batch` as this machine's settings have them.

    `name` is the plan's name for the weights, `written` what `shardgen.toml` says, `file` the path that it
    means, if it means one. `micro_batch` is how many images the network takes at once.
    """

    name: str
    written: str
    file: Path | None
    micro_batch: int | Literal["auto"]


@dataclass(frozen=True, slots=True)
class Sides:
    """Which sides an input may have, in pixels."""

    step: int
    least: int

    def allow(self, size: tuple[int, int]) -> bool:
        """Whether both sides of (width, height) are such."""
        return all(side >= self.least and side % self.step == 0 for side in size)

    def __str__(self) -> str:
        least = f", at least {self.least}" if self.least > self.step else ""
        return f"multiples of {self.step}{least}"


class Begun:
    """A batch queued on a device; only the estimator that made it knows what is in it."""


class Estimator(ABC):
    """One network on one device, for one process; all but `depth_of` for one thread.

    A picture's depth depends on the device's model, on `micro_batch` and on its place in the micro-batch,
    not on those beside it. Receipts record the first two; the plan tells the place.
    """

    @property
    @abstractmethod
    def micro_batch(self) -> int:
        """How many images the network takes at once now; it shrinks when memory runs out."""

    @property
    @abstractmethod
    def device_model(self) -> str:
        """The device's name, as `Device.model` was."""

    @property
    @abstractmethod
    def provenance(self) -> Mapping[str, str | int]:
        """What else determines the bytes, such as a library's version, for receipts."""

    @abstractmethod
    def warm_up(self) -> None:
        """Run the network once on a black image, so that the first batch is not a slow one."""

    @abstractmethod
    def begin(self, pictures: Sequence[Picture | None]) -> Begun | None:
        """Put a batch on the device's queue, without waiting for it or for the batch before.

        None if the device has no queue. Errors are raised by `outputs`.
        """

    @abstractmethod
    def outputs(
        self,
        pictures: Sequence[Picture | None],
        *,
        begun: Begun | None = None,
        between: Callable[[int], None] | None = None,
    ) -> list[RawOutput | None]:
        """The network's outputs for pictures of the plan's input size; None for None.

        A missing picture keeps its place and is black: the others' last bits must not depend on it. `begun`
        is the result of `begin` for the same pictures. `between` is called after every micro-batch with the
        number of finished pictures, to report progress; if it raises, the batch is abandoned. Raises
        DepthBackendUnavailable if there is not enough memory for one picture or the device is lost.
        """

    @abstractmethod
    def depth_of(self, raw: RawOutput) -> NDArray[np.float32]:
        """Relative depth of one output, float32 (h, w), 0.01 near to 1.0 far, not metres; from any thread.

        Raises DepthNotFinite for an output with NaN or infinity in it.
        """


class Network(ABC):
    """Checked weights of a family: `weights` for the plan, `sides` that an input may have."""

    def __init__(self, weights: Weights, sides: Sides) -> None:
        self.weights, self.sides = weights, sides

    def check_input(self, size: tuple[int, int]) -> None:
        """Raise InvalidSettings unless the network takes images of (width, height) pixels."""
        if not self.sides.allow(size):
            raise InvalidSettings(
                f"depth.input: {list(size)} (expected {self.sides})", hint="input = [640, 480]"
            )

    def check_plan(self, plan: NetworkPlan) -> None:
        """Raise WeightsRefused if these weights are not the plan's, InvalidSettings for its input size."""
        if self.weights.sha256 != plan.weights.sha256:
            raise WeightsRefused(
                f"weights {plan.weights.name}: sha256 {self.weights.sha256[:12]} "
                f"(the plan has {plan.weights.sha256[:12]})",
                hint="use the weights file that the plan was made with, or a new run directory",
            )
        self.check_input(plan.input)

    @abstractmethod
    def memory_bytes(self, plan: NetworkPlan, micro_batch: int) -> int:
        """The peak memory of a process with this network, within about a quarter."""

    @abstractmethod
    def micro_batches(self, kind: str) -> tuple[int, ...]:
        """The choices for a device (`kind` cpu or gpu), best first; the last is the smallest."""

    @abstractmethod
    def prepare(self, choice: str, *, threads: int) -> Device:
        """Configure the device, once per process; `choice` is auto, cpu or gpu; 0 threads: the library's.

        The `model` of a CPU is `device.describe_cpu(threads)`. Raises MachineUnfit.
        """

    @abstractmethod
    def load(self, plan: NetworkPlan, *, micro_batch: int, on: Device) -> Estimator:
        """Put the network on a device of its `prepare`; `plan` has passed `check_plan`.

        Raises MachineUnfit for a precision that the device is slow at; it never silently uses another one.
        """


class Family(ABC):
    """A kind of depth network; cheap to make, and nothing heavy is imported before `find`."""

    name: ClassVar[str]
    """As `[depth] model` has it."""
    names: ClassVar[tuple[str, ...]] = ()
    """What `[depth] weights` may be, except paths: examples, where there is no end of them."""
    default_weights: ClassVar[str]
    sides: ClassVar[Sides]
    """The widest range for all networks of the family; `Network.sides` may be narrower."""

    @abstractmethod
    def plan_name(self, written: str) -> str:
        """The plan's name of `[depth] weights`; `FILE` for a path. Raises ValueError for a malformed name."""

    def meant(self, written: str) -> str:
        """The one of `names` that a bare word was probably meant as; "" for a path, and a word like none."""
        return "" if Path(written).suffix or "/" in written else nearest(written, self.names)

    @abstractmethod
    def find(self, choice: NetworkChoice, *, on_download: OnDownload | None = None) -> Network:
        """Read and check the weights; released ones are fetched only with `on_download`.

        Raises InputMissing, WeightsRefused, InvalidSettings, DownloadFailed.
        """
