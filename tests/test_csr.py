"""Compressed rows: a table to check by eye, exact round trips, SciPy as the oracle."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from hypothesis import given

from jaxsparse.csr import Csr, from_csr, from_csr_tree, to_csr, to_csr_tree
from jaxsparse.masks import apply_masks
from jaxsparse.types import KernelAxes
from tests.leaves import bits, leaves, masked
from tests.trees import FIXED, every_other, fill


def test_a_kernel_by_eye():
    # 1 x 2 taps, 2 inputs, 3 outputs: kernel[0, tap, input, output].
    kernel = np.zeros((1, 2, 2, 3), np.float32)
    mask = np.zeros(kernel.shape, bool)
    for (tap, channel, output), value in {
        (0, 0, 0): 1.0,
        (1, 1, 0): 2.0,
        (0, 1, 2): 3.0,
        (1, 0, 2): 0.0,  # grown a moment ago
    }.items():
        kernel[0, tap, channel, output] = value
        mask[0, tap, channel, output] = True
    csr = to_csr(jnp.asarray(kernel), jnp.asarray(mask))
    np.testing.assert_array_equal(csr.values, np.float32([1, 2, 3, 0]))
    np.testing.assert_array_equal(csr.indices, [0, 3, 1, 2])  # tap * 2 + input
    np.testing.assert_array_equal(csr.indptr, [0, 2, 2, 4])  # nothing reaches output 1
    np.testing.assert_array_equal(csr.positions, [0, 3, 9, 10])
    assert csr.matrix_shape == (3, 4)


@given(leaves())
def test_round_trip_to_the_bit(leaf):
    weights, mask = leaf
    csr = to_csr(weights, mask)
    again, same_mask = from_csr(csr)
    assert bits(again) == bits(masked(weights, mask))
    assert bits(same_mask) == bits(mask)
    assert csr.values.shape == csr.indices.shape == (mask.sum(),)


@pytest.mark.parametrize("shape", [(7, 5), (3, 2, 4, 6), (9,)])
def test_scipy_multiplies_it_as_the_dense_layer_does(shape):
    rng = np.random.default_rng(0)
    mask = rng.random(shape) < 0.3
    weights = masked(rng.normal(size=shape), mask)
    csr = to_csr(weights, mask)
    matrix = scipy.sparse.csr_array((csr.values, csr.indices, csr.indptr), csr.matrix_shape)
    x = rng.normal(size=csr.matrix_shape[1])
    np.testing.assert_allclose(matrix @ x, x @ weights.reshape(-1, shape[-1]), rtol=1e-12)
    theirs = scipy.sparse.csr_array(weights.reshape(-1, shape[-1]).T)
    for ours, name in ((csr.values, "data"), (csr.indices, "indices"), (csr.indptr, "indptr")):
        np.testing.assert_array_equal(ours, getattr(theirs, name))


@pytest.mark.parametrize(
    ("path", "shape", "product", "matrix_shape"),
    [
        ("query/kernel", (5, 2, 3), "i,iho->ho", (6, 5)),
        ("out/kernel", (2, 3, 5), "hi,hio->o", (5, 6)),
        ("fc/weight", (4, 7), "i,oi->o", (4, 7)),
        ("conv/weight", (4, 3, 2), "it,oit->o", (4, 6)),
        ("mix/kernel", (5, 3, 4), "hi,hio->ho", (20, 3)),  # a batch, by axes=
    ],
)
def test_rows_are_the_outputs_of_the_product(path, shape, product, matrix_shape):
    rng = np.random.default_rng(0)
    params = {path: masked(rng.normal(size=shape), rng.random(shape) < 0.4)}
    masks = {path: params[path] != 0}
    axes = {"mix/kernel": KernelAxes((1,), (2,), (), (0,))}
    tree = to_csr_tree(params, masks, axes)
    csr = tree[path]
    assert csr.matrix_shape == matrix_shape
    for again, expected in zip(from_csr_tree(tree), (params, masks), strict=True):
        assert bits(again[path]) == bits(expected[path])
    dense = scipy.sparse.csr_array((csr.values, csr.indices, csr.indptr), matrix_shape).toarray()
    letters = product.split(",")[0]
    sizes = dict(zip(product.split(",")[1].split("->")[0], shape, strict=True))
    x = rng.normal(size=[sizes[letter] for letter in letters])
    result = np.einsum(product, x, params[path])
    if axes.get(path) is None:
        np.testing.assert_allclose(dense @ x.ravel(), result.ravel(), rtol=1e-12)
    else:
        each = dense.reshape(5, 4, 3) @ x[:, :, None]
        np.testing.assert_allclose(each[..., 0], result, rtol=1e-12)


def test_outputs_that_are_no_axes_of_the_leaf():
    csr = to_csr(np.eye(3), np.eye(3, dtype=bool), KernelAxes((1,), (0,)))
    assert csr.outputs == (0,)
    assert to_csr(np.eye(3), np.eye(3, dtype=bool), KernelAxes((0,), (1,))).outputs is None
    for outputs in ((2,), (1, 0), (0, 0)):
        with pytest.raises(ValueError, match=r"outputs .* must be axes of \(3, 3\), rising"):
            from_csr(dataclasses.replace(csr, outputs=outputs))
    with pytest.raises(ValueError, match="must name each of its 2 axes once"):
        to_csr(np.eye(3), np.eye(3, dtype=bool), KernelAxes((0,), ()))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,), ()])
def test_leaves_without_entries_and_scalars(shape):
    weights = np.ones(shape, np.float32)
    again, mask = from_csr(to_csr(weights, weights > 0))
    assert again.shape == mask.shape == shape and bits(again) == bits(weights)
    assert to_csr(weights, weights > 0).matrix_shape == {(0, 3): (3, 0), (3, 0): (0, 3)}.get(
        shape, (weights.size, 1)
    )


@pytest.mark.parametrize(
    ("columns", "num_active", "dtypes"),
    [
        (256, 255, ("uint8", "uint8")),
        (257, 256, ("uint16", "uint16")),
        (65_536, 1, ("uint16", "uint8")),
        (65_537, 65_537, ("uint32", "uint32")),
    ],
)
def test_indices_are_as_small_as_they_can_be(columns, num_active, dtypes):
    mask = np.arange(columns)[:, None] >= columns - num_active
    csr = to_csr(np.ones((columns, 1), np.float32), mask)
    assert (csr.indices.dtype, csr.indptr.dtype) == dtypes
    np.testing.assert_array_equal(from_csr(csr)[1], mask)


@pytest.mark.parametrize(
    ("mask", "found"),
    [
        (np.ones((3, 2), bool), r"bool\(3, 2\); for these weights it must be bool\(2, 3\)"),
        (np.ones((2, 3)), r"the mask is float64\(2, 3\)"),
    ],
)
def test_a_mask_that_does_not_fit(mask, found):
    with pytest.raises(ValueError, match=found):
        to_csr(np.ones((2, 3)), mask)


GOOD = Csr(np.ones(3), np.array([0, 1, 1]), np.array([0, 2, 3]), (2, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"indices": np.array([0, 1, 2])}, r"index 2 is outside \[0, 2\)"),
        ({"indices": np.array([0, -1, 1])}, r"index -1 is outside \[0, 2\)"),
        ({"indices": np.array([1, 0, 1])}, "indices must rise within every row"),
        ({"indices": np.array([1, 1, 1])}, "indices must rise within every row"),
        ({"indices": np.array([0.0, 1.0, 1.0])}, "indices float64 and indptr int64 must be int"),
        ({"indices": np.array([0, 1])}, r"values \(3,\) and indices \(2,\) must be equal vectors"),
        ({"indptr": np.array([0, 3])}, r"indptr has shape \(2,\); 2 rows need \(3,\)"),
        ({"indptr": np.array([0, 4, 3])}, "indptr must rise from 0 to 3"),
        ({"indptr": np.array([0, 2, 2])}, "indptr must rise from 0 to 3"),
        ({"indptr": np.array([1, 2, 3])}, "indptr must rise from 0 to 3"),
    ],
)
def test_arrays_that_describe_no_matrix(change, message):
    from_csr(GOOD)
    bad = dataclasses.replace(GOOD, **change)
    with pytest.raises(ValueError, match=message):
        from_csr(bad)
    with pytest.raises(ValueError, match=f"^fc/kernel: .*{message}"):
        from_csr_tree({"fc": {"kernel": bad}})


def test_trees():
    masks = every_other(FIXED)
    params = apply_masks(fill(FIXED, 0), masks)
    tree = to_csr_tree(params, masks)
    # The only weight is active, so that leaf stays dense, like the biases.
    assert isinstance(tree["pair"][0]["kernel"], jax.Array)
    assert tree["blocks"][0].bias is params["blocks"][0].bias
    assert tree["blocks"][0].kernel.values.size == 6
    again, same_masks = from_csr_tree(jax.device_put(tree))  # a pytree like any other
    for got, expected in ((again, params), (same_masks, masks)):
        assert jax.tree.structure(got) == jax.tree.structure(expected)
        assert jax.tree.map(bits, got) == jax.tree.map(bits, expected)
    with pytest.raises(ValueError, match="masks has no leaf"):
        to_csr_tree(params, {})
    assert from_csr_tree({}) == ({}, {})


def test_under_jit_the_values_are_what_is_traced():
    csr = to_csr(np.eye(3, dtype=np.float32), np.eye(3, dtype=bool))
    doubled = jax.jit(lambda c: dataclasses.replace(c, values=2 * c.values))(csr)
    np.testing.assert_array_equal(from_csr(doubled)[0], 2 * np.eye(3))
