"""Grids seed by seed, with flags that the scripts take; what is said of the study's layers."""

import pytest

from experiments import cifar
from experiments.records.cost import shapes_and_flops
from experiments.sweeping import jobs
from experiments.sweeping.grids import GRIDS, Grid, interleaved
from jaxsparse.event_rows import HOLD


def test_a_grid_seed_by_seed():
    grid = Grid("cifar", "vgg16", ("dense", "rigl"), (0.9, 0.98), seeds=2, flags={"steps": 7})
    found = list(grid.jobs())
    assert [job.name for job in found] == [
        f"vgg16-{label}-seed{seed}"
        for seed in (0, 1)
        for label in ("dense", "rigl-0.9", "rigl-0.98")
    ]
    assert {job.experiment for job in found} == {"cifar"}
    assert found[0].flags == {"model": "vgg16", "schedule": "dense", "seed": 0, "steps": 7}
    assert found[5].flags == {
        "model": "vgg16",
        "schedule": "rigl",
        "sparsity": 0.98,
        "seed": 1,
        "steps": 7,
    }


def test_grids_are_interleaved_by_seed():
    one = Grid("cifar", "vgg16", ("dense",), (), seeds=2)
    two = Grid("cifar", "vgg19", ("dense",), (), seeds=3)
    assert [(job.flags["model"], job.flags["seed"]) for job in interleaved((one, two))] == [
        ("vgg16", 0),
        ("vgg19", 0),
        ("vgg16", 1),
        ("vgg19", 1),
        ("vgg19", 2),
    ]


@pytest.mark.slow
def test_every_grid_by_name_is_one_that_its_scripts_take():
    for grids in GRIDS.values():
        found = interleaved(grids)
        assert len({job.name for job in found}) == len(found)
        for job in found:
            config = jobs.config_of(job)
            assert config.seed == job.flags["seed"]


@pytest.mark.slow
def test_the_floor_changes_nothing_for_rigl_in_the_study_of_extreme_sparsity():
    """It acts on the initial masks alone; exchanges hold what a layer has."""
    grids = [grid for grid in GRIDS["extreme"] if "rigl" in grid.schedules]
    sparsities = {sparsity for grid in grids for sparsity in grid.sparsities}
    assert sparsities == {0.99, 0.995, 0.999, 0.9995, 0.9999}
    model = cifar.model_of(cifar.Config(model="resnet34_narrow"))
    params, _ = shapes_and_flops(model, cifar.IMAGE)
    of = lambda **flags: cifar.method_of(
        cifar.Config(model="resnet34_narrow", schedule="rigl", steps=3510, **flags)
    ).targets(params)
    for sparsity in sparsities:
        floor, none = (of(sparsity=sparsity, min_keep=fewest) for fewest in (1, 0))
        assert floor.initial == none.initial == of(sparsity=sparsity).initial
        assert min(none.initial.values()) >= 1
        assert all((target == HOLD).all() for target in none.rows.target.values())
    # Not so with fewer weights: the floor does something where a share rounds to 0.
    floor, none = (of(sparsity=0.99997, min_keep=fewest) for fewest in (1, 0))
    assert floor.initial != none.initial
