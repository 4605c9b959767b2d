"""A language model as Flax's lm1b example trains it: logical axes, a mesh, a sharded start.

Written anew, on made-up text. Lines that sparse training adds or changes are marked "sparse"; the
test at the end counts them.
"""

import functools
from pathlib import Path

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training import train_state
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxsparse

VOCABULARY, WIDTH, HEADS, LENGTH, BATCH, STEPS = 32, 16, 4, 12, 16, 20
RULES = (
    ("batch", "data"),
    ("embed", None),
    ("vocab", "model"),
    ("heads", "model"),
    ("mlp", "model"),
)


def logical(*axes):
    return nn.with_logical_partitioning(nn.initializers.xavier_uniform(), axes)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, mask):
        scale = nn.with_logical_partitioning(nn.initializers.ones, ("embed",))
        y = nn.LayerNorm(use_bias=False, scale_init=scale)(x)
        attention = nn.MultiHeadDotProductAttention(
            HEADS,
            kernel_init=logical("embed", "heads"),
            out_kernel_init=logical("heads", "embed"),
            use_bias=False,
        )
        x = x + attention(y, y, mask=mask)
        y = nn.LayerNorm(use_bias=False, scale_init=scale)(x)
        y = nn.Dense(4 * WIDTH, use_bias=False, kernel_init=logical("embed", "mlp"))(y)
        return x + nn.Dense(WIDTH, use_bias=False, kernel_init=logical("mlp", "embed"))(nn.gelu(y))


class LanguageModel(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        table = logical("vocab", "embed")
        x = nn.Embed(VOCABULARY, WIDTH, embedding_init=table, name="token_embed")(tokens)
        x = nn.with_logical_constraint(x, ("batch", None, "embed"))
        mask = nn.make_causal_mask(tokens)
        for _ in range(2):
            x = Block()(x, mask)
        return nn.Dense(VOCABULARY, kernel_init=logical("embed", "vocab"), use_bias=False)(x)


MODEL = LanguageModel()
TX = optax.adamw(1e-2)
METHOD = jaxsparse.rigl(sparsity=0.75, total_steps=STEPS, update_interval=5)  # sparse


def batches():
    """Text in which the next token is the last one plus one, with a little noise."""
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        start = rng.integers(VOCABULARY, size=(BATCH, 1))
        yield (
            start + np.arange(LENGTH + 1) + (rng.random((BATCH, LENGTH + 1)) < 0.05)
        ) % VOCABULARY


def create(key):
    variables = MODEL.init(key, jnp.zeros((1, LENGTH), jnp.int32))
    return jaxsparse.TrainState.create(  # sparse
        apply_fn=MODEL.apply,
        params=variables["params"],
        tx=TX,
        method=METHOD,  # sparse
        key=key,  # sparse
    )


def train_step(state, tokens, event=None):  # sparse: event
    def loss(params):
        logits = state.apply_fn({"params": params}, tokens[:, :-1])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
        return losses.mean()

    value, grads = jax.value_and_grad(loss)(state.params)
    return state.apply_gradients(grads=grads, event=event), value  # sparse: event


def sharded_start(mesh):
    """The ten lines of a sharded start, as they are in Flax's guides."""
    abstract = jax.eval_shape(create, jax.random.key(0))
    specs = nn.get_partition_spec(abstract)
    shardings = nn.logical_to_mesh_sharding(specs, mesh, RULES)
    state = jax.jit(create, out_shardings=shardings)(jax.random.key(0))
    return nn.meta.unbox(state), nn.meta.unbox(shardings)


def train(mesh):
    chex.clear_trace_counter()
    with nn.logical_axis_rules(RULES):
        state, shardings = sharded_start(mesh)
        data, scalar = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
        step = jax.jit(
            chex.assert_max_traces(train_step, n=2),
            in_shardings=(shardings, data),
            out_shardings=(shardings, scalar),
            static_argnums=2,  # sparse
            donate_argnums=0,
        )
        losses = []
        for n, tokens in enumerate(batches(), start=1):
            tokens = jax.device_put(tokens, data)
            state, loss = step(state, tokens, METHOD.is_due(n))  # sparse: METHOD.is_due(n)
            losses.append(float(loss))
    return state, losses


def mesh_of(shape):
    return jax.make_mesh(shape, ("data", "model"), axis_types=(AxisType.Auto,) * 2)


@pytest.mark.slow
@pytest.mark.long
def test_it_trains_on_a_mesh_as_on_one_device():
    mesh = mesh_of((4, 2))
    with jax.set_mesh(mesh):
        state, losses = train(mesh)
    assert losses[-1] < losses[0] - 0.5
    state.check()
    assert int(state.events.num_taken) == len(METHOD.timetable.events) == 2
    kernel = state.params["Block_0"]["Dense_0"]["kernel"]
    mask = state.masks["Block_0"]["Dense_0"]["kernel"]
    slot = state.opt_state[0].mu["Block_0"]["Dense_0"]["kernel"]
    for leaf in (kernel, mask, slot):
        assert leaf.sharding.spec == P(None, "model"), "masks and slots lie as their weights do"
    assert state.summary().dense.keys() == {
        "token_embed/embedding",
        *(f"Block_{i}/LayerNorm_{j}/scale" for i in range(2) for j in range(2)),
    }
    assert state.sparsity == pytest.approx(0.75, abs=1e-3)
    one = jax.make_mesh(
        (1, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:1]
    )
    alone, others = train(one)
    np.testing.assert_allclose(losses, others, rtol=1e-3)
    chex.assert_trees_all_equal(
        *(jax.tree.map(lambda x: x.sum(), jax.device_get(s.masks)) for s in (state, alone))
    )


def test_a_step_without_an_event_argument_goes_with_shardings_too():
    """A class of a script's own, whose step finds `event` in the state."""

    @jaxsparse.with_masks
    class TrainState(train_state.TrainState):
        pass

    mesh = mesh_of((8, 1))
    params = {"kernel": jnp.ones((8, 16))}
    create = functools.partial(
        TrainState.create, apply_fn=None, params=params, tx=TX, method=METHOD, key=jax.random.key(0)
    )
    abstract = jax.eval_shape(create)
    rows = lambda x: NamedSharding(mesh, P("data") if x.shape == (8, 16) else P())
    shardings = jax.tree.map(rows, abstract)
    state = jax.jit(create, out_shardings=shardings)()

    def train_step(state):
        return state.apply_gradients(grads=jax.tree.map(jnp.sin, state.params))

    steps = {
        event: jax.jit(
            train_step, in_shardings=(shardings.replace(event=event),), out_shardings=shardings
        )
        for event in (False, True)
    }
    for n in range(1, STEPS + 1):
        event = METHOD.is_due(n)
        state = steps[event](state.replace(event=event))
    state.check()
    assert state.params["kernel"].sharding.spec == P("data")
    assert int(state.events.num_taken) == 2


def test_how_many_lines_it_took():
    lines = Path(__file__).read_text().splitlines()
    assert sum("# sparse" in line for line in lines) == 8 + 1  # and this one
