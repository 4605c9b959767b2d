"""Masks beside params: paths, rules, application, counts, and errors that name the leaf."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import freeze

from jaxsparse.masks import (
    apply_mask,
    apply_masks,
    check_masks,
    dense_masks,
    masks_from_params,
    num_active,
    sparsity,
)
from jaxsparse.paths import check_like, leaf_paths, prunable_leaves, prunable_paths, with_leaves


class Layer(NamedTuple):
    kernel: jax.Array
    bias: jax.Array


def layer(n_in, n_out):
    return Layer(jnp.ones((n_in, n_out)), jnp.ones(n_out))


PARAMS = {
    "conv": {"kernel": jnp.ones((3, 3, 1, 2)), "bias": jnp.ones(2)},
    "bn1": {"kernel": jnp.ones((1, 2))},
    "LayerNorm_0": {"weight": jnp.ones((1, 2))},
    "token_embedding": {"weight": jnp.ones((7, 2))},
    "fc": {"weight": jnp.ones((2, 4)), "scale": jnp.ones((2, 4))},
    "gate": {"kernel": jnp.ones(4)},
}


@pytest.mark.parametrize(
    ("tree", "paths"),
    [
        ({"b": 1, "a": {"c": 2}}, ["a/c", "b"]),
        (freeze({"a": {"c": 2}}), ["a/c"]),
        ([(1, 2), {"a": 3}], ["0/0", "0/1", "1/a"]),
        (Layer(1, 2), ["kernel", "bias"]),
        ({"fc": {"kernel": {"value": 1}}}, ["fc/kernel"]),  # Flax NNX
        ({"value": {"kernel": 1}}, ["value/kernel"]),  # an attention layer's own name
        ({"a": None, "b": 1}, ["b"]),
        (1.0, [""]),
    ],
)
def test_leaf_paths(tree, paths):
    assert leaf_paths(tree) == paths


def test_prunable_by_default():
    # No bias, no norm, no embedding, no vector; kernel and weight of rank 2 or more.
    assert prunable_paths(PARAMS) == ["conv/kernel", "fc/weight"]


@pytest.mark.parametrize(
    ("rules", "paths"),
    [
        (((r"kernel$", True),), ["bn1/kernel", "conv/kernel", "gate/kernel"]),
        (((r"conv", False), (r"kernel$", True)), ["bn1/kernel", "gate/kernel"]),  # first one wins
        (((r"^fc/", True),), ["fc/scale", "fc/weight"]),
    ],
)
def test_prunable_rules(rules, paths):
    assert prunable_paths(PARAMS, rules) == paths


def test_regex_characters_in_names_are_names():
    params = {"a[0].*+(": {"kernel": jnp.ones((2, 3))}}
    assert prunable_paths(params) == ["a[0].*+(/kernel"]
    assert num_active(masks_from_params(params)) == 6


@pytest.mark.parametrize(
    "params",
    [
        [layer(2, 3), layer(3, 1)],
        (layer(2, 3), layer(3, 1)),
        freeze({"a": {"kernel": layer(3, 3)[0]}}),
    ],
    ids=["list of NamedTuple", "tuple", "FrozenDict"],
)
def test_masks_have_the_containers_of_params(params):
    for tree in (
        dense_masks(params),
        masks_from_params(params),
        apply_masks(params, dense_masks(params)),
    ):
        assert jax.tree.structure(tree) == jax.tree.structure(params)
    assert num_active(dense_masks(params)) == 9


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (((r"conv", True), (r"nothing", True)), "prunable rule 'nothing' is the first match of no"),
        (((r".", False), (r"conv", True)), "prunable rule 'conv' is the first match of no leaf"),
        (
            ((r".", False),),
            r"no leaf is prunable; the leaves are LayerNorm_0/weight \(1, 2\), bn1",
        ),
    ],
)
def test_rules_that_choose_nothing(rules, message):
    with pytest.raises(ValueError, match=message):
        prunable_paths(PARAMS, rules)


def test_two_leaves_with_one_path():
    params = {"b": {"kernel": jnp.ones((5, 4))}, "b/kernel": jnp.ones((2, 3))}
    with pytest.raises(ValueError, match="two leaves have the path b/kernel"):
        prunable_paths(params)


def test_leaf_that_int32_cannot_count():
    huge = {"fc": {"kernel": jax.ShapeDtypeStruct((2**16, 2**15), jnp.float32)}}
    with pytest.raises(ValueError, match="leaf fc/kernel has 2147483648 entries"):
        jax.eval_shape(prunable_paths, huge)


def test_leaves_by_path_and_back():
    leaves = prunable_leaves(PARAMS)
    assert list(leaves) == ["conv/kernel", "fc/weight"]
    changed = with_leaves(PARAMS, {"fc/weight": jnp.zeros((2, 4))})
    chex.assert_trees_all_equal_structs(changed, PARAMS)
    chex.assert_trees_all_equal(changed["conv"], PARAMS["conv"])
    assert not changed["fc"]["weight"].any()


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "float16", "float8_e4m3fn", "int32", "uint16", "complex64"]
)
def test_apply_mask(dtype):
    masked = apply_mask(jnp.array([1, 2, 3]).astype(dtype), jnp.array([False, True, False]))
    assert masked.dtype == dtype
    np.testing.assert_array_equal(masked.astype("complex64"), [0, 2, 0])


def test_apply_mask_gives_positive_zero_for_everything():
    x = jnp.array([jnp.nan, jnp.inf, -jnp.inf, -1.0, -0.0])
    masked = np.asarray(apply_mask(x, jnp.zeros(5, bool)))
    np.testing.assert_array_equal(masked.view(np.uint32), np.zeros(5, np.uint32))


def test_apply_mask_has_the_derivative_of_a_mask():
    """It works on bits, which have no gradient of their own."""
    mask = jnp.array([False, True, True])
    f = lambda x: (apply_mask(x, mask) ** 3).sum()
    x = jnp.array([2.0, 3.0, -1.0])
    np.testing.assert_array_equal(jax.grad(f)(x), [0, 27, 3])
    np.testing.assert_array_equal(jax.hessian(f)(x), np.diag([0, 18, -6]))


def test_masks_from_params_counts_and_sparsity():
    params = {"kernel": jnp.array([[0.0, -0.0, 2.0, jnp.nan]]), "bias": jnp.zeros(2)}
    expected = {"kernel": np.array([[False, False, True, True]]), "bias": np.array([True, True])}
    found = masks_from_params(params)
    chex.assert_trees_all_equal(found, expected)
    assert num_active(found) == 2  # the bias is not counted
    assert sparsity(found) == 0.5
    assert sparsity({"kernel": np.ones((0, 3), bool)}) == 0.0


def without_kernel(tree):
    return {"fc": {"bias": tree["fc"]["bias"]}}


def with_extra(tree):
    return tree | {"extra": jnp.ones(1, bool)}


def with_shape(tree):
    return {"fc": tree["fc"] | {"kernel": jnp.ones((3, 2), bool)}}


def with_dtype(tree):
    return {"fc": tree["fc"] | {"kernel": jnp.ones((2, 3))}}


BAD_MASKS = [
    (without_kernel, "masks has no leaf fc/kernel, which params has"),
    (with_extra, "masks has a leaf extra, which params lacks"),
    (with_shape, r"masks at fc/kernel has shape \(3, 2\), params has \(2, 3\)"),
    (with_dtype, "masks at fc/kernel has dtype float32; it must be bool"),
]


@pytest.mark.parametrize(("change", "message"), BAD_MASKS)
def test_masks_that_do_not_fit(change, message):
    params = {"fc": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
    with pytest.raises(ValueError, match=message):
        check_masks(change(dense_masks(params)), params)


def test_masks_are_applied_to_params_and_not_the_other_way_round():
    params = {"fc": {"kernel": jnp.ones((2, 3))}}
    masks = dense_masks(params)
    for apply in (apply_masks, jax.jit(apply_masks)):
        with pytest.raises(ValueError, match="masks at fc/kernel has dtype float32; it must be b"):
            apply(masks, params)


def test_check_like_says_what_it_compares():
    with pytest.raises(ValueError, match="grads has no leaf b, which params has"):
        check_like({"a": 1.0}, {"a": 1.0, "b": 2.0}, name="grads", like="params")
    with pytest.raises(ValueError, match=r"masks at a has shape \(2,\), params has \(\)"):
        apply_masks({"a": 1.0}, {"a": jnp.ones(2, bool)})


def test_leaves_in_other_containers_are_moved_by_their_paths():
    masks = {"2": jnp.array([True]), "10": jnp.array([False]), "a": [jnp.array([True])]}
    params = {"10": jnp.ones(1), "2": jnp.ones(1), "a": (jnp.ones(1),)}
    moved = check_masks(masks, params)
    chex.assert_trees_all_equal_structs(moved, params)
    assert [bool(m[0]) for m in (moved["2"], moved["10"], moved["a"][0])] == [True, False, True]
    chex.assert_trees_all_equal(apply_masks(params, masks), apply_masks(params, moved))


def test_a_rule_that_is_no_regex():
    with pytest.raises(ValueError, match=r"prunable rule 'fc\(' is no regular expression: missing"):
        prunable_paths({"fc": jnp.ones((2, 2))}, ((r"fc(", True),))
