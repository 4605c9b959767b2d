"""ResNet-50 v1.5 at 224 x 224: the numbers of RigL's tables, through `method.plan`."""

import dataclasses
import re

import numpy as np
import pytest

import jaxsparse
from experiments import fashion_mnist
from experiments import plan as plan_file
from experiments.options import cli, flags
from experiments.options.schedules import METHODS
from experiments.records import cost
from jaxsparse.distributions import uniform, with_overrides
from jaxsparse.nn import resnet

PARAMS, FLOPS = cost.shapes_and_flops(resnet(50), plan_file.MODELS["resnet50"][1])
FIRST_DENSE = with_overrides(uniform(), {"^conv1/": 0.0})


def plan(method):
    return method.plan(PARAMS, FLOPS)


def test_size_and_dense_flops():
    dense = plan(jaxsparse.dense(total_steps=1))
    assert dense.num_prunable == 25_502_912
    assert sum(FLOPS.values()) == dense.rows[0].flops == 8_178_368_512
    assert len(dense.sizes) == len(FLOPS) == 54  # 53 convolutions and the classifier
    assert (dense.train_flops_ratio, dense.test_flops_ratio) == (1.0, 1.0)


# ResNet-50 on ImageNet: ERK (Evci et al. 2020) by layer, and shares of the dense FLOPs.
@pytest.mark.parametrize(
    ("density", "eps", "num_dense", "conv1", "fc", "erk", "first_dense"),
    [
        (0.5, 303.952, 32, 1.0000, 0.4524, 0.7143, 0.5144),
        (0.2, 99.561, 8, 0.8572, 0.1482, 0.4138, 0.2231),
        (0.1, 48.786, 1, 0.4200, 0.0726, 0.2418, 0.1260),
        (0.05, 24.372, 0, 0.2098, 0.0363, 0.1217, 0.0774),
    ],
)
def test_erk_and_uniform(density, eps, num_dense, conv1, fc, erk, first_dense):
    static = plan(jaxsparse.static(sparsity=1 - density, total_steps=1))
    layers, sizes = static.rows[0].layers, static.sizes
    assert sum(layers[path] == sizes[path] for path in sizes) == num_dense
    assert layers["conv1/kernel"] / sizes["conv1/kernel"] == pytest.approx(conv1, abs=2e-4)
    assert layers["fc/kernel"] / sizes["fc/kernel"] == pytest.approx(fc, abs=1e-4)
    # The classifier is never dense: d = eps (2048 + 1000) / (2048 * 1000).
    assert layers["fc/kernel"] / (2048 + 1000) == pytest.approx(eps, abs=1e-3)
    assert static.test_flops_ratio == pytest.approx(erk, abs=1e-4)
    assert static.train_flops_ratio == pytest.approx(static.test_flops_ratio, rel=1e-12)
    uniform = plan(jaxsparse.static(sparsity=1 - density, total_steps=1, distribution=FIRST_DENSE))
    assert uniform.test_flops_ratio == pytest.approx(first_dense, abs=1e-4)


# RigL's formula (Evci et al. 2020, appendix on FLOPs) is one event in Delta T + 1 steps, to the
# end.
@pytest.mark.parametrize(
    ("sparsity", "rigl", "snfs"), [(0.8, 0.4157, 0.6092), (0.9, 0.2443, 0.4946)]
)
def test_multipliers_of_rigl_and_snfs(sparsity, rigl, snfs):
    options = {"sparsity": sparsity, "total_steps": 32_000}
    formula = plan(jaxsparse.rigl(update_interval=101, stop_step=32_000, **options))
    assert formula.train_flops_ratio == pytest.approx(rigl, abs=5e-5)
    # Its own run: every 100 steps and none from 25,000 on, so 249 dense gradients.
    run = plan(jaxsparse.rigl(stop_step=25_000, **options))
    sparse = run.test_flops_ratio
    assert run.train_flops_ratio == pytest.approx(sparse + 249 * (1 - sparse) / 3 / 32_000)
    assert run.train_flops_ratio == pytest.approx(rigl, abs=6e-4)
    assert plan(jaxsparse.snfs(**options)).train_flops_ratio == pytest.approx(snfs, abs=5e-5)
    for cheap in (
        jaxsparse.set_(**options),
        jaxsparse.rigl(grow=jaxsparse.scores.random, **options),
    ):
        assert plan(cheap).train_flops_ratio == pytest.approx(sparse, rel=1e-12)


# GMP from 10,000 to 25,000 of 32,000 steps, first convolution dense.
@pytest.mark.parametrize(
    ("sparsity", "samples", "run"), [(0.8, 0.559, 0.5695), (0.9, 0.504, 0.5156)]
)
def test_multipliers_of_gmp(sparsity, samples, run):
    gmp = plan(
        jaxsparse.gmp(
            sparsity=sparsity,
            total_steps=32_000,
            start_step=10_000,
            stop_step=25_000,
            scope="layer",
            distribution=FIRST_DENSE,
        )
    )
    assert not gmp.layers_are_estimates
    # The published way: the mean of samples at 0, 1000, ..., 32,000, both ends among them.
    steps, flops = [row.step for row in gmp.rows], [row.flops for row in gmp.rows]
    at = np.searchsorted(steps, np.arange(0, 32_001, 1000), side="right") - 1
    assert np.mean(np.array(flops)[at]) / sum(FLOPS.values()) == pytest.approx(samples, abs=5e-4)
    # The run itself: each density holds for the 1000 steps after its event.
    assert gmp.train_flops_ratio == pytest.approx(run, abs=5e-5)


def test_granets_dense_gradient_can_be_left_out():
    method = jaxsparse.granet_st(
        sparsity=0.8, total_steps=1_000_900, update_interval=4000, stop_step=300_270
    )
    charged, published = (
        method.plan(PARAMS, FLOPS, count_dense_gradient=count) for count in (True, False)
    )
    assert charged.rows == published.rows
    assert 0 < charged.train_flops_ratio - published.train_flops_ratio < 1e-4
    assert charged.layers_are_estimates
    # Published from real masks: .37 and .35. Counts in proportion to the start would give .286.
    assert 0.30 < published.test_flops_ratio < 0.40


# The table in experiments/README.md; published are .37 .35 .25 .20 and .34 .28 .23 .16.
@pytest.mark.parametrize(
    ("schedule", "sparsity", "train", "test"),
    [
        ("granet_st", 0.8, 0.4066, 0.3796),
        ("granet_st", 0.9, 0.2758, 0.2351),
        ("granet", 0.8, 0.4017, 0.3463),
        ("granet", 0.9, 0.2867, 0.2171),
    ],
)
def test_estimates_for_granet(schedule, sparsity, train, test, capsys):
    argv = [f"--schedule={schedule}", f"--sparsity={sparsity}", "--count_dense_gradient=False"]
    argv += ["--steps=1000900", "--update_interval=4000", "--stop_step=300270"]
    assert cli.run(plan_file.main, plan_file.Config, argv) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert line.startswith(f"FLOPs: training about {train} of dense, inference about {test} of")


# The pairs of Liu et al. 2021 (GraNet), inference known, the cubic over 30 of 100 epochs. Its
# events come at the end of their interval, so that training is 0.0005 to 0.0016 above the mean of
# the cubic.
@pytest.mark.parametrize(
    ("schedule", "sparsity", "test", "mean", "published"),
    [
        ("granet_st", 0.8, 0.35, 0.377, 0.37),
        ("granet_st", 0.9, 0.20, 0.239, 0.25),
        ("granet", 0.8, 0.28, 0.334, 0.34),
        ("granet", 0.9, 0.16, 0.223, 0.23),
    ],
)
def test_training_follows_from_inference(schedule, sparsity, test, mean, published, capsys):
    argv = [
        f"--schedule={schedule}", f"--sparsity={sparsity}", f"--test_flops={test}",
        "--steps=1000900", "--update_interval=4000", "--stop_step=300270",
        "--count_dense_gradient=False",
    ]  # fmt: skip
    assert cli.run(plan_file.main, plan_file.Config, argv) == 0
    headline = capsys.readouterr().out.splitlines()[1]
    found = re.match(r"FLOPs: training (\d\.\d{4}) of dense, inference (\S+) as given;", headline)
    assert found and float(found[2]) == test
    ratio = float(found[1])
    assert mean < ratio < mean + 0.002
    assert ratio == pytest.approx(published, abs=0.011)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (
            ["--schedule=rigl", "--test_flops=0.3"],
            "--test_flops needs pruning over all layers; rigl has none",
        ),
        (["--schedule=granet", "--test_flops=0"], "--test_flops=0.0 must be in (0, 1]"),
        (["--schedule=granet", "--test_flops=1.1"], "--test_flops=1.1 must be in (0, 1]"),
    ],
)
def test_inference_that_makes_no_sense(flags, complaint, capsys):
    assert cli.run(plan_file.main, plan_file.Config, flags) == 2
    out, error = capsys.readouterr()
    assert complaint in error and not out


def test_the_dense_gradient_counts_unless_the_flag_says_no():
    parse = lambda *argv: cli.parse(plan_file.Config, argv).count_dense_gradient
    assert parse() and parse("--count_dense_gradient=True")
    assert not parse("--count_dense_gradient=False") and not parse("--count-dense-gradient=False")
    with pytest.raises(ValueError, match="Expected one of"):
        parse("--count_dense_gradient=maybe")


def test_every_flag_of_training_that_a_method_takes_can_be_planned(capsys):
    options = {option for entry in METHODS.values() for option in entry.options}
    options |= {field.name for field in dataclasses.fields(flags.Tricks)}
    for config in (plan_file.Config, fashion_mnist.Config):
        assert options <= {field.name for field in dataclasses.fields(config)}
    argv = ["--model=lenet5", "--schedule=granet_st", "--sparsity=0.99", "--steps=100"]
    argv += ["--drop_fraction=0.25", "--min_keep=100"]
    assert cli.run(plan_file.main, plan_file.Config, argv) == 0
    lines = capsys.readouterr().out.splitlines()
    kept = {line.split()[0]: line.split()[-2] for line in lines if "kernel" in line}
    assert kept["Dense_2/kernel"] == "100"


def planned(capsys, *argv):
    assert cli.run(plan_file.main, plan_file.Config, argv) == 0
    return capsys.readouterr()


def test_dyrelu_and_weight_sharing_are_planned(capsys):
    out = planned(capsys, "--dyrelu", "--weight_sharing", "--sparsity=0.99").out
    sharing = re.search(r"weight sharing  sparsity (\S+) of the 25,502,912 weights", out)
    assert sharing and float(sharing[1]) == pytest.approx(0.99, abs=1e-6)
    # 0.01 of 25,502,912 weights, in the kernels of two blocks a stage.
    assert "255,030 of 15,963,328 weights active at the end" in out.splitlines()[0]
    assert re.search(
        r"^DyReLU          \S+ dense parameters while it lasts, \S+ FLOPs an", out, re.M
    )
    assert "DyReLU" not in planned(capsys).out
    note = planned(capsys, "--model=lenet5", "--schedule=east", "--sparsity=0.9").err
    assert note == (
        "note: lenet5 is no ResNet with a stage of more than 2 blocks, so it shares no weights\n"
    )


# 512 x 990 and 7,680 weights in the stem more than on CIFAR-10, and the published ResNet-50.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "stored", "unshared", "active", "dyrelu"),
    [
        ("resnet34", "11,678,912", "21,779,648", "21,780", "3,181,168"),
        ("resnet50", "15,963,328", "25,502,912", "25,503", "28,394,800"),
    ],
)
def test_east_on_imagenet_is_planned(model, stored, unshared, active, dyrelu, capsys):
    out = planned(capsys, "--schedule=east", f"--model={model}", "--sparsity=0.999").out
    assert f"{active} of {stored} weights active at the end" in out.splitlines()[0]
    assert re.search(rf"^weight sharing  sparsity 0\.999 of the {unshared} weights", out, re.M)
    assert re.search(rf"^DyReLU          {dyrelu} dense parameters", out, re.M)


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["--dyrelu_stop=0.5"], "--dyrelu_stop needs --dyrelu"),
        (["--dyrelu", "--dyrelu_stop=1.5"], "--dyrelu_stop=1.5 must be in (0, 1]"),
        (["--model=lenet5", "--weight_sharing"], "--weight_sharing: lenet5 is no ResNet with"),
        (["--weight_sharing", "--sparsity=0.1"], "or take --weight_sharing=False"),
    ],
)
def test_tricks_that_are_refused(argv, complaint, capsys):
    assert cli.run(plan_file.main, plan_file.Config, argv) == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["--spasity=0.9"], "unknown flag '--spasity'; did you mean '--sparsity'?"),
        (["--steps=0"], "--steps=0 must be a whole number of steps, at least 1"),
        (["--update_interval=1.5"], "--update_interval=1.5 must be a whole number"),
        (["--model=resnet51"], "unknown model 'resnet51'; did you mean 'resnet50'?"),
        (["runs/mine"], "unexpected argument 'runs/mine'; flags are written --flag=value"),
    ],
)
def test_a_wrong_command_is_one_line(argv, complaint, capsys):
    assert cli.run(plan_file.main, plan_file.Config, argv) == 2
    assert capsys.readouterr().err == f"error: {complaint}\n"
