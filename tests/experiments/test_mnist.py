"""MNIST's script: the published recipe by its known answers, and what its flags do to the start."""

import functools
import json
import os
from pathlib import Path

import chex
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import ablations, loop, mnist
from experiments.data.fashion_mnist import SAMPLE_DIR
from experiments.data.mnist import MEAN, STD, load
from experiments.options import cli
from experiments.training.recipes import learning_rate, make_optimizer
from jaxsparse.paths import leaves_by_path

ROOT = Path(__file__).parents[2]
# Fashion-MNIST's sample has MNIST's format.
make_config = functools.partial(mnist.Config, data_dir=SAMPLE_DIR)


def test_the_full_set_by_known_answers():
    """The counts of digits and the moments of pixels are widely published."""
    data_dir = Path(os.environ.get("JAXSPARSE_DATA_DIR", ROOT / "data"))
    try:
        data = load(data_dir)
    except FileNotFoundError:
        pytest.skip("the full MNIST is not in ./data or $JAXSPARSE_DATA_DIR")
    assert (data.name, data.num_classes) == ("mnist", 10)
    assert [len(split.labels) for split in data[1:4]] == [54_000, 6_000, 10_000]
    both = [np.concatenate(pair) for pair in zip(data.train, data.val, strict=True)]
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(both[1]).tolist() == counts
    assert both[1][:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert both[0].mean() / 255 == pytest.approx(MEAN, abs=1e-4)
    assert both[0].std() / 255 == pytest.approx(STD, abs=1e-4)
    # Each tenth of the training set has every digit about as often as the whole.
    tenths = np.stack([np.bincount(part) for part in both[1].reshape(10, -1)])
    assert np.abs(tenths * 10 / counts - 1).max() < 0.07


def test_the_published_recipe():
    config = mnist.Config()
    recipe = mnist.recipe_of(config)
    rate = learning_rate(recipe, config.steps)
    steps = (0, 24_999, 25_000, 49_999, 50_000, 53_999)
    expected = (0.1, 0.1, 0.01, 0.01, 0.001, 0.001)
    assert [float(rate(step)) for step in steps] == pytest.approx(expected)
    assert (config.steps, config.batch_size, config.val_fraction) == (54_000, 100, 0.1)
    assert mnist.normalise(jnp.uint8([0, 255])) == pytest.approx([-0.4242, 2.8215], abs=1e-4)


def test_two_steps_of_its_optimizer_by_hand():
    """PyTorch's: v <- 0.9 v + g + 5e-4 w;  w <- w - 0.1 (g + 5e-4 w + 0.9 v)."""
    tx = make_optimizer(mnist.recipe_of(mnist.Config()), 54_000)
    params, v, w = {"w": jnp.array([2.0])}, 0.0, 2.0
    state = tx.init(params)
    for g in (1.0, -3.0):
        updates, state = tx.update({"w": jnp.array([g])}, state, params)
        params = optax.apply_updates(params, updates)
        d = g + 5e-4 * w
        v = 0.9 * v + d
        w -= 0.1 * (d + 0.9 * v)
        assert float(params["w"][0]) == pytest.approx(w)


def test_masks_change_once_an_epoch_as_in_the_paper():
    """After every epoch but the last; the share that is replaced falls from a half on a cosine."""
    config = make_config(schedule="set", update_interval=540, stop_step=54_000, drop_fraction=0.5)
    events = mnist.method_of(config).timetable.events
    assert [event.step for event in events] == [540 * epoch for epoch in range(1, 100)]
    shares = np.array([float(event.drop_fraction) for event in events])
    cosine = 0.25 + 0.25 * np.cos(np.pi * np.arange(1, 100) / 100)
    np.testing.assert_allclose(shares, cosine, atol=1e-7)


@pytest.fixture(scope="module")
def starts():
    """The initial params and masks by flags, with the same seed."""

    @functools.cache
    def start(**flags):
        config = make_config(
            schedule="static", sparsity=0.95, distribution="uniform", steps=10, **flags
        )
        state = loop.create_state(mnist.run_of(config))
        return {path: np.asarray(x) for path, x in leaves_by_path(state.params).items()}, {
            path: np.asarray(x) for path, x in leaves_by_path(state.masks).items()
        }

    return start


def test_weights_start_as_pytorchs_layers_do(starts):
    params, masks = starts()
    for layer, fan_in in (("Dense_0", 784), ("Dense_1", 300), ("Dense_2", 100)):
        kernel, mask = params[f"{layer}/kernel"], masks[f"{layer}/kernel"]
        assert mask.sum() == round(0.05 * mask.size)
        for weights in (kernel[mask], params[f"{layer}/bias"]):
            assert 0 < np.abs(weights).max() <= fan_in**-0.5
        assert kernel[mask].var() * fan_in == pytest.approx(1 / 3, abs=5 * 0.3 / mask.sum() ** 0.5)


def test_flags_of_the_weights_leave_the_masks_alone(starts):
    _, masks = starts()
    for flags in ({"weights": "he"}, {"weights": "he", "sparse_init": "unit"}):
        _, others = starts(**flags)
        assert all((masks[path] == others[path]).all() for path in masks)


def test_weights_are_scaled_to_the_inputs_of_each_unit(starts):
    """Evci et al.: of variance 2 / (active inputs of the unit), biases 0."""
    dense, masks = starts(weights="he")
    scaled, _ = starts(weights="he", sparse_init="unit")
    for layer, fan_in in (("Dense_0", 784), ("Dense_1", 300), ("Dense_2", 100)):
        active = masks[f"{layer}/kernel"].sum(0)
        expected = dense[f"{layer}/kernel"] * np.sqrt(fan_in / np.maximum(active, 1))
        np.testing.assert_allclose(scaled[f"{layer}/kernel"], expected, rtol=1e-6)
        assert not scaled[f"{layer}/bias"].any()


def test_weights_are_scaled_to_the_density_of_each_layer(starts):
    dense, _ = starts()
    scaled, _ = starts(sparse_init="layer")
    for path, w in dense.items():
        factor = 20**0.5 if path.endswith("kernel") else 1.0
        np.testing.assert_allclose(scaled[path], factor * w, rtol=1e-6)


@pytest.mark.slow
def test_a_run_and_its_folder(tmp_path):
    config = make_config(
        schedule="set", sparsity=0.9, steps=20, update_interval=5, eval_every=10, out=tmp_path / "a"
    )
    summary = mnist.train(config, mnist.run_of(config))
    assert (summary["dataset"], summary["num_active"]) == ("mnist", 26_620)
    assert json.loads((tmp_path / "a" / "config.json").read_text())["weights"] == "pytorch"
    ablated = ["--run", str(tmp_path / "a"), "--arms", "reinit", "--out", str(tmp_path / "b")]
    assert cli.run(ablations.main, ablations.Config, ablated) == 0
    found = json.loads((tmp_path / "b" / "summary.json").read_text())
    assert found["dataset"] == "mnist" and set(found["arms"]) == {"as trained", "reinit"}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--weights=hee"], "unknown weights 'hee'; did you mean 'he'?"),
        (["--sparse_init=neuron"], "--sparse_init=neuron must be unit or layer"),
        (["--model=lenet55"], "unknown model 'lenet55'; did you mean 'lenet5'?"),
    ],
)
@pytest.mark.parametrize("plan", [[], ["--plan"]])
def test_what_is_wrong_is_one_line(argv, message, plan, tmp_path, capsys):
    argv = [*argv, *plan, f"--data_dir={SAMPLE_DIR}", f"--out={tmp_path / 'run'}"]
    assert cli.run(mnist.main, mnist.Config, argv) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not (tmp_path / "run").exists()


def test_missing_data_is_named_with_the_way_to_get_it(tmp_path, capsys):
    assert cli.run(mnist.main, mnist.Config, [f"--data_dir={tmp_path}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: MNIST: train-images-idx3-ubyte.gz, ")
    assert line.endswith(
        f"expected in {tmp_path}/mnist or {tmp_path}; get it with: "
        f"python experiments/data/prepare.py mnist --data_dir={tmp_path}"
    )


def test_the_weights_of_a_dense_network_stay_as_they_are():
    configs = (make_config(schedule="dense", steps=10, sparse_init=by) for by in (None, "unit"))
    plain, scaled = (loop.create_state(mnist.run_of(config)).params for config in configs)
    chex.assert_trees_all_equal(plain, scaled)
