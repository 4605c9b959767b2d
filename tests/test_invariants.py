"""The check that names the first inactive weight or slot that is not exactly 0."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse

PARAMS = {
    "conv": {"kernel": jnp.ones((3, 3, 1, 4)), "bias": jnp.ones(4)},
    "fc": {"kernel": jnp.ones((40, 100)), "bias": jnp.ones(100)},
}


def first(n, shape):
    """A mask of which the first n entries are True."""
    return (jnp.arange(np.prod(shape)) < n).reshape(shape)


MASKS = {
    "conv": {"kernel": first(20, (3, 3, 1, 4)), "bias": jnp.ones(4, bool)},
    "fc": {"kernel": first(1000, (40, 100)), "bias": jnp.ones(100, bool)},
}
SOUND = jaxsparse.apply_masks(PARAMS, MASKS)


@pytest.mark.parametrize("value", [3.0, jnp.inf, jnp.nan, -1e-30])
def test_check_names_the_first_bad_weight(value):
    bad = SOUND | {"fc": SOUND["fc"] | {"kernel": SOUND["fc"]["kernel"].at[10:12, 5].set(value)}}
    message = r"params at fc/kernel: 2 of 3000 inactive entries .* the first at \(10, 5\) is "
    with pytest.raises(ValueError, match=message):
        jaxsparse.check(bad, (), MASKS)


@pytest.mark.parametrize(
    ("inner", "slots"),
    [
        (optax.sgd(0.1, momentum=0.9), ["0/trace"]),
        (optax.adam(0.1), ["0/mu", "0/nu"]),
        (optax.chain(optax.clip(1.0), optax.adam(0.1)), ["1/0/mu", "1/0/nu"]),
        (
            optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
            ["acc_grads", "inner_opt_state/0/mu", "inner_opt_state/0/nu"],
        ),
        (optax.inject_hyperparams(optax.sgd)(0.1, momentum=0.9), ["inner_state/0/trace"]),
        (
            optax.masked(optax.trace(0.9), lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
            ["inner_state/trace"],
        ),
    ],
    ids=["momentum", "adam", "chain", "multi_steps", "injected", "holes"],
)
def test_check_names_the_first_bad_slot_of_every_optimizer(inner, slots):
    state = jaxsparse.masked(inner).init(SOUND)
    jaxsparse.check(SOUND, state, MASKS)
    paths = jax.tree_util.tree_flatten_with_path(state)[0]
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]
    for slot in slots:
        name = f"{slot}/conv/kernel"
        index = names.index(name)
        leaves = jax.tree.leaves(state)
        leaves[index] = leaves[index].at[2, 2, 0, 3].set(0.5)
        bad = jax.tree.unflatten(jax.tree.structure(state), leaves)
        message = rf"optimizer slot {name}: 1 of 16 .* at \(2, 2, 0, 3\) is 0.5"
        with pytest.raises(ValueError, match=message):
            jaxsparse.check(SOUND, bad, MASKS)


@pytest.mark.parametrize(
    "build",
    [
        lambda x, y: {"kernel": x, "a": {"kernel": y}},  # one path ends in the other
        lambda x, y: {"trace": {"kernel": x}, "kernel": y},  # ... and in the name of a slot
        lambda x, y: [x, [y, x]],
        lambda x, y: (y, {"0": x, "1": y}),
    ],
)
def test_check_takes_each_slot_for_its_own_parameter(build):
    masks = build(jnp.eye(2, dtype=bool), ~jnp.eye(2, dtype=bool))
    params = jax.tree.map(lambda m: jnp.where(m, 1.0, 0.0), masks)
    tx = jaxsparse.masked(optax.sgd(0.1, momentum=0.9))
    state = tx.init(params)
    updates, state = tx.update(params, state, params, masks=masks)
    assert all(jax.tree.leaves(jax.tree.map(lambda x: bool(x.any()), state)))
    jaxsparse.check(params, state, masks)
    leaves = jax.tree.leaves(state)
    for index, leaf in enumerate(leaves):
        bad = [*leaves]
        bad[index] = jnp.ones_like(leaf)
        with pytest.raises(ValueError, match="optimizer slot .* 2 of 2"):
            jaxsparse.check(params, jax.tree.unflatten(jax.tree.structure(state), bad), masks)


def test_check_of_params_that_are_one_array():
    mask = jnp.eye(3, dtype=bool)
    state = optax.sgd(0.1, momentum=0.9).init(jnp.ones((3, 3)))
    jaxsparse.check(jnp.eye(3), state, mask)
    with pytest.raises(ValueError, match="optimizer slot 0/trace: 6 of 6"):
        jaxsparse.check(jnp.eye(3), jax.tree.map(jnp.ones_like, state), mask)


def test_check_wants_masks_of_bool():
    with pytest.raises(ValueError, match="masks at conv/bias has dtype float32"):
        jaxsparse.check(PARAMS, (), PARAMS)


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2fnuz", "int8"]
)
@pytest.mark.parametrize("place", [(0, 0), (2, 1)])
def test_check_takes_every_dtype_and_its_smallest_number(dtype, place):
    # XLA compares it as 0 on CPU.
    smallest = 1 if dtype == "int8" else jnp.finfo(dtype).smallest_subnormal
    leaf = np.zeros((3, 2), jnp.dtype(dtype))
    leaf[place] = smallest
    masks = {"kernel": jnp.zeros((3, 2), bool)}
    for array in (leaf, jnp.asarray(leaf)):
        with pytest.raises(
            ValueError, match=rf"1 of 6 .* first at \({place[0]}, {place[1]}\) is "
        ) as raised:
            jaxsparse.check({"kernel": array}, (), masks)
        assert str(raised.value).endswith(f" is {leaf[place]}")


def test_check_takes_nan_for_no_zero():
    for dtype in ("float32", "float8_e4m3fn", "float8_e4m3fnuz"):
        params = {"kernel": jnp.full((1, 2), jnp.nan, dtype)}
        with pytest.raises(ValueError, match="2 of 2 .* is nan"):
            jaxsparse.check(params, (), {"kernel": jnp.zeros((1, 2), bool)})


@pytest.mark.parametrize("value", [-0.0, 0])
def test_check_lets_any_zero_pass(value):
    for leaf in (jnp.full((2, 3), value), np.full((2, 3), value), jnp.zeros((0, 3))):
        jaxsparse.check({"kernel": leaf}, (), {"kernel": np.zeros(leaf.shape, bool)})


def test_check_reads_float64_of_numpy_as_it_is():
    params = {"kernel": np.array([[0.0, 1e-300]])}  # 0 in float32
    with pytest.raises(ValueError, match=r"the first at \(0, 1\) is 1e-300"):
        jaxsparse.check(params, (), {"kernel": np.zeros((1, 2), bool)})


def test_check_of_a_scalar_and_of_a_python_number():
    masks = {"a": jnp.ones((), bool), "b": jnp.zeros((), bool)}
    jaxsparse.check({"a": 3.0, "b": 0.0}, (), masks)
    with pytest.raises(ValueError, match=r"params at b: 1 of 1 .* the first at \(\) is 2.0"):
        jaxsparse.check({"a": 3.0, "b": 2.0}, (), masks)
    with pytest.raises(ValueError, match=r"params at b: 1 of 1 .* the first at \(\) is True"):
        jaxsparse.check({"a": jnp.array(True), "b": jnp.array(True)}, (), masks)
