"""Weight sharing in residual stages: shared kernels, their training, and the sparsity."""

import functools
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxsparse
from experiments.records.cost import shapes_and_flops
from jaxsparse.nn import (
    BasicBlock,
    Bottleneck,
    Sharing,
    WideResNet,
    cifar_resnet,
    layer_shapes,
    resnet,
    sharing_of,
    sparse_execution,
    stored_sparsity,
    without_sharing,
)
from jaxsparse.nn.resnet import ResNet
from jaxsparse.nn.wide_resnet import WideBlock
from jaxsparse.paths import leaves_by_path, with_leaves
from jaxsparse.rounded_counts import total_count
from jaxsparse.sparse import compress_leaves, find_positions

BLOCKS = pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
IMAGE = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
LARGE = {
    "resnet34": (resnet(34, stem="cifar", num_classes=10), 21, 16, 11_164_352, 21_265_088),
    "resnet50": (resnet(50), 30, 24, 15_963_328, 25_502_912),
    "wrn22_2": (WideResNet(22, 2), 17, 6, 689_840, 1_076_912),
}


def network(block=BasicBlock, stages=(4, 1), **fields):
    if block is WideBlock:  # stages of equal numbers of blocks
        return WideResNet(4 + 6 * stages[0], 1, **({"num_classes": 3, "num_owners": 2} | fields))
    options = {"stem": "cifar", "width": 4, "num_classes": 3, "num_owners": 2}
    return ResNet(stage_sizes=stages, block=block, **(options | fields))


@functools.cache
def drawn(block, stages=(4, 1)):
    """Variables like those of `init`, which would take longer to compile, and images."""
    images = jax.random.normal(jax.random.key(0), (5, 8, 8, 3))
    shapes = jax.eval_shape(network(block, stages).init, jax.random.key(1), images)
    rng = np.random.default_rng(0)
    starts = {
        4: lambda shape: rng.normal(size=shape) * math.sqrt(2 / math.prod(shape[:3])),
        2: lambda shape: rng.normal(size=shape) * 0.1,
        0: lambda _: rng.uniform(0.1, 1.0),
    }
    variables = {
        path: jnp.asarray(starts[x.ndim](x.shape), jnp.float32)
        if x.ndim in starts
        else jnp.full(x.shape, float(path.endswith(("scale", "var"))))
        for path, x in leaves_by_path(shapes).items()
    }
    return with_leaves(shapes, variables), images


@pytest.mark.parametrize("name", LARGE)
def test_sizes(name):
    model, num_tensors, num_scales, stored, unshared = LARGE[name]
    shared = model.clone(num_owners=2)
    params, flops = shapes_and_flops(shared, IMAGE)
    assert sharing_of(shared, IMAGE) == (stored, unshared)
    assert sharing_of(model, IMAGE) == (unshared, unshared)
    assert len(jaxsparse.prunable_paths(params)) == num_tensors
    # Every use of a kernel counts.
    assert sum(flops.values()) == sum(shapes_and_flops(model, IMAGE)[1].values())
    scales = [path for path in leaves_by_path(params) if path.rpartition("/")[2][:5] == "scale"]
    alone = [path for path in scales if path[-1].isdigit()]
    assert len(alone) == num_scales


def test_sizes_of_a_small_one():
    assert sharing_of(cifar_resnet(20, num_owners=2), IMAGE) == (174_128, 270_896)


@pytest.mark.parametrize(
    ("name", "counts", "highest_density"),
    [
        ("resnet34", (212_650, 21_265, 10_632, 2_126), 0.525008),
        ("resnet50", (255_029, 25_502, 12_751, 2_550), 0.625941),
    ],
)
def test_budget_of_the_paper(name, counts, highest_density):
    sharing = Sharing(*LARGE[name][3:])
    for sparsity, active in zip((0.99, 0.999, 0.9995, 0.9999), counts, strict=True):
        inside = stored_sparsity(sparsity, sharing)
        # The table rounds down; every method here has one more active weight.
        assert round((1 - inside) * sharing.stored) == active + 1
        assert total_count(sharing.stored, 1 - inside) == active + 1
    least = f"{1 - highest_density:.6f}"
    assert 0 <= stored_sparsity(float(least), sharing) < 1e-5
    for sparsity in (0.3, float(least) - 1e-6):
        with pytest.raises(ValueError, match=rf"sparsity {sparsity} needs .* at least {least}"):
            stored_sparsity(sparsity, sharing)
    with pytest.raises(ValueError, match=r"sparsity 1\.0"):
        stored_sparsity(1.0, sharing)


@BLOCKS
def test_what_a_sharing_block_has_of_its_own(block):
    variables, images = drawn(block)
    num = 2 if block is BasicBlock else 3
    for number in (3, 4):
        inside = variables["params"][f"stage1_block{number}"]
        norms = {f"norm{i + 1}" for i in range(num)}
        assert inside.keys() == {*norms, *(f"scale{i + 1}" for i in range(num))}
        assert all(inside[f"scale{i + 1}"].shape == () for i in range(num))
        assert variables["batch_stats"][f"stage1_block{number}"].keys() == norms
    start = jax.jit(lambda key: network(block).init(key, images)["params"]["stage1_block3"])
    scales = [float(x) for x in jax.tree.leaves(start(jax.random.key(0))) if not x.ndim]
    assert len({*scales}) == num and all(0 <= scale < 1 for scale in scales)
    apply = functools.partial(network(block).apply, train=True, mutable=["batch_stats"])
    _, after = jax.jit(apply)(variables, images)
    means = [after["batch_stats"][f"stage1_block{n}"]["norm1"]["mean"] for n in (2, 3, 4)]
    assert not np.array_equal(means[0], means[1]) and not np.array_equal(means[1], means[2])


@pytest.mark.parametrize(
    ("block", "stages", "num_shared"),
    [(BasicBlock, (3, 3), 4), (Bottleneck, (3, 3), 6), (WideBlock, (3, 3, 3), 6)],
)
def test_the_second_blocks_kernels_alone_are_used_elsewhere_in_the_blocks_after_it(
    block, stages, num_shared
):
    """Each block gets its own images, so that no change comes from the block before."""
    variables, images = drawn(block, stages)
    model = network(block, stages)

    @jax.jit
    def outputs(params):
        found = {}

        def give_images(next_function, args, kwargs, context):
            if context.method_name != "with_convs":
                return next_function(*args, **kwargs)
            x = jnp.sin(jnp.arange(args[0].size, dtype=jnp.float32)).reshape(args[0].shape)
            y, convs = next_function(x, *args[1:], **kwargs)
            found[context.module.name] = y
            return y, convs

        with nn.intercept_methods(give_images):
            model.apply({**variables, "params": params}, images)
        return found

    before = outputs(variables["params"])
    assert len(before) == sum(stages)
    leaves = leaves_by_path(variables["params"])
    num_found = 0
    for path, leaf in leaves.items():
        home, _, rest = path.partition("/")
        if home not in before:
            continue
        shared = home.endswith("block2") and rest.startswith("conv")
        num_found += shared
        after = outputs(with_leaves(variables["params"], leaves | {path: 1.5 * leaf + 0.25}))
        changed = {name for name in before if not np.array_equal(before[name], after[name])}
        assert changed == ({home, f"{home[:-1]}3"} if shared else {home}), path
    assert num_found == num_shared


def untie(params):
    """The kernels of every block, from one for all."""
    out = {name: dict(inside) for name, inside in params.items()}
    for name, inside in out.items():
        for scale in [key for key in inside if re.fullmatch(r"scale\d", key)]:
            conv, owner = scale.replace("scale", "conv"), re.sub(r"\d+$", "2", name)
            inside[conv] = {"kernel": inside.pop(scale) * params[owner][conv]["kernel"]}
    return out


def test_a_wide_network_is_the_one_written_out():
    variables, images = drawn(WideBlock, (3, 3, 3))
    model = network(WideBlock, (3, 3, 3))
    untied = {**variables, "params": untie(variables["params"])}
    logits = jax.jit(model.apply)(variables, images)
    written = jax.jit(model.clone(num_owners=None).apply)(untied, images)
    np.testing.assert_allclose(logits, written, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("block", [BasicBlock, pytest.param(Bottleneck, marks=pytest.mark.slow)])
def test_the_gradient_is_that_of_a_network_written_out(block):
    variables, images = drawn(block, (4,))
    written = network(block, (4,), num_owners=None)
    stats = {"batch_stats": variables["batch_stats"]}

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
        loss_of(network(block, (4,)), lambda params: params)(params),
        loss_of(written, untie)(params),
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    chex.assert_trees_all_close(grads, wanted, rtol=2e-3, atol=1e-4)


@BLOCKS
def test_a_scale_cancels_in_the_norm(block):
    variables, images = drawn(block)
    apply = jax.jit(
        lambda params: network(block).apply(
            {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
        )[0]
    )
    params = variables["params"]
    inside = {**params["stage1_block3"], "scale1": 3 * params["stage1_block3"]["scale1"]}
    other = {**params, "stage1_block3": inside}
    np.testing.assert_allclose(apply(other), apply(params), atol=2e-3)


@BLOCKS
def test_one_mask_and_the_same_number_of_active_weights(block):
    variables, images = drawn(block)
    counts = []
    for model in (network(block), network(block, num_owners=None)):
        params = jax.eval_shape(model.init, jax.random.key(1), images)["params"]
        inside = stored_sparsity(0.9, sharing_of(model, images))
        method = jaxsparse.static(sparsity=inside, total_steps=1)
        counts.append(sum(method.targets(params).initial.values()))
    assert counts[0] == counts[1] == (218 if block is BasicBlock else 278)
    init = jaxsparse.static(sparsity=0.9, total_steps=1).init
    masks = leaves_by_path(jax.eval_shape(init, jax.random.key(0), variables["params"]))
    assert not any("stage1_block3/conv" in path for path in masks)
    assert "stage1_block3/scale1" not in jaxsparse.prunable_paths(variables["params"])


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
        with pytest.raises(ValueError, match="num_owners"):
            WideResNet(22, 2, num_owners=num)


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck, WideBlock])
def test_written_out_it_is_the_same_function(block):
    model, (variables, images) = network(block), drawn(block)
    masks = jaxsparse.magnitude_masks(variables["params"], sparsity=0.5)
    variables = {**variables, "params": jaxsparse.apply_masks(variables["params"], masks)}
    alone, own, own_masks = without_sharing(model, variables, masks)
    assert jax.tree.map(jnp.shape, own) == jax.tree.map(
        jnp.shape, jax.eval_shape(alone.init, jax.random.key(0), images)
    )
    np.testing.assert_allclose(
        alone.apply(own, images), model.apply(variables, images), rtol=1e-5, atol=1e-6
    )
    jaxsparse.check(own["params"], (), own_masks)
    assert jaxsparse.num_active(own_masks) > jaxsparse.num_active(masks)
    assert without_sharing(alone, own, own_masks) == (alone, own, own_masks)


def test_a_network_that_lacks_what_it_shares_cannot_be_written_out():
    variables, _ = drawn(BasicBlock)
    params = {name: dict(layers) for name, layers in variables["params"].items()}
    del params["stage1_block3"]["scale2"]
    with pytest.raises(ValueError, match="params: stage1_block3 has no scale2 for stage1_block2"):
        without_sharing(network(), {"params": params})
    del params["stage1_block2"]
    with pytest.raises(ValueError, match="stage1_block2, whose kernels stage1_block3 shares"):
        without_sharing(network(), {"params": params})
