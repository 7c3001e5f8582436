"""The same input gives the same bits: in every process, however busy the machine, at every micro-batch."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from tensorflow.python.eager import context  # the only way to the graph that really runs

from benchmarks.determinism import Case, Threads, different_outputs
from shardgen.depth.base import Upsampling
from shardgen.depth.densedepth.network import Arithmetic, GraphShape, build_network
from shardgen.depth.densedepth.tapped_convolution import low_resolution_pays, winograd_pays
from shardgen.depth.densedepth.weights_file import WeightsFile, read_weights

SMALL_SIZE, WIDE_SIZE = (96, 64), (320, 192)
# Sums of more than two terms, by TensorFlow's and oneDNN's names. A sum of two has one order only.
UNORDERED = ("AddN", "AccumulateN", "Sum", "Mean")


def shape_of(
    micro_batch: int,
    arithmetic: Arithmetic,
    *,
    size: tuple[int, int] = SMALL_SIZE,
    upsampling: Upsampling = Upsampling.ALIGNED,
) -> GraphShape:
    return GraphShape(micro_batch=micro_batch, input_size=size, upsampling=upsampling, arithmetic=arithmetic)


def operations(weights: WeightsFile, shape: GraphShape) -> set[str]:
    """The kinds of operations of a graph after TensorFlow has optimised it."""
    width, height = shape.input_size
    with context.collect_graphs(optimized=True) as graphs:
        build_network(weights, shape)(np.zeros((shape.micro_batch, height, width, 3), np.uint8))
    found = {node.op for graph in graphs for node in graph.node}
    return found | {
        node.op for graph in graphs for function in graph.library.function for node in function.node_def
    }


@pytest.mark.usefixtures("cpu")
@pytest.mark.parametrize("arithmetic", Arithmetic)
@pytest.mark.parametrize(
    ("upsampling", "micro_batch"),
    [
        (Upsampling.ALIGNED, 8),
        (Upsampling.HALF_PIXEL, 2),
        pytest.param(Upsampling.ALIGNED, 32, marks=pytest.mark.slow),
        pytest.param(Upsampling.HALF_PIXEL, 1, marks=pytest.mark.slow),
    ],
)
def test_no_sum_of_an_optimised_graph_has_an_order_that_is_not_fixed(
    narrow: WeightsFile, arithmetic: Arithmetic, upsampling: Upsampling, micro_batch: int
) -> None:
    found = operations(narrow, shape_of(micro_batch, arithmetic, upsampling=upsampling))
    assert "ResizeBilinear" in found  # it is the graph of the network, with rows upsampled last
    assert {name for name in found if any(sums in name for sums in UNORDERED)} == set()


@pytest.mark.usefixtures("cpu")
@pytest.mark.parametrize("arithmetic", Arithmetic)
def test_nor_has_that_of_a_wide_decoder(wide_file: Path, arithmetic: Arithmetic) -> None:
    assert winograd_pays(height=12, width=20, incoming=640 + 28, outgoing=320)
    assert low_resolution_pays(height=48, width=80, incoming=160, outgoing=80)
    found = operations(read_weights(wide_file), shape_of(1, arithmetic, size=WIDE_SIZE))
    assert {"ResizeBilinear", "Transpose"} <= found
    assert {name for name in found if any(sums in name for sums in UNORDERED)} == set()


# Workers on a core each have one thread: their zips are compared wherever two of them run.
@pytest.mark.slow
def test_two_busy_processes_give_one_output_however_many_operations_run_at_once(wide_file: Path) -> None:
    cases = [
        Case(weights="small", shape=shape_of(micro_batch, arithmetic))
        for micro_batch, arithmetic in product((1, 8, 32), Arithmetic)
    ]
    cases += [
        Case(weights=str(wide_file), shape=shape_of(2, arithmetic, size=WIDE_SIZE))
        for arithmetic in Arithmetic
    ]
    one, several = (different_outputs(cases, Threads(2, inter), rounds=8) for inter in (1, 2))
    for outputs in (one, several):
        assert {case: len(found) for case, found in zip(cases, outputs, strict=True) if len(found) > 1} == {}
    assert one == several
