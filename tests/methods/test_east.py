"""EAST: the published numbers, RigL-ITOP after the cycles, floors at extreme sparsity."""

import functools
import itertools
from fractions import Fraction

import jax
import jax.numpy as jnp
import pytest

import jaxsparse
from experiments.records.cost import flops_of_model
from jaxsparse.nn import resnet, sharing_of, stored_sparsity

RUN = {"sparsity": 0.9, "total_steps": 100, "update_interval": 10}


CIFAR, LARGE = (jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32) for size in (32, 224))
NETWORKS = {
    "resnet34": (resnet(34, stem="cifar", num_classes=10), CIFAR),
    "resnet50 for CIFAR": (resnet(50, stem="cifar", num_classes=10), CIFAR),
    "resnet50": (resnet(50), LARGE),
}


@functools.cache
def network(name, num_owners=None):
    """A ResNet, the shapes of its parameters and of an image, and what it shares."""
    model, image = NETWORKS[name]
    model = model.clone(num_owners=num_owners)
    params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    return model, params, image, sharing_of(model, image)


def plan_of(name, num_owners, sparsity, flops=None):
    _, params, _, sharing = network(name, num_owners)
    inside = stored_sparsity(sparsity, sharing)
    method = jaxsparse.east(sparsity=inside, total_steps=8800, update_interval=400)
    return method.plan(params, flops)


def test_the_published_numbers():
    method = jaxsparse.east(sparsity=0.999, total_steps=88_000)  # 250 epochs of 352 steps
    events = method.timetable.events
    assert (method.name, method.skip_step, method.dense_gradient) == ("east", False, "events")
    cycles = [e for e in events if e.density is not None]
    assert [e.step for e in cycles] == list(range(100, 35_201, 100))
    assert max(e.density for e in cycles) == pytest.approx(0.003)  # sparsity 99.7 %
    assert {e.step for e in cycles if e.density > 0.002999999} == {8800, 26_400}
    after = events[len(cycles) :]
    assert [e.step for e in after] == list(range(36_000, 84_001, 4000))
    # r(t) from .5 to .005 over all steps, not from where the cycles end: at half of them .2525.
    assert {e.step: e.drop_fraction for e in after}[44_000] == Fraction(101, 400)
    assert after == jaxsparse.rigl_itop(sparsity=0.999, total_steps=88_000).timetable.events[8:]


# s = .9999 leaves N - floor(s N) of the N weights without sharing: of 21,265,088 2127.
@pytest.mark.parametrize(
    ("name", "num_owners", "num_layers", "num_prunable"),
    [
        ("resnet34", None, 37, 21_265_088),
        ("resnet34", 2, 21, 11_164_352),
        ("resnet50", None, 54, 25_502_912),
        ("resnet50", 2, 30, 15_963_328),
    ],
)
@pytest.mark.parametrize(
    ("sparsity", "active"),
    [
        (0.99, {"resnet34": 212_651, "resnet50": 255_030}),
        (0.999, {"resnet34": 21_266, "resnet50": 25_503}),
        (0.9995, {"resnet34": 10_633, "resnet50": 12_752}),
        (0.9999, {"resnet34": 2127, "resnet50": 2551}),
    ],
)
def test_every_layer_keeps_a_weight_within_the_exact_total(
    name, num_owners, num_layers, num_prunable, sparsity, active
):
    plan = plan_of(name, num_owners, sparsity)
    assert plan.num_prunable == num_prunable
    starts = [row for row in plan.rows if row.step in (0, 1760, 3520, 8400)]
    assert [row.num_active for row in starts] == [active[name]] * 4
    assert all(row.layers == starts[0].layers for row in starts)
    assert len(starts[0].layers) == num_layers
    assert all(min(row.layers.values()) >= 1 for row in plan.rows)
    for before, after in itertools.pairwise(plan.rows):
        rises = after.num_active >= before.num_active
        low, high = (before, after) if rises else (after, before)
        assert all(low.layers[path] <= high.layers[path] for path in low.layers)
    peak = next(row for row in plan.rows if row.step == 900)  # next to the middle, 880
    assert 2.99 * active[name] < peak.num_active <= 3 * active[name]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dense", "shared", "unshared"),
    [
        ("resnet34", 1159, 4.56, 2.52),
        ("resnet50 for CIFAR", 1298, 5.19, 2.93),
        ("resnet50", 4089, 17.4, 9.95),
    ],
)
def test_sharing_costs_nearly_twice_the_multiply_adds(name, dense, shared, unshared):
    """At 99.9 %, in millions an image, as ERK's formula gives them.

    There a layer may have half a weight; here it has a whole number of them, which moves the sum
    by up to 1/1000. The table has three digits, another 1/400.
    """
    for num_owners, expected in ((2, shared), (None, unshared)):
        model, params, image, _ = network(name, num_owners)
        flops = flops_of_model(model, params, image)
        assert sum(flops.values()) / 2e6 == pytest.approx(dense, abs=0.5)
        start = plan_of(name, num_owners, 0.999, flops).rows[0]
        assert start.flops / 2e6 == pytest.approx(expected, rel=1e-3 + 1 / 400)


def test_floors_are_an_option():
    params = network("resnet34")[1]
    counts = lambda **options: (
        jaxsparse.east(sparsity=0.9999, total_steps=8800, **options).plan(params).rows[0].layers
    )
    for min_keep, least in [(None, 9), (0, 9), (20, 20)]:
        layers = counts(min_keep=min_keep)
        assert (min(layers.values()), sum(layers.values())) == (least, 2127)
    # 37 * 60 = 2220 weights are more than 2127.
    message = "leaves 2127 active .* below 60 a layer; the sparsity can be at most 0.999895603"
    with pytest.raises(ValueError, match=message):
        counts(min_keep=60)


def test_without_cycles_it_is_rigl_itop():
    itop = jaxsparse.rigl_itop(**RUN)
    for options in ({"num_cycles": 0}, {"multiplier": 1.0}):
        method = jaxsparse.east(**RUN, **options)
        assert method.timetable == itop.timetable
        assert method.cycles is None


def test_options_are_those_of_rigl_itop():
    method = jaxsparse.east(
        **RUN, drop_fraction=0.25, final_drop_fraction=0.25, cycle_interval=5, min_keep=3
    )
    assert {str(e.drop_fraction) for e in method.timetable.events} == {"0", "1/4"}
    assert method.recipe.min_keep == 3
    with pytest.raises(ValueError, match="sparsity 1.0 must be at least 0 and below 1"):
        jaxsparse.east(**RUN | {"sparsity": 1.0})
