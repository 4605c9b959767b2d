"""Options of the methods: numbers of every type, mistyped names, lists that several share."""

import inspect

import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse
from jaxsparse.method import compose
from jaxsparse.methods.options import GranetOptions, ItopOptions, LayerOptions

STEPS = 40_000  # of uint16, whose products overflow
METHODS = {
    "dense": (jaxsparse.dense, {}),
    "static": (jaxsparse.static, {"sparsity": 0.75, "min_keep": 2}),
    "gmp": (jaxsparse.gmp, {"sparsity": 0.75, "start_step": 300, "stop_step": 30_000}),
    "granet": (jaxsparse.granet, {"sparsity": 0.75, "drop_fraction": 0.5, "start_step": 300}),
    "granet_st": (jaxsparse.granet_st, {"sparsity": 0.75, "initial_sparsity": 0.5}),
    "rigl": (jaxsparse.rigl, {"sparsity": 0.75, "drop_fraction": 0.375, "start_step": 300}),
    "set": (jaxsparse.set_, {"sparsity": 0.75, "stop_step": 20_000}),
    "rigl_itop": (jaxsparse.rigl_itop, {"sparsity": 0.75, "final_drop_fraction": 0.125}),
    "east": (
        jaxsparse.east,
        {"sparsity": 0.75, "num_cycles": 3, "cycle_steps": 5000, "growth": 1.5, "multiplier": 2.5},
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_numbers_of_all_types_make_the_same_timetable(name):
    make, options = METHODS[name]
    if name not in ("dense", "static"):
        options = {"update_interval": 600, **options}
    want = make(total_steps=STEPS, **options)
    for kind in (np.uint16, np.int32, np.uint64, np.array, jnp.uint32):
        number = lambda x, kind=kind: np.float32(x) if isinstance(x, float) else kind(x)
        found = make(total_steps=kind(STEPS), **{k: number(x) for k, x in options.items()})
        assert found.timetable == want.timetable
        params = {"fc": {"kernel": np.ones((40, 80))}}
        if name not in ("dense",):
            assert str(found.plan(params)) == str(want.plan(params))
        assert all(type(event.step) is int for event in found.timetable.events)
    for event in want.timetable.events[::7]:
        assert want.is_due(np.uint16(event.step)) and want.is_due(np.int64(event.step))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("steps", [True, 1000.0, np.float32(1000), "1000", [1000], None])
def test_total_steps_is_one_integer(name, steps):
    make, options = METHODS[name]
    with pytest.raises(
        ValueError, match="total_steps .* must be a whole number of steps, at least"
    ):
        make(total_steps=steps, **options)


FACTORIES = {name: make for name, (make, _) in METHODS.items()} | {
    "snfs": jaxsparse.snfs,
    "set_itop": jaxsparse.set_itop,
}


@pytest.mark.parametrize("name", sorted(FACTORIES.keys() - {"dense"}))
def test_a_mistyped_option_is_named_with_its_method(name):
    make = FACTORIES[name]
    with pytest.raises(TypeError, match=rf"{make.__name__}\(\) got an unexpected .* 'min_keeep'"):
        make(sparsity=0.75, total_steps=100_000, min_keeep=2)


@pytest.mark.parametrize(
    ("kind", "parent", "own"),
    [
        (LayerOptions, compose, {"scope", "observe", "skip_step", "dense_gradient"}),
        (ItopOptions, jaxsparse.rigl_itop, {"sparsity", "total_steps", "update_interval"}),
        (GranetOptions, jaxsparse.granet, {"sparsity", "total_steps", "initial_sparsity"}),
    ],
)
def test_shared_options_are_those_of_the_function_that_takes_them(kind, parent, own):
    keyword_only = inspect.Parameter.KEYWORD_ONLY
    parameters = inspect.signature(parent).parameters.values()
    names = {parameter.name for parameter in parameters if parameter.kind is keyword_only}
    rest = set() if parent is compose else set(LayerOptions.__annotations__)
    assert set(kind.__annotations__) == (names - own) | rest
