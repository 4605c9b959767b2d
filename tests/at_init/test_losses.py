"""The scoring batch has as many examples of each class; the loss of a classifier."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse

LABELS = np.asarray(np.random.default_rng(0).integers(0, 4, 200), np.int32)


def test_as_many_of_each_class_in_a_random_order(key):
    drawn = jaxsparse.balanced_indices(key, LABELS, 7)
    assert np.bincount(LABELS[drawn]).tolist() == [7, 7, 7, 7]
    assert len(set(drawn.tolist())) == 28
    assert (np.diff(LABELS[drawn]) < 0).sum() > 3  # the classes are mixed
    assert (drawn == jaxsparse.balanced_indices(key, LABELS, 7)).all()
    assert (drawn != jaxsparse.balanced_indices(jax.random.key(1), LABELS, 7)).any()


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (LABELS, {"num_per_class": 80}, "num_per_class 80 is more than class . has, .. of 200"),
        (LABELS, {"num_classes": 5}, "num_per_class 10 is more than class 4 has, 0 of 200"),
        (LABELS, {"num_per_class": 0}, "num_per_class 0 must be a whole number, at least 1"),
        (np.ones(3), {}, r"labels are float64\(3,\); they must be int\[examples\]"),
    ],
)
def test_what_is_refused(labels, options, message, key):
    with pytest.raises(ValueError, match=message):
        jaxsparse.balanced_indices(key, labels, **options)


def test_logits_need_an_axis_of_classes():
    loss_fn = jaxsparse.cross_entropy(lambda params, x: x @ params["kernel"])
    with pytest.raises(ValueError, match=r"returns \(4, 3\) for labels \(4, 1\)"):
        loss_fn({"kernel": jnp.ones((2, 3))}, (jnp.ones((4, 2)), jnp.zeros((4, 1), int)))
