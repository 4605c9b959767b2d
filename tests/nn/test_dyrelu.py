"""DyReLU: its formula, its phase-out, and that nothing of it is left afterwards."""

import functools
import re
from typing import Any

import chex
import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import jaxsparse
from jaxsparse.nn import (
    VGG,
    BasicBlock,
    DyReLU,
    DyReLUOptions,
    LeNet5,
    LeNet300100,
    WideResNet,
    beta_of,
    cifar_resnet,
    freeze_dyrelu,
    phase_out,
    resnet,
    with_beta,
    without_dyrelu,
)
from jaxsparse.nn.dyrelu import _larger_line
from jaxsparse.nn.resnet import ResNet
from jaxsparse.paths import leaf_paths, leaves_by_path
from tests.trees import fill

IMAGES = jax.random.normal(jax.random.key(0), (3, 4, 4, 8))
DYRELU = DyReLU()
PARAMS = jax.jit(DYRELU.init)(jax.random.key(1), IMAGES)
NETWORKS = {
    "lenet5": (LeNet5(), (28, 28, 1), 4),
    "lenet_300_100": (LeNet300100(), (28, 28, 1), 2),
    "vgg16": (VGG(16), (32, 32, 3), 13),
    "wrn": (WideResNet(10, 1), (32, 32, 3), 7),
    "resnet8": (cifar_resnet(8), (32, 32, 3), 7),
    "resnet50": (resnet(50, width=4), (32, 32, 3), 49),
}


def reference(x, params, beta):
    """The formula in NumPy, image by image."""
    w1, b1, w2, b2 = (np.asarray(params[name], np.float64) for name in ("w1", "b1", "w2", "b2"))
    out = []
    for image in np.asarray(x, np.float64):
        z = np.maximum(image.mean((0, 1)) @ w1 + b1, 0) @ w2 + b2
        theta = (2 / (1 + np.exp(-z)) - 1).reshape(-1, 4)
        a1, a2, c1, c2 = (np.array([1, 0, 0, 0]) + beta * theta * [1, 1, 0.5, 0.5]).T
        out.append(np.maximum(a1 * image + c1, a2 * image + c2))
    return np.stack(out)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_it_is_the_formula(beta):
    found = DYRELU.apply(PARAMS, IMAGES, beta)
    np.testing.assert_allclose(found, reference(IMAGES, PARAMS["params"], beta), atol=1e-5)


@pytest.mark.parametrize("blend", ["coefficient", "output"])
def test_at_zero_it_is_relu_to_the_bit_and_so_is_its_gradient(blend):
    x = jnp.concatenate([IMAGES, jnp.zeros((1, 4, 4, 8))])
    act = lambda x: DyReLU(blend=blend).apply(PARAMS, x, 0.0)
    assert (np.asarray(act(x)).view(np.int32) == np.asarray(nn.relu(x)).view(np.int32)).all()
    weights = jax.random.normal(jax.random.key(2), x.shape)
    grads, expected = (jax.grad(lambda x, f=f: (f(x) * weights).sum())(x) for f in (act, nn.relu))
    np.testing.assert_array_equal(grads, expected)
    assert (grads[-1] == 0).all()


def test_without_an_answer_of_the_hyperfunction_it_is_relu_for_any_beta():
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    for beta in (0.0, 0.5, 1.0):
        np.testing.assert_array_equal(DYRELU.apply(zeros, IMAGES, beta), nn.relu(IMAGES))


@pytest.mark.parametrize("beta", [0.0, 0.25, 1.0])
def test_coefficients_stay_within_beta_and_reach_it(beta):
    """|a1 - 1| <= beta, |a2| <= beta, |c| <= beta / 2, with 1000 times the initial parameters.

    Far from 0, the outputs show the steeper line on the right and the flatter one on the left.
    """
    x = jnp.broadcast_to(jnp.array([32.0, 16.0, -16.0, -32.0, 0.0])[:, None], (6, 1, 5, 64))
    x = x.at[:, :, -1].set(jax.random.normal(jax.random.key(3), (6, 1, 64)))
    params = jax.tree.map(lambda w: 1e3 * w, DYRELU.init(jax.random.key(4), x))
    y = np.asarray(DYRELU.apply(params, x, beta), np.float64)[:, 0]
    right, left = (y[:, 0] - y[:, 1]) / 16, (y[:, 2] - y[:, 3]) / 16
    crossings = 2 * y[:, 1] - y[:, 0], 2 * y[:, 2] - y[:, 3]  # of each line with x = 0
    for value, bound in ((right - 1, beta), (left, beta), *((c, beta / 2) for c in crossings)):
        for end in (value.min(), -value.max()):
            assert -bound - 1e-5 <= end <= -0.99 * bound + 1e-5


floats = functools.partial(st.floats, width=32)


@hypothesis.given(
    x=hnp.arrays(np.float32, (2, 3, 4), elements=floats(-10, 10)),
    theta=hnp.arrays(np.float32, (2, 4, 4), elements=floats(-1, 1)),
    beta=floats(0, 1),
)
def test_coefficients_blend_below_outputs(x, theta, beta):
    lines = lambda theta: _larger_line(x, jnp.asarray(theta), "NHWC")
    blended = lines(beta * theta)
    output = beta * lines(theta) + (1 - beta) * np.maximum(x, 0)
    assert (blended <= output + 1e-5).all()
    if beta in (0, 1):
        np.testing.assert_allclose(blended, output, atol=1e-6)


def test_blend_of_outputs_is_that_of_the_ends():
    at = lambda beta: DyReLU(blend="output").apply(PARAMS, IMAGES, beta)
    np.testing.assert_allclose(at(0.25), 0.25 * at(1.0) + 0.75 * at(0.0), atol=1e-6)
    np.testing.assert_array_equal(at(1.0), DYRELU.apply(PARAMS, IMAGES, 1.0))


def test_coefficients_are_an_images_own():
    shuffled = IMAGES.at[0].set(IMAGES[0, ::-1, ::-1])
    found, other = DYRELU.apply(PARAMS, IMAGES), DYRELU.apply(PARAMS, shuffled)
    np.testing.assert_allclose(other[0], found[0, ::-1, ::-1], atol=1e-6)
    np.testing.assert_array_equal(other[1:], found[1:])
    changed = DYRELU.apply(PARAMS, IMAGES.at[0].add(1.0))
    np.testing.assert_array_equal(changed[1:], found[1:])


def test_channel_major_and_vectors():
    major = DyReLU(layout="CHWN").apply(PARAMS, IMAGES.transpose(3, 1, 2, 0), 0.7)
    found = DYRELU.apply(PARAMS, IMAGES, 0.7)
    np.testing.assert_allclose(major.transpose(3, 1, 2, 0), found, atol=1e-6)
    vectors = IMAGES[:, 0, 0]
    one_pixel = DYRELU.apply(PARAMS, IMAGES[:, :1, :1])
    np.testing.assert_allclose(DYRELU.apply(PARAMS, vectors), one_pixel[:, 0, 0], atol=1e-6)


def test_parameters_and_dtypes():
    sizes = {name: x.shape for name, x in PARAMS["params"].items()}
    assert sizes == {"w1": (8, 2), "b1": (2,), "w2": (2, 32), "b2": (32,)}
    assert max(abs(np.asarray(PARAMS["params"]["w1"])).ravel()) <= 8**-0.5
    for blend in ("coefficient", "output"):
        act = DyReLU(blend=blend).apply(PARAMS, IMAGES.astype(jnp.bfloat16), jnp.float32(0.3))
        assert act.dtype == jnp.bfloat16
    tiny = DyReLU(reduction=16).init(jax.random.key(0), IMAGES)["params"]
    assert tiny["w1"].shape == (8, 1)


@pytest.mark.parametrize("fields", [{"blend": "input"}, {"reduction": 0}, {"reduction": 1.5}])
def test_wrong_options(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        DyReLU(**fields)


def test_beta_over_the_epochs():
    at = lambda e, **late: float(beta_of(e, start_step=62.5, stop_step=124, **late))
    assert [at(e) for e in (1, 62, 124, 125, 250)] == [1, 1, 0, 0, 0]
    np.testing.assert_allclose([at(e) for e in (63, 93, 123)], [0.992, 0.504, 0.016], atol=5e-4)
    betas = np.array([at(e) for e in range(63, 125)])
    assert (np.diff(betas) < 0).all() and np.ptp(np.diff(betas)) < 1e-6
    assert [at(e, late=True) for e in (1, 62)] == [0, 0] and at(63, late=True) == at(63)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_has_it_and_no_method_sees_it(name):
    model, shape, number = NETWORKS[name]
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    before = jax.eval_shape(model.init, jax.random.key(0), image)
    after = jax.eval_shape(model.clone(dyrelu=DyReLUOptions()).init, jax.random.key(0), image)
    added = set(leaf_paths(after["params"])) - set(leaf_paths(before["params"]))
    assert len(added) == 4 * number and all("dyrelu" in path for path in added)
    prunable = jaxsparse.prunable_paths(after["params"])
    assert prunable == jaxsparse.prunable_paths(before["params"])
    chex.assert_trees_all_equal(without_dyrelu(after), before)


def test_sizes_of_the_paper():
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    for depth, number, size in ((34, 33, 3_181_168), (50, 49, 28_394_800)):
        model = resnet(depth, stem="cifar", num_classes=10, dyrelu=DyReLUOptions())
        params = leaves_by_path(jax.eval_shape(model.init, jax.random.key(0), image)["params"])
        leaves = [x for path, x in params.items() if "dyrelu" in path]
        assert (len(leaves), sum(x.size for x in leaves)) == (4 * number, size)


def training_program(state, collections, images):
    """The compiled program of a training step, without the names of our functions and lines."""

    def step(state, collections, images):
        def loss(params):
            logits, updated = state.apply_fn(
                {"params": params, **collections}, images, train=True, mutable=[*collections]
            )
            return (logits**2).sum(), updated

        (value, updated), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        return state.apply_gradients(grads=grads), updated, value

    text = jax.jit(step).lower(state, collections, images).compile().as_text()
    tables = r"\n(FileNames|FunctionNames|FileLocations|StackFrames)\n(.+\n)+"
    return re.sub(rf", metadata={{[^}}]*}}|{tables}", "", text)


def test_phasing_out_leaves_the_relu_network():
    plain = ResNet((1,), BasicBlock, width=4, stem="cifar")
    model = plain.clone(dyrelu=DyReLUOptions())
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(1), images)
    variables = jax.tree.map(jnp.abs, fill(shapes, seed=0))
    params = variables.pop("params")
    method = jaxsparse.rigl(sparsity=0.5, total_steps=100, update_interval=10)
    tx = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.1, momentum=0.9))
    state = jaxsparse.TrainState.create(
        apply_fn=model.apply, params=params, tx=tx, method=method, key=jax.random.key(2)
    )
    assert any("dyrelu" in path for path in leaf_paths(state))
    relu, left = phase_out(model, state)
    assert not any("dyrelu" in path for path in leaf_paths(left))
    assert left.opt_state[1][0].trace.keys() == left.params.keys() == left.masks.keys()
    expected = model.apply({"params": state.params, **with_beta(variables, 0.0)}, images)
    rest = without_dyrelu(variables)
    assert rest.keys() == {"batch_stats"}
    np.testing.assert_array_equal(left.apply_fn({"params": left.params, **rest}, images), expected)
    # The training step is that of a network that never had DyReLU.
    params = jax.eval_shape(plain.init, jax.random.key(1), images)["params"]
    create = functools.partial(
        jaxsparse.TrainState.create, apply_fn=plain.apply, tx=tx, method=method
    )
    begun = jax.eval_shape(lambda params, key: create(params=params, key=key), params, left.key)
    program = training_program(left, rest, images)
    assert program == training_program(begun, rest, images)
    assert program.count("convolution(") > 3
    # And it trains on.
    left = left.apply_gradients(grads=jax.tree.map(jnp.ones_like, left.params), event=True)
    jaxsparse.check(left.params, left.opt_state, left.masks)


@pytest.mark.variants
@pytest.mark.parametrize("beta", [1.0, 1e-3])
def test_phasing_out_before_beta_is_0_is_refused(beta):
    class State(jaxsparse.TrainState):
        collections: Any

    model = LeNet5(dyrelu=DyReLUOptions())
    variables = dict(model.init(jax.random.key(0), jnp.ones((1, 28, 28, 1))))
    state = State.create(
        apply_fn=model.apply,
        params=variables.pop("params"),
        collections=with_beta(variables, beta),
        tx=optax.sgd(0.1),
        method=jaxsparse.rigl(sparsity=0.5, total_steps=100, update_interval=10),
        key=jax.random.key(1),
    )
    with pytest.raises(
        ValueError, match=rf"collections/dyrelu/beta is {beta}.*, not 0: .* `with_b"
    ):
        phase_out(model, state)
    at_zero = state.replace(collections=with_beta(variables, 0.0))
    assert phase_out(model, at_zero)[1].collections == {}
    shapes = jax.eval_shape(lambda state: phase_out(model, state)[1], state)  # no value to look at
    assert not any("dyrelu" in path for path in leaf_paths(shapes))
    phase_out(model, jax.eval_shape(lambda: state))


def test_an_optimizer_of_its_own_trains_on_without_it():
    params = {"dyrelu1": {"w1": jnp.ones(2)}, "fc": {"kernel": jnp.ones((2, 2))}}
    labels = lambda params: {name: "dyrelu" if "dyrelu" in name else "rest" for name in params}
    both = {"dyrelu": optax.sgd(0.2, momentum=0.5), "rest": optax.sgd(0.1, momentum=0.9)}
    tx = optax.multi_transform(both, labels)
    state, left = without_dyrelu((tx.init(params), params))
    assert not any("dyrelu1" in path for path in leaf_paths(state))
    updates, _ = tx.update(left, state, left)
    chex.assert_trees_all_close(updates, {"fc": {"kernel": jnp.full((2, 2), -0.1)}})


def test_freezing():
    params = {"dyrelu1": {"w1": jnp.ones(2)}, "fc": {"kernel": jnp.ones((2, 2))}}
    tx = optax.chain(optax.sgd(0.1, momentum=0.9), freeze_dyrelu(2))
    state = tx.init(params)
    moved = []
    for _ in range(4):
        updates, state = tx.update(params, state, params)
        moved.append([bool((x != 0).all()) for x in jax.tree.leaves(updates)])
    assert moved == [[True, True], [True, True], [False, True], [False, True]]
