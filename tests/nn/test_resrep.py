"""ResRep on our ResNets: targets, exact insertion, costs by the counter, and the merged network."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse
from jaxsparse.nn import (
    DyReLUOptions,
    WideResNet,
    cifar_resnet,
    compactor_costs,
    compactor_targets,
    insert_compactors,
    merge_compactors,
    resnet,
    sparse_execution,
    torchvision_name,
)
from jaxsparse.paths import leaves_by_path, with_leaves
from jaxsparse.sparse import compress_leaves, find_positions
from jaxsparse.structured import kept_rows

pytestmark = pytest.mark.variants  # our own code, which knows little of versions

IMAGES = jax.random.normal(jax.random.key(9), (2, 8, 8, 3))


def shapes_of(model, side=32):
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), image)


def shapes_by_path(tree):
    return {path: leaf.shape for path, leaf in leaves_by_path(tree).items()}


def drawn(model):
    """Variables whose norms and statistics are not those of the start."""
    leaves = leaves_by_path(shapes_of(model, 8))
    rng = np.random.default_rng(1)

    def draw(path, shape):
        x = rng.normal(size=shape)
        if path.endswith("kernel"):
            return jnp.asarray(x / np.sqrt(np.prod(shape[:-1]) / 2), jnp.float32)
        if path.endswith(("scale", "var")):
            return jnp.asarray(0.5 + np.abs(x), jnp.float32)
        return jnp.asarray(0.2 * x, jnp.float32)

    new = {path: draw(path, leaf.shape) for path, leaf in leaves.items()}
    return with_leaves(shapes_of(model, 8), new)


def trained_matrix(size, seed, dead=1e-7):
    """A compactor late in training: near the identity, every third row nearly 0."""
    matrix = np.eye(size) + 0.1 * np.random.default_rng(seed).normal(size=(size, size))
    matrix[:, 1::3] *= dead / np.linalg.norm(matrix[:, 1::3], axis=0, keepdims=True)
    return jnp.asarray(matrix, jnp.float32)


def with_trained_compactors(variables):
    leaves = {p: x for p, x in leaves_by_path(variables).items() if p.endswith("/matrix")}
    trained = {p: trained_matrix(x.shape[0], i) for i, (p, x) in enumerate(leaves.items())}
    return with_leaves(variables, trained)


@pytest.fixture(scope="module")
def twenty():
    """ResNet-20 with compactors late in training, and the network that is merged from it."""
    model, variables = insert_compactors(cifar_resnet(20), drawn(cifar_resnet(20)))
    variables = with_trained_compactors(variables)
    return model, variables, *merge_compactors(model, variables)


@pytest.mark.parametrize(
    ("model", "num", "filters"), [(cifar_resnet(56), 27, 1_008), (resnet(50), 32, 7_552)]
)
def test_the_targets_of_the_paper(model, num, filters):
    targets, params = compactor_targets(model), leaves_by_path(shapes_of(model)["params"])
    assert len(targets) == num
    assert sum(params[target.conv].shape[-1] for target in targets) == filters
    for target in targets:
        assert params[target.consumer].shape[-2] == params[target.conv].shape[-1]
        assert f"{target.norm}/scale" in params
    own = {p for p in leaves_by_path(shapes_of(model.clone(after_inner="compactor"))["params"])}
    assert own - set(params) == {target.compactor for target in targets}


def test_insertion_changes_no_bit():
    """Operation by operation: a compiler may fuse the norms otherwise, and round otherwise."""
    model = cifar_resnet(8, width=2).clone(stage_sizes=(1,))
    plain = drawn(model)
    with_q, inserted = insert_compactors(model, plain)
    np.testing.assert_array_equal(model.apply(plain, IMAGES), with_q.apply(inserted, IMAGES))
    assert shapes_by_path(inserted) == shapes_by_path(shapes_of(with_q, 8))


def test_the_merged_network_is_the_one_with_compactors(twenty):
    model, variables, narrow, merged = twenty
    assert narrow.after_inner == "bias" and narrow.widths["stage3_block1/conv1"] == 43  # of 64
    assert shapes_by_path(merged) == shapes_by_path(shapes_of(narrow, 8))
    expected = np.asarray(jax.jit(model.apply)(variables, IMAGES))
    found = np.asarray(jax.jit(narrow.apply)(merged, IMAGES))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    names = [torchvision_name(path) for path in leaves_by_path(merged)]
    assert len(set(names)) == len(names) and "layer1.0.conv1.bias" in names
    assert hash(narrow) == hash(narrow.clone()) and narrow == narrow.clone()


def test_the_merged_network_costs_what_the_table_says(twenty):
    model, variables, narrow, merged = twenty
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    costs = compactor_costs(model, image)
    assert costs({}) == 40_813_184  # of the network without compactors
    leaves = leaves_by_path(variables["params"])
    widths = {path: int(kept_rows(leaves[path]).sum()) for path in costs.widths}
    stats = {"batch_stats": merged["batch_stats"]}
    forward = lambda params, x: narrow.apply({"params": params, **stats}, x)
    flops = jaxsparse.layer_flops(forward, merged["params"], image)
    assert 2 * costs(widths) == sum(flops.values())


# What the released log of ResNet-50 ends with: widths of conv1 and conv2 of every bottleneck.
PUBLISHED = """
    22 22  23 36  1 1  62 97  16 49  38 68  41 92  189 204  69 145  65 139  64 94  67 89  86 95
    473 488  171 281  511 512
"""
SHORTCUTS = ((28, 512), (14, 1024), (7, 2048))  # side and channels of their outputs


def test_the_cost_of_resnet50():
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    costs = compactor_costs(resnet(50), image)
    assert costs({}) == 4_089_184_256
    # The stem, the shortcuts and the classifier keep their cost.
    stem, fc = 112**2 * 49 * 3 * 64, 2048 * 1000
    shortcuts = 56**2 * 64 * 256 + sum(s**2 * (w // 2) * w for s, w in SHORTCUTS)
    assert costs.constant == stem + shortcuts + fc
    published = list(map(int, PUBLISHED.split()))
    found = costs(dict(zip(costs.widths, published, strict=True))) / costs({})
    assert found == pytest.approx(0.4546, abs=1e-4)
    assert sum(costs.widths.values()) - sum(published) == 3_242


@pytest.mark.variants
def test_a_bottleneck_trains_and_merges_in_either_layout():
    """One step with compactors, the merge in both layouts, and one step of the merged network."""
    model = resnet(50, stem="cifar", num_classes=5, width=4).clone(stage_sizes=(1,))
    with_q, variables = insert_compactors(model, drawn(model))
    variables = with_trained_compactors(variables)
    narrow, merged = merge_compactors(with_q, variables)
    both = lambda model, v: [
        jax.jit(model.clone(layout=layout).apply)(v, IMAGES) for layout in ("NHWC", "CHWN")
    ]
    expected, *others = (*both(with_q, variables), *both(narrow, merged))
    for logits in others:
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    tx = optax.sgd(0.1)

    @jax.jit
    def step(v):
        def loss(params):
            rest = {"params": params, "batch_stats": v["batch_stats"]}
            logits, stats = narrow.apply(rest, IMAGES, train=True, mutable=["batch_stats"])
            return jnp.mean(logits**2), stats

        grads, stats = jax.grad(loss, has_aux=True)(v["params"])
        updates, _ = tx.update(grads, tx.init(v["params"]))
        return {"params": optax.apply_updates(v["params"], updates), **stats}

    new = step(merged)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), new["params"], merged["params"])
    assert all(jax.tree.leaves(moved)) and shapes_by_path(new) == shapes_by_path(merged)


@pytest.mark.variants
def test_the_merged_network_by_its_active_weights():
    """Sparse execution adds the bias of a convolution, in the layout where it has to be its own."""
    model = cifar_resnet(8, width=4, after_inner="bias", layout="CHWN").clone(stage_sizes=(1,))
    variables = drawn(model)
    masks = jax.tree.map(lambda x: x > 0.1 if x.ndim > 1 else x == x, variables["params"])
    positions = find_positions(masks)
    short = {**variables, "params": compress_leaves(variables["params"], positions)}
    with sparse_execution(positions):
        found = jax.jit(lambda v: model.apply(v, IMAGES))(short)
    masked = jaxsparse.apply_masks(variables["params"], masks)
    expected = jax.jit(model.apply)({**variables, "params": masked}, IMAGES)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


SMALL = cifar_resnet(8, width=2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compactor_targets(WideResNet(10, 1)), "WideResNet has no place .* does not"),
        (
            lambda: compactor_targets(cifar_resnet(8, dyrelu=DyReLUOptions())),
            "DyReLU does not map 0 to 0",
        ),
        (
            lambda: cifar_resnet(8, dyrelu=DyReLUOptions(), after_inner="compactor"),
            "after_inner 'compactor' needs ReLU: DyReLU",
        ),
        (lambda: compactor_targets(cifar_resnet(20, num_owners=2)), "num_owners 2 shares kernels"),
        (lambda: cifar_resnet(20, num_owners=2, after_inner="bias"), "num_owners 2 shares kernels"),
        (lambda: cifar_resnet(8, after_inner="none"), "after_inner 'none' must be 'norm', 'comp"),
        (lambda: insert_compactors(SMALL.clone(after_inner="bias"), {}), "'bias' must be 'norm'"),
        (lambda: merge_compactors(SMALL, {}), "after_inner 'norm' must be 'compactor' to merge"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
