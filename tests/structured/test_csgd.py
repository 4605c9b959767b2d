"""C-SGD: the paper's matrices, the exact shrink factor, and outputs that the merge leaves alone."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxsparse.nn import cifar_resnet
from jaxsparse.paths import leaves_by_path, with_leaves
from jaxsparse.structured import (
    Clusters,
    cluster,
    csgd,
    csgd_preflight,
    merge_inputs,
    merge_outputs,
)
from jaxsparse.structured.csgd import centripetal_gradient

pytestmark = pytest.mark.variants  # our own code, which knows little of versions

LABELS = np.array([0, 1, 0, 2, 1, 0])


def test_the_matrices_of_the_paper(key):
    """G <- Gamma G + Lambda W, Gamma the averages, Lambda = (eta + eps) I - eps Gamma."""
    gradient, leaf = jax.random.normal(key, (2, 3, 3, 4, 6))
    eta, eps = 0.1, 0.3
    same = LABELS[:, None] == LABELS[None]
    gamma = same / same.sum(axis=1, keepdims=True)
    lam = (eta + eps) * np.eye(6) - eps * gamma
    g, w = (np.asarray(x, np.float64).reshape(-1, 6) for x in (gradient, leaf))
    found = centripetal_gradient(gradient, leaf, Clusters(-1, LABELS), decay=eta, centripetal=eps)
    np.testing.assert_allclose(found.reshape(-1, 6), g @ gamma + w @ lam, atol=1e-6)
    swap = lambda x: jnp.moveaxis(x, -1, 0)
    other = centripetal_gradient(
        swap(gradient), swap(leaf), Clusters(0, LABELS), decay=eta, centripetal=eps
    )
    np.testing.assert_allclose(other, swap(found), atol=1e-6)


PARAMS = {"conv": {"kernel": jnp.ones((3, 3, 2, 6)), "bias": jnp.ones(6)}, "fc": jnp.ones((6, 2))}
BOTH = {path: Clusters(-1, LABELS) for path in ("conv/kernel", "conv/bias")}


def drawn(seed):
    leaves, structure = jax.tree.flatten(PARAMS)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    draws = [jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, draws)


def differences(leaf):
    """Every filter minus the first of its cluster."""
    _, first = np.unique(LABELS, return_index=True)
    return np.asarray(leaf - leaf[..., first[LABELS]], np.float64)


@pytest.mark.parametrize("size", [0.0, 1.0, 30.0])
def test_differences_shrink_by_one_factor_whatever_the_loss(size):
    tau, eta, eps = 0.1, 0.2, 0.5
    tx = optax.chain(csgd(BOTH, centripetal=eps, decay=eta), optax.sgd(tau))
    before, grads = drawn(0), jax.tree.map(lambda x: size * x, drawn(1))
    updates, _ = jax.jit(tx.update)(grads, tx.init(before), before)
    after = optax.apply_updates(before, updates)
    for name, factor in {"kernel": 1 - tau * (eta + eps), "bias": 1 - tau * 0.1 * eps}.items():
        found, start = (differences(tree["conv"][name]) for tree in (after, before))
        np.testing.assert_allclose(found, factor * start, atol=1e-6 * (1 + size))
    np.testing.assert_array_equal(updates["fc"], -np.float32(tau) * grads["fc"])


def test_equal_filters_stay_equal_to_the_bit():
    tx = optax.chain(csgd(BOTH, centripetal=0.5), optax.sgd(0.1, momentum=0.9, nesterov=True))
    _, first = np.unique(LABELS, return_index=True)
    equal = lambda x: x[..., first[LABELS]] if x.shape[-1] == 6 else x
    params = jax.tree.map(equal, drawn(0))
    state = tx.init(params)
    for step in range(3):
        updates, state = jax.jit(tx.update)(drawn(step), state, params)
        params = optax.apply_updates(params, updates)
    for leaf in params["conv"].values():
        assert not differences(leaf).any()


def test_nnx_states_and_dense_layers():
    """The hidden layer of a transformer's MLP: its filters and biases, and who reads them."""
    mlp = nnx.Sequential(
        nnx.Linear(4, 6, rngs=nnx.Rngs(0)), nnx.gelu, nnx.Linear(6, 2, rngs=nnx.Rngs(1))
    )
    params = nnx.state(mlp, nnx.Param)
    labels = {f"layers/0/{leaf}": Clusters(-1, LABELS) for leaf in ("kernel", "bias")}
    tx = optax.chain(csgd(labels, centripetal=1.0), optax.sgd(0.5))
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    after = leaves_by_path(optax.apply_updates(params, updates))
    kernel = leaves_by_path(params)["layers/0/kernel"]
    factor = 1 - 0.5 * (1.0 + 1e-4)
    found = differences(after["layers/0/kernel"])
    np.testing.assert_allclose(found, factor * differences(kernel), atol=1e-6)
    np.testing.assert_array_equal(
        after["layers/2/kernel"], leaves_by_path(params)["layers/2/kernel"]
    )


def labels_of(model, params, key):
    """Half of the channels, by k-means: blocks' outputs follow the layer that leads their stage."""
    leaves = leaves_by_path(params)
    found, pacesetter = {}, {}
    for name, width in model.conv_widths().items():
        stage, layer = name.split("_")[0], name.split("/")[-1]
        leader = {"stage1": "conv1"}.get(stage, f"{stage}_block1/shortcut_conv")
        own = leader if layer in ("conv2", "shortcut_conv") else name
        if own not in pacesetter:
            pacesetter[own] = cluster(leaves[f"{own}/kernel"], width // 2, key)
        found[name] = pacesetter[own]
    return found


def norm_of(conv):
    return conv.replace("conv", "norm")


def test_a_residual_network_merges_without_a_change(key):
    """Its filters are made equal in their clusters, trained a little, and merged."""
    model = cifar_resnet(8, width=4).clone(stage_sizes=(1, 1))
    images = jax.random.normal(key, (4, 8, 8, 3))
    variables = jax.jit(model.init)(key, images)
    of_conv = labels_of(model, variables["params"], key)
    by_leaf = {f"{conv}/kernel": labels for conv, labels in of_conv.items()}
    for conv, labels in of_conv.items():
        by_leaf |= {f"{norm_of(conv)}/{leaf}": labels for leaf in ("scale", "bias")}
    clusters = {path: Clusters(-1, labels) for path, labels in by_leaf.items()}
    params = leaves_by_path(variables["params"])
    for path, labels in by_leaf.items():
        _, first = np.unique(labels, return_index=True)
        params[path] = jnp.asarray(np.asarray(params[path])[..., first[labels]])
    params = with_leaves(variables["params"], params)
    tx = optax.chain(csgd(clusters, centripetal=0.05), optax.sgd(0.1, momentum=0.9))

    @jax.jit
    def step(params, stats, state):
        def loss(params):
            rest = {"params": params, "batch_stats": stats}
            logits, new = model.apply(rest, images, train=True, mutable=["batch_stats"])
            return jnp.mean((logits - 1) ** 2), new["batch_stats"]

        grads, stats = jax.grad(loss, has_aux=True)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), stats, state

    stats, state = variables["batch_stats"], tx.init(params)
    for _ in range(3):
        params, stats, state = step(params, stats, state)
    narrow, merged = merged_network(model, *jax.device_get((params, stats)), of_conv)
    chex.assert_trees_all_equal_shapes(merged, jax.eval_shape(narrow.init, key, images))
    expected = jax.jit(model.apply)({"params": params, "batch_stats": stats}, images)
    found = jax.jit(narrow.apply)(merged, images)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def merged_network(model, params, stats, of_conv):
    """The narrower network: each convolution's outputs, its norm, and the inputs of its readers."""
    reads = {"fc": "stage2_block1/conv2"}
    for stage, before in ((1, "conv1"), (2, "stage1_block1/conv2")):
        block = f"stage{stage}_block1"
        reads |= {f"{block}/conv1": before, f"{block}/shortcut_conv": before}
        reads[f"{block}/conv2"] = f"{block}/conv1"
    leaves = {**leaves_by_path(params)}
    statistics = {**leaves_by_path(stats)}
    for layer, source in reads.items():
        if f"{layer}/kernel" in leaves:
            leaves[f"{layer}/kernel"] = merge_inputs(leaves[f"{layer}/kernel"], -2, of_conv[source])
    for conv, labels in of_conv.items():
        leaves[f"{conv}/kernel"] = merge_outputs(leaves[f"{conv}/kernel"], -1, labels)
        for tree in (leaves, statistics):
            for path in [p for p in tree if p.startswith(f"{norm_of(conv)}/")]:
                tree[path] = merge_outputs(tree[path], 0, labels)
    narrow = model.clone(widths={conv: int(labels.max()) + 1 for conv, labels in of_conv.items()})
    return narrow, {
        "params": with_leaves(params, leaves),
        "batch_stats": with_leaves(stats, statistics),
    }


def test_the_inputs_of_a_flattened_image(key):
    """Rows p * C + c, as Flax flattens: the sum of equal channels times their kernels."""
    image = jax.random.normal(key, (2, 3, 3, 3))[..., LABELS]
    kernel = jax.random.normal(jax.random.key(1), (3 * 3 * 6, 4))
    _, first = np.unique(LABELS, return_index=True)
    expected = image.reshape(2, -1) @ kernel
    found = image[..., first].reshape(2, -1) @ merge_inputs(kernel, 0, LABELS)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_preflight_is_the_log_of_the_shrink_factor():
    with pytest.warns(UserWarning, match="10 steps .* e\\^-0.11 in kernels .* take 691 times"):
        told = csgd_preflight(0.1, centripetal=0.1, decay=0.01, momentum=0.0, total_steps=10)
    assert told.kernels == pytest.approx(0.11) and told.vectors == pytest.approx(0.01)
    assert np.exp(-told.kernels) == pytest.approx((1 - 0.1 * 0.11) ** 10, rel=1e-2)
    enough = csgd_preflight(0.1, centripetal=0.1, momentum=0.9, total_steps=1000)
    assert enough.is_long_enough and "should" not in str(enough)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: csgd(BOTH, centripetal=0.0), r"centripetal 0.0 must be in \(0, inf\)"),
        (
            lambda: csgd({"a": Clusters(0, np.array([0, 2]))}, centripetal=1.0),
            r"a: labels must be 0, 1, ... without a gap; they are \[0 2\]",
        ),
        (
            lambda: csgd({"a": Clusters(0, LABELS)}, centripetal=1.0).update(PARAMS, (), PARAMS),
            "labels: params has no leaf a; it has conv/bias",
        ),
        (
            lambda: csgd({"fc": Clusters(1, LABELS)}, centripetal=1.0).update(PARAMS, (), PARAMS),
            r"labels: fc \(6, 2\) has 2 filters on axis 1, and 6 labels",
        ),
        (lambda: csgd(BOTH, centripetal=1.0).update(PARAMS, ()), "csgd needs params"),
        (
            lambda: merge_outputs(jnp.ones(5), 0, LABELS),
            r"has 5 channels on axis 0, and there are 6",
        ),
        (lambda: merge_inputs(jnp.ones((13, 2)), 0, LABELS), r"shape \(13, 2\) has 13 channels"),
        (
            lambda: csgd_preflight(0.0, centripetal=1.0, total_steps=10),
            "rates of 10 steps add up to 0.0",
        ),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
