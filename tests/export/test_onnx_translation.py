"""Primitives as nodes of ONNX: ONNX Runtime computes what JAX does, and others are named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxsparse
from jaxsparse.export.onnx_translation import translated


@pytest.fixture
def runtime():
    pytest.importorskip("onnx")
    return pytest.importorskip("onnxruntime")


def outputs_of(runtime, path, x):
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors
    return runtime.InferenceSession(path, options).run(None, {"input": x})


UNARY = """abs acos acosh asin asinh atan atanh ceil cos cosh erf erfc exp exp2 expm1 floor
    is_finite log log1p logistic neg rsqrt sign sin sinh sqrt square tan tanh""".split()
ROUNDINGS = (lax.RoundingMethod.TO_NEAREST_EVEN, lax.RoundingMethod.AWAY_FROM_ZERO)
VALUES = np.float32([[-2.5, -1.0, -0.5, -0.0], [0.3, 0.5, 1.0, 2.5]])


def entries(_, x):
    """Every elementwise primitive in its domain, and where it matters at its ends."""
    y = x[:, ::-1]
    domains = {"acosh": 1 + abs(x), "log": abs(x) + 0.1, "rsqrt": abs(x) + 0.1, "sqrt": abs(x)}
    domains |= dict.fromkeys(("acos", "asin", "atanh"), x / 3) | {"log1p": abs(x)}
    return [
        *(getattr(lax, name)(domains.get(name, x)) for name in UNARY),
        *(lax.round(x, method) for method in ROUNDINGS),
        *(op(x, y) for op in (lax.add, lax.sub, lax.mul, lax.max, lax.min, lax.rem)),
        *(op(x, y) for op in (lax.eq, lax.ne, lax.lt, lax.le, lax.gt, lax.ge)),
        *(op(x > 0, y > 0) for op in (lax.bitwise_and, lax.bitwise_or, lax.bitwise_xor)),
        (x > 0).astype(jnp.int32) ^ 5,
        ~(x > 0),
        x / (abs(y) + 1),
        (abs(x) + 0.1) ** y,
        *(lax.integer_pow(x, power) for power in (2, 3, 4, -1)),
        lax.clamp(-1.0, x, y.shape[-1] / 8),
        jnp.where(x > 0, x, 2.0),
        lax.is_finite(1 / jnp.maximum(x, 0.0)),
        x - np.float32([[1, 2, 3, 4]]),
        x.astype(jnp.int32),
        *(f(x) for f in (jax.nn.relu6, jax.nn.elu, jax.nn.softplus, jax.nn.leaky_relu)),
        *(f(x) for f in (jax.nn.hard_swish, jax.nn.log_softmax, jax.nn.selu)),
    ]


GRID = np.arange(48, dtype=np.float32).reshape(2, 4, 3, 2) % 7 - 3


def moves(kernel, x):
    """What moves, picks, joins and reduces along axes; also after a convolution, in its order."""
    image = lax.conv_general_dilated(
        x, kernel, (1, 1), [(0, 1), (1, 0)], dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    batch = x.shape[0]
    return [
        out
        for y in (x, image)
        for out in (
            y[:, 1:3, ::2],
            y[:, 1, :, 0],
            y[:, ::3, 1:, 0],
            y[:, jnp.array([0, 0])],
            y[:, -1],
            y[:, ::-1],
            lax.rev(y, (1, 3)),
            y.swapaxes(1, 3).reshape(batch, -1),
            y.reshape(batch * 4, 6),
            y[:, None, :, :, 1:].sum((2, 4)),
            lax.squeeze(y[:, :1], (1,)) + y.max(1),
            jnp.concatenate([y, y[:, :2] * 2, jnp.ones_like(y)], 1),
            *jnp.split(y, (1, 3), 1),
            lax.pad(y, jnp.float32(7), ((0, 0, 0), (1, -1, 0), (0, 2, 0), (-1, 0, 0))),
            jnp.tile(kernel[:1, :1], (batch, 1, 1, 1)) + y[:, :1, :2],
            jnp.tile(y, (1, 2, 1, 3)),
            y.min((1, 2)),
            y.prod(3),
            y.mean((1, 2), keepdims=True) * y,
            y.argmax(1),
            jnp.argmin(y, -1),
            jnp.cumsum(y, 2),
            lax.cumsum(y, 1, reverse=True),
            jnp.take(y, np.int32([[1, 0], [2, 2]]), axis=1),
            jnp.take(y, np.int32([9, -1]), axis=2, mode="clip"),
            lax.dynamic_slice_in_dim(y, 3, 2, 1),
            jnp.broadcast_to(y[:, :1, :, :1], y.shape),
            jnp.broadcast_to(jnp.arange(3.0), (batch, 3)),
            jnp.einsum("bhwc,bhwd->bcd", y, 2 * y),
            jnp.einsum("bhwc,wcd->hbd", y, jnp.ones((3, 2, 5))),
            jnp.einsum("bhwc,bkwc->bhkw", y, y),
            jnp.einsum("c,bhwc->hwb", jnp.arange(2.0), y),
            lax.reduce_window(y, -jnp.inf, lax.max, (1, 2, 1, 2), (1, 1, 1, 1), "VALID"),
            lax.reduce_window(y, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 1, 1), "SAME"),
        )
    ]


@pytest.mark.parametrize(
    ("function", "variables", "x"),
    [(entries, (), VALUES), (moves, np.ones((2, 2, 2, 2), np.float32) / 3, GRID)],
    ids=["entries", "moves"],
)
def test_primitives(function, variables, x, tmp_path, runtime):
    path = tmp_path / "primitives.onnx"
    jaxsparse.save_onnx(path, function, variables, None, x, rtol=1e-5)
    theirs = jax.jit(function)(variables, x)
    results = zip(outputs_of(runtime, path, x), theirs, strict=True)
    for number, (ours, expected) in enumerate(results):
        assert ours.dtype == expected.dtype, number
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6, err_msg=str(number))


def test_the_same_weights_in_two_orders_and_arrays_that_are_used_twice(tmp_path, runtime):
    tied = lambda w, x: jnp.tanh(x @ w) @ w.T + x
    path, w, x = tmp_path / "tied.onnx", VALUES.T @ VALUES, VALUES
    jaxsparse.save_onnx(path, tied, w, None, x)
    (ours,) = outputs_of(runtime, path, x)
    np.testing.assert_allclose(ours, tied(w, x), rtol=1e-5, atol=1e-5)


REFUSED = {
    "the primitive sort": lambda w, x: jnp.sort(x),
    "the primitive scan": lambda w, x: lax.scan(lambda c, _: (c * w, None), x, length=2)[0],
    "transposed convolution": lambda w, x: lax.conv_transpose(
        x[:, :, None], jnp.ones((2, 1, 1)), (2,), "SAME", dimension_numbers=("NHC", "HIO", "NHC")
    ),
    "only fixed places": lambda w, x: lax.dynamic_slice_in_dim(x, jnp.argmax(x[0, :2]), 2, axis=1),
    "several axes at once": lambda w, x: x[jnp.arange(2)[:, None], jnp.arange(2)[None]],
    "between entries": lambda w, x: lax.pad(x, 0.0, ((0, 0, 0), (0, 0, 1))),
}


@pytest.mark.parametrize("said", REFUSED)
def test_an_operation_without_a_node_is_named(said):
    """Without the package: it is needed for the file alone."""
    with pytest.raises(ValueError, match=said) as caught:
        translated(REFUSED[said], jnp.float32(2), jnp.ones((2, 4)), symbolic_batch=True)
    assert "\n" not in str(caught.value)
