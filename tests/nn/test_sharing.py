"""Weight sharing in residual stages: what is shared, how it is trained, what the budget becomes."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse
from experiments.cost import shapes_and_flops
from jaxsparse.nn import (
    BasicBlock,
    Bottleneck,
    Sharing,
    cifar_resnet,
    layer_shapes,
    resnet,
    sharing_of,
    sparse_execution,
    stored_sparsity,
)
from jaxsparse.nn.layers import Norm
from jaxsparse.nn.resnet import ResNet
from jaxsparse.paths import leaves_by_path
from jaxsparse.sparse import compress_leaves, find_positions

IMAGE = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
LARGE = {
    "resnet34": (resnet(34, stem="cifar", num_classes=10), 21, 11_164_352, 21_265_088),
    "resnet50": (resnet(50), 30, 15_963_328, 25_502_912),
}


def network(block=BasicBlock, blocks=4, **fields):
    options = {"stem": "cifar", "width": 4, "num_classes": 3, "num_owners": 2}
    return ResNet(stage_sizes=(blocks, 1), block=block, **(options | fields))


@functools.cache
def drawn(block):
    images = jax.random.normal(jax.random.key(0), (5, 8, 8, 3))
    return jax.jit(network(block).init)(jax.random.key(1), images), images


@pytest.mark.parametrize("name", LARGE)
def test_sizes_of_the_paper(name):
    model, num_tensors, stored, unshared = LARGE[name]
    shared = model.clone(num_owners=2)
    params, flops = shapes_and_flops(shared, IMAGE)
    assert sharing_of(shared, IMAGE) == (stored, unshared)
    assert sharing_of(model, IMAGE) == (unshared, unshared)
    assert len(jaxsparse.prunable_paths(params)) == num_tensors
    # Every use of a kernel counts.
    assert sum(flops.values()) == sum(shapes_and_flops(model, IMAGE)[1].values())
    scales = [path for path in leaves_by_path(params) if path.rpartition("/")[2][:5] == "scale"]
    alone = [path for path in scales if path[-1].isdigit()]
    assert len(alone) == (1 + 2 + 4 + 1) * (2 if name == "resnet34" else 3)


def test_sizes_of_a_small_one():
    assert sharing_of(cifar_resnet(20, num_owners=2), IMAGE) == (174_128, 270_896)


def test_budget_of_the_paper():
    table = {0.99: 212_650, 0.999: 21_265, 0.9995: 10_632, 0.9999: 2_126}
    sharing = Sharing(*LARGE["resnet34"][2:])
    for sparsity, active in table.items():
        inside = stored_sparsity(sparsity, sharing)
        # The table rounds down; an active weight more is the budget of every method here.
        assert round((1 - inside) * sharing.stored) == active + 1
        assert jaxsparse.distributions.total_count(sharing.stored, 1 - inside) == active + 1
    with pytest.raises(ValueError, match=r"sparsity 0\.4 needs .* at least 0\.474992"):
        stored_sparsity(0.4, sharing)
    with pytest.raises(ValueError, match=r"sparsity 1\.0"):
        stored_sparsity(1.0, sharing)
    assert stored_sparsity(0.474992, sharing) < 1e-5


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_only_the_second_block_gives(block):
    variables, images = drawn(block)
    names = variables["params"].keys()
    num = 2 if block is BasicBlock else 3
    for number in (3, 4):
        inside = variables["params"][f"stage1_block{number}"]
        norms = {f"norm{i + 1}" for i in range(num)}
        assert inside.keys() == {*norms, *(f"scale{i + 1}" for i in range(num))}
        assert all(inside[f"scale{i + 1}"].shape == () for i in range(num))
        assert variables["batch_stats"][f"stage1_block{number}"].keys() == norms
    _, after = network(block).apply(variables, images, train=True, mutable=["batch_stats"])
    means = [after["batch_stats"][f"stage1_block{n}"]["norm1"]["mean"] for n in (2, 3, 4)]
    assert not np.array_equal(means[0], means[1]) and not np.array_equal(means[1], means[2])
    assert "shortcut_conv" in variables["params"]["stage2_block1"] and "stage1_block1" in names
    # What every block makes of the images, before and after a change of the shared kernels.
    model = network(block)
    outputs = jax.jit(
        functools.partial(
            model.apply,
            capture_intermediates=lambda module, _: isinstance(module, Norm),
            mutable=["intermediates"],
        )
    )
    of = lambda variables: {
        name: values[f"norm{num}"]["__call__"][0]
        for name, values in outputs(variables, images)[1]["intermediates"].items()
        if "block" in name
    }
    before = of(variables)
    for owner, moved in (("stage1_block1", 5), ("stage1_block2", 4)):
        kernel = lambda x: x * 1.5 if x.ndim == 4 else x
        params = {
            **variables["params"],
            owner: jax.tree.map(kernel, variables["params"][owner]),
        }
        after = of({**variables, "params": params})
        changed = [name for name in before if not np.array_equal(before[name], after[name])]
        assert len(changed) == moved and changed[0] == owner


def test_the_gradient_is_that_of_a_network_written_out():
    variables, images = drawn(BasicBlock)
    written = network(num_owners=None)
    stats = {"batch_stats": variables["batch_stats"]}

    def untie(params):
        """The kernels of every block, from one for all."""
        out = {name: dict(inside) for name, inside in params.items()}
        for number in (3, 4):
            inside = out[f"stage1_block{number}"]
            for i in ("1", "2"):
                scale = inside.pop(f"scale{i}")
                inside[f"conv{i}"] = {
                    "kernel": scale * params["stage1_block2"][f"conv{i}"]["kernel"]
                }
        return out

    def loss(model, params):
        logits, _ = model.apply(
            {"params": params, **stats}, images, train=True, mutable=["batch_stats"]
        )
        return (logits**2).sum()

    params = variables["params"]
    loss_of = lambda model, untie: jax.jit(
        jax.value_and_grad(lambda params: loss(model, untie(params)))
    )
    (found, grads), (expected, wanted) = (
        loss_of(network(), lambda params: params)(params),
        loss_of(written, untie)(params),
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    chex.assert_trees_all_close(grads, wanted, rtol=2e-3, atol=1e-4)


def test_a_scale_cancels_in_the_norm():
    variables, images = drawn(BasicBlock)
    apply = jax.jit(
        lambda params: network().apply(
            {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
        )[0]
    )
    params = variables["params"]
    inside = {**params["stage1_block3"], "scale1": 3 * params["stage1_block3"]["scale1"]}
    other = {**params, "stage1_block3": inside}
    np.testing.assert_allclose(apply(other), apply(params), atol=2e-3)


def test_one_mask_and_the_same_number_of_active_weights():
    variables, images = drawn(BasicBlock)
    counts = []
    for model in (network(), network(num_owners=None)):
        params = jax.eval_shape(model.init, jax.random.key(1), images)["params"]
        inside = stored_sparsity(0.9, sharing_of(model, images))
        method = jaxsparse.static(sparsity=inside, total_steps=1)
        counts.append(sum(method.targets(params).initial.values()))
    assert counts[0] == counts[1] == 218
    masks = jaxsparse.static(sparsity=0.9, total_steps=1).init(
        jax.random.key(0), variables["params"]
    )
    assert not any("stage1_block3/conv" in path for path in leaves_by_path(masks))
    assert bool(masks["stage1_block3"]["scale1"])


@pytest.mark.parametrize("layout", ["NHWC", "CHWN"])
@pytest.mark.parametrize("train", [True, False])
def test_sparse_execution(layout, train):
    variables, images = drawn(BasicBlock)
    model = network(layout=layout)
    masks = jaxsparse.static(sparsity=0.7, total_steps=1).init(
        jax.random.key(0), variables["params"]
    )
    params = jaxsparse.apply_masks(variables["params"], masks)
    positions = find_positions(masks)
    assert set(positions) <= set(layer_shapes(model.apply, variables, images))
    assert "stage1_block2/conv1/kernel" in positions

    def loss(params, positions):
        with sparse_execution(positions):
            logits, _ = model.apply(
                {**variables, "params": params}, images, train=train, mutable=["batch_stats"]
            )
        return (logits**2).sum()

    dense, wanted = jax.jit(jax.value_and_grad(loss))(params, {})
    few = compress_leaves(params, positions)
    if not train:
        np.testing.assert_allclose(jax.jit(loss)(few, positions), dense, rtol=1e-4)
        return
    found, grads = jax.jit(jax.value_and_grad(loss))(few, positions)
    np.testing.assert_allclose(found, dense, rtol=1e-4)
    chex.assert_trees_all_close(grads, compress_leaves(wanted, positions), rtol=2e-3, atol=2e-3)


def test_nothing_else_changes_and_too_few_owners():
    plain = jax.eval_shape(cifar_resnet(20).init, jax.random.key(0), IMAGE)
    for same in (cifar_resnet(20, num_owners=3), cifar_resnet(20, num_owners=99)):
        chex.assert_trees_all_equal(jax.eval_shape(same.init, jax.random.key(0), IMAGE), plain)
    for num in (1, 0, 2.0):
        with pytest.raises(ValueError, match="num_owners"):
            cifar_resnet(20, num_owners=num)
