"""The plan's depth network in a run: micro-batch agreed on, loaded, its shrinking remembered."""

from __future__ import annotations

from typing import Literal

from shardgen.depth import device
from shardgen.depth.base import Estimator, Network, NetworkChoice, NetworkPlan, Quality
from shardgen.depth.device import Device
from shardgen.depth.families import find_family
from shardgen.domain.wording import Say
from shardgen.errors import MachineUnfit
from shardgen.machine.memory import free_bytes
from shardgen.recipes.base import BatchSizes, Demand, DeviceChoice
from shardgen.recipes.composites.plan import CompositesPlan

_UNKNOWN_BYTES = 1 << 62
_REMARKS = {
    Quality.DEPTH: "",
    Quality.TRIAL: "; for trials only",
    Quality.NOISE: "; NOT DEPTH: these weights make noise",
}


def agree_micro_batch(
    setting: int | Literal["auto"],
    plan: CompositesPlan,
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
    fitting = fitting_micro_batch(plan.depth, network, kind=on.kind, free=free)
    if setting != "auto":
        shrunk = None if agreed is None else agreed.shrunk(on.model)
        if shrunk is not None and shrunk < setting:
            return min(shrunk, fitting), f"micro-batch {shrunk}, not {setting}: memory ran out before"
        wanted = setting
    elif agreed is not None:
        wanted = agreed.agreed(on.model, fitting)
    else:
        wanted = fitting
    if network.memory_bytes(plan.depth, wanted) <= free:
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


def network_demand(choice: NetworkChoice, plan: CompositesPlan) -> Demand:
    """What a worker on this machine's CPU needs; the weights must be at hand."""
    network = find_family(plan.depth.model).find(choice)
    setting = choice.micro_batch
    return Demand(
        micro_batches=network.micro_batches("cpu") if setting == "auto" else (setting,),
        is_fixed=setting != "auto",
        bytes_for=lambda micro_batch: network.memory_bytes(plan.depth, micro_batch),
        device_model=device.describe_cpu,
    )


def load_for_plan(
    network: NetworkChoice, plan: CompositesPlan, agreed: BatchSizes | None, *, choice: DeviceChoice, say: Say
) -> Estimator:
    """Load the plan's network and run it once. Without `agreed` the micro-batch is this call's affair.

    Raises WeightsRefused when the weights at hand are not the plan's, MachineUnfit, InputMissing.
    """
    family = find_family(plan.depth.model)
    found = family.find(network)
    found.check_plan(plan.depth)
    on = family.prepare(choice.device, threads=choice.threads)
    micro_batch, remark = agree_micro_batch(network.micro_batch, plan, agreed, on=on, network=found)
    if remark:
        say(remark)
    estimator = found.load(plan.depth, micro_batch=micro_batch, on=on)
    weights = plan.depth.weights
    say(f"network {weights.name} on {on.model}, micro-batch {micro_batch}{_REMARKS[weights.quality]}")
    estimator.warm_up()
    remember_shrinking(estimator, micro_batch, agreed, say=say)
    return estimator


def remember_shrinking(estimator: Estimator, before: int, agreed: BatchSizes | None, *, say: Say) -> None:
    """If memory no longer sufficed for the micro-batch of before: say so, and remember it for all workers."""
    now = estimator.micro_batch
    if now < before:
        if agreed is not None:
            agreed.shrink(estimator.device_model, now)
        say(f"out of memory: micro-batch {now} instead of {before} from now on")
