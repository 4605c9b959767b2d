"""Profiles list the steps of a network, compute what a call does, and name what XLA runs."""

import ctypes
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxsparse.engine.library import Handle, library
from jaxsparse.engine.profile import Profile, ProfileStep, profile_handle
from jaxsparse.kernels.build import engine_library
from jaxsparse.sparse import compile_inference, load_engine, save_engine

pytestmark = pytest.mark.skipif(engine_library() is None, reason="the engine was not built")
DTYPE = np.float32


class CNN(nn.Module):
    """A convolution, a pooling, a convolution of stride 2, a mean, a classifier."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3))(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.silu(nn.Conv(6, (3, 3), strides=2)(x))
        return nn.Dense(5)(x.mean((1, 2)))


@pytest.fixture(scope="module")
def network():
    """The engine, its variables with half of the weights, and images."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(37, 12, 12, 3)).astype(DTYPE)
    variables = jax.jit(CNN().init)(jax.random.key(0), images[:1])
    draw = lambda x: (rng.normal(size=x.shape) * (rng.random(x.shape) < 0.5)).astype(DTYPE)
    variables = jax.tree.map(draw, variables)
    return compile_inference(CNN().apply, variables, None, images, threads=2), variables, images


def test_the_steps_and_their_numbers(network):
    engine, variables, images = network
    profile = engine.profile(images[:1], repeats=3)
    params = variables["params"]
    first, second, last = (
        int(np.count_nonzero(params[name]["kernel"])) for name in ("Conv_0", "Conv_1", "Dense_0")
    )
    by_kind = [(s.kind, s.function, s.planes, s.height, s.width) for s in profile.steps]
    linear = [s for s in profile.steps if s.kind == "linear"]
    assert by_kind[0] == ("read inputs", "", 0, 0, 0)
    assert by_kind[-1] == ("write outputs", "", 0, 0, 0)
    assert ("max pool", "", 8, 6, 6) in by_kind and ("sum", "", 6, 1, 1) in by_kind
    assert [(s.function, s.planes, s.height, s.width) for s in linear] == [
        ("relu", 8, 12, 12),
        ("silu", 6, 3, 3),
        ("", 5, 1, 1),
    ]
    assert [s.weights for s in linear] == [first, second, last]
    assert [s.multiply_adds for s in linear] == [144 * first, 9 * second, last]
    assert all(s.weights == s.multiply_adds == 0 for s in profile.steps if s.kind != "linear")
    assert all(s.microseconds >= 0 for s in profile.steps) and profile.microseconds > 0


@pytest.mark.parametrize("batch", [0, 1, 16, 37])
def test_a_profile_computes_what_a_call_does(network, batch):
    """Also where a batch begins image by image and goes on 16 together."""
    engine, _, images = network
    handle = Handle(engine.programs[0], 2)
    (found,), steps = profile_handle(handle, [images[:batch]], batch, 2)
    np.testing.assert_array_equal(found, engine(images[:batch]))
    assert len(steps) == len(handle.steps())


def test_a_file_has_a_profile(network, tmp_path):
    engine, _, images = network
    save_engine(tmp_path / "network.jse", engine)
    loaded = load_engine(tmp_path / "network.jse", 1)
    profile = loaded.profile(images, repeats=1)
    without_times = [s._replace(microseconds=0) for s in profile.steps]
    assert without_times == [
        s._replace(microseconds=0) for s in engine.profile(images, repeats=1).steps
    ]
    with pytest.raises(ValueError, match=r"it must be \(images, 12, 12, 3\)"):
        loaded.profile(images[:, :5])
    with pytest.raises(ValueError, match=r"repeats 0 must be a whole number in \[1, 10000\]"):
        loaded.profile(images, repeats=0)
    with pytest.raises(ValueError, match="the input has shape"):
        engine.profile(images[:, :5])


def test_operations_of_xla_are_named_and_not_timed():
    weights = np.random.default_rng(0).normal(size=(4, 4)).astype(DTYPE)

    def apply(w, x):
        y = jax.nn.relu(x @ w)
        return jnp.einsum("bij,bkj->bik", y, y) @ w

    x = np.random.default_rng(1).normal(size=(2, 4, 4)).astype(DTYPE)
    engine = compile_inference(apply, weights, None, x, threads=1)
    profile = engine.profile(x, repeats=2)
    of_xla = [s for s in profile.steps if s.kind.startswith("XLA: ")]
    assert "XLA: dot_general" in {s.kind for s in of_xla}
    assert all(math.isnan(s.microseconds) for s in of_xla)
    assert sum(s.weights for s in profile.steps) == 32
    assert math.isfinite(profile.microseconds)


def test_the_table():
    steps = (
        ProfileStep("read inputs", "", 0, 0, 0, 0, 0, 1.0),
        ProfileStep("interleave", "", 0, 0, 0, 0, 0, 0.0),
        ProfileStep("linear", "relu", 16, 32, 32, 1000, 1_024_000, 15.0),
        ProfileStep("XLA: dot_general", "", 0, 0, 0, 0, 0, math.nan),
        ProfileStep("sum", "", 16, 1, 1, 0, 0, 4.0),
    )
    assert str(Profile(2, steps)).splitlines() == [
        "2 images, one thread; planes to multiply-adds are of one image",
        "step              planes   pixels  weights  multiply-adds    us   share  per ns",
        "read inputs                                                 1.0   5.0 %",
        "linear, relu          16  32 x 32    1,000      1,024,000  15.0  75.0 %  136.53",
        "XLA: dot_general                                              -       -",
        "sum                   16    1 x 1                           4.0  20.0 %",
        "in all                               1,000      1,024,000  20.0",
    ]


def test_no_step_outside_of_the_network(network):
    """Of the C API, which checks its numbers."""
    handle, functions = Handle(network[0].programs[0], 1), library()
    number = len(handle.steps())
    for step in (-1, number):
        room = ctypes.create_string_buffer(64)
        assert functions.jaxsparse_engine_describe(handle._pointer, step, room) == 1
        assert functions.jaxsparse_engine_error() == f"there is no step {step}".encode()
    assert functions.jaxsparse_engine_profile(handle._pointer, None, None, 0, 0, None) == 1
    assert functions.jaxsparse_engine_error() == b"a profile has 1 repeat or more"


@pytest.mark.parametrize(
    ("after", "functions"),
    [
        (jax.nn.silu, ["silu"]),
        (lambda x: jax.nn.silu(x) + x, ["", "silu", ""]),  # another reader, so the layer stays
        (lambda x: jax.nn.silu(x) * jax.nn.sigmoid(x), None),
        (lambda x: jax.nn.silu(x) - jax.nn.sigmoid(x), None),
    ],
)
def test_silu_ends_the_layer_that_only_it_reads(after, functions):
    rng = np.random.default_rng(0)
    weights, x = rng.normal(size=(6, 4)).astype(DTYPE), rng.normal(size=(5, 6)).astype(DTYPE)
    apply = lambda w, x: after(x @ w)
    engine = compile_inference(apply, weights, None, x, threads=1)
    np.testing.assert_allclose(engine(x), jax.jit(apply)(weights, x), rtol=1e-5, atol=1e-6)
    if functions is not None:
        found = [s.function for s in engine.profile(x).steps if s.kind == "linear"]
        assert sorted(found) == sorted(functions)
