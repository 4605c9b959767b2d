"""Layers under Flax's transformations are executed sparsely, or an error names them."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxsparse
from jaxsparse.nn import choose_forms, layer_shapes, sparse_execution
from jaxsparse.nn.shapes import look_at_layers
from jaxsparse.sparse import compress_leaves, count_active, find_positions

X = jax.random.normal(jax.random.key(0), (4, 6))


def module(forward):
    """A compact module that calls a function."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return forward(x)

    return Model()


class Block(nn.Module):
    """A layer with a carry, as `nn.scan` needs it."""

    @nn.compact
    def __call__(self, x, _=None):
        return nn.Dense(6, name="fc")(jnp.tanh(x)), None


class Shared(nn.Module):
    def setup(self):
        self.fc = nn.Dense(6)
        nn.share_scope(self, self.fc)

    def __call__(self, x):
        return self.fc(x)


class Tied(nn.Module):
    def setup(self):
        self.fc = nn.Dense(6)

    def __call__(self, x):
        return self.fc(self.fc(x))


def scan(**options):
    return nn.scan(Block, length=3, **options)(name="block")


def spectral(x):
    return nn.SpectralNorm(nn.Dense(6, name="fc"))(x, update_stats=False)


def branches(x):
    layer = nn.Dense(6, name="fc")
    layer(x)
    return nn.cond(True, lambda m, x: m(x), lambda m, x: m(2 * x), layer, x)


ONE, EACH = {"params": False}, {"params": True}
JITTED = nn.jit(Block)
EXECUTED = {
    "remat": lambda x: nn.remat(Block)(name="block")(x)[0],
    "remat of a layer": lambda x: nn.remat(nn.Dense)(6)(x),
    "scan with one kernel": lambda x: scan(variable_broadcast="params", split_rngs=ONE)(x, None)[0],
    "vmap with one kernel": lambda x: nn.vmap(
        Block, variable_axes={"params": None}, split_rngs=ONE, in_axes=0
    )(name="block")(x)[0],
    "cond": branches,
    "sequence": lambda x: nn.Sequential([nn.Dense(6), jnp.tanh, nn.Dense(6)])(x),
    "shared scope": Shared(),
    "tied": Tied(),
}
STACK = "a stack of layers, by nn.scan or nn.vmap"
CHANGED = "params that nn.map_variables, nn.SpectralNorm or nn.WeightNorm changes"
NAMED = {
    "scan": (lambda x: scan(variable_axes={"params": 0}, split_rngs=EACH)(x, None)[0], STACK),
    "scan, axis 1": (
        lambda x: scan(variable_axes={"params": 1}, split_rngs=EACH)(x, None)[0],
        STACK,
    ),
    "vmap": (
        lambda x: nn.vmap(
            nn.Dense, variable_axes={"params": 0}, split_rngs=EACH, in_axes=None, axis_size=3
        )(6)(x),
        STACK,
    ),
    "remat_scan": (lambda x: nn.remat_scan(Shared, lengths=(2, 2))(name="block")(x), STACK),
    "map_variables": (
        lambda x: nn.map_variables(
            nn.Dense, "params", lambda v: jax.tree.map(jnp.triu, v) if v else v, init=True
        )(6, use_bias=False)(x),
        CHANGED,
    ),
    "SpectralNorm": (spectral, CHANGED),
    "WeightNorm": (lambda x: nn.WeightNorm(nn.Dense(6, name="fc"))(x), CHANGED),
    "jit": (
        lambda x: nn.jit(Block)(name="block")(x)[0],
        "an nn.jit around it, which would keep its firs",
    ),
    "DenseGeneral": (lambda x: nn.DenseGeneral(6)(x), "a DenseGeneral"),
    "attention": (lambda x: nn.MultiHeadDotProductAttention(2)(x), "a DenseGeneral"),
    "negative padding": (
        lambda x: nn.Conv(3, (2, 2), padding=((-1, 0), (0, 0)))(x.reshape(4, 3, 2, 1)),
        "padding -1 must be a whole number, at least 0",
    ),
    "bfloat16 params": (lambda x: nn.Dense(6, param_dtype=jnp.bfloat16)(x), "bfloat16 params"),
}


def start(model):
    """Variables with half of all kernels masked, their compressed params, and positions."""
    variables = jax.jit(model.init)(jax.random.key(1), X)
    params = variables["params"]
    masks = jaxsparse.static(sparsity=0.5, total_steps=1).init(jax.random.key(2), params)
    params, positions = jaxsparse.apply_masks(params, masks), find_positions(masks)
    return {**variables, "params": params}, compress_leaves(params, positions), positions


def modelled(forward):
    return forward if isinstance(forward, nn.Module) else module(forward)


@pytest.mark.parametrize("name", EXECUTED)
def test_what_is_executed(name):
    model = modelled(EXECUTED[name])
    variables, params, positions = start(model)
    for _ in range(2):  # JAX does not reuse its first trace
        found, others = look_at_layers(model.apply, variables, X)
        assert found.keys() == positions.keys() and not others.keys() & positions.keys()

    @jax.jit
    def sparse(params, positions):
        with sparse_execution(positions):
            return model.apply({**variables, "params": params}, X)

    expected = model.apply(variables, X)
    np.testing.assert_allclose(sparse(params, positions), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMED)
def test_what_has_no_sparse_form_is_left_out_and_named(name):
    forward, why = NAMED[name]
    model = modelled(forward)
    variables, params, positions = start(model)
    for _ in range(2):
        found, others = look_at_layers(model.apply, variables, X)
        assert positions and not found and others.keys() >= positions.keys()
    forms = choose_forms(model, X, count_active(variables["params"]))
    assert forms.capacity == {} and forms.others.keys() >= positions.keys()
    path = next(iter(positions))
    with pytest.raises(ValueError, match=why):
        raise ValueError(forms.others[path])
    # If it is compressed nevertheless, the model's first call raises an error.
    apply = lambda: model.apply({**variables, "params": params}, X)
    words = why if name != "bfloat16 params" else "values have dtype bfloat16; they must be float32"
    if name == "scan":
        words = (
            r"has shape \(\) in params, the capacity of its positions is 54; a stack \(nn.scan, nn"
        )
    with pytest.raises(ValueError, match=f"^[^ ]*kernel:? .*{words}"), sparse_execution(positions):
        apply()


def test_a_jit_within_a_model_would_keep_its_first_positions():
    """The class would be compiled once for all positions of the same shape, so it is an error."""
    model = module(lambda x: JITTED(name="block")(x)[0])
    for _ in range(2):
        variables, params, positions = start(model)
        with (
            pytest.raises(
                ValueError, match="^block/fc/kernel has an nn.jit around it|no sparse form"
            ),
            sparse_execution(positions),
        ):
            model.apply({**variables, "params": params}, X)
    # Layers inside `nn.jit` cannot be seen, so they are left out too.
    assert not layer_shapes(model.apply, variables, X)


def test_what_else_fails_is_left_alone():
    """An error of the model itself is not changed, and looking for its reason has no effect."""
    calls = []

    class Fails(nn.Module):
        @nn.compact
        def __call__(self, x):
            calls.append(1)
            nn.Dense(6, name="fc")(x)
            raise TypeError("not today")

    model = Fails()
    params = {"fc": {"kernel": jnp.ones((6, 6)), "bias": jnp.zeros(6)}}
    positions = find_positions(
        {"fc": {"kernel": jnp.eye(6, dtype=bool), "bias": jnp.ones(6, bool)}}
    )
    with pytest.raises(TypeError, match="not today"), sparse_execution(positions):
        model.apply({"params": compress_leaves(params, positions)}, X)
    assert len(calls) == 2


class Dropped(nn.Module):
    """Needs a key, statistics and an argument by keyword, and is called by another method."""

    @nn.compact
    def encode(self, x, *, train):
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.vmap(
            nn.Dense, variable_axes={"params": 0}, split_rngs=EACH, in_axes=None, axis_size=2
        )(3, name="fc")(x)


def test_the_reason_is_found_whatever_the_call_takes():
    model, keys = Dropped(), {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    encode = functools.partial(model.apply, method="encode", rngs=keys, mutable=["batch_stats"])
    variables = model.init(keys, X, train=True, method="encode")
    masks = jaxsparse.static(sparsity=0.5, total_steps=1).init(keys["params"], variables["params"])
    positions = find_positions(masks)
    params = compress_leaves(variables["params"], positions)
    chex.assert_shape(params["fc"]["kernel"], (18,))
    with (
        pytest.raises(ValueError, match="^fc/kernel has no sparse form, for a stack of layers, by"),
        sparse_execution(positions),
    ):
        jax.jit(lambda x: encode({**variables, "params": params}, x, train=True))(X)
