"""Which leaf has which pattern, masks that lack theirs, and combinations that are refused."""

import jax
import jax.numpy as jnp
import pytest

import jaxsparse
from jaxsparse.pattern_rules import groups_of
from jaxsparse.types import Groups
from tests.patterned import METHODS, RUN, TWO_OF_FOUR, shapes_of


@pytest.mark.parametrize(
    ("pattern", "change", "message"),
    [
        (
            TWO_OF_FOUR,
            (4, 1),
            r"masks at b/kernel: the group of 4 that starts at \(4, 1\) has 3 active entries; 2:4 "
            r"allows 2 \(1 of 4 groups is bad\)",
        ),
        (
            jaxsparse.block((2, 2)),
            (2, 0),
            r"masks at b/kernel: the group of 4 that starts at \(2, 0\) has 1 active entries; 2x2 "
            r"allows 0 or 4 \(1 of 4",
        ),
        (
            jaxsparse.channels(),
            (0, 1),
            r"starts at \(0, 1\) has 1 active entries; channels allows 0 or 8",
        ),
    ],
)
def test_check_pattern_names_the_first_bad_group(pattern, change, message, key):
    tree = shapes_of(a=(8, 2), b=(8, 2))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, bool), tree)
    if pattern is TWO_OF_FOUR:
        rising = jax.tree.map(lambda x: jnp.arange(16.0).reshape(x.shape), tree)
        zeros = jaxsparse.pattern_masks(rising, pattern)  # the first two of four are free
    jaxsparse.check_pattern(zeros, pattern)
    zeros["b"]["kernel"] = zeros["b"]["kernel"].at[change].set(True)
    with pytest.raises(ValueError, match=message):
        jaxsparse.check_pattern(zeros, pattern)


def test_check_pattern_takes_masks_only():
    with pytest.raises(ValueError, match="masks at kernel has dtype float32; it must be bool"):
        jaxsparse.check_pattern({"kernel": jnp.ones((4, 4))}, TWO_OF_FOUR)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (
            Groups("", (3, 5), (1,)),
            r"pattern 'mine' does not fit leaf kernel \(8, 4\): split \(3, 5\)",
        ),
        (Groups("", (8, 4), (2,)), r"axes \(2,\) must be axes of split \(8, 4\), rising"),
        (Groups("", (8, 4), (1, 0)), r"axes \(1, 0\) must be axes of split \(8, 4\), rising"),
        (
            Groups("", (4, 2, 2, 2), (1, 3), 2),
            r"2 of 4 active along axes \(1, 3\); one axis with 0",
        ),
        (
            Groups("", (2, 4, 4), (1,), 4),
            r"4 of 4 active along axes \(1,\); one axis with 0 < n < m",
        ),
        ("2:4", "its cut is '2:4', which must be jaxsparse.types.Groups"),
    ],
)
def test_what_a_cut_of_ones_own_returns_is_checked(groups, message):
    pattern = jaxsparse.Pattern("mine", lambda shape: groups)
    with pytest.raises(ValueError, match=message):
        jaxsparse.pattern_masks({"kernel": jnp.ones((8, 4))}, pattern, sparsity=0.5)


@pytest.mark.parametrize(
    ("make", "pattern", "message"),
    [
        (jaxsparse.rigl, "2:4", "pattern '2:4' must be a pattern such as n_of_m"),
        (jaxsparse.rigl, [("a", "2:4")], "must be a pattern such as n_of_m"),
        (jaxsparse.rigl, [], "must be a pattern such as n_of_m"),
    ],
)
def test_combinations_that_are_refused(make, pattern, message):
    with pytest.raises(ValueError, match=message):
        jaxsparse.with_pattern(make(sparsity=0.75, **RUN), pattern)


def test_methods_that_take_no_pattern():
    with pytest.raises(ValueError, match="method <function rigl .* must be a method such as rigl"):
        jaxsparse.with_pattern(jaxsparse.rigl, TWO_OF_FOUR)
    by_hand = METHODS["rigl"](0.5)._replace(recipe=None)
    with pytest.raises(ValueError, match="method rigl must be one that compose made"):
        jaxsparse.with_pattern(by_hand, TWO_OF_FOUR)
    once = jaxsparse.with_pattern(METHODS["rigl"](0.5), TWO_OF_FOUR)
    with pytest.raises(ValueError, match="method rigl 2:4 has a pattern already"):
        jaxsparse.with_pattern(once, jaxsparse.channels())


LEAVES = {"conv1": (3, 3, 3, 8), "fc": (16, 10)}


@pytest.mark.parametrize(
    ("method", "pattern", "message"),
    [
        (
            METHODS["rigl"](0.5),
            TWO_OF_FOUR,
            r"pattern '2:4' does not fit leaf conv1/kernel \(3, 3, 3, 8\): its size 3 along axis "
            r"-2 is no multiple of 4; a rule \('conv1/kernel', None\) before it exempts the leaf",
        ),
        (
            METHODS["rigl"](0.5),
            jaxsparse.block((9, 4)),
            r"pattern '9x4' does not fit leaf fc/kernel \(16, 10\): blocks do not divide its 16 ",
        ),
        (METHODS["rigl"](0.5), jaxsparse.n_of_m(1, 3, axis=2), "leaf fc/kernel .* no axis 2"),
        (
            METHODS["rigl"](0.5),
            [("head", TWO_OF_FOUR)],
            "pattern rule 'head' is the first match of ",
        ),
        (
            jaxsparse.gmp(sparsity=0.75, **RUN),
            [("fc", TWO_OF_FOUR)],
            "leaf fc/kernel is 2:4, which fixes its sparsity, and the method changes the sparsity",
        ),
        (
            jaxsparse.granet_st(sparsity=0.75, **RUN),
            [("fc", jaxsparse.Pattern("mine", TWO_OF_FOUR.cut))],
            "leaf fc/kernel is 2:4, which fixes its sparsity, and the method changes the sparsity",
        ),
        (
            jaxsparse.dense(total_steps=10),
            [("fc", TWO_OF_FOUR)],
            "leaf fc/kernel is 2:4, but the method has sparsity 0; take one with a sparsity",
        ),
        (
            METHODS["rigl"](0.75),
            jaxsparse.n_of_m(1, 2, axis=-1),
            r"sparsity 0.75 is not possible: every prunable leaf is 1:2\(-1\), which is sparsity 0",
        ),
        (
            jaxsparse.gmp(sparsity=0.5, **RUN),
            jaxsparse.channels(),
            "scope 'global' needs groups of one size, but those of conv1/kernel have 27 entries "
            "and those of fc/kernel 16; take scope='layer'",
        ),
        (
            jaxsparse.gmp(sparsity=0.5, scope="layer", min_keep=2, **RUN),
            jaxsparse.channels(),
            "min_keep 2 needs groups of one size, .* leave min_keep out",
        ),
        (
            METHODS["rigl"](0.95),
            jaxsparse.channels(),
            r"leaves 1 active weights for 2 layers.* \(a weight is here one group: channels of 27 "
            r"entries, channels of 16 entries\)",
        ),
    ],
)
def test_leaves_that_do_not_go_with_the_pattern(method, pattern, message, key):
    tree = shapes_of(**LEAVES)
    patterned = jaxsparse.with_pattern(method, pattern)
    with pytest.raises(ValueError, match=message):
        patterned.plan(tree)
    said_early = ("fc/kernel is 2:4", "groups of one size")
    if method.timetable.initial_density < 1 or any(part in message for part in said_early):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(patterned.init, key, tree)


def test_groups_follow_the_first_rule():
    shapes = {"conv1": (4, 4), "conv2": (4, 4), "fc": (4, 4)}
    rules = (("conv1", None), ("conv", TWO_OF_FOUR))
    assert {p: g.pattern for p, g in groups_of(rules, shapes).items()} == {"conv2": "2:4"}
