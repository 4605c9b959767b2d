"""The driver: flags, a study of a tiny network from base to table, and one that was cut off."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import loop, resrep
from experiments.comparing.finished_runs import find_runs
from experiments.options import cli
from experiments.structured import narrow_files, report
from experiments.structured.arms import ARMS
from tests.experiments.structured.tiny import add_to, images, normalise

TINY = (
    *("--dataset=random", "--model=tiny", "--batch_size=12", "--base_steps=4", "--steps=8"),
    *("--eval_every=4", "--checkpoint_every=4", "--timed_steps=0", "--arm_rate=0.1"),
    *("--lasso=5", "--mask_start=0", "--mask_interval=2", "--centripetal=100", "--narrowings=2"),
)


def run(capsys, *flags):
    """The exit status, and what was printed."""
    status = cli.run(resrep.main, resrep.Config, [*TINY, *flags])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--target=0"], "--target=0.0 must be in (0, 1]"),
        (["--target=0.01"], "--target=0.01 cannot be reached: the smallest widths leave 0."),
        (["--arms=l1,resrip"], "unknown arm 'resrip'; did you mean 'resrep'?"),
        (["--arms=l1,l1"], "--arms=l1,l1 must name one or more arms, each once"),
        (["--arms="], "--arms= must name one or more arms, each once"),
        (["--model=tny"], "unknown model 'tny'; did you mean 'tiny'?"),
        (["--dataset=cifar"], "unknown dataset 'cifar'; did you mean 'cifar10'?"),
        (
            ["--dataset=cifar10", "--data_dir=nowhere"],
            "cifar10 expected in nowhere/cifar10/3.0.2; get it with: python",
        ),
        (["--width=0"], "--width=0 must be a whole number, at least 1"),
        (["--arms=l1", "--ranking=globl"], "--ranking=globl must be one of global, layer, iso"),
        (["--round_to=0"], "--round_to=0 must be a whole number, at least 1"),
        (["--arms=gradual", "--narrowings=9"], "--narrowings=9 must be a whole number in [1, 4]"),
        (["--arms=resrep", "--lasso=1e-4"], "--lasso=0.0001 is too small: resrep: with lasso=0."),
        (["--arms=resrep", "--mask_stop=8"], "--mask_stop=8 must be a whole number in [1, 7]"),
        (["--arms=csgd", "--centripetal=1"], "--centripetal=1 is too small. csgd: in 8 steps"),
        (["--epochs=1"], "--steps=8 and --epochs=1.0: pass one of them"),
        (["--batch_size=100"], "--batch_size=100 must be a whole number in [1, 48]"),
        (["--seeds=0"], "--seeds=0 must be a whole number, at least 1"),
        (["--learning_rate=-1"], "--learning_rate=-1.0 must be in [0, inf)"),
        (["--arm_rate=0"], "--arm_rate=0.0 must be in (0, inf)"),
        (["--table"], "runs/structured/random/tiny-w6-steps4+8 does not exist"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    flags, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    add_to(monkeypatch)
    status, _, text = run(capsys, *flags)
    assert (status, text.count("\n")) == (2, 1)
    assert text.startswith(f"error: {message}")
    assert list(tmp_path.iterdir()) == []


def test_the_help_names_all_arms_and_the_plan_says_what_they_will_do(capsys, monkeypatch):
    add_to(monkeypatch)
    listed = resrep.__doc__ or ""
    for name in ARMS:
        assert f"\n    {name} " in listed
    status, text, _ = run(capsys, "--arms=resrep,csgd,l1", "--plan")
    assert status == 0
    assert text.startswith("tiny on random: ") and "a base of 4 steps, 3 arms of 8" in text
    assert "masks are chosen every 2 steps after 0, up to 2, 5 rows more each time" in text
    assert "csgd: epsilon 100" in text


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The folder of a study with three arms."""
    out = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        add_to(patch)
        flags = ["--arms=resrep,csgd,gradual", "--checkpoint_every=0", f"--out={out}"]
        config = cli.parse(resrep.Config, [*TINY, *flags])
        assert resrep.train(config) == out
    return out


@pytest.mark.variants
def test_the_folder_of_a_study(study, monkeypatch):
    add_to(monkeypatch)
    assert sorted(path.name for path in (study / "seed0").iterdir()) == [
        *("base", "csgd-0.5", "gradual-0.5", "gradual-0.5-part1", "resrep-0.5")
    ]
    base = json.loads((study / "seed0" / "base" / "summary.json").read_text())
    test = normalise(jnp.asarray(images().test.images))
    for name in ("resrep", "csgd", "gradual"):
        folder = study / "seed0" / f"{name}-0.5"
        summary = json.loads((folder / "summary.json").read_text())
        assert (summary["method"], summary["steps"]) == (name, 12)
        assert summary["base_test_accuracy"] == base["test_accuracy"]
        assert summary["test_flops_ratio"] <= 0.5
        assert summary["sparsity"] == 1 - summary["test_flops_ratio"]
        model, variables = narrow_files.read(folder)
        assert model.conv_widths() == summary["widths"]
        params = jax.tree.leaves(variables["params"])
        assert sum(x.size for x in params) == summary["num_params"]
        logits = jax.jit(model.apply)(variables, test)
        assert np.mean(logits.argmax(-1) == images().test.labels) == summary["test_accuracy"]
    merged = json.loads((study / "seed0" / "resrep-0.5" / "summary.json").read_text())
    assert merged["unsettled_rows"] == 0
    assert merged["unmerged_test_accuracy"] == merged["test_accuracy"]
    assert merged["masked_ratio"] == merged["test_flops_ratio"]


@pytest.mark.variants
def test_the_table_of_what_is_there(study, tmp_path, capsys, monkeypatch):
    add_to(monkeypatch)
    status, text, _ = run(capsys, f"--out={study}", "--table")
    lines = [line.split() for line in text.splitlines()]
    arms = [line[0] for line in lines if line[0] in ARMS]
    assert (status, arms) == (0, ["resrep", "csgd", "gradual"])
    assert len(report.finished_arms(study)) == 3
    flags = (f"--out={study}", "--arms=resrep,csgd,gradual", f"--results={tmp_path}")
    assert run(capsys, *flags)[0] == 0
    assert (tmp_path / f"{study.name}-csgd-0.5-seed0.json").exists()
    assert run(capsys, f"--out={tmp_path}", "--table", "--markdown")[:2] == (
        0,
        run(capsys, f"--out={study}", "--table", "--markdown")[1],
    )
    assert {run.config["schedule"] for run in find_runs([study]).runs} == {
        *("dense", "resrep", "csgd", "gradual")
    }


@pytest.mark.variants
def test_stages_that_have_ended_are_read_and_others_flags_refused(study, capsys, monkeypatch):
    add_to(monkeypatch)
    before = {path: path.read_bytes() for path in study.rglob("*") if path.is_file()}
    assert run(capsys, f"--out={study}", "--arms=gradual,csgd")[0] == 0
    assert {path: path.read_bytes() for path in study.rglob("*") if path.is_file()} == before
    status, _, text = run(capsys, f"--out={study}", "--weight_decay=0.1")
    assert status == 2 and "holds a finished run with --weight_decay=0.0005, not 0.1" in text
    # Before the arm that is missing is trained.
    status, _, text = run(capsys, f"--out={study}", "--arms=l1,csgd", "--centripetal=200")
    assert not (study / "seed0" / "l1-0.5").exists()
    assert status == 2 and "holds a finished run with --centripetal=100.0, not 200.0" in text


@pytest.mark.variants
def test_a_study_goes_on_to_the_same_bits(study, tmp_path, monkeypatch):
    """Cut off in the base, in ResRep, in the second part of gradual, and before its summary."""
    add_to(monkeypatch)
    config = cli.parse(resrep.Config, [*TINY, "--arms=resrep,gradual", f"--out={tmp_path}"])
    record, cuts = loop.record, [("base", 2), ("resrep-0.5", 11), ("gradual-0.5", 10)]

    def cut_off(run, folder, step, *args):
        if cuts and cuts[0][0] == folder.path.name and step >= cuts[0][1]:
            cuts.pop(0)
            raise KeyboardInterrupt
        return record(run, folder, step, *args)

    def not_written(*args, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "record", cut_off)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            resrep.train(config)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "finish", not_written)
        with pytest.raises(KeyboardInterrupt):
            resrep.train(config)
    assert resrep.train(config) == tmp_path and not cuts
    for arm in ("resrep-0.5", "gradual-0.5"):
        for name in ("narrow.safetensors", "narrow.json", "metrics.jsonl"):
            files = [out / "seed0" / arm / name for out in (study, tmp_path)]
            assert files[0].read_bytes() == files[1].read_bytes()
