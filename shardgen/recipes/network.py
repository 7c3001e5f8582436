"""A depth network in a run: agree on a micro-batch, load, compute, remember if it shrinks."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shardgen.depth import device
from shardgen.depth.base import (
    Begun,
    Estimator,
    Network,
    NetworkChoice,
    NetworkPlan,
    Picture,
    Quality,
    RawOutput,
)
from shardgen.depth.device import Device
from shardgen.depth.families import find_family
from shardgen.errors import DownloadFailed, MachineUnfit
from shardgen.machine.memory import free_bytes
from shardgen.recipes.base import BatchSizes, Between, Demand, DeviceChoice, PlanEvents, Station
from shardgen.recipes.depth import Depth

DepthMap = NDArray[np.float32]
"""Relative depth, float32 (h, w): 0.01 is near, 1.0 far."""
_LOG = logging.getLogger(__name__)
_PROCESS_BYTES = 700 << 20  # of a worker with its libraries and the samples of two batches, without a network
# What a worker takes besides the network: its libraries and the samples of two batches, as measured by
# `python -m benchmarks.memory`.
BESIDE_BYTES = 250 << 20
_UNKNOWN_BYTES = 1 << 62
_REMARKS = {
    Quality.DEPTH: "",
    Quality.TRIAL: "; for trials only",
    Quality.NOISE: "; NOT DEPTH: these weights make noise",
}


def agree_micro_batch(
    setting: int | Literal["auto"],
    plan: NetworkPlan,
    agreed: BatchSizes | None,
    *,
    on: Device,
    network: Network,
) -> tuple[int, str]:
    """How many images the network takes at once, and a remark if it is fewer than was agreed.

    The setting, else what the first worker with this device model chose and the manifest keeps; fewer when
    memory does not suffice, since too little is no exception on a CPU but a kill. Raises MachineUnfit.
    """
    # A GPU's memory is not the host's; there, running out is an exception that shrinks the micro-batch.
    free = _UNKNOWN_BYTES if on.kind == "gpu" else free_bytes()
    fitting = fitting_micro_batch(plan, network, kind=on.kind, free=free)
    if setting != "auto":
        shrunk = None if agreed is None else agreed.shrunk(on.model)
        if shrunk is not None and shrunk < setting:
            return min(shrunk, fitting), f"micro-batch {shrunk}, not {setting}: memory ran out before"
        wanted = setting
    elif agreed is not None:
        wanted = agreed.agreed(on.model, fitting)
    else:
        wanted = fitting
    if network.memory_bytes(plan, wanted) <= free:
        return wanted, ""
    return (
        fitting,
        f"micro-batch {wanted} does not fit into {free / 2**30:.1f} GiB of free memory: using {fitting}",
    )


def fitting_micro_batch(plan: NetworkPlan, network: Network, *, kind: str, free: int) -> int:
    """The best micro-batch for a device (`kind` cpu or gpu) with so many bytes free for this process.

    Raises MachineUnfit if none fits.
    """
    for micro_batch in network.micro_batches(kind):
        needed = network.memory_bytes(plan, micro_batch)
        if needed <= free:
            return micro_batch
    raise MachineUnfit(
        f"the network needs {needed / 2**30:.1f} GiB for one image (free: {free / 2**30:.1f} GiB)",
        hint="close other programs, use fewer workers, or a machine with more memory",
    )


def network_demand(choice: NetworkChoice, plan: NetworkPlan) -> Demand:
    """What a worker on this machine's CPU needs; the weights must be at hand."""
    network = find_family(plan.model).find(choice)
    setting = choice.micro_batch
    return Demand(
        micro_batches=network.micro_batches("cpu") if setting == "auto" else (setting,),
        is_fixed=setting != "auto",
        bytes_for=lambda micro_batch: network.memory_bytes(plan, micro_batch) + BESIDE_BYTES,
        device_model=device.describe_cpu,
    )


def demand_without_network(held_bytes: int) -> Demand:
    """What a worker needs that computes nothing; `held_bytes` are kept in memory."""
    return Demand(
        micro_batches=(),
        is_fixed=True,
        bytes_for=lambda _micro_batch: _PROCESS_BYTES + held_bytes,
        device_model=device.describe_cpu,
    )


def load_for_plan(
    network: NetworkChoice, plan: NetworkPlan, agreed: BatchSizes | None, *, choice: DeviceChoice
) -> Estimator:
    """Load the plan's network and run it once. Without `agreed` the micro-batch is this call's affair.

    Raises WeightsRefused when the weights at hand are not the plan's, MachineUnfit, InputMissing.
    """
    found = find_family(plan.model).find(network)
    found.check_plan(plan)
    on = found.prepare(choice.device, threads=choice.threads)
    micro_batch, remark = agree_micro_batch(network.micro_batch, plan, agreed, on=on, network=found)
    if remark:
        _LOG.info(remark)
    estimator = found.load(plan, micro_batch=micro_batch, on=on)
    weights = plan.weights
    remark = _REMARKS[weights.quality]
    _LOG.info("network %s on %s, micro-batch %d%s", weights.name, on.model, micro_batch, remark)
    estimator.warm_up()
    remember_shrinking(estimator, micro_batch, agreed)
    return estimator


def remember_shrinking(estimator: Estimator, before: int, agreed: BatchSizes | None) -> None:
    """If memory no longer sufficed for the micro-batch of before: say so, and remember it for all workers."""
    now = estimator.micro_batch
    if now < before:
        if agreed is not None:
            agreed.shrink(estimator.device_model, now)
        _LOG.warning("out of memory: micro-batch %d instead of %d from now on", now, before)


def network_choice(local: object) -> NetworkChoice:
    """What `DepthTable.local` has made. Raises TypeError for anything else."""
    if not isinstance(local, NetworkChoice):
        raise TypeError(f"{local!r} is not what the settings of a depth network say of a machine")
    return local


def with_weights(depth: Depth, local: object, events: PlanEvents) -> tuple[Depth, DownloadFailed | None]:
    """The depth of a draft with the weights that were found, fetched if need be.

    Where they could not be had, a stand-in takes their place, and why is told beside it. Raises InputMissing,
    WeightsRefused and InvalidSettings.
    """
    try:
        network = find_family(depth.model).find(network_choice(local), on_download=events.on_download)
    except DownloadFailed as error:
        return replace(depth, weights=replace(depth.weights, bytes=1, sha256="0" * 64)), error
    network.check_input(depth.input)
    return replace(depth, weights=network.weights), None


class DepthStage:
    """The device's part of a maker with a depth network."""

    def __init__(self, plan: NetworkPlan, estimator: Estimator, *, agreed: BatchSizes | None) -> None:
        self._plan = plan
        self._estimator = estimator
        self._agreed = agreed
        self._micro_batch = estimator.micro_batch

    @property
    def device_model(self) -> str:
        """What the network runs on."""
        return self._estimator.device_model

    def begin(self, inputs: Sequence[Picture | None]) -> Begun | None:
        """Give the device pictures of the network's size ahead, where it has a queue."""
        return self._estimator.begin(inputs)

    def compute(
        self, inputs: Sequence[Picture | None], *, between: Between, begun: Begun | None = None
    ) -> list[RawOutput | None]:
        """The network's outputs for pictures of its size; None for None."""
        return self._estimator.outputs(inputs, begun=begun, between=between)

    def depth_of(self, raw: RawOutput) -> DepthMap:
        """The depth that an output means; from any thread. Raises DepthNotFinite."""
        return self._estimator.depth_of(raw)

    def check(self) -> None:
        """Put one black image through the network."""
        self._estimator.warm_up()

    def provenance(self) -> Mapping[str, str | int]:
        """What decides the bytes; a micro-batch that has become smaller is remembered for all workers."""
        estimator, now = self._estimator, self._estimator.micro_batch
        remember_shrinking(estimator, self._micro_batch, self._agreed)
        self._micro_batch = now
        return {
            "device_model": estimator.device_model,
            "micro_batch": now,
            "precision": self._plan.precision.value,
            **estimator.provenance,
        }


def open_depth_stage(plan: NetworkPlan, station: Station) -> DepthStage:
    """Load the network of a plan and run it once; raises as `load_for_plan` does."""
    station.doing("loading the network, up to a minute")
    network = load_for_plan(network_choice(station.local), plan, station.agreed, choice=station.device)
    return DepthStage(plan, network, agreed=station.agreed)


def likely_depth(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Brightness averaged over blocks of 8x8 and drawn large again, 0.01-1.0: about as smooth as depth."""
    if not picture.size:
        return np.ones((1, 1), np.float32)
    grey = picture.astype(np.float32).mean(axis=2) / 255
    height, width = (side // 8 * 8 for side in grey.shape)
    blocks = grey[:height, :width].reshape(height // 8, 8, width // 8, 8).mean(axis=(1, 3))
    return np.clip(np.kron(blocks, np.ones((4, 4), np.float32)), 0.01, 1.0).astype(np.float32)
