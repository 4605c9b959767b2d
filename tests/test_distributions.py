"""Distributions against the tables of the papers."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsparse.distributions import (
    erdos_renyi,
    erk,
    stacked,
    uniform,
    with_overrides,
)
from jaxsparse.rounded_counts import leaf_counts, total_count
from jaxsparse.types import KernelAxes


def resnet50():
    """Shapes of the conv and fc weights of ResNet-50 v1.5 and the side of each layer's output."""
    layers = {"conv1": ((7, 7, 3, 64), 112)}
    n_in, side = 64, 56
    for stage, (blocks, width) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True)):
        for block in range(blocks):
            # v1.5: the 3 x 3 convolution strides, so the 1 x 1 before it sees the larger input.
            before, side = side, side // 2 if stage > 0 and block == 0 else side
            name = f"stage{stage}/block{block}"
            layers[f"{name}/conv1"] = ((1, 1, n_in, width), before)
            layers[f"{name}/conv2"] = ((3, 3, width, width), side)
            layers[f"{name}/conv3"] = ((1, 1, width, 4 * width), side)
            if block == 0:
                layers[f"{name}/project"] = ((1, 1, n_in, 4 * width), side)
            n_in = 4 * width
    return layers | {"fc": ((2048, 1000), 1)}


RESNET50 = {path: shape for path, (shape, _) in resnet50().items()}
FLOPS = {path: 2 * math.prod(shape) * side**2 for path, (shape, side) in resnet50().items()}
ALL = [uniform(), erdos_renyi(), erk(), erk(power=0.5)]


def flops_ratio(densities):
    return sum(densities[path] * FLOPS[path] for path in FLOPS) / sum(FLOPS.values())


# ERK by hand: shapes, density, expected densities.
SMALL = [
    # eps 40 / 28 = 1.428571; raw 8/16 and 20/64: 8 eps + 20 eps = 40 of 80 weights
    ({"a": (4, 4), "b": (4, 16)}, 0.5, {"a": 0.714286, "b": 0.446429}),
    # eps 34 / 20 = 1.7 gives "a" 1.7: dense. Then eps 30 / 16 = 1.875: 4 + 30 of 68 weights.
    ({"a": (2, 2), "b": (8, 8)}, 0.5, {"a": 1.0, "b": 0.46875}),
    ({"a": (2, 2), "b": (8, 8)}, 1.0, {"a": 1.0, "b": 1.0}),
    # Both attain the largest raw value: both dense at once. Then 64 of 128 - 8 = 56 remain.
    ({"a": (2, 2), "c": (2, 2), "b": (8, 8)}, 0.5, {"a": 1.0, "c": 1.0, "b": 28 / 64}),
]


@pytest.mark.parametrize(("shapes", "density", "expected"), SMALL)
def test_erk_small(shapes, density, expected):
    assert erk()(shapes, density) == pytest.approx(expected, abs=1e-6)


# ResNet-50 on ImageNet: ERK (Evci et al. 2020, section 3) by layer, and shares of the dense FLOPs.
TABLE = [
    # density     eps  dense  conv1      fc  ERK/dense  uniform with conv1 dense
    (0.50, 303.952, 32, 1.0000, 0.4524, 0.7143, 0.5144),
    (0.20, 99.5610, 8, 0.8572, 0.1482, 0.4138, 0.2231),
    (0.10, 48.7860, 1, 0.4200, 0.0726, 0.2418, 0.1260),
    (0.05, 24.3720, 0, 0.2098, 0.0363, 0.1217, 0.0774),
]


def test_resnet50_size():
    assert sum(math.prod(shape) for shape in RESNET50.values()) == 25_502_912
    assert sum(FLOPS.values()) == 8_178_368_512
    assert len(RESNET50) == 54


@pytest.mark.parametrize(
    ("density", "eps", "num_dense", "conv1", "fc", "ratio"), [row[:-1] for row in TABLE]
)
def test_erk_resnet50(density, eps, num_dense, conv1, fc, ratio):
    densities = erk()(RESNET50, density)
    assert sum(d == 1.0 for d in densities.values()) == num_dense
    assert densities["conv1"] == pytest.approx(conv1, abs=1e-4)
    assert densities["fc"] == pytest.approx(fc, abs=1e-4)
    assert densities["fc"] * 2048 * 1000 / (2048 + 1000) == pytest.approx(eps, abs=1e-3)
    assert flops_ratio(densities) == pytest.approx(ratio, abs=1e-4)
    kept = sum(densities[path] * math.prod(shape) for path, shape in RESNET50.items())
    assert kept == pytest.approx(density * 25_502_912, abs=1e-3)


@pytest.mark.parametrize(("density", "ratio"), [(row[0], row[-1]) for row in TABLE])
def test_uniform_resnet50_with_first_layer_dense(density, ratio):
    distribution = with_overrides(uniform(), {"^conv1$": 0.0})
    assert flops_ratio(distribution(RESNET50, density)) == pytest.approx(ratio, abs=1e-4)


def test_erk_does_not_see_the_layout():
    shapes = {"conv": (3, 3, 8, 16), "fc": (8, 32)}
    expected = erk()(shapes, 0.3)
    for order in itertools.permutations(range(4)):
        permuted = {"conv": tuple(shapes["conv"][i] for i in order), "fc": (32, 8)}
        assert erk()(permuted, 0.3) == pytest.approx(expected, abs=1e-12)


def test_erk_power():
    shapes = {"a": (4, 4), "b": (4, 16)}
    assert erk(power=0.0)(shapes, 0.5) == pytest.approx({"a": 0.5, "b": 0.5})
    # raw = sqrt(1/2), sqrt(5/16); the ratio of the densities is that of the raw values
    densities = erk(power=0.5)(shapes, 0.5)
    assert densities["a"] / densities["b"] == pytest.approx(math.sqrt(8 / 5))


def test_erdos_renyi_ignores_the_kernel_size():
    # raw (8 + 4) / (8 * 4) = 3/8 for both
    densities = erdos_renyi()({"conv": (3, 3, 8, 4), "fc": (8, 4)}, 0.3)
    assert densities == pytest.approx({"conv": 0.3, "fc": 0.3})


# A matrix of 768 x 768 by either of its shapes, beside a matrix of 768 x 3072.
@pytest.mark.parametrize(
    ("path", "shape"),
    [("q", (768, 12, 64)), ("attn/out/kernel", (12, 64, 768)), ("q", (768, 768))],
)
def test_an_attention_kernel_counts_as_the_matrix_that_it_is(path, shape):
    shapes = {path: shape, "mlp": (768, 3072)}
    for distribution in (erk(), erdos_renyi()):
        # raw 2 / 768 and 5 / 3072, 8 to 5; sizes 1 to 4: (8 + 20) eps = .1 (1 + 4)
        densities = distribution(shapes, 0.1)
        assert densities == pytest.approx({path: 8 * 0.5 / 28, "mlp": 5 * 0.5 / 28})
        assert round(densities[path], 3) == 0.143


def test_given_axes_decide_what_a_kernel_is():
    shapes = {"mix": (3, 8, 32), "fc": (8, 32), "conv": (3, 3, 8, 16)}
    stack = {"mix": KernelAxes((1,), (2,), (), (0,))}
    plain = {"fc": (8, 32), "conv": (3, 3, 8, 16)} | {f"mix{i}": (8, 32) for i in range(3)}
    for make in (erk, erdos_renyi):
        found, unrolled = make(axes=stack)(shapes, 0.2), make()(plain, 0.2)
        assert found == pytest.approx({p: unrolled["mix0" if p == "mix" else p] for p in shapes})
        assert found == pytest.approx(stacked(make(axes=stack), {"mix": 1})(shapes, 0.2))
    assert erk()(shapes, 0.2) != pytest.approx(erk(axes=stack)(shapes, 0.2))
    with pytest.raises(ValueError, match=r"axes at fc \(8, 32\): .* each of its 2 axes once"):
        erk(axes={"fc": KernelAxes((0,), (2,))})(shapes, 0.2)


def test_erdos_renyi_of_a_convolution_with_its_outputs_first():
    """Equinox and PyTorch name it weight."""
    flax = {"conv/kernel": (3, 3, 8, 4), "fc/kernel": (8, 32)}
    theirs = {"conv/weight": (4, 8, 3, 3), "fc/weight": (32, 8)}
    for make in (erk, erdos_renyi):
        assert list(make()(theirs, 0.3).values()) == list(make()(flax, 0.3).values())


def test_densities_of_usual_shapes_are_what_they_were():
    """To the bit: before, a kernel counted by the set of its dimensions."""
    sums = {path: sum(shape) / math.prod(shape) for path, shape in RESNET50.items()}
    size = {path: math.prod(shape) for path, shape in RESNET50.items()}
    eps = 0.05 * sum(size.values()) / sum(sums[p] * size[p] for p in size)
    assert erk()(RESNET50, 0.05) == {path: eps * raw for path, raw in sums.items()}


shapes_drawn = st.lists(
    st.lists(st.integers(0, 12), max_size=4).map(tuple), min_size=1, max_size=6
).map(lambda shapes: {f"layer{i}": shape for i, shape in enumerate(shapes)})


@pytest.mark.parametrize("distribution", ALL, ids=["uniform", "er", "erk", "erk sqrt"])
@given(shapes=shapes_drawn, density=st.floats(1e-3, 1.0))
def test_densities_keep_the_total(distribution, shapes, density):
    densities = distribution(shapes, density)
    size = {path: math.prod(shape) for path, shape in shapes.items()}
    assert list(densities) == list(shapes)
    assert all(0.0 <= d <= 1.0 for d in densities.values())
    kept = sum(densities[path] * size[path] for path in shapes)
    assert kept == pytest.approx(density * sum(size.values()), rel=1e-9)


@pytest.mark.parametrize("distribution", ALL, ids=["uniform", "er", "erk", "erk sqrt"])
@given(shapes=shapes_drawn, density=st.floats(1e-3, 1.0))
def test_counts_have_the_exact_total(distribution, shapes, density):
    size = {path: math.prod(shape) for path, shape in shapes.items()}
    total = total_count(sum(size.values()), density)
    if total < sum(n > 0 for n in size.values()):
        with pytest.raises(ValueError, match="active weights for"):
            leaf_counts(distribution, shapes, density)
        return
    counts = leaf_counts(distribution, shapes, density)
    assert sum(counts.values()) == total
    assert all(min(1, size[path]) <= counts[path] <= size[path] for path in shapes)


@pytest.mark.parametrize(("fixed", "kept"), [(0.0, 16), (0.75, 4), (1.0, 0)])
def test_overrides(fixed, kept):
    distribution = with_overrides(erk(), {"^first": fixed})
    shapes = {"first": (4, 4), "a": (4, 4), "b": (4, 16)}
    assert distribution(shapes, 0.5) == pytest.approx(
        {"first": 1 - fixed, "a": 0.714286, "b": 0.446429}, abs=1e-6
    )
    assert leaf_counts(distribution, shapes, 0.5) == {"first": kept, "a": 11, "b": 29}


def test_overrides_take_the_first_match():
    distribution = with_overrides(uniform(), {"a1": 0.0, "a": 0.25})
    assert distribution({"a1": (4,), "a2": (4,)}, 0.5) == {"a1": 1.0, "a2": 0.75}


@pytest.mark.parametrize(
    ("sparsities", "message"),
    [
        ({"fc": 1.5}, r"override 'fc': sparsity 1.5 must be in \[0, 1\]"),
        ({"fc": math.nan}, "override 'fc': sparsity nan"),
        ({"head": 0.5}, "override 'head' is the first match of no leaf; there are conv, fc"),
        ({"c": 0.5, "fc": 0.5}, "override 'fc' is the first match of no leaf"),
    ],
)
def test_overrides_out_of_place(sparsities, message):
    with pytest.raises(ValueError, match=message):
        with_overrides(uniform(), sparsities)({"conv": (4,), "fc": (4,)}, 0.5)


# A transformer of three scanned blocks, and the same model with its blocks written out.
SCANNED = {"embed": (20, 8), "blocks/up": (3, 8, 32), "blocks/conv": (3, 5, 8, 8), "head": (8, 10)}
UNROLLED = {"embed": (20, 8), "head": (8, 10)} | {
    f"block{k}/{name}": SCANNED[f"blocks/{name}"][1:] for k in range(3) for name in ("up", "conv")
}


@pytest.mark.parametrize("density", [0.05, 0.3, 0.6, 1.0])  # at 0.6 some layers are dense
@pytest.mark.parametrize("distribution", ALL, ids=["uniform", "er", "erk", "erk sqrt"])
def test_scanned_layers_get_the_densities_of_unrolled_ones(distribution, density):
    scanned = stacked(distribution, {"^blocks": 1})(SCANNED, density)
    unrolled = distribution(UNROLLED, density)
    assert list(scanned) == list(SCANNED)
    for path, d in scanned.items():
        assert d == pytest.approx(unrolled[path.replace("blocks", "block2")], rel=1e-12)
    counts = leaf_counts(stacked(distribution, {"^blocks": 1}), SCANNED, density)
    size = sum(math.prod(shape) for shape in SCANNED.values())
    assert sum(counts.values()) == total_count(size, density)


def test_without_stacked_the_number_of_layers_passes_for_a_kernel_size():
    """(3 + 8 + 32) / (3 * 8 * 32) of a stack against (8 + 32) / (8 * 32) of a layer."""
    shapes = {"a": (3, 8, 32), "b": (8, 32)}
    plain, mended = erk()(shapes, 0.2), stacked(erk(), {"a": 1})(shapes, 0.2)
    assert plain["a"] / plain["b"] == pytest.approx((43 / 768) / (40 / 256))
    assert mended == pytest.approx({"a": 0.2, "b": 0.2})


def test_stacks_of_stacks_and_empty_ones():
    shapes = {"a": (2, 3, 4, 16), "b": (4, 4), "none": (0, 4, 4)}
    distribution = stacked(erk(), {"a": 2, "none": 1})
    one = erk()({"b": (4, 4)} | {f"a{i}": (4, 16) for i in range(6)}, 0.4)
    assert distribution(shapes, 0.4) == pytest.approx({"a": one["a0"], "b": one["b"], "none": 1.0})


def test_overrides_inside_reach_a_stack_and_a_layer_of_it():
    shapes = {"a": (4, 8, 16), "b": (8, 16)}
    whole = stacked(with_overrides(uniform(), {"^a": 0.5}), {"a": 1})(shapes, 0.1)
    assert whole == pytest.approx({"a": 0.5, "b": 0.1})
    first = stacked(with_overrides(uniform(), {r"^a\[0\]": 0.0}), {"a": 1})(shapes, 0.1)
    assert first == pytest.approx({"a": (1.0 + 3 * 0.1) / 4, "b": 0.1})


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"up": 0}, "stack 'up': 0 must be a whole number of leading axes, at least 1"),
        ({"up": 1.0}, "stack 'up': 1.0 must be a whole number"),
        ({"up": True}, "stack 'up': True must be a whole number"),
        ({"down": 1}, "stack 'down' is the first match of no leaf"),
        ({"up": 3}, r"stack at blocks/up: 3 of the axes of \(3, 8, 32\) .* at most 2"),
    ],
)
def test_stacks_out_of_place(axes, message):
    with pytest.raises(ValueError, match=message):
        stacked(erk(), axes)(SCANNED, 0.5)


@pytest.mark.parametrize("distribution", ALL, ids=["uniform", "er", "erk", "erk sqrt"])
def test_density_one_ulp_below_one(distribution):
    densities = distribution({"a": (7, 5), "b": (7, 5), "c": (3, 3)}, np.nextafter(1.0, 0.0))
    assert densities == pytest.approx({"a": 1.0, "b": 1.0, "c": 1.0})
