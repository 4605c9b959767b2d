"""Transformers of linen and NNX, trained sparsely: counts, patterns, paths, tables, compression."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse
from jaxsparse.axes import fan_in, num_places
from jaxsparse.paths import leaf_paths, prunable_leaves, with_leaves
from tests.leaves import bits
from tests.transformers import NAMES, network

STEPS = 6
RUN = {"total_steps": STEPS, "update_interval": 2}
TX = jaxsparse.masked(optax.sgd(0.1, momentum=0.9))


@functools.cache
def parts(name, dtype=jnp.float32):
    """A network, its compiled step, and the axes of its kernels as they are traced."""
    net = network(name, dtype)

    def loss(params):
        logits = net.forward(params, net.inputs).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, net.labels).mean()

    @jax.jit
    def step(params, state, masks):
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = TX.update(grads, state, params, masks=masks)
        return value, grads, optax.apply_updates(params, updates), state

    return net, step, jaxsparse.kernel_axes(net.forward, net.params, net.inputs)


def rigl(axes):
    """2:4 in the attention, and RigL as it is elsewhere."""
    method = jaxsparse.rigl(
        sparsity=0.6, drop_fraction=0.6, **RUN, distribution=jaxsparse.erk(axes=axes)
    )
    return jaxsparse.with_pattern(method, [("attn/", jaxsparse.n_of_m(2, 4, axes=axes))])


def granet(axes):
    return jaxsparse.granet(sparsity=0.8, stop_step=4, **RUN)


def trained(name, make, dtype=jnp.float32):
    net, step, axes = parts(name, dtype)
    method = make(axes)
    masks = method.init(jax.random.key(0), net.params)
    params = jaxsparse.apply_masks(net.params, masks)
    state, losses, grown = TX.init(params), [], 0
    for n in range(1, STEPS + 1):
        value, grads, params, state = step(params, state, masks)
        losses.append(float(value))
        if method.is_due(n):
            event = method.update(params, grads, masks, n, key=jax.random.key(n))
            params, state = jaxsparse.apply_event(TX, event, params, state)
            masks, grown = event.masks, grown + int(event.metrics.num_grown.sum())
    jaxsparse.check(params, state, masks)
    assert np.isfinite(losses).all() and losses[-1] < losses[0] and grown > 0
    assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    return method, params, masks


def as_matrices(x, axes):
    """A kernel as [batch and outputs, taps, inputs], in NumPy."""
    order = (*axes.batch, *axes.outputs, *axes.window, *axes.inputs)
    rows = num_places(x.shape, (*axes.batch, *axes.outputs))
    taps = num_places(x.shape, axes.window)
    return np.transpose(x, order).reshape(rows, taps, -1)


def check_tables(name, method, params, masks, dtype=jnp.float32):
    """What is counted and stored agrees with the kernels seen as matrices."""
    net, _, axes = parts(name, dtype)
    table = jaxsparse.summary(params, masks, axes=axes)
    assert table == jaxsparse.summary(params, masks)  # the default rules say the same
    assert table.num_active == method.plan(net.params).rows[-1].num_active
    leaves = {p: np.asarray(mask) for p, mask in prunable_leaves(masks).items()}
    tree = jaxsparse.to_csr_tree(params, masks)
    csrs = dict(
        zip(leaf_paths(tree, is_leaf=is_csr), jax.tree.leaves(tree, is_leaf=is_csr), strict=True)
    )
    for layer in table.layers:
        matrix = as_matrices(leaves[layer.path], axes[layer.path])
        assert layer.num_outputs == len(matrix)
        assert layer.dead == ((~matrix.any((0, 1))).sum(), (~matrix.any((1, 2))).sum())
        assert fan_in(layer.shape, axes[layer.path]) == matrix[0].size
        if is_csr(csr := csrs[layer.path]):
            assert csr.matrix_shape == (len(matrix), matrix[0].size)
    again, same = jaxsparse.from_csr_tree(tree)
    for ours, theirs in ((again, params), (same, masks)):
        assert jax.tree.map(bits, ours) == jax.tree.map(bits, theirs)


def is_csr(x):
    return isinstance(x, jaxsparse.Csr)


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, jnp.float32) for name in NAMES), ("linen vit", jnp.bfloat16)]
)
def test_rigl_with_two_of_four_along_the_contraction(name, dtype):
    method, params, masks = trained(name, rigl, dtype)
    check_tables(name, method, params, masks, dtype)
    axes = parts(name, dtype)[2]
    attention = {p: np.asarray(x) for p, x in prunable_leaves(masks).items() if "attn/" in p}
    assert len(attention) == 4
    for path, mask in attention.items():
        assert (as_matrices(mask, axes[path]).reshape(-1, 4).sum(1) == 2).all()


@pytest.mark.parametrize("name", NAMES)
def test_granet(name):
    method, params, masks = trained(name, granet)
    check_tables(name, method, params, masks)


@pytest.mark.parametrize("name", ["linen vit", "nnx gpt"])
def test_paths_end_where_heads_are_cut(name):
    """Without the weights of one head's outputs, nothing of what it computes is live."""
    net, _, axes = parts(name)
    masks = jaxsparse.dense_masks(net.params)
    leaves = prunable_leaves(masks)
    (out,) = (path for path in leaves if path.endswith("attn/out/kernel"))
    cut = {out: leaves[out].at[1].set(False)}
    masks = with_leaves(masks, cut)
    live = jax.jit(lambda m: jaxsparse.live_weights(net.forward, net.params, m, net.inputs))(masks)
    values = prunable_leaves(live)[out.replace("out", "value")]
    assert values[:, 0].all() and not values[:, 1].any()
    (layer,) = (x for x in jaxsparse.summary(net.params, masks).layers if x.path == out)
    assert layer.dead == (8, 0) and layer.alarm is None
    assert axes[out] == ((0, 1), (2,), (), ())


@pytest.mark.parametrize("name", ["linen gpt", "nnx gpt"])
def test_the_same_densities_as_with_matrices(name):
    """ERK of the attention's kernels is that of matrices of rank 2."""
    net, _, axes = parts(name)
    shapes = {path: np.shape(x) for path, x in prunable_leaves(net.params).items()}
    matrices = {
        path: (num_places(s, axes[path].inputs), num_places(s, axes[path].outputs))
        for path, s in shapes.items()
    }
    assert {len(s) for s in shapes.values()} == {3}
    assert jaxsparse.erk()(shapes, 0.2) == jaxsparse.erk()(matrices, 0.2)
