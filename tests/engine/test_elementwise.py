"""Functions, arithmetic with constants and between branches, comparisons."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.engine.agreement import assert_agree, compiled, difference, numbers

IMAGES = 2 * numbers(17, 5, 3, 4)
FUNCTIONS = {
    "abs": jnp.abs,
    "celu": jax.nn.celu,
    "clip": lambda x: jnp.clip(x, -0.5, 0.25),
    "elu": jax.nn.elu,
    "erf": jax.scipy.special.erf,
    "erfc": jax.scipy.special.erfc,
    "exp": jnp.exp,
    "expm1": jnp.expm1,
    "gelu": jax.nn.gelu,
    "gelu with erf": lambda x: jax.nn.gelu(x, approximate=False),
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "hard_swish": jax.nn.hard_swish,
    "hard_tanh": jax.nn.hard_tanh,
    "heaviside": lambda x: (x >= 0.25).astype(x.dtype),
    "leaky_relu": jax.nn.leaky_relu,
    "log_sigmoid": jax.nn.log_sigmoid,
    "mish": jax.nn.mish,
    "log": lambda x: jnp.log(jnp.abs(x) + 0.1),
    "power -3": lambda x: (2 + jnp.abs(x)) ** -3,
    "power 4": lambda x: x**4,
    "quick gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "reciprocal": lambda x: 3 / (1 + jnp.abs(x)),
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "rsqrt": lambda x: jax.lax.rsqrt(1 + x * x),
    "selu": jax.nn.selu,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "softmax of channels": jax.nn.softmax,
    "softmax of pixels": lambda x: jax.nn.softmax(x, (1, 2)),
    "soft_sign": jax.nn.soft_sign,
    "sqrt": lambda x: jnp.sqrt(jnp.abs(x)),
    "square": jnp.square,
    "tanh": jnp.tanh,
    "threshold": lambda x: jnp.where(x > 0.5, x, 0.5),
    "threshold, turned round": lambda x: jnp.where(x <= 0.5, 0.5, x),
}


def test_functions():
    assert_agree(FUNCTIONS, IMAGES)


def test_functions_of_vectors():
    assert_agree(FUNCTIONS | {"softmax of pixels": jax.nn.softmax}, 2 * numbers(17, 13))


def test_functions_of_constants():
    """A channel without active weights is a constant, whatever functions follow."""
    w = np.zeros((4, 6), np.float32)
    w[0, :3] = 1.0
    bias = np.linspace(-2, 2, 6, dtype=np.float32).reshape(1, 1, 1, 6)
    after = numbers(6, 3, seed=1)
    followed = lambda f: lambda x: f(x @ w + bias) @ after
    assert_agree({name: followed(f) for name, f in FUNCTIONS.items()}, IMAGES)


def test_extreme_numbers():
    x = np.array([[0, -0.0, 1e-30, -1e-30, 20, -20, 90, -90, 1e4, -1e4, 3e38, -3e38]], np.float32)
    names = "elu erfc expm1 gelu leaky_relu mish relu6 selu sigmoid silu softplus tanh exp".split()
    engine = compiled(lambda x: {name: FUNCTIONS[name](x) for name in names}, x)
    for name, got in engine((x,)).items():
        want = np.asarray(FUNCTIONS[name](x))
        np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-7, err_msg=name)


def test_nan_stays_nan():
    x = np.full((1, 2, 2, 3), np.nan, np.float32)
    names = "abs clip elu erfc exp expm1 gelu leaky_relu mish relu relu6 sigmoid silu softplus tanh"
    names = names.split()
    engine = compiled(
        lambda x: {name: FUNCTIONS[name](x) for name in names} | {"largest": x.max((1, 2))}, x
    )
    finite = [name for name, got in engine((x,)).items() if not np.isnan(got).all()]
    assert finite == []


def test_constants():
    channel, pixel, both = numbers(1, 1, 1, 4), numbers(1, 5, 3, 1), numbers(1, 5, 3, 4)
    row = numbers(1, 5, 1, 1)
    assert_agree(
        {
            "sum with channels": lambda x: x + channel,
            "product with channels": lambda x: channel * x,
            "quotient by channels": lambda x: x / channel,
            "difference from channels": lambda x: channel - x,
            "sum with pixels": lambda x: x + pixel,
            "product with pixels": lambda x: x * pixel,
            "sum with rows": lambda x: x + row,
            "product with rows, sum with pixels": lambda x: x * row + both,
            "sum with all": lambda x: x + both,
            "product with all": lambda x: x * both,
            "constant by image": lambda x: 1 / (2 + jnp.abs(x)),
            "largest of a constant by channel": lambda x: jnp.maximum(x, channel),
            "smallest of a constant by pixel": lambda x: jnp.minimum(pixel, x),
            "more channels": lambda x: x[..., :1] * channel + channel,
            "select of constants": lambda x: jnp.where(x > channel, x, channel),
        },
        IMAGES,
    )


def test_two_branches():
    other = lambda x: jnp.flip(x, -1) * 0.5
    assert_agree(
        {
            "sum": lambda x: x + other(x),
            "difference": lambda x: x - other(x),
            "product": lambda x: x * other(x),
            "quotient": lambda x: x / (1 + jnp.abs(other(x))),
            "largest": lambda x: jnp.maximum(x, other(x)),
            "smallest": lambda x: jnp.minimum(x, other(x)),
            "select": lambda x: jnp.where(x > other(x), x, other(x)),
            "gate": lambda x: x * jax.nn.sigmoid(x.mean((1, 2), keepdims=True)),
            "one channel": lambda x: x + x[..., :1],
            "one channel, product": lambda x: x * x[..., 1:2],
            "itself": lambda x: x + x * x - x,
            "shortcut": lambda x: jax.nn.relu(x + jax.nn.relu(other(x))),
        },
        IMAGES,
    )


def test_norms():
    def layer_norm(x, axes):
        mean = x.mean(axes, keepdims=True)
        variance = jnp.square(x - mean).mean(axes, keepdims=True)
        return (x - mean) * jax.lax.rsqrt(variance + 1e-3)

    def group_norm(x):
        return layer_norm(x.reshape(*x.shape[:3], 2, 2), (1, 2, 4)).reshape(x.shape)

    assert_agree(
        {
            "layer": lambda x: layer_norm(x, (3,)),
            "instance": lambda x: layer_norm(x, (1, 2)),
            "all": lambda x: layer_norm(x, (1, 2, 3)),
            "group": group_norm,
            "rms": lambda x: x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6),
        },
        IMAGES,
    )


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (jax.nn.elu, "elu"),
        (jax.nn.gelu, "gelu_tanh"),
        (lambda x: jax.nn.gelu(x, approximate=False), "gelu"),
        (jax.nn.hard_sigmoid, "clip"),
        (jax.nn.hard_silu, "hard_silu"),
        (lambda x: jax.nn.leaky_relu(x, 0.3), "leaky_relu"),
        (jax.nn.mish, "mish"),
        (jax.nn.relu6, "clip"),
        (jax.nn.selu, "elu"),
        (jax.nn.silu, "silu"),
        (jax.nn.softplus, "softplus"),
        (lambda x: x / (1 + jnp.exp(-x)), "silu"),
        (lambda x: jnp.where(x < 0, 0.3 * x, x), "leaky_relu"),
        (lambda x: jnp.minimum(jnp.maximum(2 * x - 1, -1), 0.5), "clip"),
    ],
)
def test_activations_are_no_steps_of_their_own(function, name):
    """However they are written, the layer applies them where it writes."""
    w = numbers(4, 6, seed=1)
    assert_one_step(lambda x: function(x @ w), name, function(IMAGES @ w))


@pytest.mark.parametrize(
    ("function", "name"), [(jax.nn.gelu, "gelu_tanh"), (jax.nn.silu, "silu"), (jax.nn.elu, "elu")]
)
def test_activations_of_narrow_numbers(function, name):
    """Their constants have few digits, and the engine's have all."""
    w = numbers(4, 6, seed=1).astype(jnp.bfloat16)
    narrow = lambda x: function(x.astype(jnp.bfloat16) @ w).astype(np.float32)
    assert_one_step(narrow, name, function(IMAGES @ np.asarray(w, np.float32)), relative=1e-2)


def assert_one_step(network, name, want, relative=1e-5):
    engine = _compiled(network, IMAGES)
    assert not engine.reasons
    steps = [step for step in engine.profile((IMAGES,), repeats=1).steps if step.planes]
    assert [(step.kind, step.function) for step in steps] == [("linear", name)]
    assert difference(engine((IMAGES,)), want) < relative


@pytest.mark.parametrize(
    "function",
    [
        lambda x: jnp.where(x > 7.3, 7.3, jax.nn.silu(x)),  # alike only up to its own constant
        lambda x: jnp.clip(x, -3, 3) * 0.999,
        lambda x: x * jax.nn.sigmoid(1.01 * x),
        lambda x: jnp.where(x > 0, x, 0.1 * x * x),
        lambda x: jnp.where(x > 0.01, x, 0.1 * x),
    ],
)
def test_functions_that_look_alike(function):
    x = 6 * numbers(17, 30)
    want, (got,) = function(x), [_compiled(lambda x: {"y": function(x)}, x)((x,))["y"]]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_comparisons_with_nan():
    x = np.array([[np.nan, -1, 0, 1, np.inf]], np.float32)
    functions = {
        "gt": lambda x: jnp.where(x > 0, 1.0, 2.0),
        "ge": lambda x: jnp.where(x >= 0, 1.0, 2.0),
        "lt": lambda x: jnp.where(x < 0, 1.0, 2.0),
        "le": lambda x: jnp.where(x <= 0, 1.0, 2.0),
        "kept": lambda x: jnp.where(x >= 0, x, 0.0),
    }
    engine = _compiled(lambda x: {name: f(x) for name, f in functions.items()}, x)
    assert not engine.reasons
    for name, got in engine((x,)).items():
        np.testing.assert_array_equal(got, functions[name](x), err_msg=name)


def test_nothing_is_read_that_has_no_weight():
    """Not even where reading it, times 0, is faster."""
    x = numbers(17, 64)
    x[:, 1] = np.inf
    w = numbers(32, 3, seed=1)
    engine = _compiled(lambda x: (x[:, ::2] @ w, jnp.exp(x[:, 1::2])), x)
    assert not engine.reasons
    for batch in (1, 3, 16, 17):
        np.testing.assert_allclose(
            engine((x[:batch],))[0], x[:batch, ::2] @ w, rtol=1e-4, atol=1e-4
        )


def test_a_comparison_of_an_input_chooses_from_a_layer():
    """The condition is a function of two arrays, and the choice is none of one."""
    x, w = numbers(17, 6), numbers(6, 6, seed=1)
    choose = lambda x: (lambda y: jnp.where(x > y, y, 0.1 * y))(x @ w)
    engine = _compiled(choose, x)
    assert not engine.reasons
    assert difference(engine((x,)), choose(x)) < 1e-5


@pytest.mark.usefixtures("compiled")
def test_a_helper_that_compares_twice():
    """A function under jit is the same equations wherever it is called."""
    fires = jax.jit(lambda x: (x > 0).astype(np.float32))
    sorted_too = lambda x: jnp.sort(x, -1)
    w = numbers(4, 4, seed=1)
    for between in (lambda x: x, sorted_too):
        network = lambda x, between=between: (fires(x @ w), fires(between(-x @ w)), fires(x) @ w)
        engine = _compiled(network, IMAGES[:, 0, 0])
        got, want = engine((IMAGES[:, 0, 0],)), network(IMAGES[:, 0, 0])
        for a, b in zip(got, want, strict=True):
            assert difference(a, b) < 1e-5


_compiled = compiled
