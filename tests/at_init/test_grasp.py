"""GraSP against an explicit Hessian; the lowest -w * (H g) are kept; micro-batches, temperature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse

rng = np.random.default_rng(0)
PARAMS = {
    "a": {"kernel": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32), "bias": jnp.ones(4)},
    "b": {"kernel": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)},
}
INPUTS = np.asarray(rng.normal(size=(12, 3)), np.float32)
LABELS = np.arange(12, dtype=np.int32) % 3
BATCH = (INPUTS, LABELS)


def logits_fn(params, x):
    hidden = jnp.tanh(x @ params["a"]["kernel"] + params["a"]["bias"][None])
    return hidden @ params["b"]["kernel"]


LOSS = jaxsparse.cross_entropy(logits_fn)


def flat(tree):
    return np.concatenate([np.ravel(tree["a"]["kernel"]), np.ravel(tree["b"]["kernel"])])


def unflat(vector):
    a, b = vector[:12].reshape(3, 4), vector[12:].reshape(4, 3)
    return {"a": {"kernel": a, "bias": PARAMS["a"]["bias"]}, "b": {"kernel": b}}


def of_vector(vector, temperature=200.0):
    return LOSS(unflat(vector), BATCH, temperature)


@pytest.fixture(scope="module")
def scores():
    return jaxsparse.grasp_scores(LOSS, PARAMS, [BATCH])


@pytest.fixture(scope="module")
def explicit():
    """-w * (H g), the paper's S, from all second derivatives."""
    w = jnp.asarray(flat(PARAMS))
    return np.asarray(-w * (jax.hessian(of_vector)(w) @ jax.grad(of_vector)(w)))


def test_the_score_is_the_negative_of_the_papers(scores, explicit):
    np.testing.assert_allclose(flat(scores), -explicit, rtol=2e-4, atol=1e-12)
    assert not scores["a"]["bias"].any()  # neither scored nor part of g


def test_the_lowest_of_the_papers_scores_are_kept(explicit):
    masks = jaxsparse.grasp_masks(LOSS, PARAMS, [BATCH], sparsity=0.75)
    kept = np.flatnonzero(flat(masks))
    assert sorted(kept) == sorted(np.argsort(explicit)[:6])
    assert masks["a"]["bias"].all()


def test_it_is_half_the_slope_of_the_gradients_squared_norm(explicit):
    """d/de |g(w - e w_q)|^2 at e = 0 is 2 S_q, by central differences in units of the scores."""
    w = np.asarray(flat(PARAMS))
    norm = jax.jit(lambda w: jnp.sum((200.0 * jax.grad(of_vector)(w)) ** 2))
    for q in (0, 7, 15, 23):
        e = np.zeros_like(w)
        e[q] = 0.02 * w[q]
        slope = float(norm(w - e) - norm(w + e)) / 0.04 / 200.0**2
        assert slope == pytest.approx(2 * explicit[q], rel=0.02, abs=2e-8)


def test_unequal_micro_batches_are_one_batch(scores):
    cuts = (1, 6, 10)
    parts = list(zip(np.split(INPUTS, cuts), np.split(LABELS, cuts), strict=True))
    found = jaxsparse.grasp_scores(LOSS, PARAMS, lambda: iter(parts))
    np.testing.assert_allclose(flat(found), flat(scores), rtol=1e-4, atol=1e-12)


def test_the_scale_of_the_loss_changes_no_mask():
    scaled = lambda params, batch, temperature: 7.0 * LOSS(params, batch, temperature)
    ours = jaxsparse.grasp_masks(LOSS, PARAMS, [BATCH], sparsity=0.5, scope="layer")
    theirs = jaxsparse.grasp_masks(scaled, PARAMS, [BATCH], sparsity=0.5, scope="layer")
    assert (flat(ours) == flat(theirs)).all()


def test_the_temperature_changes_ranks_and_saturates(scores):
    ranks = lambda tree: np.argsort(np.argsort(flat(tree)))
    at = lambda t: ranks(jaxsparse.grasp_scores(LOSS, PARAMS, [BATCH], temperature=t))
    assert (at(1.0) != ranks(scores)).sum() > 6
    assert (at(20_000.0) != ranks(scores)).sum() <= 4


def test_abs_keeps_the_largest_magnitude(scores):
    found = jaxsparse.grasp_scores(LOSS, PARAMS, [BATCH], criterion="abs")
    np.testing.assert_array_equal(flat(found), np.abs(flat(scores)))


def test_rounds_are_exact():
    """The second round has the gradient and Hessian of the 12 weights that are left."""
    once = jaxsparse.grasp_masks(LOSS, PARAMS, [BATCH], sparsity=0.5)
    twice = jaxsparse.grasp_masks(LOSS, PARAMS, [BATCH], sparsity=0.75, num_rounds=2)
    left = jnp.asarray(flat(once))
    w = jnp.where(left, flat(PARAMS), 0.0)
    score = w * (jax.hessian(of_vector)(w) @ jnp.where(left, jax.grad(of_vector)(w), 0.0))
    expected = np.argsort(np.where(left, score, -np.inf))[-6:]
    assert sorted(np.flatnonzero(flat(twice))) == sorted(expected)


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        (lambda params, batch: 0.0, {}, r"takes no temperature, .*\(200\); take cross_entropy"),
        (LOSS, {"temperature": 0.0}, r"^temperature 0.0 must be in \(0, inf\)$"),
        (LOSS, {"criterion": "sign"}, "^criterion 'sign' must be 'signed' or 'abs'$"),
    ],
)
def test_what_is_refused(loss, options, message):
    with pytest.raises(ValueError, match=message):
        jaxsparse.grasp_scores(loss, PARAMS, [BATCH], **options)


def test_an_iterator_cannot_be_read_twice():
    with pytest.raises(ValueError, match="read 2 times, and a list_iterator can be read once"):
        jaxsparse.grasp_scores(LOSS, PARAMS, iter([BATCH]))


def test_missing_classes_are_named():
    some = LABELS != 1
    with pytest.warns(
        UserWarning, match=r"the 8 examples .* hold none of 1 of the 3 classes \(1\)"
    ):
        jaxsparse.grasp_scores(LOSS, PARAMS, [(INPUTS[some], LABELS[some])])
