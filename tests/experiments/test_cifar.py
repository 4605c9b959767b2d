"""The CIFAR experiment: its flags, its plan without data, and a run on a small prepared copy."""

import functools
import json
import re

import chex
import jax
import jax.numpy as jnp
import pytest

from experiments import cifar, loop
from experiments.data import cifar10, cifar100, prepare
from experiments.options import cli
from experiments.options.schedules import METHODS
from experiments.training.run import Phase
from jaxsparse.nn import DyReLUOptions
from jaxsparse.nn.residual_blocks import BasicBlock
from jaxsparse.nn.resnet import ResNet
from tests.experiments import cifar_copies as copies


def main(*argv):
    return cli.run(cifar.main, cifar.Config, argv)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Both data sets, 20 and 4 training images, prepared from small copies."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        for module in (cifar10, cifar100):
            patch.setattr(module, "OFFICIAL", copies.official(module))
            files = copies.files(module.NAME, "binary")
            archive = copies.write_tar(folder / f"{module.NAME}.tar.gz", "x", files)
            arguments = [module.NAME, f"--data_dir={folder}", f"--from={archive}"]
            assert prepare.main(arguments) == 0
    return folder


@pytest.mark.parametrize("model", cifar.MODELS)
@pytest.mark.parametrize(
    ("dataset", "classes", "dtype"), [("cifar10", 10, "float32"), ("cifar100", 100, "bfloat16")]
)
def test_every_model_builds(model, dataset, classes, dtype):
    """Weights, norms and logits are float32 in mixed precision too."""
    network = cifar.model_of(cifar.Config(model=model, dataset=dataset, dtype=dtype))
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    logits, variables = jax.eval_shape(network.init_with_output, jax.random.key(0), images)
    chex.assert_shape(logits, (2, classes))
    assert {str(x.dtype) for x in jax.tree.leaves((logits, variables))} == {"float32"}
    assert set(variables) == {"params", "batch_stats"}


def test_the_help_names_every_choice(capsys):
    with pytest.raises(SystemExit):
        main("--help")
    words = set(re.findall(r"\w+", capsys.readouterr().out))
    assert {*cifar.MODELS, *cifar.RECIPES, *cifar.DATASETS, *cifar.DTYPES, *METHODS} <= words


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--model=resnet21"], "unknown model 'resnet21'; did you mean 'resnet"),
        (["--recipe=granett"], "unknown recipe 'granett'; did you mean 'granet'?"),
        (["--dataset=cifar1000"], "unknown dataset 'cifar1000'; did you mean 'cifar100'?"),
        (["--dtype=float"], "unknown dtype 'float'; did you mean 'float32'?"),
        (["--schedule=granet_ts"], "unknown schedule 'granet_ts'; did you mean 'granet_st'?"),
        (["--steps=5", "--epochs=2"], "--steps=5 and --epochs=2.0: pass one of them"),
        (["--steps=0"], "--steps=0 must be a whole number of steps, at least 1"),
        (["--epochs=0"], "--epochs=0.0 must be at least a step, 1 / 351 of an epoch"),
        (["--epochs=nan"], "--epochs=nan must be a finite number"),
        (["--epochs=inf"], "--epochs=inf must be a finite number"),
        (["--epochs=1e9"], "--epochs=1000000000 must be at most 6118187: steps are counted in 32"),
        (["--batch_size=0"], "--batch_size=0 must be a whole number in [1, 45000]"),
        (["--batch_size=45001"], "--batch_size=45001 must be a whole number in [1, 45000]"),
        (
            ["--batch_size=45001", "--steps=5"],
            "--batch_size=45001 must be a whole number in [1, 45000]",
        ),
        (["--val_fraction=1"], "--val_fraction=1.0 must be in [0, 1)"),
        (["--learning_rate=-1"], "--learning_rate=-1.0 must be in [0, inf)"),
        (["--accumulate=3"], "--accumulate=3 must divide --batch_size=128"),
        (["--eval_every=0"], "--eval_every=0 must be a whole number of steps"),
        (["--seed=-1"], "--seed=-1 must be a whole number in [0, 4294967295]"),
        (["--augment=no"], "invalid choice 'no' for argument '--augment'. Expected one of"),
    ],
)
def test_a_plan_refuses_what_the_run_would_in_one_line(argv, message, capsys):
    assert main("--plan", "--data_dir=/nowhere", *argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_missing_data_is_one_line_with_the_command_that_gets_it(capsys, tmp_path):
    assert main(f"--data_dir={tmp_path}", "--dataset=cifar100", f"--out={tmp_path}/run") == 2
    assert capsys.readouterr().err == (
        f"error: cifar100 expected in {tmp_path}/cifar100/3.0.2; get it with: "
        f"python experiments/data/prepare.py cifar100 --data_dir={tmp_path}\n"
    )
    assert not (tmp_path / "run").exists()


def test_the_plan_of_the_published_recipe_needs_no_data(capsys, tmp_path):
    assert main("--plan", f"--data_dir={tmp_path}", f"--out={tmp_path}/run") == 0
    text = capsys.readouterr().out
    assert "granet_st: 56 events in 56,160 steps, 13,545 of 270,896 weights active" in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "steps", "held_out"),
    [
        ({}, 56_160, 0.1),  # 160 epochs of 45,000 // 128 = 351
        ({"dataset": "cifar100"}, 62_400, 0.0),  # of 50,000 // 128 = 390
        ({"recipe": "rigl"}, 97_500, 0.0),  # 250 epochs
        ({"schedule": "east"}, 87_750, 0.1),  # 250 epochs of 351, on either
        ({"schedule": "east", "dataset": "cifar100"}, 87_750, 0.1),
        ({"schedule": "rigl_itop", "recipe": "east"}, 87_750, 0.1),
        ({"epochs": 0.5}, 176, 0.1),
        ({"epochs": 1, "batch_size": 100, "val_fraction": 0.5}, 250, 0.5),
        ({"steps": 7}, 7, 0.1),
    ],
)
def test_length_and_split(flags, steps, held_out):
    config = cifar.Config(**flags)
    assert cifar.steps_of(config) == steps
    assert cifar.val_fraction_of(config) == held_out


# EAST's networks at 99.9 % of the weights without sharing, rounded up; 90 classes more are 90 x 512
# or 90 x 2,048 weights.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "dataset", "classes", "tensors", "stored", "active"),
    [
        ("resnet34", "cifar10", 10, 21, 11_164_352, 21_266),
        ("resnet34", "cifar100", 100, 21, 11_210_432, 21_312),
        ("resnet50", "cifar10", 10, 30, 13_928_128, 23_468),
        ("resnet50", "cifar100", 100, 30, 14_112_448, 23_653),
    ],
)
def test_east_as_published(model, dataset, classes, tensors, stored, active):
    config = cifar.Config(model=model, dataset=dataset, schedule="east", sparsity=0.999)
    run = cifar.run_of(config, cifar.blank(config))
    plan = loop.check(run)
    assert len(plan.sizes) == tensors and sum(plan.sizes.values()) == stored
    # Up to 3 times as many in either cycle, of 50 epochs.
    counts = {row.step: row.num_active for row in plan.rows}
    assert counts[0] == counts[17_550] == counts[35_100] == plan.rows[-1].num_active == active
    assert max(counts.values()) == pytest.approx(3 * active, abs=3)
    # Of 87,750 steps, and gone an epoch before the rate falls.
    assert run.phase == Phase(21_938, 43_524)
    assert run.model.num_owners == 2 and run.model.dyrelu == DyReLUOptions(4, "coefficient")
    assert [len(split.labels) for split in run.dataset[1:3]] == [45_000, 5_000]
    assert run.dataset.num_classes == classes


def test_each_data_set_has_its_padding_statistics_and_split(data_dir):
    for name, mode, sizes in (("cifar10", "reflect", [18, 2, 4]), ("cifar100", "zero", [4, 0, 4])):
        config = cifar.Config(dataset=name, data_dir=data_dir, steps=10, schedule="static")
        run = cifar.run_of(config)
        assert run.augment.keywords == {"mode": mode}
        assert [len(split.labels) for split in run.dataset[1:4]] == sizes
        assert run.normalise.keywords["mean"] == cifar.DATASETS[name][0].MEAN
    assert cifar.run_of(cifar.Config(data_dir=data_dir, augment=False, steps=10)).augment is None


def test_normalised_by_channel():
    images = jnp.array([[[[0, 51, 255]]]], jnp.uint8)
    found = cifar.normalise(images, mean=(0.5, 0.2, 0.0), std=(0.25, 0.5, 2.0))
    chex.assert_trees_all_close(found, jnp.array([[[[-2.0, 0.0, 0.5]]]]), atol=1e-6)


def test_a_plan_says_where_east_shares_nothing(capsys):
    argv = ("--plan", "--schedule=east", "--steps=100", "--model=resnet8")
    note = "note: resnet8 is no ResNet with a stage of more than 2 blocks, so it shares no weights"
    assert main(*argv) == 0 and capsys.readouterr().err == f"{note}\n"
    assert main(*argv, "--weight_sharing=False") == 0 and capsys.readouterr().err == ""


@pytest.mark.parametrize("schedule", METHODS)
def test_dyrelu_and_weight_sharing_go_with_every_method(schedule):
    config = cifar.Config(
        schedule=schedule, model="resnet20", dyrelu=True, weight_sharing=True, steps=100
    )
    run = cifar.run_of(config, cifar.blank(config))
    assert run.phase == Phase(25, 50) and run.model.num_owners == 2
    active = 174_128 if schedule == "dense" else 13_545  # of 270,896 without sharing
    assert loop.check(run).rows[-1].num_active == active


@pytest.mark.variants
@pytest.mark.slow
@pytest.mark.long
def test_rigl_with_dyrelu_and_weight_sharing_from_its_flags(data_dir, tmp_path, monkeypatch):
    make = functools.partial(ResNet, stage_sizes=(3,), block=BasicBlock, width=4, stem="cifar")
    monkeypatch.setitem(cifar.MODELS, "small", make)
    flags = "--schedule=rigl --dyrelu --weight_sharing --model=small --sparsity=0.9 --steps=4"
    more = f"--update_interval=1 --batch_size=4 --data_dir={data_dir} --out={tmp_path}/run"
    assert main(*f"{flags} {more}".split()) == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["unshared_sparsity"] == pytest.approx(0.9, abs=1e-3)
    assert summary["dyrelu_params"] == 7 * (20 + 17)


@pytest.mark.slow
def test_a_run_from_its_flags_to_its_folder(data_dir, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = f"--model=resnet8 --schedule=gmp --data_dir={data_dir} --steps=6 --batch_size=4".split()
    argv += "--update_interval=2 --sparsity=0.9 --eval_every=3 --val_fraction=0.2".split()
    assert main(*argv) == 0
    out = tmp_path / "runs/cifar10/resnet8-gmp-0.9-steps6-seed0"
    assert capsys.readouterr().out.splitlines()[-1].endswith(str(out.relative_to(tmp_path)))
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["dataset"], summary["model"]) == ("cifar10", "resnet8")
    assert summary["num_active"] == summary["num_prunable"] - int(0.9 * summary["num_prunable"])
    assert list(json.loads((out / "config.json").read_text())) == list(cli.as_dict(cifar.Config()))
    assert main(*argv) == 2
    assert "holds a finished run (summary.json) with the same flags" in capsys.readouterr().err
