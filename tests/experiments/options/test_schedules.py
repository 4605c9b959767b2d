"""The table of `--schedule` names: every method is in it, with an interval for any length."""

import jax.numpy as jnp
import pytest

import jaxsparse
from experiments.options.schedules import METHODS, make_method, plan_of
from jaxsparse import methods

PARAMS = {"a": {"kernel": jnp.zeros((40, 50))}, "b": {"kernel": jnp.zeros((50, 20))}}


def test_every_method_of_the_library_is_in_the_table():
    of_library = {e.factory for e in METHODS.values() if e.factory.__module__[:9] == "jaxsparse"}
    assert of_library == {getattr(methods, name) for name in methods.__all__}


@pytest.mark.parametrize("schedule", METHODS)
@pytest.mark.parametrize("steps", [10, 100, 2000, 50_000])
def test_every_method_makes_a_plan_for_runs_of_any_length(schedule, steps):
    method = make_method(schedule, sparsity=0.9, steps=steps)
    end = method.plan(PARAMS).rows[-1]
    assert end.num_active == (3000 if schedule == "dense" else 300)
    assert method.name == schedule
    for event in method.timetable.events:
        assert 1 <= event.step <= steps


@pytest.mark.parametrize("schedule", METHODS)
def test_every_option_of_the_table_is_one_of_the_factory(schedule, key):
    values = {
        "update_interval": 7,
        "start_step": 5,
        "stop_step": 60,
        "scope": "layer",
        "distribution": "uniform",
        "min_keep": 1,
        "initial_sparsity": 0.25,
        "drop_fraction": 0.125,
        "redistribute": True,
        "grow": "random",
        "cycles": 0,
    }
    others = {"dense_layers", "pattern", "pattern_layers"}  # which need more than themselves
    options = METHODS[schedule].options
    names = [name for name in options if name not in others and not name.startswith("cycle_")]
    options = {name: values[name] for name in names}
    method = make_method(schedule, sparsity=0.5, steps=100, **options)
    steps = [event.step for event in method.timetable.events]
    if "update_interval" in options:
        assert steps[0] == 7
        assert all(step % 7 == 0 for step in steps)
    if "initial_sparsity" in options:
        assert jaxsparse.sparsity(method.init(key, PARAMS)) == 0.25


@pytest.mark.parametrize("schedule", ["static", "set", "rigl_itop", "granet"])
def test_dense_layers_stay_dense_and_the_others_have_the_sparsity(schedule):
    scope = {"scope": "layer"} if schedule == "granet" else {}
    method = make_method(
        schedule, sparsity=0.9, steps=100, distribution="uniform", dense_layers="^b/", **scope
    )
    assert method.plan(PARAMS).rows[-1].layers == {"a/kernel": 200, "b/kernel": 1000}


@pytest.mark.parametrize("pattern", ["2:4", "4x2", "channels", "channels(-2)"])
def test_patterns_are_named_as_the_library_names_them(pattern):
    assert make_method("rigl", sparsity=0.5, steps=100, pattern=pattern).name == f"rigl {pattern}"


def test_other_patterns_are_refused():
    with pytest.raises(ValueError, match=r"--pattern=rows must be n:m, ROWSxCOLUMNS, channels or "):
        make_method("rigl", sparsity=0.5, steps=100, pattern="rows")


@pytest.mark.parametrize(
    ("schedule", "steps", "interval", "num_events", "num_pruning"),
    [
        ("granet", 56_320, 1000, 56, 28),  # 160 epochs of 45,000 images
        ("granet_st", 56_320, 1000, 56, 28),
        ("gmp", 56_320, 1000, 28, 28),
        ("granet_st", 56_160, 997, 56, 28),  # without the tail of an epoch
        ("granet_st", 3_510, 62, 56, 28),  # 10 epochs
        ("rigl_itop", 88_000, 4000, 21, 0),  # 250 epochs; there is none at the very end
        ("set_itop", 88_000, 1500, 58, 0),
        ("rigl", 1_000, 50, 14, 0),  # to 3/4 of training
    ],
)
def test_the_published_intervals(schedule, steps, interval, num_events, num_pruning):
    events = make_method(schedule, sparsity=0.9, steps=steps).timetable.events
    assert events[0].step == interval
    assert len(events) == num_events
    assert sum(event.density is not None for event in events) == num_pruning


CYCLED = [schedule for schedule in METHODS if schedule not in ("dense", "gsm")]


@pytest.mark.parametrize("schedule", CYCLED)
def test_every_schedule_but_dense_and_gsm_takes_cycles(schedule):
    cycles = {
        "cycles": 3,
        "cycle_multiplier": 1.5,
        "cycle_share": 0.1,
        "cycle_growth": 2.0,
        "cycle_shape": "triangular",
        "cycle_interval": 25,
    }
    method = make_method(schedule, sparsity=0.9, steps=1000, **cycles)
    plain = make_method(schedule, sparsity=0.9, steps=1000, cycles=0)
    ends = (100, 300, 700)
    assert method.recipe.cycles.stop_step == 700
    assert plain.recipe.cycles is None
    steps = [event.step for event in method.timetable.events if event.step <= 700]
    assert all(step % 25 == 0 for step in steps) and {*ends} <= {*steps}
    after = lambda method: [event for event in method.timetable.events if event.step > 700]
    assert after(method) == after(plain)
    if schedule in ("static", "rigl", "east"):
        densities = {event.step: event.density for event in method.timetable.events}
        assert [densities[step] for step in (50, 100, 200, 600)] == pytest.approx(
            [0.15, 0.1, 0.15, 0.125]
        )


@pytest.mark.parametrize(
    ("steps", "interval"), [(88_000, 100), (10_000, 100), (2000, 20), (500, 5), (100, 1), (10, 1)]
)
def test_cycles_have_20_updates_where_steps_allow_it(steps, interval):
    for method in (
        make_method("east", sparsity=0.9, steps=steps),
        make_method("static", sparsity=0.9, steps=steps, cycles=2),
    ):
        assert method.timetable.events[0].step == interval
        assert method.timetable.is_due(steps // 5)
        assert method.recipe.cycles.stop_step == 2 * (steps // 5)


def test_east_without_cycles_is_rigl_itop():
    east = make_method("east", sparsity=0.9, steps=1000, cycles=0)
    itop = make_method("rigl_itop", sparsity=0.9, steps=1000)
    assert east.timetable == itop.timetable
    assert east.recipe.cycles is itop.recipe.cycles is None


def test_snfs_moves_weights_between_layers_if_asked():
    options = {"sparsity": 0.9, "steps": 1000}
    assert not make_method("snfs", redistribute=True, **options).has_known_counts
    assert make_method("snfs", redistribute=False, **options).has_known_counts
    with pytest.raises(ValueError, match="--redistribute is no option of rigl"):
        make_method("rigl", redistribute=True, **options)


@pytest.mark.parametrize("schedule", ["static", "set", "rigl", "snfs", "rigl_itop", "east"])
def test_floors_at_extreme_sparsity(schedule):
    layers = lambda **options: (
        make_method(schedule, sparsity=0.998, steps=1000, distribution="uniform", **options)
        .plan({"a": {"kernel": jnp.zeros((6, 6))}, "b": {"kernel": jnp.zeros((60, 60))}})
        .rows[0]
        .layers
    )
    assert layers() == {"a/kernel": 1, "b/kernel": 7}
    assert layers(min_keep=0) == {"a/kernel": 0, "b/kernel": 8}
    assert layers(min_keep=4) == {"a/kernel": 4, "b/kernel": 4}
    with pytest.raises(ValueError, match="below 5 a layer; the sparsity can be at most 0.99724972"):
        layers(min_keep=5)


@pytest.mark.parametrize(
    ("schedule", "options", "message"),
    [
        ("rigl", {"cycle_share": 0.3}, "--cycle_share=0.3 needs --cycles of at least 1"),
        ("rigl", {"cycles": 0, "cycle_shape": "cosine"}, "--cycle_shape=cosine needs --cycles"),
        ("east", {"cycles": 0, "cycle_interval": 10}, "--cycle_interval=10 needs --cycles"),
        ("dense", {"cycles": 2}, "--cycles is no option of dense, which takes no options"),
        ("east", {"cycle_share": 0.0}, r"--cycle_share=0.0 must be in \(0, 1\]"),
        (
            "east",
            {"cycle_share": 0.6},
            "--cycles=2 end at step 1200 of 1000; lower --cycle_share=0.6",
        ),
        ("gmp", {"cycles": -1}, "--cycles=-1 must be a whole number, at least 0"),
        ("east", {"cycle_multiplier": 0.5}, "^--cycle_multiplier=0.5 must be in .1, inf.$"),
        ("east", {"cycle_growth": 0.0}, "--cycle_growth=0.0 must be in \\(0, inf\\)"),
        ("east", {"cycle_shape": "sine"}, "^--cycle_shape=sine must be 'cosine' or 'triangular'$"),
        (
            "static",
            {"cycles": 1, "cycle_interval": 200},
            "^--cycle_interval=200 has no .* most 100$",
        ),
    ],
)
def test_cycles_that_are_refused(schedule, options, message):
    with pytest.raises(ValueError, match=message):
        make_method(schedule, sparsity=0.9, steps=1000, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_keep": -1}, "^--min_keep=-1 must be a whole number, at least 0"),
        ({"sparsity": 1.5}, r"^--sparsity=1.5 must be in \[0, 1\)$"),
        ({"initial_sparsity": 0.95}, "^--initial_sparsity=0.95 is above sparsity 0.9$"),
        ({"drop_fraction": 2.0}, r"^--drop_fraction=2.0 must be in \[0, 1\]$"),
        ({"scope": "all"}, "^--scope=all must be 'global' or 'layer'$"),
        ({"update_interval": 0}, "^--update_interval=0 must be a whole number of steps"),
        ({"steps": 0}, "^--steps=0 must be a whole number of steps"),
    ],
)
def test_what_the_library_refuses_has_the_name_of_the_flag(options, message):
    with pytest.raises(ValueError, match=message):
        make_method("granet_st", **({"sparsity": 0.9, "steps": 1000} | options))


@pytest.mark.parametrize(
    ("schedule", "options", "message"),
    [
        ("rigl", {"pattern": "3:7"}, r"no multiple of 7; --pattern_layers=REGEX says which layers"),
        (
            "gmp",
            {"pattern": "4x5", "pattern_layers": "^a"},
            "--scope=global needs groups of one size, .*; take --scope=layer$",
        ),
        (
            "gmp",
            {"pattern": "4x5", "pattern_layers": "^a", "min_keep": 2, "scope": "layer"},
            "--min_keep=2 needs groups of one size, .*; leave --min_keep out$",
        ),
        (
            "rigl",
            {"pattern": "2:4", "pattern_layers": "a", "cycles": 1},
            "a/kernel is 2:4, which fixes its sparsity, .* such as rigl without cycles",
        ),
        (
            "rigl",
            {"pattern": "2:4", "pattern_layers": "c+"},
            r"--pattern_layers=c\+ is the first match of no leaf",
        ),
        ("rigl", {"dense_layers": "c+"}, r"^--dense_layers=c\+ is the first match of no leaf"),
    ],
)
def test_what_a_network_refuses_is_said_in_flags(schedule, options, message):
    method = make_method(schedule, sparsity=0.5, steps=100, **options)
    with pytest.raises(ValueError, match=message):
        plan_of(method, PARAMS)
