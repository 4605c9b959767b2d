"""Grids are files: listed without an import, documented, with flags that their scripts take."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import cifar
from experiments.records.cost import shapes_and_flops
from experiments.sweeping import grids, jobs
from experiments.sweeping.grid import interleaved
from experiments.sweeping.kinds import kind_of
from experiments.sweeping.named import NAMES, grids_of
from experiments.sweeping.result_file import flags_that_differ, read_result
from jaxsparse.event_rows import HOLD

ROOT = Path(__file__).parents[3]


def test_names_are_those_of_the_files():
    assert NAMES == [
        "cifar10",
        "extreme",
        "fashion_mnist",
        "from_the_start",
        "intervals",
        "mnist",
        "patterns",
        "patterns_resnet8",
    ]


def test_listing_names_imports_no_grid():
    code = (
        "import sys; from experiments.sweeping.named import NAMES, grids_of; grids_of('patterns'); "
        "print([name for name in sys.modules if name.startswith('experiments.sweeping.grids.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "['experiments.sweeping.grids.patterns']\n"


@pytest.mark.parametrize("name", NAMES)
def test_every_grid_says_paper_command_hardware_time_and_expected_numbers(name):
    text = importlib.import_module(f"{grids.__name__}.{name}").__doc__
    assert f"python experiments/sweep.py --grid={name} " in text
    command = rf"python experiments/compare.py (--published={name} )?experiments/results/{name}"
    assert re.search(command, text)
    for part in ("Hardware and time: ", "Expected test accuracy ", "commit"):
        assert part in text
    assert "Paper" in text or "papers" in text


@pytest.mark.parametrize("name", NAMES)
def test_published_results_are_runs_of_the_grid(name):
    known = {job.name: job for job in interleaved(grids_of(name))}
    results = sorted((ROOT / "experiments" / "results" / name).glob("*.json"))
    assert results
    of_rounds = [path for path in results if known[path.stem].round]
    for path in set(results) - set(of_rounds):
        assert flags_that_differ(read_result(path).config, known[path.stem].flags) == []
    for path in [results[0], *of_rounds]:
        job = known[path.stem]
        with_data = job._replace(flags={**job.flags, "data_dir": "data"})
        assert jobs.is_finished(with_data, path.parent)


@pytest.mark.variants
@pytest.mark.slow
@pytest.mark.parametrize("step", [8, pytest.param(1, marks=pytest.mark.long)])
def test_every_grid_by_name_is_one_that_its_scripts_take(step):
    for name in NAMES:
        found = interleaved(grids_of(name))
        assert len({job.name for job in found}) == len(found)
        # Jobs that differ in their seed alone are one to the scripts, which take a second for each.
        told_apart = {str({**job.flags, "seed": None}): job for job in found}
        for job in list(told_apart.values())[::step]:
            config = kind_of(job).config_of(job)
            assert config.seed == job.flags["seed"]


@pytest.mark.slow
def test_the_floor_changes_nothing_for_rigl_in_the_study_of_extreme_sparsity():
    """It acts on the initial masks alone; exchanges hold what a layer has."""
    grids = [grid for grid in grids_of("extreme") if "rigl" in grid.schedules]
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
