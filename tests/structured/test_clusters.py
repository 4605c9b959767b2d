"""Clusters of filters: k-means against groups that are there, exact numbers, ties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse.structured import cluster

pytestmark = pytest.mark.variants  # our own code, which knows little of versions


def test_kmeans_finds_groups_that_are_there(key):
    """Four groups of filters, 100 times as far apart as they are wide, in mixed order."""
    truth = np.array([0, 1, 1, 2, 0, 3, 2, 1, 3, 3, 0, 2])
    centers = 10 * jax.random.normal(key, (3, 3, 2, 4))
    noise = 0.1 * jax.random.normal(jax.random.key(1), (3, 3, 2, 12))
    kernel = centers[..., truth] + noise
    for seed in range(5):
        np.testing.assert_array_equal(cluster(kernel, 4, jax.random.key(seed)), truth)
    torch = jnp.moveaxis(kernel, -1, 0)
    np.testing.assert_array_equal(cluster(torch, 4, key, axis=0), truth)
    np.testing.assert_array_equal(cluster(kernel.astype(jnp.bfloat16), 4, key), truth)


@pytest.mark.parametrize("by", ["kmeans", "even", "imbalanced"])
@pytest.mark.parametrize("num", [1, 2, 7, 15, 16])
def test_there_are_as_many_clusters_as_asked_for(by, num, key):
    kernel = jax.random.normal(key, (3, 16))
    kernels = [kernel, jnp.zeros((3, 16)), jnp.round(kernel)]  # none, all and some are equal
    for k in kernels:
        labels = cluster(k, num, key, by=by)
        assert labels.shape == (16,)
        _, first = np.unique(labels, return_index=True)
        assert len(first) == num and (np.diff(first) > 0).all()  # numbered as they appear
    np.testing.assert_array_equal(
        cluster(kernel, num, key, by=by), cluster(kernel, num, key, by=by)
    )


def test_no_point_is_nearer_to_another_center(key):
    points = np.asarray(jax.random.normal(key, (5, 40)), np.float64)
    labels = cluster(points, 6, key)
    centers = np.stack([points[:, labels == i].mean(axis=1) for i in range(6)])
    distances = ((points.T[:, None] - centers[None]) ** 2).sum(axis=2)
    np.testing.assert_allclose(distances[np.arange(40), labels], distances.min(axis=1))


def test_even_and_imbalanced_sizes():
    kernel = np.zeros((1, 10))
    assert np.bincount(cluster(kernel, 4, by="even")).tolist() == [3, 3, 2, 2]
    assert np.bincount(cluster(kernel, 4, by="imbalanced")).tolist() == [1, 1, 1, 7]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cluster(np.zeros((1, 3)), 4, by="even"), r"num_clusters 4 must be .* in \[1, 3\]"),
        (lambda: cluster(np.zeros((1, 3)), 0, by="even"), r"num_clusters 0 must be .* in \[1, 3\]"),
        (lambda: cluster(np.zeros((1, 3)), 2), "by 'kmeans' needs a key"),
        (lambda: cluster(np.zeros((1, 3)), 2, by="best"), "by 'best' must be 'kmeans', 'even' or"),
        (
            lambda: cluster(np.array([[np.nan, 1.0]]), 2, jax.random.key(0)),
            "entries that are not finite",
        ),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
