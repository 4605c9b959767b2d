"""A state lies on the mesh of its params, whoever makes it; arrays that lie elsewhere are moved."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxsparse
from jaxsparse.meshes import mesh_of, place, replicate
from jaxsparse.nn.optimizer_nnx import NNXOptimizer
from tests import mesh_worker

RUN = {"sparsity": 0.8, "total_steps": 12, "update_interval": 2}


def placed(kind=AxisType.Auto):
    """Params of which one leaf is cut, one lies on all devices, and one was not placed."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    rng = np.random.default_rng(0)
    return mesh, {
        "a": jax.device_put(
            {"kernel": rng.normal(size=(16, 6)).astype(np.float32)}, NamedSharding(mesh, P("x"))
        ),
        "b": jax.device_put(
            {"kernel": rng.normal(size=(6, 4)).astype(np.float32)}, NamedSharding(mesh, P())
        ),
        "c": {"bias": jnp.zeros(4)},
    }


BESIDE = {"a": {"kernel": P("x")}, "b": {"kernel": P()}, "c": {"bias": P()}}


def lie(mesh, tree, specs):
    """Whether every leaf lies on a mesh by its spec."""
    same = lambda x, spec: x.sharding.is_equivalent_to(NamedSharding(mesh, spec), x.ndim)
    return jax.tree.all(jax.tree.map(same, tree, specs))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("make", [jaxsparse.rigl, jaxsparse.snfs, jaxsparse.granet])
def test_every_leaf_of_a_train_state_lies_on_the_mesh(make, kind):
    mesh, params = placed(kind)
    state = jaxsparse.TrainState.create(
        apply_fn=None,
        params=params,
        tx=optax.chain(optax.scale_by_adam(), optax.scale_by_schedule(lambda n: -0.1)),
        method=make(**RUN),
        key=jax.random.key(0),
        track_exploration=True,
    )
    assert {leaf.sharding.mesh for leaf in jax.tree.leaves(state)} == {mesh}
    adam = state.opt_state[0]
    like_params = lambda tree: jax.tree.structure(tree) == jax.tree.structure(params)
    averages = filter(like_params, jax.tree.leaves(state.observe_state, is_leaf=like_params))
    for tree in (state.params, state.masks, state.explored, adam.mu, adam.nu, *averages):
        assert lie(mesh, tree, BESIDE)
    everything_else = (state.step, state.key, state.event_metrics, state.events, adam.count)
    assert lie(mesh, everything_else, jax.tree.map(lambda _: P(), everything_else))


def test_masks_are_those_of_one_device():
    mesh, params = placed()
    method = jaxsparse.rigl(**RUN)
    optimizer = jaxsparse.sparse_optimizer(method, optax.sgd(0.1))
    _, here = optimizer.init(jax.device_get(params), key=jax.random.key(0))
    _, there = optimizer.init(params, key=jax.random.key(0))
    assert jaxsparse.fingerprint(here.masks) == jaxsparse.fingerprint(there.masks)
    _, given = optimizer.init(params, key=jax.random.key(0), masks=jax.device_get(here.masks))
    assert lie(mesh, given.masks, BESIDE)
    assert mesh_of(given) == mesh


@pytest.mark.parametrize(
    ("devices", "fsdp"),
    [
        (2, True),
        (8, True),
        pytest.param(2, False, marks=pytest.mark.variants),
        pytest.param(8, False, marks=pytest.mark.variants),
    ],
)
def test_training_with_events_is_that_of_one_device_to_the_bit(devices, fsdp, after_four):
    """Gradients are given, for those of a loss are added up in another order on other devices."""
    state = mesh_worker.trained(mesh_worker.create(mesh_worker.mesh_of(devices), fsdp), 1, 4)
    assert int(state.events.num_taken) == 2
    assert int(jaxsparse.fingerprint(state)) == after_four


@pytest.fixture(scope="module")
def after_four():
    state = mesh_worker.trained(mesh_worker.create(mesh_worker.mesh_of(1)), 1, 4)
    return int(jaxsparse.fingerprint(state))


def test_a_step_gives_back_the_shardings_that_it_takes():
    """So the second step is not compiled again, though the state was made outside of jit."""
    state = mesh_worker.create(mesh_worker.mesh_of(8))
    described = lambda state: [(x.aval, x.sharding, x.committed) for x in jax.tree.leaves(state)]
    before = described(state)
    assert described(mesh_worker.trained(state, 1, 1)) == before


def test_an_nnx_optimizer_lies_on_the_mesh_of_its_model():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    model = nnx.Linear(16, 4, rngs=nnx.Rngs(0))
    model.kernel[...] = jax.device_put(model.kernel[...], NamedSharding(mesh, P("x")))
    method = jaxsparse.rigl(**RUN)
    optimizer = NNXOptimizer(model, method, optax.adam(0.1), key=jax.random.key(0))
    assert optimizer.masks["kernel"].sharding == NamedSharding(mesh, P("x"))
    leaves = jax.tree.leaves(nnx.as_pure(optimizer.state)) + jax.tree.leaves(nnx.state(model))
    assert {leaf.sharding.mesh for leaf in leaves} == {mesh}


def test_jit_decides_by_its_out_shardings():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    model, x = nn.Dense(8), jnp.ones((2, 16))

    def create(key):
        params = model.init(key, x)["params"]
        tx, method = optax.adam(0.1), jaxsparse.rigl(**RUN)
        return jaxsparse.TrainState.create(
            apply_fn=None, params=params, tx=tx, method=method, key=key
        )

    place = lambda leaf: NamedSharding(mesh, P("x") if leaf.shape == (16, 8) else P())
    shardings = jax.tree.map(place, jax.eval_shape(create, jax.random.key(0)))
    state = jax.jit(create, out_shardings=shardings)(jax.random.key(0))
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == shardings


def test_what_lies_on_no_mesh_stays_where_it_is():
    params = {"kernel": jnp.ones((4, 4)), "host": np.ones(3)}
    assert mesh_of(params) is None
    assert replicate(None, params) is params
    state = jaxsparse.sparse_optimizer(jaxsparse.rigl(**RUN), optax.sgd(0.1)).init(
        params, key=jax.random.key(0)
    )[1]
    assert not any(leaf.committed for leaf in jax.tree.leaves(state))


def test_place_moves_keys_and_leaves_numbers():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    everywhere = NamedSharding(mesh, P())
    key = place(jax.random.key(7), everywhere)
    assert key.sharding.is_equivalent_to(everywhere, 0)
    assert jax.random.key_data(key).tolist() == [0, 7]
    assert place(3, everywhere) == 3
    x = jax.device_put(jnp.ones(8), everywhere)
    assert place(x, everywhere) is x
