"""Networks of EAST and others lose their dead channels in one call, and stay what they were."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxsparse
from jaxsparse.nn import BasicBlock, ResNet, cifar_resnet, compact_module, sparse_execution
from jaxsparse.paths import leaves_by_path
from jaxsparse.sparse import compress_leaves, find_positions

IMAGES = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))


def sparse(model, sparsity, images=IMAGES):
    """Variables and masks; biases of norms below 0, so that many ReLUs are always 0."""
    variables = model.init(jax.random.key(1), images)
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: x - 0.1 if "norm" in str(path) and "bias" in str(path) else x,
        variables["params"],
    )
    masks = jaxsparse.magnitude_masks(params, sparsity=sparsity)
    return {**variables, "params": params}, masks


@pytest.fixture(scope="module")
def shared():
    model = ResNet(
        stage_sizes=(3, 1), block=BasicBlock, width=8, stem="cifar", num_classes=3, num_owners=2
    )
    return model, *sparse(model, 0.97)


def test_shared_kernels_are_written_out_and_dead_channels_go(shared):
    model, variables, masks = shared
    found = compact_module(model, variables, masks, IMAGES)
    expected = model.apply(
        {**variables, "params": jaxsparse.apply_masks(variables["params"], masks)}, IMAGES
    )
    np.testing.assert_allclose(
        found.model.apply(found.variables, IMAGES), expected, rtol=1e-4, atol=1e-5
    )
    widths = found.plan.widths
    assert sum(widths.values()) < sum(group.width for group in found.plan.groups)
    # The blocks that shared kernels have widths of their own.
    assert {"params/stage1_block2/conv1", "params/stage1_block3/conv1"} <= set(widths)
    jaxsparse.check(found.variables["params"], (), found.masks)


def test_it_runs_by_its_active_weights(shared):
    found = compact_module(*shared, IMAGES)
    params = found.variables["params"]
    positions = find_positions(found.masks)
    with sparse_execution(positions):
        logits = found.model.apply(
            {**found.variables, "params": compress_leaves(params, positions)}, IMAGES
        )
    np.testing.assert_allclose(
        logits, found.model.apply(found.variables, IMAGES), rtol=1e-4, atol=1e-5
    )


def test_constants_of_any_linen_network_go_into_its_biases():
    class Mlp(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(3):
                x = nn.gelu(nn.Dense(16, bias_init=nn.initializers.normal(1.0))(x))
            return nn.Dense(3)(x)

    x = jax.random.normal(jax.random.key(2), (4, 12))
    variables, masks = sparse(Mlp(), 0.9, x)
    found = compact_module(Mlp(), variables, masks, x)
    applied = {"params": jaxsparse.apply_masks(variables["params"], masks)}
    np.testing.assert_allclose(
        found.model.apply(found.variables, x), Mlp().apply(applied, x), rtol=1e-4, atol=1e-5
    )
    for path, kernel in leaves_by_path(found.variables).items():
        if path.endswith("kernel"):  # every channel that is left is made and read
            assert kernel.any(0).all() or path.endswith("Dense_3/kernel")
            assert kernel.any(1).all() or path.endswith("Dense_0/kernel")


def test_what_is_not_the_networks_is_refused(shared):
    model, variables, masks = shared
    with pytest.raises(ValueError, match="masks"):
        compact_module(model, variables, masks | {"more": jnp.ones(3, bool)}, IMAGES)
    small, others = cifar_resnet(8, width=4), masks
    with pytest.raises(ValueError, match="masks"):
        compact_module(small, small.init(jax.random.key(0), IMAGES), others, IMAGES)
