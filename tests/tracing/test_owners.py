"""Owners by hand: blocks that are cut, joined, taken and reshaped; mixtures."""

import math
from fractions import Fraction

import numpy as np

from jaxsparse.tracing.owners import (
    Owners,
    concatenated,
    constant,
    joined,
    leaf,
    mix,
    mixed,
    reshaped,
    taken,
    uniform,
)

Q_AND_K = concatenated([leaf("q", (2, 1)), leaf("k", (2, 3))], 1)


def blocks(owners: Owners):
    """Lengths along each axis, and the only leaf of each block."""
    assert all(len(share) <= 1 for share in owners.blocks.flat)
    names = np.vectorize(lambda share: "".join(share))(owners.blocks)
    return [lengths.tolist() for lengths in owners.lengths], names.tolist()


def test_a_leaf_is_one_block():
    assert blocks(leaf("q", (2, 3))) == ([[2], [3]], [["q"]])
    assert leaf("q", (2, 3)).entries == 6 and constant((2, 3)).entries == 0


def test_values_beside_each_other_are_cut_where_they_meet():
    assert blocks(Q_AND_K) == ([[2], [1, 3]], [["q", "k"]])
    assert Q_AND_K.shape == (2, 4) and Q_AND_K.entries == 8


def test_positions_in_any_order_and_constants_between_them():
    found = taken(Q_AND_K, 1, np.array([3, 0, -1, -1, 1]))
    assert blocks(found) == ([[2], [1, 1, 2, 1]], [["k", "q", "", "k"]])


def test_a_reshape_cuts_rows_where_columns_were_cut():
    """Entries in their order: q k k k q k k k."""
    assert blocks(reshaped(Q_AND_K, (8,))) == ([[1, 3, 1, 3]], ["q", "k", "q", "k"])
    assert blocks(reshaped(reshaped(Q_AND_K, (8,)), (2, 4))) == blocks(Q_AND_K)


def test_mixtures_go_by_the_number_of_entries():
    assert mixed(Q_AND_K) == {"q": Fraction(1, 4), "k": Fraction(3, 4)}
    assert mix([{"q": Fraction(1)}, {"k": Fraction(1, 2)}], [1, 2]) == {
        "q": Fraction(1, 3),
        "k": Fraction(1, 3),
    }


def test_operands_of_other_shapes_count_as_a_whole():
    found = joined([leaf("w", (2, 3)), uniform({}, (), 0), leaf("v", (9,))], (2, 3))
    assert mixed(found) == {"v": 1} and found.entries == math.prod((2, 3))
    assert mixed(joined([], (2, 3))) == {}
