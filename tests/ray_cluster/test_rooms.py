"""How many workers a cluster gets, and what each of them reserves."""

from __future__ import annotations

import pytest

from shardgen.launch.rooms import ClusterWanted, Node, Room, rooms
from shardgen.recipes.base import Demand


def node(name: str, cpus: int, gpus: float = 0) -> Node:
    return Node(id=name, name=name, cpus=cpus, gpus=gpus, memory=2**40)


HEAD = node("head", 0)
A, B, BIG = node("a", 4), node("b", 8), node("big", 32, 4)
GPU = node("gpu", 8, 1)


def shown(found: list[Room]) -> list[tuple[str, int, float]]:
    return [("" if one.node is None else one.node.name, one.cpus, one.gpus) for one in found]


@pytest.mark.parametrize(
    ("nodes", "wanted", "expected"),
    [
        ([A, B], ClusterWanted(), [("a", 4, 0), ("b", 8, 0)]),
        ([HEAD, A], ClusterWanted(), [("a", 4, 0)]),
        ([HEAD], ClusterWanted(), []),
        ([], ClusterWanted(), []),
        ([BIG], ClusterWanted(), [("big", 8, 1)] * 4),
        ([A, GPU], ClusterWanted(), [("gpu", 8, 1)]),  # what is slow on a CPU waits for nobody
        ([A, BIG], ClusterWanted(gpus=0), [("a", 4, 0), ("big", 32, 0)]),
        ([GPU], ClusterWanted(gpus=0.5), [("gpu", 4, 0.5)] * 2),
        ([node("tenths", 30, 3)], ClusterWanted(gpus=0.1), [("tenths", 1, 0.1)] * 30),
        ([node("half", 8, 0.5)], ClusterWanted(), [("half", 8, 0)]),  # less than one is none
        ([A, B], ClusterWanted(cpus=2), [("a", 2, 0), ("b", 2, 0)]),
        ([A, B], ClusterWanted(cpus=6), [("b", 6, 0)]),
        ([node("few", 2, 4)], ClusterWanted(), [("few", 0, 1)] * 4),  # they share what there is
    ],
)
def test_without_a_number_each_gpu_or_node_has_a_worker(
    nodes: list[Node], wanted: ClusterWanted, expected: list[tuple[str, int, float]]
) -> None:
    assert shown(rooms(nodes, wanted)) == expected


@pytest.mark.parametrize(
    ("nodes", "wanted", "cpus", "gpus"),
    [
        ([A, B], ClusterWanted(workers=2), 4, 0),
        ([A, B], ClusterWanted(workers=3), 4, 0),
        ([A, B], ClusterWanted(workers=4), 2, 0),
        ([A, B], ClusterWanted(workers=40), 1, 0),  # more than there is room for: the rest waits
        ([HEAD], ClusterWanted(workers=2), 1, 0),
        ([], ClusterWanted(workers=2), 1, 0),
        ([BIG], ClusterWanted(workers=4), 8, 1),
        ([BIG], ClusterWanted(workers=5), 1, 1),
        ([BIG], ClusterWanted(workers=8, gpus=0.5), 4, 0.5),
        ([A, GPU], ClusterWanted(workers=2), 1, 1),  # one waits for a GPU
        ([A, B], ClusterWanted(workers=2, cpus=3), 3, 0),
        ([A, B], ClusterWanted(workers=2, gpus=1), 1, 1),
    ],
)
def test_with_a_number_so_many_are_where_ray_finds_room(
    nodes: list[Node], wanted: ClusterWanted, cpus: int, gpus: float
) -> None:
    assert wanted.workers is not None
    assert shown(rooms(nodes, wanted)) == [("", cpus, gpus)] * wanted.workers


def test_memory_is_reserved_on_a_cpu_alone() -> None:
    wanted = ClusterWanted(memory=2**30)
    assert [one.memory for one in rooms([A], wanted)] == [2**30]
    assert [one.memory for one in rooms([GPU], wanted)] == [0]


@pytest.mark.parametrize(
    ("room", "fits"),
    [
        (Room(cpus=8, gpus=1, memory=2**40), True),
        (Room(cpus=9, gpus=1), False),
        (Room(cpus=1, gpus=1, memory=2**40 + 1), False),
        (Room(cpus=0, gpus=0.5), True),
    ],
)
def test_a_room_fits_a_node_that_has_all_of_it(room: Room, *, fits: bool) -> None:
    assert room.fits(GPU) == fits
    assert not Room(cpus=1, gpus=1).fits(A)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (ClusterWanted(memory=2 << 30), "1 CPU, 2.0 GiB of memory"),
        (ClusterWanted(cpus=8), "8 CPUs"),
        (ClusterWanted(gpus=1, memory=2 << 30), "1 GPU"),
    ],
)
def test_what_no_node_has_is_said_by_what_was_asked_for(wanted: ClusterWanted, expected: str) -> None:
    assert wanted.least.shown == expected


@pytest.mark.parametrize(
    ("gpus", "computes", "expected"), [(None, True, None), (None, False, 0), (1.0, False, 1.0), (0, True, 0)]
)
def test_what_computes_nothing_leaves_gpus_alone(
    gpus: float | None, *, computes: bool, expected: float | None
) -> None:
    demand = Demand(
        micro_batches=(8, 4, 1),
        is_fixed=False,
        bytes_for=lambda micro_batch: 100 + 10 * micro_batch,
        device_model=lambda threads: f"{threads} threads",
    )
    found = ClusterWanted(gpus=gpus).for_recipe(demand, computes=computes)
    assert (found.gpus, found.memory) == (expected, 110)


@pytest.mark.parametrize(
    ("room", "expected"),
    [
        (Room(cpus=1, gpus=0), "1 CPU"),
        (Room(cpus=8, gpus=1), "8 CPUs, 1 GPU"),
        (Room(cpus=2, gpus=0.5), "2 CPUs, 0.5 GPU"),
        (Room(cpus=2, gpus=0, memory=3 << 29), "2 CPUs, 1.5 GiB of memory"),
    ],
)
def test_a_room_is_shown_by_what_it_reserves(room: Room, expected: str) -> None:
    assert room.shown == expected
