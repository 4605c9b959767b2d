"""Initial masks by scores in a run: from the seed alone, and a checkpoint's masks win."""

import jax
import numpy as np
import pytest

import jaxsparse
from experiments import fashion_mnist, loop
from experiments.options import cli
from experiments.options.schedules import make_method, make_scoring
from experiments.records import progress
from experiments.training import scoring
from experiments.training.criteria import CRITERIA, Scoring
from jaxsparse.nn import BasicBlock, DyReLUOptions, ResNet, without_dyrelu
from tests.experiments.small_runs import Net, make_run, split


def scored(schedule="snip", *, sparsity=0.75, steps=20, **fields):
    names = ("init_masks", "scope", "score_batch", "score_per_class", "score_rounds", "pattern")
    options = {name: fields.pop(name) for name in names if name in fields}
    method = make_method(schedule, sparsity=sparsity, steps=steps, **options)
    run = make_run(method=method, **fields)
    return run._replace(scoring=make_scoring(schedule, method, **options))


def same(x, y):
    return all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), x, y)))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_masks_are_exact_and_follow_from_the_seed(criterion):
    options = {"score_per_class": 4, "score_batch": 5} if CRITERIA[criterion].reads_images else {}
    run = scored(criterion, model=Net(norm=True), **options)
    masks = loop.with_masks(run).masks
    # N - floor(0.75 N) of 64 x 6 + 6 x 3 weights
    assert jaxsparse.num_active(masks) == 101
    assert not same(masks, loop.with_masks(run._replace(seed=1)).masks)


@pytest.mark.variants
def test_dyrelu_and_weight_sharing():
    """Scores are those of the network when DyReLU is gone; its parameters stay dense."""
    fields = {"block": BasicBlock, "width": 4, "stem": "cifar", "num_classes": 3}
    model = ResNet(stage_sizes=(3,), num_owners=2, dyrelu=DyReLUOptions(), **fields)
    data = make_run().dataset._replace(train=split(0, 48, (8, 8, 3)))
    run = scored("rigl", init_masks="snip", score_per_class=2, model=model, dataset=data)
    plain = run._replace(model=model.clone(dyrelu=None))
    variables = loop.initial_variables(run)
    masks = scoring.masks_of(run, variables)
    assert jax.tree.structure(masks) == jax.tree.structure(variables["params"])
    assert jaxsparse.sparsity(masks) == pytest.approx(0.75, abs=1e-3)
    theirs = scoring.masks_of(plain, without_dyrelu(variables))
    assert same(without_dyrelu(masks), theirs)


def test_a_run_that_goes_on_has_the_masks_of_its_checkpoint(tmp_path, monkeypatch):
    run = scored("set", init_masks="snip", score_per_class=2, sparsity=0.5)
    with loop.opened(run, tmp_path / "run", {"schedule": "set"}) as (folder, begun):
        masks = jax.tree.map(np.asarray, begun.state.masks)
        assert same(masks, loop.with_masks(run).masks)
        assert jaxsparse.num_active(begun.state.masks) == 201
        folder.log(0, density=0.5)
        progress.save(folder.path / "checkpoints", begun._replace(step=10))
    scores_again = lambda run, variables: pytest.fail("it scored again")
    monkeypatch.setattr(scoring, "masks_of", scores_again)
    with loop.opened(run, tmp_path / "run", {"schedule": "set"}) as (_, begun):
        assert begun.step == 10 and same(begun.state.masks, masks)


def test_masks_that_cut_the_network_are_refused_unless_they_are_asked_for(tmp_path, capfd):
    run = scored("magnitude", sparsity=0.997)  # 2 of 402
    with pytest.raises(
        ValueError,
        match=r"the network is cut: .* magnitude never changes its masks; "
        r"lower --sparsity, or pass --scope=layer or a higher --min_keep, or --allow_cut=True",
    ):
        with loop.opened(run, tmp_path / "run", {"schedule": "magnitude"}):
            pass
    assert not (tmp_path / "run").exists()
    config = {"schedule": "magnitude", "seed": 0, "model": "net"}
    summary = loop.train(run._replace(allow_cut=True), tmp_path / "run", config, title="")
    assert "warning: no path leads from an image to a logit at the start" in capfd.readouterr().err
    assert summary["test_accuracy"] <= 0.5  # one class for all images of three


def test_a_class_with_too_few_images_is_one_line():
    with pytest.raises(
        ValueError, match="^--score_per_class=40 is more than class 0 has, .. of 48"
    ):
        loop.with_masks(scored("snip", score_per_class=40))


def test_scoring_is_of_a_run_alone():
    run = make_run(scoring=Scoring("random", 0.5), masks={"given": np.ones(3, bool)})
    assert loop.with_masks(run) is run


def test_the_plan_has_the_counts_of_the_masks(capsys):
    argv = "--plan --model=lenet_300_100 --schedule=synflow --score_rounds=3 --sparsity=0.9".split()
    assert cli.run(fashion_mnist.main, fashion_mnist.Config, argv) == 0
    out = capsys.readouterr().out
    assert "26,620 of 266,200 weights active at the end" in out
    config = cli.parse(fashion_mnist.Config, argv)
    masks = loop.with_masks(fashion_mnist.run_of(config)).masks
    for name, layer in masks.items():
        (line,) = (line for line in out.splitlines() if line.startswith(f"{name}/kernel"))
        assert line.split()[3] == f"{int(layer['kernel'].sum()):,}"
