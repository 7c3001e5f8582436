"""What each worker on a cluster reserves, and on which node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from shardgen.domain.wording import counted
from shardgen.recipes.base import Demand

_MICRO = 1e-9  # GPUs are shared by fractions, which do not add up exactly


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterWanted:
    """What was asked for; `workers` None: one a GPU, or one a node where there is none.

    Each worker reserves `gpus` (0: it computes on the CPU; None: 1 if there are GPUs), `cpus` (None: an
    even part of its node's) and `memory` in bytes, which counts on a CPU alone.
    """

    workers: int | None = None
    gpus: float | None = None
    cpus: int | None = None
    memory: int = 0

    @property
    def least(self) -> Room:
        """What a worker must be given, on whichever node."""
        gpus = self.gpus or 0.0
        return Room(cpus=self.cpus or int(not gpus), gpus=gpus, memory=0 if gpus else self.memory)

    def for_recipe(self, demand: Demand, *, computes: bool) -> Self:
        """The same for workers that need so much memory; what computes nothing leaves the GPUs alone."""
        smallest = (demand.micro_batches or (1,))[-1]
        gpus = self.gpus if self.gpus is not None or computes else 0.0
        return replace(self, gpus=gpus, memory=demand.bytes_for(smallest))

    def on(self, nodes: Sequence[Node]) -> Self:
        """The same with `gpus` settled, so that a run keeps its device when nodes come and go."""
        if self.gpus is not None:
            return self
        return replace(self, gpus=1.0 if any(node.gpus >= 1 for node in nodes) else 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A machine of the cluster, and what Ray may give away of it."""

    id: str
    name: str
    cpus: int
    gpus: float
    memory: int  # bytes

    def places(self, gpus: float, cpus: int) -> int:
        """For how many workers with so much of a GPU, and so many CPUs each; 0: no matter how many.

        None of them has its part on two GPUs.
        """
        by_gpu = int(self.gpus) * int(1 / gpus + _MICRO) if gpus else self.cpus
        return min(by_gpu, self.cpus // cpus) if cpus else by_gpu


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What one worker reserves, and on which node; `node` None: wherever there is room."""

    cpus: int
    gpus: float
    memory: int = 0
    node: Node | None = None

    def fits(self, node: Node) -> bool:
        """Whether a node has so much, when nothing else is on it."""
        return node.places(self.gpus, self.cpus) > 0 and self.memory <= node.memory

    @property
    def shown(self) -> str:
        """For messages."""
        parts = [counted(self.cpus, "CPU")] if self.cpus or not self.gpus else []
        if self.gpus:
            parts.append(
                counted(int(self.gpus), "GPU") if self.gpus == int(self.gpus) else f"{self.gpus:g} GPU"
            )
        if self.memory:
            parts.append(f"{self.memory / 2**30:.1f} GiB of memory")
        return ", ".join(parts)


def rooms(nodes: Sequence[Node], wanted: ClusterWanted) -> list[Room]:
    """One room a worker on a cluster with these nodes.

    Without `workers` they are on the nodes that there are now: as many on each as it has GPUs for, or one a
    node. With it they are wherever Ray finds room, also on nodes to come.
    """
    gpus = wanted.on(nodes).gpus or 0.0
    memory = 0 if gpus else wanted.memory
    if wanted.workers is None:
        found = []
        for node in nodes:
            count = node.places(gpus, wanted.cpus or 0) if memory <= node.memory else 0
            count = count if gpus else min(count, 1)
            cpus = wanted.cpus or node.cpus // max(1, count)
            found += [Room(cpus=cpus, gpus=gpus, memory=memory, node=node)] * count
        return found
    cpus = wanted.cpus or _even_part(nodes, wanted.workers, gpus)
    return [Room(cpus=cpus, gpus=gpus, memory=memory)] * wanted.workers


def _even_part(nodes: Sequence[Node], workers: int, gpus: float) -> int:
    """The most CPUs a worker with which so many fit on the nodes; 1 where they do not fit."""
    for cpus in range(max((node.cpus for node in nodes), default=1), 1, -1):
        if sum(node.places(gpus, cpus) for node in nodes) >= workers:
            return cpus
    return 1
