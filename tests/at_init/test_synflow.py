"""SynFlow: flow is conserved, nothing overflows, no layer of a chain is lost, one program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxsparse
from jaxsparse.at_init.rounds import rows_of
from tests.transformers import network


def chain(sizes, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    pairs = zip(sizes[:-1], sizes[1:], strict=True)
    return [{"kernel": jnp.asarray(scale * rng.normal(size=s), jnp.float32)} for s in pairs]


def apply_chain(params, x):
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["kernel"])
    return x @ params[-1]["kernel"]


SIZES = (5, 9, 7, 3)
PARAMS = chain(SIZES)


@pytest.fixture(scope="module")
def scores():
    return jaxsparse.synflow_scores(apply_chain, PARAMS, (1, 5))


def test_flow_is_that_of_the_matrix_product_up_to_a_power_of_two(scores):
    left = [np.abs(np.asarray(layer["kernel"], np.float64)) for layer in PARAMS]
    total = np.ones(5) @ left[0] @ left[1] @ left[2] @ np.ones(3)
    factor = 2.0 ** np.ceil(np.log2(total))
    before = np.ones(5)
    for i, w in enumerate(left):
        after = np.ones(3)
        for other in left[:i:-1]:
            after = other @ after
        expected = before[:, None] * w * after[None]
        np.testing.assert_allclose(scores[i]["kernel"], expected / factor, rtol=1e-5)
        assert scores[i]["kernel"].sum() == pytest.approx(total / factor, rel=1e-5)
        before = before @ w


def test_signs_do_not_matter(scores):
    flipped = jax.tree.map(lambda w: w * jnp.where(w > 0.3, -1.0, 1.0), PARAMS)
    found = jaxsparse.synflow_scores(apply_chain, flipped, (1, 5))
    jax.tree.map(np.testing.assert_array_equal, found, scores)


@pytest.mark.slow
def test_a_chain_of_200_layers_does_not_overflow():
    params = {"kernel": jnp.full((200, 16, 16), 1.5e3)}

    def forward(params, x):
        for kernel in jax.lax.split(params["kernel"], [1] * 200):
            x = jax.nn.relu(x @ kernel[0])
        return x

    # float64 would not do: R is 16 * (16 * 1500)^200, 1e877.
    found = np.asarray(jaxsparse.synflow_scores(forward, params, (1, 16))["kernel"])
    sums = found.sum((1, 2))
    assert np.isfinite(found).all() and 0.4 < sums.min() <= sums.max() < 1.01
    np.testing.assert_allclose(sums, sums[0], rtol=1e-4)


def test_every_layer_keeps_one_weight_at_the_highest_compression():
    """Where one threshold on magnitudes, or on scores of one round, loses whole layers."""
    params = chain((6, 12, 24, 6), scale=1.0)
    params[1]["kernel"] *= 0.01
    num = 6 * 12 + 12 * 24 + 24 * 6
    sparsity = 1 - 3 / num
    masks = jaxsparse.synflow_masks(apply_chain, params, (1, 6), sparsity=sparsity)
    assert [int(layer["kernel"].sum()) for layer in masks] == [1, 1, 1]
    ones = jaxsparse.apply_masks(jax.tree.map(jnp.abs, params), masks)
    assert apply_chain(ones, jnp.ones((1, 6))).sum() > 0  # and they meet

    counts = lambda masks: [int(layer["kernel"].sum()) for layer in masks]
    assert 0 in counts(jaxsparse.magnitude_masks(params, sparsity=sparsity))
    x = np.asarray(np.random.default_rng(0).normal(size=(24, 6)), np.float32)
    loss_fn = jaxsparse.cross_entropy(apply_chain)
    batch = (x, np.arange(24, dtype=np.int32) % 6)
    for scores in (
        jaxsparse.snip_scores(loss_fn, params, [batch]),
        jaxsparse.grasp_scores(loss_fn, params, [batch]),
    ):
        assert 0 in counts(jaxsparse.masks_from_scores(scores, sparsity))
    with pytest.warns(UserWarning, match="the masks cut the network"):
        once = jaxsparse.synflow_masks(apply_chain, params, (1, 6), sparsity, num_rounds=1)
    assert 0 in counts(once)


def test_a_hundred_rounds_trace_the_network_twice_and_compile_one_program():
    traces = []

    def counted(params, x):
        traces.append(0)
        return apply_chain(params, x)

    masks = jaxsparse.synflow_masks(counted, PARAMS, (1, 5), sparsity=0.8)
    assert jaxsparse.num_active(masks) == 26  # of 129: N - floor(0.8 N)
    assert len(traces) <= 2  # the scores, and the check of paths


def test_the_density_falls_by_one_factor_a_round():
    targets = [row.target for row in rows_of({"a": (100, 100)}, {}, 0.99, 4, {})]
    assert targets == [3163, 1000, 317, 100]
    layers = rows_of({"a": (10, 10), "b": (30, 30)}, {}, 0.99, 20, {"scope": "layer"})
    for path in ("a", "b"):
        counts = [row.target[path] for row in layers]
        assert counts == sorted(counts, reverse=True)
    assert sum(layers[-1].target.values()) == 10


class Net(nn.Module):
    dtype: object = None

    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.Conv(8, (3, 3), dtype=self.dtype)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.max_pool(x, (2, 2), (2, 2)) + nn.Conv(8, (1, 1), strides=2)(x)
        return nn.Dense(4)(x.mean((1, 2)))


@pytest.fixture(scope="module")
def net():
    variables = dict(jax.jit(Net().init)(jax.random.key(0), jnp.ones((1, 8, 8, 3))))
    # Statistics of training, one of them negative.
    stats = jax.tree.map(lambda x: x + jnp.linspace(-0.2, 0.3, 8), variables["batch_stats"])
    return variables["params"], {"batch_stats": stats}


def test_a_network_with_norms_and_skips_is_that_of_absolute_values(net):
    params, collections = net
    apply_fn = lambda params, x, others: Net().apply({"params": params, **others}, x)
    found = jaxsparse.synflow_scores(apply_fn, params, (1, 8, 8, 3), collections=collections)
    positive = jax.tree.map(jnp.abs, (params, collections))
    flow = lambda params: apply_fn(params, jnp.ones((1, 8, 8, 3)), positive[1]).sum()
    expected = jax.jit(jax.grad(flow))(positive[0])
    power = 2.0 ** np.ceil(np.log2(float(flow(positive[0]))))
    for layer in ("Conv_0", "Conv_1", "Dense_0"):
        by_hand = np.abs(positive[0][layer]["kernel"] * expected[layer]["kernel"]) / power
        np.testing.assert_allclose(found[layer]["kernel"], by_hand, rtol=1e-4, atol=1e-9)
    assert not found["BatchNorm_0"]["scale"].any()


@pytest.mark.variants
def test_a_transformer_takes_its_token_ids():
    gpt = network("linen gpt")
    with pytest.warns(UserWarning, match="all scores of .*query.* are 0"):  # attention saturates
        scores = jaxsparse.synflow_scores(gpt.forward, gpt.params, gpt.inputs[:1])
    masks = jaxsparse.masks_from_scores(scores, 0.5)
    assert jaxsparse.sparsity(masks) == pytest.approx(0.5, abs=1e-3)


def test_masks_leave_out_what_is_gone():
    masks = jax.tree.map(lambda w: jnp.ones(w.shape, bool).at[0].set(False), PARAMS)
    found = jaxsparse.synflow_scores(apply_chain, PARAMS, (1, 5), masks=masks)
    assert all(not layer["kernel"][0].any() for layer in found)


@pytest.mark.parametrize(
    ("params", "shape", "options", "message"),
    [
        (chain(SIZES, scale=0.0), (1, 5), {}, "all scores.* are 0: no weight has an effect"),
        (PARAMS, (0, 5), {}, r"inputs \(0, 5\) must be a shape"),
        (PARAMS, (1, 5), {"num_rounds": 0}, "num_rounds 0 must be a whole number, at least 1"),
        (PARAMS, (1, 5), {"sparsity": 1.0}, r"sparsity 1.0 must be in \[0, 1\)"),
        (chain(SIZES, scale=np.inf), (1, 5), {}, "scores of 0/kernel.* are NaN or infinite"),
    ],
)
def test_what_is_refused(params, shape, options, message):
    with pytest.raises(ValueError, match=message):
        jaxsparse.synflow_masks(apply_chain, params, shape, **({"sparsity": 0.5} | options))
