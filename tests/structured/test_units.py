"""Units against a forest of sets."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxsparse.structured.units import Reason, Units

NUM = 12
PAIRS = st.lists(st.tuples(*[st.lists(st.integers(0, NUM - 1), min_size=4, max_size=4)] * 2))


@given(PAIRS, st.lists(st.integers(0, NUM - 1)), st.lists(st.integers(0, NUM - 1)))
def test_classes_and_their_reasons(joins, early, late):
    units = Units()
    all_units = units.new(NUM)
    sets = [{i} for i in range(NUM)]
    for i in early:
        units.freeze(all_units[[i]], Reason("early"))
    for left, right in joins:
        units.join(np.array(left), np.array(right))
        for a, b in zip(left, right, strict=True):
            merged = sets[a] | sets[b]
            for i in merged:
                sets[i] = merged
    for i in late:
        units.freeze(all_units[[i]], Reason("late"))
    roots, is_free = units.roots(all_units), units.is_free(all_units)
    for i in range(NUM):
        is_early, is_late = bool(sets[i] & {*early}), bool(sets[i] & {*late})
        assert is_free[i] == (not is_early and not is_late)
        if not is_free[i]:
            assert units.reason(i).what == ("early" if is_early else "late")
        for j in range(NUM):
            if is_free[i] or is_free[j]:  # classes that are both frozen may stay apart
                assert (roots[i] == roots[j]) == (j in sets[i])


def test_the_forest_grows():
    units = Units()
    first, second = units.new(3), units.new(5000)
    assert len(units) == 5003
    units.join(first[:, None], second[:3000].reshape(3, 1000))
    assert len(np.unique(units.roots(second))) == 3 + 2000


def test_one_unit_stands_for_a_frozen_axis():
    units = Units()
    axis = units.frozen(4, Reason("an output", "at net.py:3"))
    assert len(np.unique(axis)) == 1 and not units.is_free(axis).any()
    assert str(units.reason(int(axis[0]))) == "an output, at net.py:3"
