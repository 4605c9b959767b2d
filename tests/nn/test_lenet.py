"""The two LeNets have the published sizes, and methods find their layers by name."""

import jax
import jax.numpy as jnp
import pytest

import jaxsparse
from jaxsparse.nn import LeNet5, LeNet300100


@pytest.mark.parametrize(
    ("model", "num_params", "kernels"),
    [
        (
            LeNet300100(),
            266_610,
            {"Dense_0": (784, 300), "Dense_1": (300, 100), "Dense_2": (100, 10)},
        ),
        (
            LeNet5(),
            61_706,
            {
                "Conv_0": (5, 5, 1, 6),
                "Conv_1": (5, 5, 6, 16),
                "Dense_0": (400, 120),
                "Dense_1": (120, 84),
                "Dense_2": (84, 10),
            },
        ),
        (
            LeNet300100(widths=(30, 10)),
            23_970,
            {"Dense_0": (784, 30), "Dense_1": (30, 10), "Dense_2": (10, 10)},
        ),
        (
            LeNet5(widths=(2, 4, 20, 8)),
            2_534,
            {
                "Conv_0": (5, 5, 1, 2),
                "Conv_1": (5, 5, 2, 4),
                "Dense_0": (100, 20),
                "Dense_1": (20, 8),
                "Dense_2": (8, 10),
            },
        ),
    ],
    ids=["LeNet-300-100", "LeNet-5", "LeNet-30-10", "narrow LeNet-5"],
)
def test_size(model, num_params, kernels, key):
    params = jax.eval_shape(model.init, key, jnp.zeros((1, 28, 28, 1)))["params"]
    assert sum(x.size for x in jax.tree.leaves(params)) == num_params
    assert {name: layer["kernel"].shape for name, layer in params.items()} == kernels
    assert jaxsparse.prunable_paths(params) == [f"{name}/kernel" for name in kernels]


def test_batch_norms_of_the_batch_in_training(key):
    """Its logits are those of the layers written out, and its kernels have the same names."""
    model, x = LeNet300100(norm=True, widths=(9, 5)), jax.random.normal(key, (4, 28, 28, 1))
    variables = model.init(key, x)
    found, updated = model.apply(variables, x, train=True, mutable=["batch_stats"])
    wanted, p = x.reshape(4, -1), variables["params"]
    for layer in range(2):
        wanted = wanted @ p[f"Dense_{layer}"]["kernel"]
        mean, var = (f(wanted, axis=0, keepdims=True) for f in (jnp.mean, jnp.var))
        wanted = (wanted - mean) / jnp.sqrt(var + 1e-5)
        wanted = jnp.maximum(wanted, 0)
    wanted = wanted @ p["Dense_2"]["kernel"]
    assert jnp.allclose(found, wanted, atol=1e-4)
    assert set(updated["batch_stats"]) == {"BatchNorm_0", "BatchNorm_1"}
    assert jaxsparse.prunable_paths(p) == [f"Dense_{layer}/kernel" for layer in range(3)]


@pytest.mark.parametrize(
    "model", [LeNet300100(num_classes=7), LeNet5(num_classes=7)], ids=["300-100", "5"]
)
def test_inactive_weights_have_a_gradient(model, key):
    x = jax.random.normal(key, (2, 28, 28, 1))
    variables = jax.jit(model.init)(key, x)
    masks = jax.tree.map(lambda w: w > 0, variables)
    params = jaxsparse.apply_masks(variables, masks)
    assert jax.eval_shape(model.apply, params, x).shape == (2, 7)
    grads = jax.jit(jax.grad(lambda p: (model.apply(p, x) ** 2).sum()))(params)
    inactive = ~masks["params"]["Dense_1"]["kernel"]
    assert (grads["params"]["Dense_1"]["kernel"][inactive] != 0).any()
