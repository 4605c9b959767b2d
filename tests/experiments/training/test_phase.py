"""Runs that begin with DyReLU and share weights: they end with ReLU, and resume wherever cut."""

import functools
import json
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse
from experiments import cifar, fashion_mnist, loop
from experiments.data.dataset import Dataset
from experiments.options import cli, tricks
from experiments.records.cost import extras, shapes_and_flops
from experiments.records.run_folder import read_metrics
from experiments.training import steps, surgery
from experiments.training.batches import Indexed
from experiments.training.phase import make_phase
from experiments.training.run import Phase
from jaxsparse.kernels import load
from jaxsparse.nn import DyReLUOptions, WideResNet
from jaxsparse.nn.residual_blocks import BasicBlock
from jaxsparse.nn.resnet import ResNet
from jaxsparse.paths import leaf_paths
from tests.checkpoint.states import bits
from tests.experiments.small_runs import make_run, split, trained

pytestmark = pytest.mark.variants  # long, and one Python shows it for both

STOP, EVERY = 9, 3


def run_of(**fields):
    """16 steps, DyReLU fading from 3 to 9, a cycle of density up to 11, a checkpoint every 3."""
    model = ResNet(
        stage_sizes=(3,),
        block=BasicBlock,
        width=4,
        stem="cifar",
        num_classes=3,
        dyrelu=DyReLUOptions(),
        num_owners=2,
    )
    defaults = {
        "model": model,
        "dataset": Dataset("random", split(0, 24), split(1, 8), split(2, 8), 3),
        "method": jaxsparse.with_cycles(
            jaxsparse.rigl(sparsity=0.7, total_steps=16, update_interval=3, stop_step=14),
            num_cycles=1,
            cycle_steps=11,
            cycle_interval=3,
        ),
        "tx": optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(0.05, momentum=0.9)),
        "phase": Phase(3, STOP),
        "batch_size": 8,
        "checkpoint_every": EVERY,
        "eval_every": 8,
    }
    return make_run(**(defaults | fields))


def train(run, out):
    return loop.train(run, out, {"model": "m", "schedule": "rigl", "seed": 0}, title="")


def outcome(out):
    summary = json.loads((out / "summary.json").read_text())
    for name in ("steps_per_second", "peak_memory_mib"):
        del summary[name]
    return summary, (out / "metrics.jsonl").read_text()


@pytest.fixture(scope="module", autouse=True)
def as_with_kernels():
    """Where there are none the layers here are worth less by active weights, and would stay."""
    compiled = load.Backend("compiled", "as the tests ask")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxsparse.sparse.choice.backend", lambda: compiled)
        yield


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """From an execution to the folder of a whole run."""

    @functools.cache
    def trained(execution):
        out = tmp_path_factory.mktemp(execution) / "run"
        train(run_of(execution=execution), out)
        return out

    return trained


def end_of(out):
    run = run_of()
    return loop.progress.resume(out / "checkpoints", run, loop.create_state(run))


@pytest.mark.slow
def test_it_ends_as_the_network_of_relus(straight):
    out = straight("masked")
    assert not any("dyrelu" in path for path in leaf_paths(end_of(out).state))
    saved = json.loads((out / "checkpoints/16/contents/metadata").read_text())
    assert "dyrelu" not in json.dumps(saved)
    summary, _ = outcome(out)
    relu = run_of().model.clone(dyrelu=None)
    image = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    assert summary["dense_test_flops"] == sum(shapes_and_flops(relu, image)[1].values())
    found = extras(run_of().model, image, Phase(3, STOP), 8, summary["num_active"])
    assert found.items() <= summary.items()
    # 1.25 C^2 + 4.25 C for the stem and two in each of three blocks; products alone are FLOPs.
    assert found["dyrelu_params"] == 7 * (20 + 17)
    assert found["dyrelu_flops"] == 7 * 2 * (4 + 16)
    assert found["dyrelu_train_flops"] == 3 * 8 * STOP * found["dyrelu_flops"]
    assert summary["num_unshared"] == summary["num_prunable"] + 2 * 9 * 16
    # The best model is one without DyReLU: of the evaluations, at 8 and 16, the last.
    assert summary["best_step"] == 16


def random_images():
    return Dataset("random", *(split(seed, 8, (32, 32, 3)) for seed in range(3)), 10)


class Cut(Exception):
    pass


# From 6, within phase and cycle; from 12, after both.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "execution"), [(13, "masked"), pytest.param(7, "sparse", marks=pytest.mark.long)]
)
def test_resuming_is_exact(step, execution, straight, tmp_path, monkeypatch):
    record = loop.record

    def cut(run, folder, now, *args):
        if now == step:
            raise Cut
        return record(run, folder, now, *args)

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "record", cut)
        with pytest.raises(Cut):
            train(run_of(execution=execution), out)
    train(run_of(execution=execution), out)
    assert outcome(out) == outcome(straight(execution))
    ours, theirs = end_of(out), end_of(straight(execution))
    assert bits(ours.state) == bits(theirs.state)  # masks and slots of the optimizer with it
    assert bits(ours.best.variables) == bits(theirs.best.variables)
    assert ours.capacity == theirs.capacity and bool(ours.capacity) == (execution == "sparse")


def test_the_first_step_is_dyrelus_unless_it_comes_late():
    run = run_of()
    state = loop.create_state(run)
    batch = Indexed(*map(jnp.asarray, run.dataset.train), jnp.arange(8))
    loss = lambda run, others: steps.loss_and_grads(run, state.params, others, 0, batch)[0]
    late = loss(run._replace(phase=Phase(3, STOP, late=True)), state.collections)
    relu, _ = surgery.after(run, state, STOP)
    assert late == loss(relu, {"batch_stats": state.collections["batch_stats"]})
    assert late != loss(run, state.collections)


@pytest.mark.slow
def test_by_active_weights(straight):
    folders = [straight(execution) for execution in ("sparse", "masked")]
    found, expected = [outcome(out)[0]["num_active"] for out in folders]
    assert found == expected
    losses = [[r["train_loss"] for r in read_metrics(out)[1:]] for out in folders]
    np.testing.assert_allclose(losses[0][:6], losses[1][:6], rtol=1e-3)


# Of 624 weights, without sharing 912; as many as there are layers, and one more.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "active"),
    [({"num_owners": 2}, 7), ({}, 9)],
    ids=["sharing", "cycles"],
)
def test_each_trick_alone_at_a_weight_a_layer(fields, active, tmp_path):
    model = run_of().model.clone(**{"dyrelu": None, "num_owners": None} | fields)
    size = 624 if model.num_owners else 912
    method = jaxsparse.rigl_itop(sparsity=1 - active / size, total_steps=8, update_interval=2)
    if not fields:
        method = jaxsparse.with_cycles(method, num_cycles=1, cycle_steps=4, cycle_interval=1)
    options = {"phase": Phase(2, 5) if model.dyrelu else None, "checkpoint_every": 0}
    train(run_of(model=model, method=method, **options), tmp_path / "run")  # NaN is an error
    summary, _ = outcome(tmp_path / "run")
    assert (summary["num_prunable"], summary["num_active"]) == (size, active)
    assert not summary["empty_layers"]


# Of 232,128 weights without sharing; a mask update after every step.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "active"),
    [
        ("--dyrelu --dyrelu_stop=1", [24, 24]),
        pytest.param("--weight_sharing", [24, 24], marks=pytest.mark.long),
        ("--cycles=1 --cycle_share=1 --cycle_interval=1", [47, 70]),
    ],
    ids=["dyrelu", "sharing", "cycles"],
)
def test_each_trick_alone_at_a_ten_thousandth(flags, active, monkeypatch):
    one_stage = functools.partial(ResNet, stage_sizes=(3,), block=BasicBlock)
    monkeypatch.setitem(cifar.MODELS, "one_stage", one_stage)
    common = "--model=one_stage --schedule=rigl_itop --recipe=east --sparsity=0.9999"
    argv = f"{common} --steps=4 --update_interval=1 --batch_size=8 {flags}".split()
    run = cifar.run_of(cli.parse(cifar.Config, argv), random_images())
    state = jax.jit(functools.partial(loop.create_state, run))()
    batch = Indexed(*map(jnp.asarray, run.dataset.train), jnp.arange(8))
    step = jax.jit(functools.partial(steps.train_step, run, True))
    for expected in active:
        state, loss = step(state, batch)
        assert jnp.isfinite(loss)
        chex.assert_tree_all_finite((state.params, state.opt_state, state.collections))
        assert state.summary().num_active == expected


def test_without_its_parts_east_is_configured_as_rigl_itop():
    off = "--cycles=0 --dyrelu=False --weight_sharing=False --steps=100"
    parse = lambda flags: cli.parse(cifar.Config, f"{off} {flags}".split())
    runs = [
        cifar.run_of(config, cifar.blank(config))
        for config in (parse("--schedule=east"), parse("--schedule=rigl_itop --recipe=east"))
    ]
    east, itop = (run.method for run in runs)
    assert runs[0].model == runs[1].model
    assert (east.timetable, east.skip_step) == (itop.timetable, itop.skip_step)
    assert east.recipe.cycles is itop.recipe.cycles is None
    same = ("phase", "batch_size", "seed", "accumulate", "execution")
    assert [getattr(runs[0], name) for name in same] == [getattr(runs[1], name) for name in same]
    assert cifar.recipe_of(parse("--schedule=east")) == cifar.recipe_of(parse("--recipe=east"))


@pytest.mark.long
def test_without_its_parts_east_trains_as_rigl_itop():
    off = "--cycles=0 --dyrelu=False --weight_sharing=False --sparsity=0.9"
    off += " --steps=5 --update_interval=2 --batch_size=8"
    parse = lambda flags: cli.parse(cifar.Config, f"{off} {flags}".split())
    runs = [
        cifar.run_of(parse(flags), random_images())
        for flags in ("--schedule=east", "--schedule=rigl_itop --recipe=east")
    ]
    assert len(runs[0].method.timetable.events) == 2
    small = run_of().model.clone(dyrelu=None, num_owners=None, num_classes=10)
    (losses, ours), (expected, theirs) = (
        (losses, execution.full(live))
        for losses, execution, live in (trained(run._replace(model=small)) for run in runs)
    )
    assert losses == expected
    assert bits(ours) == bits(theirs)  # masks, optimizer and statistics with it


def test_a_phase_needs_dyrelu_and_dyrelu_a_phase():
    for wrong in (run_of(phase=None), run_of(model=run_of().model.clone(dyrelu=None))):
        with pytest.raises(ValueError, match="dyrelu"):
            loop.check(wrong)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (
            "--dyrelu --dyrelu_start=0.5",
            r"--dyrelu_start=0.5 must be in \[0, 0.496\), below --dyrelu_stop",
        ),
        ("--dyrelu --dyrelu_stop=1.1", r"--dyrelu_stop=1.1 must be in \(0, 1\]"),
        ("--dyrelu --dyrelu_stop=nan", "--dyrelu_stop=nan"),
        ("--dyrelu --dyrelu_blend=both", "--dyrelu_blend=both must be coefficient or output"),
        ("--dyrelu_freeze", "--dyrelu_freeze needs --dyrelu"),
        ("--weight_sharing --model=resnet8", "--weight_sharing: resnet8 is no ResNet with a"),
        ("--weight_sharing --model=vgg16", "--weight_sharing: vgg16 is no ResNet with"),
        (
            "--weight_sharing --sparsity=0.2",
            "^--sparsity=0.2 needs 216,717 active weights.*, or take --weight",
        ),
        ("--weight_sharing --sparsity=1.5", r"^--sparsity=1.5 must be in \[0, 1\)$"),
    ],
)
def test_wrong_flags(flags, complaint):
    config = cli.parse(cifar.Config, ["--schedule=rigl", "--steps=100", *flags.split()])
    with pytest.raises(ValueError, match=complaint):
        cifar.run_of(config, cifar.blank(config))


def test_all_networks_of_the_experiments_with_stages_of_three_blocks_share():
    shares = {name: tricks.can_share(make(num_classes=10)) for name, make in cifar.MODELS.items()}
    alone = {name for name, can in shares.items() if not can}
    assert alone == {"resnet8", "resnet18", "vgg16", "vgg19"}
    assert not tricks.can_share(WideResNet(16, 8))


def test_flags():
    parse = lambda flags: cli.parse(cifar.Config, flags.split())
    config = parse("--schedule=rigl --dyrelu --weight-sharing --steps=1000")
    assert config.dyrelu is True and config.weight_sharing is True
    assert parse("--dyrelu=False --seed=1").dyrelu is False and parse("--seed=1").dyrelu is None
    assert parse("--weight_sharing").weight_sharing is True
    run = cifar.run_of(config, cifar.blank(config))
    assert run.phase == Phase(250, 496) and run.model.num_owners == 2
    assert sum(
        run.method.targets(shapes_and_flops(run.model, cifar.IMAGE)[0]).initial.values()
    ) == (
        13_545  # of the 270,896 without sharing
    )


# Mask updates at 3, 6, ...: with an optimizer step or without, at the start of the phase or not.
@pytest.mark.parametrize(
    ("schedule", "start"),
    [("rigl_itop", 13), ("rigl", 13), ("rigl", 12), ("rigl", 0), ("set", 13), ("snfs", 13)],
)
def test_frozen_from_the_step_asked_for(schedule, start):
    flags = f"--schedule={schedule} --steps=40 --update_interval=3 --sparsity=0.5 --dyrelu"
    flags += f" --dyrelu_freeze --dyrelu_start={start / 40}"
    config = cli.parse(cifar.Config, flags.split())
    run = cifar.run_of(config, cifar.blank(config))
    assert run.phase is not None and run.phase.start == start
    state = jaxsparse.TrainState.create(
        apply_fn=run.model.apply,
        params={"dyrelu1": {"w1": jnp.ones(2)}, "fc": {"kernel": jnp.ones((2, 2))}},
        tx=run.tx,
        method=run.method,
        key=run.key(0),
    )
    changes = []
    for n in range(1, 21):
        grads = jax.tree.map(jnp.ones_like, state.params)
        after = state.apply_gradients(grads=grads, event=run.method.is_due(n))
        if bits(after.params["dyrelu1"]) != bits(state.params["dyrelu1"]):
            changes.append(n)
        state = after
    skipped = range(3, 21, 3) if run.method.skip_step else ()
    assert changes == [n for n in range(1, start + 1) if n not in skipped]


def test_the_sparsity_at_the_start_is_that_of_the_kernels_that_are_there(capsys):
    flags = "--schedule=gmp --weight_sharing --sparsity=0.9 --steps=100"
    for start, active in ((0.0, 174_128), (0.25, 130_596)):
        config = cli.parse(cifar.Config, [*flags.split(), f"--initial_sparsity={start}"])
        rows = loop.check(cifar.run_of(config, cifar.blank(config))).rows
        assert rows[0].num_active == active
        assert rows[-1].num_active == 27_090  # of the 270,896 without sharing
    with pytest.raises(SystemExit):
        cli.parse(cifar.Config, ["--help"])
    text = re.sub(r"[\s│]+", " ", capsys.readouterr().out)
    assert "With weight sharing it is that of the kernels that are stored" in text


def test_a_dense_network_that_shares_has_no_sparsity():
    flags = "--schedule=dense --weight_sharing --sparsity=0 --steps=10"
    config = cli.parse(cifar.Config, flags.split())
    run = cifar.run_of(config, cifar.blank(config))
    assert loop.check(run).rows[-1].num_active == 174_128


def test_the_smallest_runs():
    assert make_phase(1, start=0.25, stop=0.496) == Phase(0, 1)
    assert make_phase(88_000, start=0.25, stop=0.496) == Phase(22_000, 43_648)


def test_small_networks_have_it():
    config = cli.parse(
        fashion_mnist.Config, ["--model=lenet_300_100", "--schedule=set", "--dyrelu"]
    )
    run = fashion_mnist.run_of(config)
    image = jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32)
    # 1.25 C^2 + 4.25 C of 300 and 100 channels.
    assert extras(run.model, image, run.phase, 128, 0)["dyrelu_params"] == 126_700
    assert not tricks.can_share(run.model)
