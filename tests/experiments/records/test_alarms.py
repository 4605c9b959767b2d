"""Dead layers and cut networks: what a run records, what it warns of, what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse
from experiments import loop
from experiments.records import alarms
from experiments.records.run_folder import read_metrics
from experiments.sweeping import vmapped
from jaxsparse.nn import BasicBlock, DyReLUOptions
from jaxsparse.nn.resnet import ResNet
from jaxsparse.paths import prunable_leaves, with_leaves
from jaxsparse.tracing.connectivity import Connectivity, LayerPaths
from tests.experiments import small_runs
from tests.experiments.small_runs import make_run

pytestmark = pytest.mark.variants  # long, and one Python shows it for both

CONFIG = {"model": "net", "schedule": "set"}
SHAPES = {"Dense_0": (64, 6), "Dense_1": (6, 3)}


def masks_of(first, second):
    """Masks of `small_runs.Net`: what the hidden units read, all or nothing, and what they feed."""
    kernels = {
        "Dense_0": jnp.zeros(SHAPES["Dense_0"], bool).at[:, jnp.array(first, int)].set(True),
        "Dense_1": jnp.zeros(SHAPES["Dense_1"], bool).at[jnp.array(second, int)].set(True),
    }
    bias = lambda name: jnp.ones(SHAPES[name][1], bool)
    return {name: {"kernel": mask, "bias": bias(name)} for name, mask in kernels.items()}


def static_run(first, second, **fields):
    method = jaxsparse.static(masks=masks_of(first, second), total_steps=20)
    return make_run(method=method, **fields)


def test_live_weights_are_counted_by_layer():
    run = static_run([0, 1, 2], [2, 3])
    found = alarms.find_paths(run, loop.create_state(run))
    # Through unit 2 alone: 64 weights in, 3 out.
    layers = (LayerPaths("Dense_0/kernel", 192, 64), LayerPaths("Dense_1/kernel", 6, 3))
    assert found.layers == layers


def state_of(run, kernels):
    """A state of zeros, with masks of the kernels."""
    shapes = jax.eval_shape(functools.partial(loop.initial_variables, run))
    variables = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    params = variables.pop("params")
    masks = with_leaves(jax.tree.map(lambda x: jnp.ones(x.shape, bool), params), kernels)
    return loop.RunState.create(
        apply_fn=run.model.apply,
        params=params,
        collections=variables,
        tx=run.tx,
        method=jaxsparse.static(masks=masks, total_steps=20),
        key=run.key(0),
    )


def live_of(model, state, image):
    """What is live of the network as it is, by path."""
    forward = lambda params, x: model.apply({**state.variables, "params": params}, x)
    live = jax.jit(lambda masks: jaxsparse.live_weights(forward, state.params, masks, image))
    return prunable_leaves(live(state.masks))


@pytest.mark.slow
def test_dyrelu_counts_as_relu_and_a_shared_weight_is_live_in_any_of_its_uses():
    """Of three blocks the last takes the kernels of the second."""
    relu = ResNet((3,), BasicBlock, width=4, stem="cifar", num_classes=3, num_owners=2)
    dyrelu, apart = relu.clone(dyrelu=DyReLUOptions()), relu.clone(num_owners=None)
    image = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    shapes = prunable_leaves(jax.eval_shape(relu.init, jax.random.key(0), image)["params"])
    rng = np.random.default_rng(2)
    share = {4: 0.06, 2: 0.5}
    kernels = {path: jnp.asarray(rng.random(x.shape) < share[x.ndim]) for path, x in shapes.items()}
    runs = {model: make_run(model=model) for model in (relu, dyrelu)}
    states = {model: state_of(run, kernels) for model, run in runs.items()}
    found = alarms.find_paths(runs[relu], states[relu])
    assert alarms.find_paths(runs[dyrelu], states[dyrelu]) == found
    assert (found.num_live, sum(layer.num_active for layer in found.layers)) == (22, 45)
    # DyReLU itself lets more through: its lines depend on all channels.
    through = live_of(dyrelu, states[dyrelu], image)
    assert sum(int(live.sum()) for live in through.values()) == 45
    # Written out, each use has a mask of its own.
    used_in = lambda path: path.replace("block2", "block3")
    tied = kernels | {used_in(path): mask for path, mask in kernels.items()}
    live = live_of(apart, state_of(make_run(model=apart), tied), image)
    either = {path: int((live[path] | live[used_in(path)]).sum()) for path in kernels}
    assert {layer.path: layer.num_live for layer in found.layers} == either
    assert any((live[path] != live[used_in(path)]).any() for path in kernels)


@pytest.mark.parametrize(
    ("first", "second", "end"),
    [([0, 1], [4, 5], "Dense_1"), ([], [1], "Dense_0"), ([1], [], "Dense_1")],
)
def test_masks_that_cut_the_network_for_good_are_refused(first, second, end, tmp_path):
    message = (
        f"the network is cut: no path leads from an image to a logit, all end at {end}/kernel, and "
        "static never changes its masks; lower --sparsity, or pass another --seed than 0"
    )
    run = static_run(first, second)
    with pytest.raises(ValueError, match=message):
        loop.train(run, tmp_path / "run", CONFIG, title="")
    lanes = [vmapped.Lane(run, tmp_path / "run", CONFIG)]
    with pytest.raises(ValueError, match=message):
        vmapped.train(lanes, tmp_path / "group", title="")
    assert not list(tmp_path.iterdir())


def test_a_cut_network_whose_masks_move_is_recorded_and_warned_of(tmp_path, capfd):
    """Three weights for 64 inputs: whether a path is there is for chance to decide."""
    method = jaxsparse.set_itop(sparsity=1 - 4 / 402, total_steps=20, update_interval=2)
    summary = loop.train(make_run(method=method), tmp_path, CONFIG, title="")
    records = [r for r in read_metrics(tmp_path) if "layer_num_active" in r]
    live = [record["layer_num_live"] for record in records]
    assert [record["step"] for record in records] == [0, *range(2, 20, 2)]
    assert any(not any(counts) for counts in live) and any(any(counts) for counts in live)
    for record, counts in zip(records, live, strict=True):
        assert all(n <= m for n, m in zip(counts, record["layer_num_active"], strict=True))
    warnings = [line for line in capfd.readouterr().err.splitlines() if "warning: no path" in line]
    (warning,) = warnings
    first = next(r["step"] for r in records if not any(r["layer_num_live"]))
    when = f"after step {first}" if first else "at the start"
    assert f"warning: no path leads from an image to a logit {when}, all end at Dense_" in warning
    assert [layer["num_live"] for layer in summary["layers"].values()] == live[-1]
    assert summary["num_live"] == sum(live[-1])
    cut = "no path is left from input to output" in summary["alarms"]
    assert cut == (not any(live[-1]))


def at_step(run, step):
    state = loop.create_state(run)
    return state.replace(step=jnp.int32(step))


def test_every_warning_is_given_once():
    run, warned = static_run([0], [0]), set()
    layers = [LayerPaths("a", 5, 0), LayerPaths("b", 3, 3), LayerPaths("c", 0, 0)]
    found = Connectivity(tuple(layers))
    assert alarms.warnings(run, at_step(run, 0), found, warned) == [
        "warning: a is dead at the start: none of its 5 weights lies on a path from an image to a "
        "logit",
        "warning: no weight is in c at the start",
    ]
    assert alarms.warnings(run, at_step(run, 3), found, warned) == []
    layers[1] = LayerPaths("b", 2, 0)
    layers.append(LayerPaths("d", 9, 1))
    (warning,) = alarms.warnings(run, at_step(run, 6), Connectivity(tuple(layers)), warned)
    assert warning.startswith("warning: b is dead after step 6: none of its 2 weights")


def test_all_runs_share_one_program():
    """Also those of other seeds, and after mask updates."""
    traces = []

    def normalise(images):
        traces.append(images.shape)
        return small_runs.normalise(images)

    for seed in (0, 1):
        run = make_run(seed=seed, normalise=normalise)
        state = loop.create_state(run)
        traces.clear()
        alarms.find_paths(run, state)
        assert bool(traces) == (seed == 0)
        traces.clear()
        event = run.method.update(state.params, state.params, state.masks, 4, key=jax.random.key(1))
        assert alarms.find_paths(run, state.replace(masks=event.masks)).num_live > 150
        assert traces == []
