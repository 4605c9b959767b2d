"""Outside of jit nothing is compiled anew for other values: a table of calls, each made thrice."""

import contextlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import monitoring

import jaxsparse
from jaxsparse import sparse
from jaxsparse.nn.sparse_nnx import dense_modules, sparse_modules
from tests.trees import FIXED, fill

CALLS = range(3)
WINDOW = sparse.Window(3, padding="SAME")
METHOD = jaxsparse.rigl(sparsity=0.5, total_steps=100, update_interval=10)
PATTERNED = jaxsparse.with_pattern(METHOD, jaxsparse.n_of_m(1, 2))
TX = jaxsparse.masked(optax.adam(0.1))


@contextlib.contextmanager
def compiled():
    """Yields a list that gets a one for every program that is lowered, to be compiled."""
    programs = []

    def listen(event, seconds, **kwargs):
        if event.endswith("jaxpr_to_mlir_module_duration"):
            programs.append(1)

    monitoring.register_event_duration_secs_listener(listen)
    try:
        yield programs
    finally:
        monitoring.unregister_event_duration_listener(listen)


def test_what_is_compiled_is_counted():
    with compiled() as programs:
        for i in CALLS:
            jax.jit(lambda x, i=i: x + i)(1.0)
    assert len(programs) == 3


def masks_of(i):
    """As many are active whatever the seed."""
    masks = [jaxsparse.top_k_mask(x, x.size // 2) for x in jax.tree.leaves(fill(FIXED, i))]
    return jax.tree.unflatten(jax.tree.structure(FIXED), masks)


def wave(of, i, *shape):
    """NumPy computes it: JAX would compile at import."""
    return jnp.asarray(of(np.arange(math.prod(shape), dtype=np.float32) + i).reshape(shape))


PARAMS = [fill(FIXED, i) for i in CALLS]
NUMPY = [jax.tree.map(np.asarray, params) for params in PARAMS]
MASKS = [masks_of(i) for i in CALLS]
SCORES = [{"a": wave(np.sin, i, 12), "b": wave(np.cos, i, 9)} for i in CALLS]
SLOTS = [TX.init(params) for params in PARAMS]
KEYS = [jax.random.key(i) for i in CALLS]
FLAT = [{"kernel": wave(np.sin, i, 6, 8)} for i in CALLS]
FLAT_MASKS = [jax.tree.map(lambda x: jaxsparse.top_k_mask(x, 20), x) for x in FLAT]
IMAGES = [wave(np.sin, i, 2, 5, 5, 2) for i in CALLS]
KERNELS = [wave(np.cos, i, 3, 3, 2, 4) for i in CALLS]
WEIGHTS = [sparse.to_sparse(x, jaxsparse.top_k_mask(x, 20)) for x in KERNELS]
DENSE = [sparse.to_sparse(x["kernel"], m["kernel"]) for x, m in zip(FLAT, FLAT_MASKS, strict=True)]
POSITIONS = [sparse.find_positions(masks) for masks in FLAT_MASKS]
LINEAR = [nnx.Linear(6, 8, rngs=nnx.Rngs(i)) for i in CALLS]


def forward(params, x):
    return jnp.tanh(x @ params["kernel"])


def state_of(i):
    return jaxsparse.TrainState.create(
        apply_fn=None,
        params=FLAT[i],
        tx=optax.adam(0.1),
        method=METHOD,
        key=KEYS[i],
        masks=FLAT_MASKS[i],
    )


STATES = [state_of(i) for i in CALLS]


def half(x, dtype):
    return jaxsparse.top_k_mask(x.astype(dtype), 3)


ROW = jax.ShapeDtypeStruct((1, 6), jnp.float32)
TABLE = {
    "top_k_mask": lambda i: jaxsparse.top_k_mask(SCORES[i]["a"], 3),
    "top_k_mask, k": lambda i: jaxsparse.top_k_mask(SCORES[0]["a"], i),
    "top_k_mask, k of NumPy": lambda i: jaxsparse.top_k_mask(SCORES[0]["a"], np.uint8(i)),
    "top_k_mask, bfloat16": lambda i: half(SCORES[i]["a"], jnp.bfloat16),
    "top_k_mask, float16": lambda i: half(SCORES[i]["a"], jnp.float16),
    "top_k_mask, of NumPy": lambda i: jaxsparse.top_k_mask(np.asarray(SCORES[i]["a"]), 3),
    "top_k_mask, eligible": lambda i: jaxsparse.top_k_mask(
        SCORES[i]["a"], 3, SCORES[i]["a"] > -0.5
    ),
    "top_k_mask, vmap": lambda i: jax.vmap(lambda x: jaxsparse.top_k_mask(x, 3))(FLAT[i]["kernel"]),
    "top_k": lambda i: jaxsparse.top_k(SCORES[i], 3 + i),
    "top_k, by leaf": lambda i: jaxsparse.top_k(SCORES[i], {"a": 3 + i, "b": i}),
    "top_k, given": lambda i: jaxsparse.top_k(
        SCORES[i], 3, given={p: x > 0.9 for p, x in SCORES[i].items()}
    ),
    "pattern_masks": lambda i: jaxsparse.pattern_masks(
        FLAT[i], jaxsparse.block((2, 2)), sparsity=0.5
    ),
    "pattern_masks, N:M": lambda i: jaxsparse.pattern_masks(FLAT[i], jaxsparse.n_of_m(1, 2)),
    "masks_from_params": lambda i: jaxsparse.masks_from_params(PARAMS[i]),
    "apply_masks": lambda i: jaxsparse.apply_masks(PARAMS[i], MASKS[i]),
    "apply_masks, of NumPy": lambda i: jaxsparse.apply_masks(NUMPY[i], MASKS[i]),
    "summary": lambda i: str(jaxsparse.summary(PARAMS[i], MASKS[i])),
    "overlap": lambda i: jaxsparse.overlap(MASKS[i], MASKS[i - 1]),
    "explore": lambda i: jaxsparse.explore(MASKS[i], MASKS[i - 1]),
    "exploration_rate": lambda i: jaxsparse.exploration_rate(MASKS[i]),
    "sparsity": lambda i: jaxsparse.sparsity(MASKS[i]),
    "live_weights": lambda i: jaxsparse.live_weights(forward, FLAT[i], FLAT_MASKS[i], ROW),
    "where_paths_end": lambda i: jaxsparse.where_paths_end(forward, FLAT[i], FLAT_MASKS[i], ROW),
    "layer_flops": lambda i: jaxsparse.layer_flops(forward, FLAT[i], ROW),
    "init": lambda i: METHOD.init(KEYS[i], PARAMS[i]),
    "init, N:M": lambda i: PATTERNED.init(KEYS[i], FLAT[i]),
    "update": lambda i: METHOD.update(PARAMS[i], PARAMS[i - 1], MASKS[i], 10 * (i + 1)),
    "update, N:M": lambda i: PATTERNED.update(FLAT[i], FLAT[i - 1], FLAT_MASKS[i], 10 * (i + 1)),
    "plan": lambda i: str(METHOD.plan(PARAMS[i])),
    "masked init": lambda i: jaxsparse.masked(optax.adam(0.1)).init(PARAMS[i]),
    "masked update": lambda i: TX.update(PARAMS[i], SLOTS[i], PARAMS[i], masks=MASKS[i]),
    "apply_event": lambda i: jaxsparse.apply_event(
        TX, jaxsparse.Event(MASKS[i], MASKS[i], None), PARAMS[i], SLOTS[i]
    ),
    "TrainState.create": state_of,
    "apply_gradients": lambda i: STATES[i].apply_gradients(grads=FLAT[i]),
    "apply_gradients, event": lambda i: STATES[i].apply_gradients(grads=FLAT[i], event=True),
    "check": lambda i: jaxsparse.check(STATES[i].params, STATES[i].opt_state, FLAT_MASKS[i]),
    "to_csr": lambda i: jaxsparse.from_csr(
        jaxsparse.to_csr(FLAT[i]["kernel"], FLAT_MASKS[i]["kernel"])
    ),
    "find_positions": lambda i: sparse.find_positions(FLAT_MASKS[i]),
    "compress": lambda i: sparse.expand(sparse.compress(STATES[i], POSITIONS[i]), POSITIONS[i]),
    "sparse_modules": lambda i: dense_modules(sparse_modules(LINEAR[i], POSITIONS[i]))(
        jnp.ones((3, 6))
    ),
}
LAYERS = {
    "sparse_dot": lambda i: sparse.sparse_dot(jnp.ones((3, 6)), *DENSE[i]),
    "sparse_conv": lambda i: sparse.sparse_conv(IMAGES[i], *WEIGHTS[i], WINDOW),
    "sparse_conv, vmap": lambda i: jax.vmap(
        lambda x: sparse.sparse_conv(x[None], *WEIGHTS[i], WINDOW)
    )(IMAGES[i]),
    "sparse_conv, gradients": lambda i: jax.grad(
        lambda x, v: sparse.sparse_conv(x, v, WEIGHTS[i][1], WINDOW).sum(), (0, 1)
    )(IMAGES[i], WEIGHTS[i][0]),
    "sparse_conv_norm": lambda i: sparse.sparse_conv_norm(
        IMAGES[i], *WEIGHTS[i], WINDOW, sparse.Epilogue(*jnp.ones((3, 4)))
    ),
    "batch_norm": lambda i: sparse.batch_norm(IMAGES[i], jnp.ones(2), jnp.ones(2), relu=True),
    "batch_norm, gradients": lambda i: jax.grad(
        lambda x: sparse.batch_norm(x, jnp.ones(2), jnp.ones(2))[0].sum()
    )(IMAGES[i]),
    "larger_line": lambda i: sparse.larger_line(IMAGES[i], jnp.ones((2, 4, 2))),
}


def check_is_compiled_once(call):
    jax.block_until_ready(call(0))
    with compiled() as programs:
        for i in CALLS[1:]:
            jax.block_until_ready(call(i))
    assert not programs


@pytest.mark.parametrize("name", TABLE)
def test_a_call_with_other_values_compiles_nothing(name):
    check_is_compiled_once(TABLE[name])


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_with_other_values_compiles_nothing(name, engine):
    check_is_compiled_once(LAYERS[name])
