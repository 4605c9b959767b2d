"""EAST: the published numbers, RigL-ITOP after the cycles, floors at extreme sparsity."""

import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import pytest

import jaxsparse

RUN = {"sparsity": 0.9, "total_steps": 100, "update_interval": 10}


def resnet34():
    """Shapes of the weights of ResNet-34 for CIFAR-10: 21,265,088 in 37 layers."""
    layers = {"conv1": (3, 3, 3, 64), "fc": (512, 10)}
    into = 64
    for stage, blocks in enumerate([3, 4, 6, 3]):
        width = 64 * 2**stage
        for block in range(blocks):
            name = f"stage{stage}_block{block}"
            layers[f"{name}/conv1"] = (3, 3, into, width)
            layers[f"{name}/conv2"] = (3, 3, width, width)
            if into != width:
                layers[f"{name}/shortcut"] = (1, 1, into, width)
            into = width
    return {
        path: {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)} for path, shape in layers.items()
    }


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


# Item 15. 21,265,088 weights: s = .9999 leaves N - floor(s N) = 2127.
@pytest.mark.parametrize(
    ("sparsity", "active"), [(0.99, 212_651), (0.999, 21_266), (0.9995, 10_633), (0.9999, 2127)]
)
def test_every_layer_keeps_a_weight_within_the_exact_total(sparsity, active):
    params = resnet34()
    method = jaxsparse.east(sparsity=sparsity, total_steps=8800, update_interval=400)
    plan = method.plan(params)
    assert plan.num_prunable == 21_265_088
    assert {row.num_active for row in plan.rows if row.step in (0, 1760, 3520, 8400)} == {active}
    assert all(min(row.layers.values()) >= 1 for row in plan.rows)
    for before, after in itertools.pairwise(plan.rows):
        rises = after.num_active >= before.num_active
        low, high = (before, after) if rises else (after, before)
        assert all(low.layers[path] <= high.layers[path] for path in low.layers)
    starts = [row.layers for row in plan.rows if row.step in (0, 1760, 3520, 8400)]
    assert all(layers == starts[0] for layers in starts)
    total = sum(math.prod(shape["kernel"].shape) for shape in params.values())
    peak = next(row for row in plan.rows if row.step == 900)  # next to the middle, 880
    assert active < peak.num_active <= math.ceil(3 * (1 - sparsity) * total + 1)


def test_floors_are_an_option():
    params = resnet34()
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
        assert method.recipe.cycles is None


def test_options_are_those_of_rigl_itop():
    method = jaxsparse.east(
        **RUN, drop_fraction=0.25, final_drop_fraction=0.25, cycle_interval=5, min_keep=3
    )
    assert {str(e.drop_fraction) for e in method.timetable.events} == {"0", "1/4"}
    assert method.recipe.min_keep == 3
    with pytest.raises(ValueError, match="sparsity 1.0 must be at least 0 and below 1"):
        jaxsparse.east(**RUN | {"sparsity": 1.0})
