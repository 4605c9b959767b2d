"""Runs that differ in their seed alone are one group, and groups are paired by seed."""

import math

import pytest

from experiments.comparing.finished_runs import find_runs
from experiments.comparing.seeds import (
    Stats,
    check_metric,
    flags_that_differ,
    group_runs,
    paired_difference,
    partner,
    stats_of,
    value_of,
)
from tests.experiments.written_runs import write_run


def groups_of(tmp_path, *flags):
    for index, of_one in enumerate(flags):
        write_run(tmp_path / str(index), **of_one)
    return group_runs(find_runs([tmp_path]).runs)


def test_partners(tmp_path):
    """Options of methods may differ, the length may not, and a choice is not made."""
    groups = groups_of(
        tmp_path,
        {"schedule": "rigl", "update_interval": 5},
        {"schedule": "gmp"},
        {"schedule": "gmp", "steps": 200},
        {"schedule": "set"},
        {"schedule": "set", "update_interval": 7},
        {"schedule": "set", "update_interval": 5, "sparsity": 0.95},
        {"schedule": "dense", "sparsity": 0.5},
    )
    rigl, gmp, longer, set_, *_, dense = groups
    assert partner(gmp, groups, "rigl") is rigl
    assert partner(rigl, groups, "gmp") is gmp
    assert partner(longer, groups, "rigl") is None
    assert partner(gmp, groups, "set") is set_  # equal in all flags
    assert partner(rigl, groups, "set") is None  # two, and neither is equal
    assert partner(rigl, groups, "dense") is dense


def test_no_seed_in_common(tmp_path):
    one, other = groups_of(tmp_path, {"schedule": "set", "seed": 3}, {"seed": 4})
    assert paired_difference(one, other, "test_accuracy") is None
    assert stats_of(one, "test_accuracy")[::2] == (0.5, 1)


def test_standard_error():
    assert Stats(0.0, 2.0, 4).standard_error == 1.0
    assert math.isnan(Stats(0.0, math.nan, 1).standard_error)


def test_groups_are_averaged_over_seeds_alone(tmp_path):
    for index, (seed, steps) in enumerate(((1, 100), (0, 100), (0, 200))):
        write_run(tmp_path / str(index), 0.5 + index / 10, seed=seed, steps=steps)
    short, long = group_runs(find_runs([tmp_path]).runs)
    assert [run.config["seed"] for run in short.runs] == [0, 1]
    assert stats_of(short, "test_accuracy") == (pytest.approx(0.55), pytest.approx(0.0707107), 2)
    assert flags_that_differ([short, long]) == ["steps"]
    assert flags_that_differ([short]) == []


def test_numbers_that_are_missing_are_named(tmp_path):
    (run,) = find_runs([write_run(tmp_path / "a")]).runs
    assert value_of(run, "test_accuracy") == 0.5
    with pytest.raises(
        ValueError, match=r"val_accuracy of .*/a is null; leave the run out or pass"
    ):
        value_of(run, "val_accuracy")
    with pytest.raises(ValueError, match=r"loss of .*/a is missing"):
        value_of(run, "loss")
    check_metric("test_accuracy", [run])
    for name in ("test_acuracy", "alarms"):  # the second is a list
        with pytest.raises(ValueError, match=f"unknown metric '{name}'"):
            check_metric(name, [run])
