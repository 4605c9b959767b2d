"""Criteria against explicit sums, and the narrow network that training starts with."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.structured import arms, one_shot
from experiments.structured.arms import ARMS
from experiments.structured.setting import Stretch, multiply_adds, traced
from jaxsparse.structured import check_narrow
from tests.experiments.structured.tiny import BASE, INNER, OUTER, STEPS, make_setting, reached

pytestmark = pytest.mark.variants


@pytest.fixture(scope="module")
def setting():
    return make_setting(score_batches=2)


@pytest.fixture(scope="module")
def base(setting):
    return reached(setting)


def normalised(worth):
    return np.asarray(worth) / np.mean(worth)


def test_criteria_that_read_weights_alone(setting, base):
    params, (groups, _) = base.state.params, traced(setting.model, setting.image)
    block = params["stage1_block1"]
    found = one_shot.by_l1(setting, base, groups)
    kernels = [np.abs(x["kernel"]) for x in (block["conv1"], block["conv2"], params["conv1"])]
    inner, second, stem = (x.sum((0, 1, 2)) for x in kernels)
    np.testing.assert_allclose(found[INNER], normalised(inner), rtol=1e-6)
    np.testing.assert_allclose(found[OUTER], normalised(second + stem), rtol=1e-6)
    scales = one_shot.by_norm_scale(setting, base, groups)
    np.testing.assert_allclose(scales[INNER], normalised(block["norm1"]["scale"]), rtol=1e-6)
    drawn = [one_shot.by_random(setting, base, groups)[INNER] for _ in range(2)]
    np.testing.assert_array_equal(*drawn)


def test_taylor_is_the_mean_square_of_the_derivative_by_a_gate_behind_the_norm(setting, base):
    run, state, (groups, _) = setting.base, base.state, traced(setting.model, setting.image)
    found = one_shot.by_taylor(setting, base, groups)

    @jax.jit
    def derivatives(images, labels):
        def loss(gate):
            block = state.params["stage1_block1"]
            norm = {name: x * gate for name, x in block["norm1"].items()}
            params = {**state.params, "stage1_block1": {**block, "norm1": norm}}
            variables = {"params": params, **state.collections}
            logits, _ = run.model.apply(
                variables, run.normalise(images), train=True, mutable=["batch_stats"]
            )
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        return jax.grad(loss)(jnp.ones(6))

    batches = run.batches(BASE)
    each = [derivatives(*next(batches).take()) for _ in range(2)]
    np.testing.assert_allclose(found[INNER], normalised(np.square(each).sum(0)), rtol=1e-4)


def test_activation_is_the_mean_behind_the_relu(setting, base):
    run, (groups, _) = setting.base, traced(setting.model, setting.image)
    found = one_shot.by_activation(setting, base, groups)
    batches, means = run.batches(BASE), []
    for images, _ in (next(batches).take() for _ in range(2)):
        _, seen = run.model.apply(
            base.state.variables, run.normalise(images), capture_intermediates=True
        )
        norm = seen["intermediates"]["stage1_block1"]["norm1"]["__call__"][0]
        means.append(jax.nn.relu(norm).mean((0, 1, 2)))
    np.testing.assert_allclose(found[INNER], normalised(sum(means)), rtol=1e-5)


def test_training_starts_with_the_narrow_network(setting, base):
    begun = ARMS["l1"].begin(setting, base, Stretch(0.5, BASE + STEPS))
    groups, costs = traced(setting.model, setting.image)
    importance = one_shot.by_l1(setting, base, groups)
    plan = one_shot.plan(setting, setting.model, importance, target=0.5, ranking="global")
    assert costs(plan.widths) == multiply_adds(begun.model, setting.image) <= 0.5 * costs({})
    assert begun.model.conv_widths()["stage1_block1/conv1"] == plan.widths[INNER]
    images = setting.base.normalise(jnp.asarray(setting.base.dataset.test.images))
    variables = base.state.variables
    check_narrow(plan, setting.model.apply, begun.model.apply, variables, images)
    assert jax.tree.map(jnp.shape, begun.state.variables) == jax.tree.map(
        jnp.shape, plan.apply(variables)
    )
    assert (int(begun.state.step), begun.run.steps) == (BASE, BASE + STEPS)


def test_gradual_goes_on_with_what_is_left_of_the_momentum(setting, base):
    parts = arms.in_parts(setting._replace(narrowings=2))
    assert [(round(part.target, 3), part.last) for part in parts] == [(0.707, 6), (0.5, 12)]
    first = ARMS["gradual"].begin(setting, base, parts[0])
    momentum = jax.tree.map(lambda x: x + 1.0, first.state.params)
    trace = first.state.opt_state[1][0]._replace(trace=momentum)
    opt_state = (first.state.opt_state[0], (trace, *first.state.opt_state[1][1:]))
    end = base._replace(
        model=first.model, state=first.state.replace(step=jnp.int32(6), opt_state=opt_state)
    )
    second = ARMS["gradual"].begin(setting, end, parts[1])
    full, macs = multiply_adds(setting.model, setting.image), []
    for begun in (first, second):
        macs.append(multiply_adds(begun.model, setting.image) / full)
    assert 0.5 < macs[0] <= 0.707 and macs[1] <= 0.5
    kept = second.state.opt_state[1][0].trace
    for x, y in zip(jax.tree.leaves(kept), jax.tree.leaves(second.state.params), strict=True):
        np.testing.assert_array_equal(x, y + 1.0)


def test_a_target_that_no_widths_reach():
    with pytest.raises(ValueError, match=r"target 0.001 cannot be reached: the smallest widths"):
        ARMS["l1"].check(make_setting(target=0.001))
    with pytest.raises(ValueError, match=r"narrowings 9 must be a whole number in \[1, 4\]"):
        ARMS["gradual"].check(make_setting(narrowings=9))
