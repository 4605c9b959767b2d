"""The flat form of a state: nested dicts lose no leaf, and old paths find their leaf."""

import pytest

from jaxsparse.flat_state import nested, renamed


@pytest.mark.parametrize(
    ("leaves", "inner", "outer"),
    [
        ({"a": 1, "a/b": 2}, "a/b", "a"),
        ({"a/b/c": 1, "a": 2}, "a/b/c", "a"),
        ({"x": 0, "a/b": 1, "a/b/c/d": 2}, "a/b/c/d", "a/b"),
        ({"": 0, "/a": 1}, "/a", ""),
    ],
)
def test_nested_dicts_lose_no_leaf(leaves, inner, outer):
    with pytest.raises(ValueError, match=f"^{inner} is inside the leaf {outer}, .*; pass like=$"):
        nested(leaves)


@pytest.mark.parametrize(
    ("saved", "here", "today"),
    [
        # As it was, with and without the state at hand.
        (["a", "b/c"], ["a", "b/c"], ["a", "b/c"]),
        (["a", "b/value"], None, ["a", "b/value"]),
        # Old versions left it out: what has siblings now is "value" again, a box is not.
        (["m/key", "m"], ["m/key", "m/value"], ["m/key", "m/value"]),
        (["m/key", "m"], None, ["m/key", "m/value"]),
        (["m"], ["m/value"], ["m/value"]),  # its siblings are no leaves
        (["m"], ["m"], ["m"]),
        # Other programs write every "value".
        (["k/value"], ["k"], ["k"]),
        # A leaf whose path exists is not renamed, and none is lost.
        (["m", "m/value"], ["m", "m/value"], ["m", "m/value"]),
        (["m", "m/value"], ["m/value"], ["m", "m/value"]),
        (["m", "m/value", "m/key"], None, ["m", "m/value", "m/key"]),
        (["m"], ["n/value"], ["m"]),
    ],
)
def test_saved_leaves_get_the_paths_of_today(saved, here, today):
    leaves = {path: i for i, path in enumerate(saved)}
    assert renamed(leaves, here) == {path: i for i, path in enumerate(today)}
