"""The flags of masks by scores: which schedules take them, and what is refused in one line."""

import jax.numpy as jnp
import pytest

from experiments.options.schedules import AT_INIT, SCHEDULES, make_method, make_scoring, plan_of
from experiments.training.criteria import CRITERIA

PARAMS = {"a": {"kernel": jnp.zeros((40, 50))}, "b": {"kernel": jnp.zeros((50, 20))}}


def made(schedule, **options):
    method = make_method(schedule, sparsity=0.9, steps=100, **options)
    return method, make_scoring(schedule, method, **options)


@pytest.mark.parametrize("schedule", AT_INIT)
def test_a_schedule_of_scores_keeps_its_masks(schedule):
    method, scoring = made(schedule)
    assert method.name == schedule and not method.timetable.events
    assert scoring.criterion == schedule and scoring.sparsity == pytest.approx(0.9)
    assert scoring.options == {"scope": "global", "min_keep": None, "pattern": None}
    assert plan_of(method, PARAMS).rows[-1].num_active == 300


def test_cycles_compete_as_the_masks_did():
    assert made("snip", cycles=2)[0].scope == "global"
    assert made("snip", cycles=2, scope="layer")[0].scope == "layer"


STARTS_SPARSE = ["static", "set", "rigl", "snfs", "rigl_itop", "granet_st", "east"]


@pytest.mark.parametrize("schedule", STARTS_SPARSE)
def test_scores_start_every_method_that_starts_sparse(schedule):
    start = 0.5 if schedule == "granet_st" else 0.9
    for criterion in CRITERIA:
        scoring = made(schedule, init_masks=criterion)[1]
        assert (scoring.criterion, scoring.sparsity) == (criterion, pytest.approx(start))


def test_layers_patterns_and_floors_are_those_of_the_method():
    flags = {"scope": "layer", "dense_layers": "^b/", "min_keep": 2, "pattern": "4x2"}
    method, scoring = made("rigl", init_masks="grasp", **flags)
    assert scoring.options["distribution"] is method.recipe.distribution
    assert (scoring.options["scope"], scoring.options["min_keep"]) == ("layer", 2)
    assert scoring.options["pattern"] == method.pattern


def test_no_scores_without_their_flags():
    assert {made(name)[1] for name in SCHEDULES if name not in AT_INIT} == {None}


@pytest.mark.parametrize(
    ("schedule", "options", "message"),
    [
        ("gmp", {"init_masks": "snip"}, "starts sparse, and gmp starts dense; pass --initial_"),
        ("granet", {"init_masks": "snip"}, "starts sparse, and granet starts dense$"),
        ("dense", {"init_masks": "snip"}, "^--init_masks=snip is no option of dense, which has no"),
        ("grasp", {"init_masks": "snip"}, "is no option of grasp, which chooses its own masks"),
        ("rigl", {"init_masks": "grisp"}, "unknown init_masks 'grisp'; did you mean 'grasp'"),
        (
            "rigl",
            {"score_batch": 5},
            "^--score_batch=5 needs --init_masks, or a --schedule of snip",
        ),
        ("synflow", {"score_per_class": 5}, "^--score_per_class=5 is no option of synflow$"),
        ("random", {"score_rounds": 5}, "^--score_rounds=5 is no option of random$"),
        ("snip", {"score_per_class": 0}, "^--score_per_class=0 must be a whole number, at least 1"),
        ("snip", {"distribution": "uniform"}, "^--distribution=uniform needs --scope=layer: snip"),
        (
            "rigl",
            {"init_masks": "snip", "dense_layers": "^b/"},
            "^--dense_layers=.b/ needs --scope=layer: snip compares scores over all layers$",
        ),
        ("rigl", {"scope": "layer"}, "^--scope is no option of rigl"),
        (
            "rigl",
            {"scope": "all", "init_masks": "snip"},
            "^--scope=all must be 'global' or 'layer'",
        ),
        ("snip", {"update_interval": 5}, "^--update_interval is no option of snip"),
    ],
)
def test_what_is_refused(schedule, options, message):
    with pytest.raises(ValueError, match=message):
        made(schedule, **options)
