"""A surgery in the middle of a run, and a run that was cut off before it or after it."""

import json

import optax
import pytest
from flax import linen as nn

import jaxsparse
from experiments import loop
from experiments.records.run_folder import read_metrics
from experiments.training import surgery
from experiments.training.run import Phase, Surgery
from jaxsparse.paths import leaf_paths
from tests.checkpoint.states import bits
from tests.experiments.small_runs import make_run

pytestmark = pytest.mark.variants  # long, and one Python shows it for both

CONFIG = {"model": "net", "schedule": "rigl_itop"}


class Named(nn.Module):
    """A network whose first layer has a name of its own."""

    first: str = "old"

    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.relu(nn.Dense(6, name=self.first)(x.reshape(len(x), -1)))
        return nn.Dense(3, name="out")(x)


def renamed(tree):
    """The tree with the name of the layer changed, in params, masks and optimizer slots alike."""
    if isinstance(tree, dict):
        return {{"old": "new"}.get(name, name): renamed(value) for name, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*map(renamed, tree))
    return tuple(map(renamed, tree)) if isinstance(tree, tuple) else tree


def rename(model, state):
    fields = ("params", "masks", "opt_state", "explored", "observe_state")
    return Named("new"), state.replace(**{name: renamed(getattr(state, name)) for name in fields})


def run_of(**fields):
    """20 steps, the surgery after step 11, checkpoints after 10 and 20 unless asked otherwise."""
    fields = {"tx": optax.adamw(0.01), "surgeries": (Surgery(11, rename),)} | fields
    return make_run(model=Named(), **fields)


def train(run, out):
    summary = loop.train(run, out, CONFIG, title="")
    del summary["steps_per_second"], summary["peak_memory_mib"]
    return summary


def test_a_layer_is_renamed_and_training_goes_on(tmp_path):
    summary = train(run_of(), tmp_path / "renamed")
    expected = train(run_of(surgeries=()), tmp_path / "as it was")
    assert list(summary["layers"]) == ["new/kernel", "out/kernel"]
    assert list(expected["layers"]) == ["old/kernel", "out/kernel"]
    losses = lambda name: [r["train_loss"] for r in read_metrics(tmp_path / name)[1:]]
    # The method draws by the names of layers, but until the next mask update all is as it was.
    assert losses("renamed")[:12] == losses("as it was")[:12]
    # The best network is one of those after the surgery.
    assert summary["best_step"] > 11


@pytest.mark.parametrize(
    "cut",
    [pytest.param(7, marks=pytest.mark.long), 11, pytest.param(13, marks=pytest.mark.long), 18],
)
def test_a_run_goes_on_to_the_same_bits(cut, tmp_path, monkeypatch):
    """From 5, 10 (before the surgery, cut at it and after it) and 15 (after it)."""
    run, record = run_of(checkpoint_every=5), loop.record
    straight = train(run, tmp_path / "straight")

    def cut_off(*args):
        if args[2] == cut:
            raise KeyboardInterrupt
        return record(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "record", cut_off)
        with pytest.raises(KeyboardInterrupt):
            train(run, tmp_path / "run")
    assert train(run, tmp_path / "run") == straight
    texts = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("run", "straight")]
    assert texts[0] == texts[1]
    ends = [
        loop.progress.resume(tmp_path / name / "checkpoints", run, loop.create_state(run))
        for name in ("run", "straight")
    ]
    assert bits(ends[0].state) == bits(ends[1].state)
    assert bits(ends[0].best.variables) == bits(ends[1].best.variables)
    assert ends[0].run.model == Named("new") and not ends[0].run.surgeries
    metadata = json.dumps(json.loads((tmp_path / "run/summary.json").read_text()))
    assert "old/kernel" not in metadata


def test_the_end_of_dyrelu_is_one_of_them():
    run = run_of(surgeries=(Surgery(9, rename), Surgery(2, rename)), phase=Phase(1, 5))
    assert [each.step for each in surgery.surgeries(run)] == [2, 5, 9]
    assert [step for step in range(11) if surgery.is_due(run, step)] == [2, 5, 9]


@pytest.mark.parametrize("step", [0, 21])
def test_a_surgery_outside_the_run_is_refused(step):
    with pytest.raises(ValueError, match=rf"surgery step {step} must be a whole number in \[1, 20"):
        loop.check(run_of(surgeries=(Surgery(step, rename),)))


def test_the_state_has_no_leaf_of_the_old_layer():
    run = run_of()
    state = loop.create_state(run)
    assert jaxsparse.prunable_paths(state.params) == ["old/kernel", "out/kernel"]
    now, after = surgery.after(run, state, 11)
    assert not any("old" in path for path in leaf_paths(after))
    assert now.model == Named("new") and after.apply_fn == now.model.apply
