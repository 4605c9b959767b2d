"""Graphs of ONNX nodes: arrays in another order or not yet broadcast, and no node twice."""

import jax
import numpy as np
import pytest

from jaxsparse.export.onnx_graph import Graph, constant, rearranged

(BATCH,) = jax.export.symbolic_shape("batch")
FLOAT = np.dtype(np.float32)


def ops(graph):
    return [node.op for node in graph.nodes]


def test_operands_take_the_order_of_the_largest_and_are_not_broadcast():
    graph = Graph(BATCH)
    x = graph.add_input("x", (BATCH, 2, 3), FLOAT)
    moved = rearranged(graph, x, (0, 2, 1), (BATCH, 3, 2))
    assert (moved.data, moved.order) == ("x", (0, 2, 1)) and not graph.nodes
    bias = rearranged(graph, constant(np.float32([1, 2])), (None, None, 0), (BATCH, 3, 2))
    total = graph.apply("Add", moved, bias)
    assert (total.shape, total.order) == ((BATCH, 3, 2), (0, 2, 1))
    (name,) = graph.constants
    np.testing.assert_array_equal(graph.constants[name], [[[1], [2]]])
    assert ops(graph) == ["Add"]
    graph.read(total)
    assert graph.nodes[-1].op == "Transpose" and graph.nodes[-1].attributes == {"perm": [0, 2, 1]}


def test_axes_are_left_out_and_added_where_they_are_stored():
    graph = Graph()
    x = graph.add_input("x", (4, 1, 3), FLOAT)
    y = rearranged(graph, x, (2, None, 0), (3, 1, 4))
    assert ops(graph) == ["Squeeze", "Unsqueeze"]
    assert y.stored == (3, 1, 4) and y.order == (1, 2, 0)  # the new axis, then 4, then 3
    z = rearranged(graph, x, (0, 2, None), (4, 3, 1))
    assert z.order == (0, 1, 2)


def test_a_whole_array_is_expanded_to_the_batch():
    graph = Graph(BATCH)
    x = graph.add_input("x", (BATCH, 2), FLOAT)
    row = rearranged(graph, constant(np.zeros(2, np.float32)), (None, 0), (BATCH, 2))
    assert not row.is_full and graph.full(row).stored == (BATCH, 2)
    assert ops(graph) == ["Shape", "Concat", "Expand"]
    assert graph.full(x) is x
    with pytest.raises(ValueError, match=r"depends on the batch by 2\*batch"):
        graph.sizes((2 * BATCH, 2))
    with pytest.raises(ValueError, match="several sizes of the batch"):
        graph.reshaped("x", (BATCH, BATCH))


def test_nodes_and_constants_are_added_once_and_left_out_unneeded():
    graph = Graph()
    x, two = graph.add_input("x", (3, 3), FLOAT), constant(np.full((3, 3), 2.0, np.float32), "two")
    first, again = graph.apply("Mul", x, two), graph.apply("Mul", x, two)
    assert first.data == again.data and [*graph.constants] == ["two"]
    graph.apply("Add", x, constant(np.full((3, 3), 2.0, np.float32), "two"))  # another array
    assert [*graph.constants] == ["two", "two_1"]
    graph.add_output("output", first)
    graph.finish()
    assert ops(graph) == ["Mul", "Identity"] and [*graph.constants] == ["two"]
