"""Runs by active weights beside the same runs on masked kernels."""

import json
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import jaxsparse
from experiments import cifar, loop
from experiments.options import cli
from experiments.records import report
from experiments.records.run_folder import read_metrics
from experiments.training.execution import (
    check_execution,
    describe_execution,
    highest_counts,
)
from jaxsparse.checkpoint import restore_masks
from jaxsparse.kernels import load
from jaxsparse.sparse import backend
from tests.experiments.small_runs import make_run, trained
from tests.networks import Smooth

# Whole runs of our own code: on one Python.
pytestmark = pytest.mark.variants
STEPS, EVERY = 12, 4


@pytest.fixture(autouse=True)
def as_with_kernels(monkeypatch):
    """Where there are no kernels the layers here are worth less, and would all stay dense."""
    compiled = load.Backend("compiled", "as the test asks")
    monkeypatch.setattr("jaxsparse.sparse.choice.backend", lambda: compiled)


class Net(nn.Module):
    """Smooth, so that rounding stays rounding."""

    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.softplus(nn.Conv(6, (3, 3))(x))
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        x = nn.softplus(nn.Conv(8, (3, 3), strides=2)(x))
        return nn.Dense(3)(x.mean((1, 2)))


OPTIONS = {"sparsity": 0.85, "total_steps": STEPS, "update_interval": EVERY}
METHODS = {
    "rigl": jaxsparse.rigl(**OPTIONS),
    "set": jaxsparse.set_(**OPTIONS),
    "gmp": jaxsparse.gmp(**OPTIONS),
    "granet_st": jaxsparse.granet_st(**OPTIONS),
    # Twice the weights at 2 and 6, with checkpoints at 6 and 12; exchanges at 10.
    "east": jaxsparse.east(
        **OPTIONS | {"update_interval": 5}, cycle_steps=4, cycle_interval=2, multiplier=2.0
    ),
    "rigl_itop": jaxsparse.rigl_itop(**OPTIONS),
    "static": jaxsparse.static(sparsity=0.85, total_steps=STEPS),
}


def run_of(name="rigl", **fields):
    defaults = {
        "model": Net(),
        "method": METHODS[name],
        "tx": optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(0.05, momentum=0.9)),
        "batch_size": 16,
        "checkpoint_every": 6,
        "eval_every": 6,
    }
    return make_run(**(defaults | fields))


SOME = ("gmp", "rigl", "granet_st")


@pytest.mark.parametrize(
    ("name", "model"),
    [
        *((name, Net()) for name in METHODS if name in SOME),
        *(pytest.param(x, Net(), marks=pytest.mark.long) for x in METHODS if x not in SOME),
        pytest.param("rigl", Smooth(num_classes=3), marks=pytest.mark.variants),
    ],
)
def test_a_run_is_that_of_masked_kernels(name, model):
    expected, masked, masked_live = trained(run_of(name, model=model))
    found, sparse, live = trained(run_of(name, model=model, execution="sparse"))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    state, reference = sparse.full(live), masked.full(masked_live)
    chex.assert_trees_all_equal(state.masks, reference.masks)
    chex.assert_trees_all_close(state.params, reference.params, rtol=1e-3, atol=1e-5)
    chex.assert_trees_all_close(state.opt_state, reference.opt_state, rtol=1e-3, atol=1e-4)
    assert int(state.step) == STEPS
    jaxsparse.check(state.params, state.opt_state, state.masks)
    # It did run by active weights.
    assert {"Conv_0/kernel", "Conv_1/kernel"} <= set(sparse.capacity(live))
    assert getattr(live.forms.model, "layout", None) == (
        "CHWN" if hasattr(model, "layout") else None
    )
    assert live.state.params["Conv_1"]["kernel"].ndim == 1
    slots = lambda state: sum(x.size for x in jax.tree.leaves(state.opt_state))
    assert slots(live.state) < 0.5 * slots(reference)


def test_a_constant_number_of_weights_compiles_once():
    *_, execution, live = trained(run_of("set", execution="sparse"))
    assert len(execution._compiled) == 2  # the step, and that with a mask update
    capacity = sum(execution.capacity(live).values())
    assert capacity == sum(int(where.num) for where in live.positions.values())


def test_cycles_have_capacity_for_the_most_and_compile_anew_after_the_last():
    run = run_of("east", execution="sparse")
    capacity, compiled = [], []
    for steps in (1, 2, 7, 8, 11):
        _, execution, live = trained(run, steps)
        capacity.append(execution.capacity(live))
        compiled.append(len(execution._compiled))
    most = dict(highest_counts(run.method, loop.create_state(run).params).counts)
    assert sum(most.values()) == 153  # 30 % of 54 + 432 + 24
    assert capacity[0] == capacity[1] == capacity[2] == {path: most[path] for path in capacity[0]}
    assert sum(capacity[3].values()) < sum(capacity[0].values()) and capacity[4] == capacity[3]
    assert compiled == [1, 1, 1, 1, 2]


def test_the_most_of_cycles_in_which_nothing_happens_is_what_there_is():
    gmp = jaxsparse.gmp(
        sparsity=0.9,
        total_steps=20,
        start_step=10,
        stop_step=16,
        update_interval=2,
        scope="layer",
    )
    method = jaxsparse.with_cycles(gmp, num_cycles=1, cycle_steps=8, cycle_interval=2)
    params = {"a": {"kernel": jax.ShapeDtypeStruct((8, 100), jnp.float32)}}
    assert highest_counts(method, params) == ({"a/kernel": 800}, 8)


@pytest.mark.parametrize("name", ["rigl", "set"])
def test_micro_batches(name):
    expected, masked, masked_live = trained(run_of(name, accumulate=2))
    found, sparse, live = trained(run_of(name, accumulate=2, execution="sparse"))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    chex.assert_trees_all_equal(sparse.full(live).masks, masked.full(masked_live).masks)


def finish(run, out):
    loop.train(run, out, {"schedule": "gmp", "model": "net", "sparsity": 0.85}, title="")
    summary = json.loads((out / "summary.json").read_text())
    records = read_metrics(out)
    del summary["steps_per_second"], summary["peak_memory_mib"]
    return summary, records, restore_masks(out / "checkpoints")


@pytest.mark.parametrize("name", ["gmp", "rigl", "east"])
def test_a_run_that_was_cut_off_ends_as_the_straight_one(name, tmp_path, monkeypatch):
    run = run_of(name, execution="sparse")
    straight = finish(run, tmp_path / "straight")
    record, seen = loop.record, []

    def cut(*args):
        seen.append(args[2])
        if args[2] == 9:
            raise KeyboardInterrupt
        return record(*args)

    monkeypatch.setattr(loop, "record", cut)
    with pytest.raises(KeyboardInterrupt):
        finish(run, tmp_path / "cut")
    monkeypatch.setattr(loop, "record", record)
    cut_off = finish(run, tmp_path / "cut")
    assert seen[-1] == 9
    chex.assert_trees_all_equal(cut_off, straight)


def test_a_checkpoint_goes_on_in_the_other_execution(tmp_path, monkeypatch):
    summaries = {}
    for first, second in (("masked", "sparse"), ("sparse", "masked")):
        out = tmp_path / first
        record = loop.record

        def cut(*args, record=record):
            if args[2] == 9:
                raise KeyboardInterrupt
            return record(*args)

        monkeypatch.setattr(loop, "record", cut)
        with pytest.raises(KeyboardInterrupt):
            finish(run_of(execution=first), out)
        monkeypatch.setattr(loop, "record", record)
        summaries[first] = finish(run_of(execution=second), out)
    (_, ours, masks), (_, theirs, other_masks) = summaries.values()
    chex.assert_trees_all_equal(masks, other_masks)
    losses = [[r["train_loss"] for r in records if "train_loss" in r] for records in (ours, theirs)]
    assert len(losses[0]) == STEPS
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_evaluation_is_that_of_masked_kernels():
    run = run_of()
    variables = loop.create_state(run).variables
    sparse = run._replace(execution="sparse")
    for split in (run.dataset.train, run.dataset.test):
        expected = report.evaluate(run, variables, split)
        assert report.evaluate(sparse, variables, split) == expected


def test_what_it_cannot_do_is_refused():
    snfs = run_of(method=jaxsparse.snfs(**OPTIONS), execution="sparse")
    with pytest.raises(ValueError, match="--execution=sparse: snfs reads the gradient of all wei"):
        check_execution(snfs)
    with pytest.raises(ValueError, match="--execution=dense must be masked or sparse"):
        check_execution(run_of(execution="dense"))
    half = cifar.Config(model="resnet8", dtype="bfloat16", execution="sparse")
    with pytest.raises(ValueError, match="--execution=sparse takes --dtype=float32, not bfloat16"):
        check_execution(cifar.run_of(half, cifar.blank(half)))


def test_the_plan_says_what_is_sparse():
    config = cifar.Config(model="resnet8", schedule="rigl", sparsity=0.99, execution="sparse")
    run = cifar.run_of(config, cifar.blank(config))
    plan = loop.check(run)
    text = describe_execution(run, plan)
    assert "at the start: " in text and "at the end: " in text
    assert "stage3_block1/conv2/kernel" in text
    assert describe_execution(run._replace(execution="masked"), plan) == ""


def test_the_plan_of_cycles_has_the_forms_of_their_middle_at_the_start():
    run = run_of("east", execution="sparse")
    start, end = describe_execution(run, loop.check(run)).split("at the end: ")
    active = lambda text: [int(line.split()[1]) for line in text.splitlines() if "kernel" in line]
    assert (sum(active(start)), sum(active(end))) == (153, 77)


@pytest.mark.parametrize("execution", ["sparse", "masked"])
def test_a_run_says_at_its_start_how_many_layers_are_sparse(execution, tmp_path, capsys):
    finish(run_of(execution=execution), tmp_path / "run")
    found = [line for line in capsys.readouterr().err.splitlines() if "sparse execution" in line]
    layers = r"\d of \d layers are executed by their active weights, images lie as \w+$"
    assert len(found) == (execution == "sparse")
    assert all(re.search(rf"sparse execution: {backend().name}.*; {layers}", x) for x in found)


def test_the_flag(capsys):
    command = ["--model=resnet8", "--plan", "--schedule=set", "--steps=200", "--execution=sparse"]
    assert cli.run(cifar.main, cifar.Config, command) == 0
    assert "layers are executed by their active weights" in capsys.readouterr().out
    command[-1] = "--execution=fast"
    assert cli.run(cifar.main, cifar.Config, command) == 2
    assert "--execution=fast must be masked or sparse" in capsys.readouterr().err
