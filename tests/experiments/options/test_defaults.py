"""A flag that is given its default makes no other run than one that is left out."""

import inspect
import json

import pytest

import jaxsparse
from experiments.comparing.finished_runs import find_runs
from experiments.options.defaults import default_of, without_defaults
from experiments.options.flags import DEFAULTS, Pruning, Running, Tricks
from experiments.options.schedules import METHODS
from experiments.records.run_folder import check_folder
from experiments.sweeping.result_file import flags_that_differ

AT_DEFAULT = [
    ("rigl", {"dyrelu": False}),
    ("rigl", {"weight_sharing": False}),
    ("rigl", {"cycles": 0}),
    ("east", {"dyrelu": True, "dyrelu_stop": 0.496}),
    ("east", {"weight_sharing": True}),
    ("east", {"cycles": 2, "cycle_multiplier": 3.0}),
    ("static", {"execution": "masked", "accumulate": 1}),
]
OTHER = [
    ("east", {"dyrelu": False}),
    ("east", {"weight_sharing": False}),
    ("east", {"cycles": 0}),
    ("rigl", {"dyrelu": True}),
    ("rigl", {"cycles": 2}),
    ("rigl", {"accumulate": 2}),
    ("rigl", {"recipe": "east"}),
]


def config_of(schedule, **flags):
    return {"schedule": schedule, "model": "lenet5", "seed": 0, "sparsity": 0.9, **flags}


def write_run(folder, config, accuracy=0.5):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    summary = {"dataset": "sample", "test_accuracy": accuracy}
    (folder / "summary.json").write_text(json.dumps(summary))


@pytest.mark.parametrize(("schedule", "flags"), AT_DEFAULT)
@pytest.mark.parametrize("left_out", ["null", "missing"])
def test_a_default_that_is_given_is_the_same_run(schedule, flags, left_out, tmp_path):
    given = config_of(schedule, **flags)
    plain = config_of(schedule, **(dict.fromkeys(flags) if left_out == "null" else {}))
    assert flags_that_differ(plain, given) == flags_that_differ(given, plain) == []
    write_run(tmp_path / "a", plain)
    with pytest.raises(ValueError, match=r"holds a finished run .* with the same flags"):
        check_folder(tmp_path / "a", given)
    write_run(tmp_path / "b", given)
    assert len(find_runs([tmp_path]).runs) == 1
    write_run(tmp_path / "c", given, accuracy=0.6)
    assert len(find_runs([tmp_path]).conflicts) == 1


@pytest.mark.parametrize(("schedule", "recipe"), [("rigl", "granet"), ("east", "east")])
def test_a_default_recipe_that_is_given_is_the_same_run(schedule, recipe, tmp_path):
    given, plain = (config_of(schedule, recipe=value) for value in (recipe, None))
    assert flags_that_differ(plain, given) == flags_that_differ(given, plain) == []
    write_run(tmp_path / "a", plain)
    write_run(tmp_path / "b", given)
    (run,) = find_runs([tmp_path]).runs
    assert run.config["recipe"] == recipe


@pytest.mark.parametrize(("schedule", "flags"), OTHER)
def test_any_other_value_is_another_run(schedule, flags, tmp_path):
    given, plain = config_of(schedule, **flags), config_of(schedule)
    ((flag, value),) = flags.items()
    assert flags_that_differ(plain, given) == [(flag, None, value)]
    write_run(tmp_path / "a", plain)
    with pytest.raises(ValueError, match=f"holds a finished run without --{flag}, not with"):
        check_folder(tmp_path / "a", given)
    write_run(tmp_path / "b", given)
    assert len(find_runs([tmp_path]).runs) == 2


def test_no_flag_and_no_schedule_that_is_unknown_has_a_default():
    assert default_of("sparsity", "rigl") is None
    assert default_of("cycles", "mine") == 0
    assert without_defaults({"rate": 0.1, "data": None}) == {"rate": 0.1}


def test_the_defaults_are_those_of_the_library():
    cycles = inspect.signature(jaxsparse.with_cycles).parameters
    for name in ("multiplier", "growth", "shape"):
        assert DEFAULTS[f"cycle_{name}"] == cycles[name].default
    assert cycles["num_cycles"].default == METHODS["east"].num_cycles
    assert cycles["cycle_steps"].default is None  # a fifth of training
    for method in (jaxsparse.gmp, jaxsparse.granet):
        assert DEFAULTS["scope"] == inspect.signature(method).parameters["scope"].default
    for method in (jaxsparse.gmp, jaxsparse.granet, jaxsparse.rigl, jaxsparse.rigl_itop):
        assert DEFAULTS["start_step"] == inspect.signature(method).parameters["start_step"].default


@pytest.mark.parametrize("base", [Running, Tricks, Pruning])
def test_the_help_says_the_same(base):
    source = inspect.getsource(base)
    for flag, value in DEFAULTS.items():
        if f"    {flag}: " in source and f"    {flag}: int" not in source:
            text = source.split(f"    {flag}: ")[1].split('"""')[1]
            shown = f"{value:g}" if isinstance(value, float) else str(value)
            expected = {"dyrelu_freeze": "they are trained", "dyrelu_late": "from the beginning"}
            assert expected.get(flag, f"Default: {shown}") in text, flag
