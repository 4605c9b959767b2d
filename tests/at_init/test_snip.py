"""SNIP is the derivative by the masks; micro-batches, rounds, places, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxsparse
from tests.transformers import network

rng = np.random.default_rng(0)
PARAMS = {
    "a": {"kernel": jnp.asarray(rng.normal(size=(3, 8)), jnp.float32), "bias": jnp.ones(8)},
    "b": {"kernel": jnp.asarray(rng.normal(size=(8, 3)), jnp.float32)},
}
INPUTS = np.asarray(rng.normal(size=(12, 3)), np.float32)
LABELS = np.arange(12, dtype=np.int32) % 3


def logits_fn(params, x):
    return nn.relu(x @ params["a"]["kernel"] + params["a"]["bias"][None]) @ params["b"]["kernel"]


LOSS = jaxsparse.cross_entropy(logits_fn)
BATCH = (INPUTS, LABELS)


def kernels(tree):
    return {name: np.asarray(tree[name]["kernel"]) for name in "ab"}


@pytest.fixture(scope="module")
def scores():
    return jaxsparse.snip_scores(LOSS, PARAMS, [BATCH])


def test_it_is_the_derivative_by_the_masks(scores):
    def of_masks(masks):
        kept = {
            name: PARAMS[name] | {"kernel": PARAMS[name]["kernel"] * masks[name]} for name in "ab"
        }
        return LOSS(kept, BATCH)

    ones = {name: jnp.ones_like(PARAMS[name]["kernel"]) for name in "ab"}
    found = jax.grad(of_masks)(ones)
    for name, kernel in kernels(scores).items():
        np.testing.assert_allclose(kernel, np.abs(found[name]), rtol=1e-5, atol=1e-8)


def test_the_sign_is_averaged_before_the_absolute_value():
    loss_fn = lambda params, x: jnp.mean(x @ params["kernel"])
    params = {"kernel": jnp.ones((1, 1))}
    parts = [jnp.full((3, 1), 2.0), jnp.full((1, 1), -2.0)]  # mean 1; of the magnitudes it is 2
    assert jaxsparse.snip_scores(loss_fn, params, parts)["kernel"].item() == 1.0


@pytest.mark.parametrize("cuts", [(1, 3, 8)])
def test_micro_batches_are_one_batch(scores, cuts):
    parts = zip(np.split(INPUTS, cuts), np.split(LABELS, cuts), strict=True)
    found = jaxsparse.snip_scores(LOSS, PARAMS, parts)  # an iterator: one pass is enough
    for ours, theirs in zip(kernels(found).values(), kernels(scores).values(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("may_return", [False, True])
def test_rounds_halve_exactly(may_return):
    seen = []

    def loss_fn(params, batch):
        jax.debug.callback(lambda w: seen.append(int((w != 0).sum())), params["a"]["kernel"])
        return LOSS(params, batch)

    masks = jaxsparse.snip_masks(
        loss_fn, PARAMS, [BATCH], 0.75, num_rounds=2, may_return=may_return, scope="layer"
    )
    jax.effects_barrier()
    counts = {name: int(kernel.sum()) for name, kernel in kernels(masks).items()}
    assert sum(counts.values()) == 12  # of 48
    assert seen[0] == 24 and 8 <= seen[-1] <= 16


def test_ties_are_cut_exactly():
    loss_fn = lambda params, x: jnp.mean(x @ params["kernel"])
    masks = jaxsparse.snip_masks(loss_fn, {"kernel": jnp.ones((8, 5))}, [jnp.ones((2, 8))], 0.9)
    assert int(masks["kernel"].sum()) == 4


@pytest.mark.parametrize(
    "pattern", [jaxsparse.n_of_m(2, 4), jaxsparse.block((2, 1))], ids=["2:4", "2x1"]
)
def test_patterns(pattern):
    loss_fn = lambda params, x: jnp.mean((x @ params["kernel"]) ** 2)
    params = {"kernel": PARAMS["b"]["kernel"]}
    x = jnp.asarray(rng.normal(size=(4, 8)), jnp.float32)
    masks = jaxsparse.snip_masks(loss_fn, params, [x], 0.5, pattern=pattern)
    jaxsparse.check_pattern(masks, pattern)
    assert int(masks["kernel"].sum()) == 12


@pytest.mark.variants
def test_a_transformer_in_mixed_precision_says_so():
    net = network("nnx gpt", jnp.bfloat16)
    loss_fn = jaxsparse.cross_entropy(net.forward)
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), net.params)
    with pytest.warns(UserWarning, match="computes in bfloat16.*in float32"):
        scores = jaxsparse.snip_scores(loss_fn, params, [(net.inputs, net.labels)])
    assert {x.dtype for x in jax.tree.leaves(scores)} == {jnp.dtype("float32")}


def test_nnx_states_and_frozen_parts():
    graph, params = nnx.split(nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
    loss_fn = jaxsparse.cross_entropy(lambda params, x: nnx.merge(graph, params)(x))
    batch = (np.asarray(rng.normal(size=(6, 4)), np.float32), LABELS[:6])
    masks = jaxsparse.snip_masks(loss_fn, params, [batch], sparsity=0.5)
    assert jax.tree.structure(masks) == jax.tree.structure(params)
    assert jaxsparse.num_active(masks) == 6
    rules = (("^a/", False), ("", None))
    masks = jaxsparse.snip_masks(LOSS, PARAMS, [BATCH], sparsity=0.5, prunable=rules)
    assert masks["a"]["kernel"].all() and int(masks["b"]["kernel"].sum()) == 12


def test_scores_lie_on_the_mesh_as_their_params(scores):
    mesh = Mesh(np.asarray(jax.devices()[:4]).reshape(4), ("data",))
    places = {"a": PartitionSpec(None, "data"), "b": PartitionSpec("data")}
    put = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))
    params = {
        name: {
            leaf: put(x, places[name] if leaf == "kernel" else PartitionSpec())
            for leaf, x in layer.items()
        }
        for name, layer in PARAMS.items()
    }
    batch = (
        put(jnp.asarray(INPUTS), PartitionSpec("data")),
        put(jnp.asarray(LABELS), PartitionSpec("data")),
    )
    found = jaxsparse.snip_scores(LOSS, params, [batch])
    for name, kernel in kernels(scores).items():
        ours = found[name]["kernel"]
        assert ours.sharding.is_equivalent_to(params[name]["kernel"].sharding, 2)
        np.testing.assert_allclose(ours, kernel, rtol=1e-4, atol=1e-7)


def test_under_jit(scores):
    compute = jax.jit(functools.partial(jaxsparse.snip_scores, LOSS))
    found = compute(PARAMS, [BATCH])
    np.testing.assert_allclose(found["a"]["kernel"], scores["a"]["kernel"], rtol=1e-5, atol=1e-8)


def test_a_cut_network_is_said():
    with pytest.warns(UserWarning, match="no path leads from input to output, all end at "):
        jaxsparse.snip_masks(LOSS, PARAMS, [BATCH], sparsity=0.97)  # 2 of 48
    plain = lambda params, batch: LOSS(params, batch)
    with pytest.warns(UserWarning, match=r"no weight is left in a/kernel; .*scope='layer'"):
        jaxsparse.snip_masks(plain, PARAMS, [BATCH], sparsity=0.97)


ZERO = {"kernel": jnp.zeros((3, 2))}


@pytest.mark.parametrize(
    ("loss", "params", "batches", "message"),
    [
        (
            lambda p, b: b @ p["kernel"],
            ZERO,
            [jnp.ones((2, 3))],
            r"float32\[2, 2\]; it must return one",
        ),
        (lambda p, b: (1.0, 2.0), ZERO, [jnp.ones((2, 3))], "must return one number"),
        (lambda p, b: jnp.int32(3), ZERO, [jnp.ones((2, 3))], "int32.*must be floating point"),
        (
            lambda p, b: (b @ p["kernel"]).mean(),
            ZERO,
            [jnp.ones((2, 3))],
            "all scores are 0: .* kernel",
        ),
        (
            lambda p, b: jnp.log(b @ p["kernel"]).mean(),
            ZERO,
            [jnp.ones((2, 3))],
            "6 of the 6 scores of kernel are NaN",
        ),
        (LOSS, PARAMS, [], "batches hold no example"),
        (LOSS, PARAMS, BATCH, r"batches is one batch; .* such as \[batch\]"),
        (LOSS, PARAMS, [(INPUTS, LABELS[:3])], "their first axes, the examples, must have one"),
        (LOSS, PARAMS, [(INPUTS, LABELS + 1)], r"has the label 3; labels must be in \[0, 2\]"),
        (LOSS, PARAMS, [INPUTS], r"a batch of cross_entropy is \(inputs, labels\), not a ndarray"),
    ],
)
def test_what_is_refused(loss, params, batches, message):
    with pytest.raises(ValueError, match=message):
        jaxsparse.snip_scores(loss, params, batches)


def test_a_layer_that_starts_at_0_is_named():
    params = PARAMS | {"b": {"kernel": jnp.zeros((8, 3))}, "c": {"kernel": jnp.ones((3, 3))}}
    loss_fn = lambda p, x: jnp.mean(logits_fn(p, x) + x @ p["c"]["kernel"])
    with pytest.warns(UserWarning, match="all scores of a/kernel, b/kernel are 0"):
        jaxsparse.snip_scores(loss_fn, params, [INPUTS])
