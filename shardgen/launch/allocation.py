"""Share this machine out between workers: how many, and which cores, GPU and memory each of them gets."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from shardgen.domain.plan import Plan
from shardgen.domain.wording import Say, counted
from shardgen.errors import InvalidSettings, MachineUnfit
from shardgen.machine import gpus
from shardgen.machine.cores import schedulable_cores, threads_each, usable_cores
from shardgen.machine.gpus import Gpu
from shardgen.machine.memory import available_memory, free_bytes
from shardgen.recipes.base import THREADS_VARIABLE, BatchSizes
from shardgen.recipes.registry import recipe_of
from shardgen.settings.run_directory import RunDirectory

_LIBRARY_THREADS = "OMP_NUM_THREADS"  # numpy's and other libraries' own pools
_CUDA_ORDER = "CUDA_DEVICE_ORDER"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What was asked for; `workers` None: one a GPU, else one. Without names in `gpus` it is all visible."""

    workers: int | None = None
    device: str = "auto"
    gpus: tuple[str, ...] = ()
    threads_per_worker: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """One worker's part of the machine; `threads` 0: the libraries' own choice, `gpu` None: TensorFlow's."""

    device: str = "auto"
    threads: int = 0
    gpu: Gpu | None = None

    def environment(self, before: Mapping[str, str]) -> dict[str, str]:
        """The environment of a worker with this share, given that of the process which starts it."""
        after = dict(before)
        if self.threads:
            after[THREADS_VARIABLE] = str(self.threads)
            after.setdefault(_LIBRARY_THREADS, str(self.threads))
        if self.device == "cpu":
            after[gpus.VARIABLE] = gpus.NO_GPU
        elif self.gpu is not None:
            if gpus.VARIABLE not in before:
                # nvidia-smi's numbers; CUDA itself would count the fastest first.
                after.setdefault(_CUDA_ORDER, "PCI_BUS_ID")
            after[gpus.VARIABLE] = self.gpu.name
        return after


def choose_gpus(wanted: Wanted) -> tuple[Gpu, ...]:
    """The GPUs for the workers, the first for the first; none when they run on the CPU.

    Raises MachineUnfit for a named one that is not there, InvalidSettings for contradictory options.
    """
    if wanted.device == "cpu":
        if wanted.gpus:
            raise InvalidSettings("--gpus with --device cpu", hint="leave one of them out")
        return ()
    listed = gpus.list_gpus()
    if not wanted.gpus:
        return tuple(gpus.visible_gpus(listed, os.environ))
    if wanted.workers is not None and wanted.workers > len(wanted.gpus):
        raise InvalidSettings(
            f"--workers {wanted.workers} with {len(wanted.gpus)} GPUs in --gpus: each worker needs one",
            hint=f"leave --workers out, or name a GPU twice to share it: --gpus "
            f"{','.join(wanted.gpus + wanted.gpus[:1])}",
        )
    return gpus.named_gpus(wanted.gpus, listed, os.environ)


def settle_workers(  # noqa: PLR0913 - who is wanted, for what, and who hears of it
    run: RunDirectory,
    plan: Plan,
    wanted: Wanted,
    chosen: Sequence[Gpu],
    *,
    say: Say,
    agreed: BatchSizes | None = None,
) -> tuple[Share, ...]:
    """Fit the workers into this machine and say how; `chosen` is what `choose_gpus` found.

    What the run's workers compute at once is read, and kept, in the manifest, or in `agreed` instead.

    Fewer than wanted when there are fewer GPUs, or on a CPU not enough memory, where too little is no
    exception but a kill. A recipe that computes nothing leaves the GPUs alone. Raises MachineUnfit when there
    is not enough for one.
    """
    if chosen and run.local is not None:
        return _shares_on_gpus(wanted, chosen, say=say)
    return _shares_on_cpu(run, plan, wanted, say=say, sizes=agreed)


def _shares_on_gpus(wanted: Wanted, chosen: Sequence[Gpu], *, say: Say) -> tuple[Share, ...]:
    workers = min(wanted.workers or len(chosen), len(chosen))
    threads = _threads(workers, wanted.threads_per_worker)
    # A lone worker may fall back to the CPU if TensorFlow cannot use its GPU. Several would take more memory
    # than anybody has looked for.
    device = "gpu" if workers > 1 or wanted.gpus else wanted.device
    shares = tuple(Share(device=device, threads=threads, gpu=gpu) for gpu in chosen[:workers])
    fewer = ""
    if wanted.workers is not None and workers < wanted.workers:
        shared = ",".join(chosen[number % workers].name for number in range(wanted.workers))
        fewer = f" (not {wanted.workers}: one a GPU; to share: --gpus {shared})"
    places = ", ".join(f"worker-{number} on {share.gpu}" for number, share in enumerate(shares))
    say(f"{counted(workers, 'worker')}{fewer}: {places}{_shown_threads(threads)}")
    return shares


def _shares_on_cpu(
    run: RunDirectory, plan: Plan, wanted: Wanted, *, say: Say, sizes: BatchSizes | None
) -> tuple[Share, ...]:
    demand = recipe_of(plan).demand(run.local)
    free, asked = free_bytes(), wanted.workers or 1
    limit = available_memory().shown_limit
    choices = demand.micro_batches or (1,)
    fitting = [min(asked, free // demand.bytes_for(choice)) for choice in choices]
    workers = max(fitting)
    micro_batch = choices[fitting.index(workers)]
    if workers < 1:
        needed = demand.bytes_for(choices[-1])
        smaller = "set [depth] micro_batch = 1, or " if demand.micro_batches else ""
        raise MachineUnfit(
            f"a worker needs {needed / 2**30:.1f} GiB (free: {free / 2**30:.1f} GiB{limit})",
            hint=f"{smaller}raise the container's memory limit"
            if limit
            else f"close other programs, {smaller}use a machine with more memory",
        )
    threads = _threads(workers, wanted.threads_per_worker)
    if not demand.is_fixed:
        with ExitStack() as stack:
            sizes = sizes or stack.enter_context(run.manifest(plan)).micro_batches
            agreed = sizes.agreed(demand.device_model(threads), micro_batch)
            while workers > (fits := max(1, free // demand.bytes_for(agreed))):
                workers = fits  # keep to what an earlier crew chose, with fewer workers
                threads = _threads(workers, wanted.threads_per_worker)
                agreed = sizes.agreed(demand.device_model(threads), agreed)
        micro_batch = agreed
    fewer = f" (not {asked}: memory)" if workers < asked else ""
    computing = f"micro-batch {micro_batch}, " if demand.micro_batches else ""
    say(
        f"{counted(workers, 'worker')}{fewer}, {computing}about "
        f"{demand.bytes_for(micro_batch) / 2**30:.1f} GiB each of {free / 2**30:.1f} GiB free"
        f"{limit}{_shown_threads(threads)}"
    )
    return (Share(device=wanted.device, threads=threads),) * workers


def _threads(workers: int, given: int) -> int:
    cores = usable_cores()
    if not given and workers == 1 and cores == schedulable_cores():
        return 0  # what libraries choose by themselves
    return given or threads_each(cores, workers)


def _shown_threads(threads: int) -> str:
    return f", {counted(threads, 'thread')} each" if threads else ""
