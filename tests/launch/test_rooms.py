"""Rooms that Ray could never give are not asked for; see tests/ray_cluster/test_rooms.py for the rest."""

from __future__ import annotations

import itertools

import pytest

from shardgen.launch.rooms import ClusterWanted, Node, Room, rooms

_numbers = itertools.count()


def node(*, cpus: int, gpus: float = 0, memory: int = 100) -> Node:
    number = next(_numbers)
    return Node(id=str(number), name=f"node-{number}", cpus=cpus, gpus=gpus, memory=memory)


def sizes(found: list[Room]) -> list[tuple[int, float]]:
    return [(room.cpus, room.gpus) for room in found]


def test_no_worker_has_parts_of_two_gpus() -> None:
    assert len(rooms([node(cpus=16, gpus=2)], ClusterWanted(gpus=0.4))) == 4
    assert len(rooms([node(cpus=16, gpus=2)], ClusterWanted(gpus=0.1))) == 20
    assert rooms([node(cpus=16, gpus=2)], ClusterWanted(gpus=0.4, workers=5))[0].cpus == 1
    assert rooms([node(cpus=16, gpus=2)], ClusterWanted(gpus=0.4, workers=4))[0].cpus == 4


@pytest.mark.parametrize(
    ("wanted", "count"),
    [
        (ClusterWanted(cpus=3), 5),
        (ClusterWanted(cpus=16), 1),
        (ClusterWanted(cpus=17), 0),
        (ClusterWanted(gpus=0, cpus=3), 1),
        (ClusterWanted(gpus=0, memory=100), 1),
        (ClusterWanted(gpus=0, memory=101), 0),
    ],
)
def test_no_worker_is_wanted_on_a_node_where_it_would_wait_for_ever(
    wanted: ClusterWanted, count: int
) -> None:
    assert len(rooms([node(cpus=16, gpus=8)], wanted)) == count


def test_what_is_wanted_of_gpus_stays_when_nodes_come_and_go() -> None:
    small, large = node(cpus=4), node(cpus=8, gpus=1)
    assert sizes(rooms([small, large], ClusterWanted().on([small]))) == [(4, 0.0), (8, 0.0)]
    assert rooms([small], ClusterWanted().on([small, large])) == []
