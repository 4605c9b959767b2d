"""NNX models executed by their active weights, beside the same models with masked kernels."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax

import jaxsparse
from jaxsparse.nn.sparse_nnx import (
    SparseConv,
    SparseLinear,
    dense_modules,
    move_optimizer,
    positions_in,
    sparse_modules,
)
from jaxsparse.paths import leaves_by_path
from jaxsparse.sparse import to_dense, to_mask, to_sparse
from jaxsparse.sparse.states import find_positions

close = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-5)


class Model(nnx.Module):
    """Layers in attributes, in a list and used twice, with a smooth activation."""

    def __init__(self, rngs):
        self.first = nnx.Conv(3, 8, (3, 3), padding=((1, 0), 2), rngs=rngs)
        self.blocks = nnx.List([nnx.Conv(8, 8, (3, 3), use_bias=False, rngs=rngs)])
        self.again = self.blocks[0]
        self.head = nnx.Linear(4 * 7 * 8, 5, rngs=rngs)

    def __call__(self, x):
        x = nnx.softplus(self.first(x))
        x = nnx.softplus(self.blocks[0](x))
        x = nnx.softplus(self.again(x))
        return self.head(x.reshape(x.shape[0], -1))


def params_of(model):
    return nnx.as_pure(nnx.state(model, nnx.Param))


def start(method):
    """A model with masked weights, its masks, images and labels."""
    model = Model(nnx.Rngs(0))
    masks = method.init(jax.random.key(1), params_of(model))
    nnx.update(model, jaxsparse.apply_masks(params_of(model), masks))
    images = jax.random.normal(jax.random.key(2), (8, 5, 5, 3))
    return model, masks, images, jnp.arange(8) % 5


def loss_of(model, images, labels):
    return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()


RIGL = jaxsparse.rigl(sparsity=0.8, total_steps=100, update_interval=3)


def test_outputs_and_gradients_of_a_whole_model():
    model, masks, images, labels = start(RIGL)
    positions = find_positions(masks)
    sparse = sparse_modules(model, positions)
    assert isinstance(sparse.head, SparseLinear) and type(model.head) is nnx.Linear
    assert isinstance(sparse.blocks[0], SparseConv) and sparse.again is sparse.blocks[0]
    close(sparse(images), model(images))

    both = nnx.jit(nnx.value_and_grad(loss_of))
    (loss, grads), (expected, full) = (both(m, images, labels) for m in (sparse, model))
    close(loss, expected)
    ours, theirs = leaves_by_path(nnx.as_pure(grads)), leaves_by_path(nnx.as_pure(full))
    assert ours.keys() == theirs.keys()  # positions have none
    for path, grad in ours.items():
        where = positions.get(path)
        found = grad if where is None else to_dense(grad, where)
        close(found, theirs[path] if where is None else theirs[path] * to_mask(where))


def test_there_and_back():
    model, masks, images, _ = start(RIGL)
    positions = find_positions(masks)
    sparse = sparse_modules(model, positions)
    full = dense_modules(sparse)
    chex.assert_trees_all_equal(params_of(full), params_of(model))
    assert nnx.graphdef(full) == nnx.graphdef(model)
    found = positions_in(sparse)
    assert found.keys() == positions.keys()
    chex.assert_trees_all_equal(found, positions)
    # They are copies: training one does not change the other.
    sparse.head.bias[...] += 1.0
    assert not full.head.bias[...].any() and not model.head.bias[...].any()


def test_layers_without_positions_are_as_they_were():
    model, masks, images, _ = start(RIGL)
    some = {"head/kernel": find_positions(masks)["head/kernel"]}
    sparse = sparse_modules(model, some)
    assert type(sparse.first) is nnx.Conv and type(sparse.again) is nnx.Conv
    close(sparse(images), model(images))


def test_inputs_that_are_not_float32_are_refused_by_the_layer():
    model, masks, images, _ = start(RIGL)
    sparse = sparse_modules(model, find_positions(masks))
    with pytest.raises(ValueError, match="^first/kernel: images have dtype uint8; they must be fl"):
        sparse(images.astype(jnp.uint8))
    with pytest.raises(ValueError, match=r"^head/kernel: x has shape \(2, 3\); the kernel of shap"):
        sparse.head(jnp.ones((2, 3)))


@pytest.mark.parametrize("tx", [optax.sgd(0.1, momentum=0.9), optax.adamw(1e-2)])
def test_training_with_an_event_in_between(tx):
    """Three steps, an event of RigL and three more, in sparse execution and with masks."""
    traced = []

    @nnx.jit
    def sparse_step(model, optimizer, images, labels):
        traced.append(1)
        optimizer.update(model, nnx.grad(loss_of)(model, images, labels))

    @nnx.jit
    def masked_step(model, optimizer, masks, images, labels):
        optimizer.update(model, nnx.grad(loss_of)(model, images, labels), masks=masks)

    def event_of(model, optimizer, masks, *batch):
        params, opt_state = nnx.as_pure((nnx.state(model, nnx.Param), optimizer.opt_state))
        grads = nnx.as_pure(nnx.grad(loss_of)(model, *batch))
        event = RIGL.update(params, grads, masks, 3)
        params, opt_state = jaxsparse.apply_event(optimizer.tx, event, params, opt_state)
        nnx.update(model, params)
        nnx.update(optimizer.opt_state, nnx.state(opt_state))
        return event.masks

    model, masks, *batch = start(RIGL)
    optimizer = nnx.Optimizer(model, jaxsparse.masked(tx), wrt=nnx.Param)
    sparse = sparse_modules(model, find_positions(masks))
    compact = nnx.Optimizer(sparse, tx, wrt=nnx.Param)
    sizes = [np.size(x) for x in jax.tree.leaves(nnx.as_pure(compact.opt_state))]
    assert max(sizes) == max(where.capacity for where in positions_in(sparse).values())

    for _ in range(3):
        masked_step(model, optimizer, masks, *batch)
        sparse_step(sparse, compact, *batch)
    before = masks
    masks = event_of(model, optimizer, before, *batch)
    full = dense_modules(sparse)
    full_optimizer = move_optimizer(compact, sparse, full)
    found = event_of(full, full_optimizer, before, *batch)
    chex.assert_trees_all_equal(found, masks)
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (masks, before)), strict=True))
    sparse = sparse_modules(full, find_positions(masks))
    compact = move_optimizer(full_optimizer, full, sparse)
    for _ in range(3):
        masked_step(model, optimizer, masks, *batch)
        sparse_step(sparse, compact, *batch)

    full = dense_modules(sparse)
    close(params_of(full), params_of(model))
    slots = move_optimizer(compact, sparse, full)
    masked_slots = jaxsparse.transforms.mask_slots(
        optimizer.tx, nnx.as_pure(optimizer.opt_state), masks
    )
    close(nnx.as_pure(slots.opt_state), masked_slots)
    assert slots.step[...] == 6 and len(traced) == 1  # the event has compiled nothing


CONVS = {
    "plain": {},
    "stride, same": {"strides": 2},
    "stride and taps of two kinds": {"kernel_size": (3, 2), "strides": (1, 2), "padding": "VALID"},
    "padding of each end": {"padding": ((1, 0), 2)},
    "dilation": {"kernel_dilation": (2, 1), "padding": 1},
    "groups without bias": {"feature_group_count": 2, "use_bias": False},
}


def check_convolution(options, batch):
    layer = nnx.Conv(4, 6, **{"kernel_size": (3, 3), **options}, rngs=nnx.Rngs(0))
    if layer.bias is not None:
        layer.bias[...] = jnp.arange(6.0)
    mask = jax.random.bernoulli(jax.random.key(0), 0.4, layer.kernel.shape)
    layer.kernel[...] = layer.kernel[...] * mask
    sparse = sparse_modules(layer, find_positions({"kernel": mask}))
    images = jax.random.normal(jax.random.key(1), (*batch, 7, 8, 4))
    close(sparse(images), layer(images))
    assert nnx.graphdef(sparse.dense()) == nnx.graphdef(layer)


@pytest.mark.parametrize("options", CONVS.values(), ids=CONVS)
def test_options_of_a_convolution(options):
    check_convolution(options, batch=(2, 3))


def test_one_image_without_a_batch():
    check_convolution(CONVS["plain"], batch=())


def positions_for(shape):
    return to_sparse(jnp.ones(shape), jnp.ones(shape, bool))[1]


own_conv = lambda *args, **kwargs: lax.conv_general_dilated(*args, **kwargs)
own_dot = lambda *args, **kwargs: lax.dot_general(*args, **kwargs)
half = jnp.bfloat16
REFUSED = [
    (nnx.Conv, (4, 4, (3,)), {}, "kernel has 1 spatial axes, where sparse layers"),
    (nnx.Conv, (4, 4, (3, 3)), {"padding": "CIRCULAR"}, "kernel has padding='CIRCULAR'"),
    (nnx.Conv, (4, 4, (3, 3)), {"input_dilation": 2}, "kernel has input_dilation=2"),
    (nnx.Conv, (4, 4, (3, 3)), {"dtype": half}, "kernel has dtype="),
    (nnx.Conv, (4, 4, (3, 3)), {"param_dtype": half}, "kernel is bfloat16 and"),
    (
        nnx.Conv,
        (4, 4, (3, 3)),
        {"conv_general_dilated": own_conv},
        "kernel has a product of its own",
    ),
    (nnx.Linear, (4, 4), {"dtype": half}, "kernel has dtype="),
    (nnx.Linear, (4, 4), {"dot_general": own_dot}, "kernel has a dot_general of its own"),
    (nnx.Linear, (4, 4), {"preferred_element_type": half}, "kernel is float32 and preferred_elem"),
    (nnx.ConvTranspose, (4, 4, (3, 3)), {}, "kernel belongs to a ConvTranspose, which has no spar"),
]


@pytest.mark.parametrize(("kind", "sizes", "options", "message"), REFUSED)
def test_what_has_no_sparse_form_is_named(kind, sizes, options, message):
    layer = kind(*sizes, **options, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=message):
        sparse_modules(layer, {"kernel": positions_for(layer.kernel.shape)})


def test_what_does_not_fit_is_named():
    model = Model(nnx.Rngs(0))
    with pytest.raises(ValueError, match="positions of body/kernel, which is no kernel of the mod"):
        sparse_modules(model, {"body/kernel": positions_for((3, 3))})
    with pytest.raises(ValueError, match=r"head/kernel is \(224, 5\), its positions are of \(3, 3"):
        sparse_modules(model, {"head/kernel": positions_for((3, 3))})
    model.blocks.append(nnx.Conv(8, 8, (3, 3), rngs=nnx.Rngs(1)))
    model.blocks[1].kernel = model.blocks[0].kernel
    message = "again/kernel belongs to again/kernel and blocks/1/kernel; it stays dense"
    with pytest.raises(ValueError, match=message):
        sparse_modules(model, {"again/kernel": positions_for((3, 3, 8, 8))})
    sparse_modules(model, {"head/kernel": positions_for((224, 5))})  # the others may be tied


def stack_of_layers(rngs):
    make = nnx.vmap(lambda rngs: nnx.Linear(4, 4, rngs=rngs), axis_size=3)
    return nnx.List([nnx.split_rngs(splits=3)(make)(rngs)])


def normalised(kind):
    return lambda rngs: nnx.List([kind(nnx.Linear(4, 4, rngs=rngs), rngs=rngs)])


@pytest.mark.parametrize(
    ("make", "path", "message"),
    [
        (stack_of_layers, "0/kernel", r"0/kernel is \(3, 4, 4\), a stack of layers \(nnx.vmap\)"),
        (
            normalised(nnx.SpectralNorm),
            "0/layer_instance/kernel",
            "0/layer_instance/kernel is changed by an nnx.SpectralNorm at every call; it stays",
        ),
        (
            normalised(nnx.WeightNorm),
            "0/layer_instance/kernel",
            "0/layer_instance/kernel is changed by an nnx.WeightNorm at every call; it stays",
        ),
    ],
)
def test_stacks_and_norms_of_kernels_are_named(make, path, message):
    model = make(nnx.Rngs(0))
    masks = RIGL.init(jax.random.key(0), nnx.as_pure(nnx.state(model, nnx.Param)))
    positions = find_positions(masks)
    assert positions.keys() == {path}
    with pytest.raises(ValueError, match=message):
        sparse_modules(model, positions)


def test_a_layer_with_low_rank_weights_beside_it():
    layer = nnx.LoRA(6, 2, 8, base_module=nnx.Linear(6, 8, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1))
    layer.lora_b[...] += 1.0
    masks = RIGL.init(jax.random.key(0), nnx.as_pure(nnx.state(layer, nnx.Param)))
    assert find_positions(masks).keys() == {"base_module/kernel"}
    nnx.update(layer, jaxsparse.apply_masks(nnx.as_pure(nnx.state(layer, nnx.Param)), masks))
    sparse = sparse_modules(layer, find_positions(masks))
    x = jax.random.normal(jax.random.key(1), (3, 6))
    close(sparse(x), layer(x))
