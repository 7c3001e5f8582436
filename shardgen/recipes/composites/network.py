"""The plan's depth network on this machine: weights found and checked, micro-batch agreed on, traced."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Literal

from shardgen.depth import device, fetch
from shardgen.depth.base import NetworkChoice, Weights
from shardgen.depth.device import Device
from shardgen.depth.estimator import DepthEstimator, load_estimator
from shardgen.depth.fetch import SHIPPED
from shardgen.depth.memory import CPU_MICRO_BATCHES, default_micro_batch, memory_bytes
from shardgen.depth.random_weights import is_random_name, random_weights
from shardgen.depth.topology import Topology
from shardgen.depth.trial import read_untrusted
from shardgen.depth.weights_file import WeightsFile, read_weights
from shardgen.domain.wording import Say
from shardgen.errors import InputMissing, InvalidSettings
from shardgen.machine.memory import free_bytes
from shardgen.recipes.base import BatchSizes, Demand, DeviceChoice, OnDownload
from shardgen.recipes.composites.plan import CompositesPlan

_UNKNOWN_BYTES = 1 << 62


def find_weights(choice: NetworkChoice, *, on_download: OnDownload | None = None) -> WeightsFile:
    """Read and check what `[depth] weights` names; released ones are fetched only with `on_download`."""
    name = choice.name
    if is_random_name(name):
        return random_weights(name)
    if name in SHIPPED:
        return read_weights(SHIPPED[name])
    if name in fetch.RELEASED:
        if on_download is not None:
            return fetch.fetch(fetch.RELEASED[name], on_progress=on_download)
        return read_untrusted(fetch.locate(name))
    if choice.file is None:
        raise InvalidSettings(
            f'[depth] weights = "{name}": this version does not know such weights',
            hint='weights = "nyu", "kitti", "small", "random:64" or a file',
        )
    _refuse_unknown_word(choice.written, choice.file)
    return read_untrusted(choice.file)


def _refuse_unknown_word(setting: str, path: Path) -> None:
    """Who writes a bare word, and has no file of that name, means one of the names."""
    if Path(setting).suffix or "/" in setting or os.path.lexists(path):
        return
    near = difflib.get_close_matches(setting, [*fetch.RELEASED, *SHIPPED, "random:64"], n=1)
    meant = f'did you mean "{near[0]}"? ' if near else ""
    raise InputMissing(
        f"{path}: no such weights file",
        hint=f"{meant}weights is nyu, kitti, small, random:N or a file's path",
    )


def planned_weights(name: str, found: WeightsFile) -> Weights:
    """The plan's record of a weights file: digests and structure, no path."""
    return Weights(
        name=name,
        bytes=found.bytes,
        sha256=found.sha256,
        activations=found.topology.activations,
        decoder_width=found.topology.decoder_width,
    )


def agree_micro_batch(
    setting: int | Literal["auto"],
    plan: CompositesPlan,
    agreed: BatchSizes | None,
    *,
    on: Device,
    topology: Topology,
) -> tuple[int, str]:
    """How many images the network takes at once, and a remark if it is fewer than was agreed.

    The setting, else what the first worker with this device model chose and the manifest keeps; fewer when
    memory does not suffice, since too little is no exception on a CPU but a kill. Raises MachineUnfit.
    """
    # A GPU's memory is not the host's; there, running out is an exception that shrinks the micro-batch.
    free = _UNKNOWN_BYTES if on.kind == "gpu" else free_bytes()
    fitting = default_micro_batch(
        topology,
        input_size=plan.depth.input,
        precision=plan.depth.precision,
        kind=on.kind,
        free_bytes=free,
    )
    if setting != "auto":
        shrunk = None if agreed is None else agreed.shrunk(on.model)
        if shrunk is not None and shrunk < setting:
            return min(shrunk, fitting), f"micro-batch {shrunk}, not {setting}: memory ran out before"
        wanted = setting
    elif agreed is not None:
        wanted = agreed.agreed(on.model, fitting)
    else:
        wanted = fitting
    if network_bytes(plan, topology, wanted) <= free:
        return wanted, ""
    return (
        fitting,
        f"micro-batch {wanted} does not fit into {free / 2**30:.1f} GiB of free memory: using {fitting}",
    )


def network_bytes(plan: CompositesPlan, topology: Topology, micro_batch: int) -> int:
    """The peak memory of one worker process, within about a quarter."""
    return memory_bytes(
        topology, input_size=plan.depth.input, micro_batch=micro_batch, precision=plan.depth.precision
    )


def network_demand(network: NetworkChoice, plan: CompositesPlan) -> Demand:
    """What a worker on this machine's CPU needs; the weights must be at hand."""
    topology = find_weights(network).topology
    setting = network.micro_batch
    return Demand(
        micro_batches=CPU_MICRO_BATCHES if setting == "auto" else (setting,),
        is_fixed=setting != "auto",
        bytes_for=lambda micro_batch: network_bytes(plan, topology, micro_batch),
        device_model=device.describe_cpu,
    )


def load_for_plan(
    network: NetworkChoice, plan: CompositesPlan, agreed: BatchSizes | None, *, choice: DeviceChoice, say: Say
) -> DepthEstimator:
    """Load the plan's network and run it once. Without `agreed` the micro-batch is this call's affair.

    Raises WeightsRefused when the weights at hand are not the plan's, MachineUnfit, InputMissing.
    """
    weights = find_weights(network)
    on = device.prepare(choice.device, intra_op=choice.threads, inter_op=min(choice.threads, 1))
    micro_batch, remark = agree_micro_batch(
        network.micro_batch, plan, agreed, on=on, topology=weights.topology
    )
    if remark:
        say(remark)
    estimator = load_estimator(weights, plan.depth, micro_batch=micro_batch, on=on)
    weights_named = plan.depth.weights
    note = "; NOT DEPTH: random weights" if weights_named.is_random else ""
    note = "; for trials: the small network" if weights_named.is_small else note
    say(f"network {plan.depth.weights.name} on {on.model}, micro-batch {micro_batch}{note}")
    estimator.warm_up()
    remember_shrinking(estimator, micro_batch, agreed, say=say)
    return estimator


def remember_shrinking(
    estimator: DepthEstimator, before: int, agreed: BatchSizes | None, *, say: Say
) -> None:
    """If memory no longer sufficed for the micro-batch of before: say so, and remember it for all workers."""
    now = estimator.micro_batch
    if now < before:
        if agreed is not None:
            agreed.shrink(estimator.device_model, now)
        say(f"out of memory: micro-batch {now} instead of {before} from now on")
