"""A grid is its methods, sparsities and seeds, and several grids go on seed by seed."""

from experiments.sweeping.grid import Grid, Tickets, interleaved


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


def test_the_rounds_of_a_seed_are_one_process():
    tickets = Tickets("lenet5", ("rewind", "fine_tuning"), (2, 5), seeds=2, flags={"steps": 7})
    found = list(tickets.jobs())
    assert [job.name for job in found[:3]] == [
        "lenet5-imp_rewind-round2-seed0",
        "lenet5-imp_rewind-round5-seed0",
        "lenet5-imp_fine_tuning-round2-seed0",
    ]
    assert found[0].flags == {
        "model": "lenet5",
        "arm": "rewind",
        "seed": 0,
        "rounds": 5,
        "steps": 7,
    }
    assert len({job.process for job in found}) == 4
    assert [job.round for job in found] == [2, 5] * 4
