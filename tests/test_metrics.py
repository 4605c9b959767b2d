"""The table of a summary, its alarms, and dead channels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse
from jaxsparse.metrics import DeadChannels, LayerSummary, dead_channels

PARAMS = {
    "conv": {"kernel": jnp.ones((3, 3, 1, 4)), "bias": jnp.ones(4)},
    "fc": {"kernel": jnp.ones((40, 100)), "bias": jnp.ones(100)},
}


def masks_with(conv: int, fc: int):
    first = lambda n, shape: (jnp.arange(np.prod(shape)) < n).reshape(shape)
    masks = jaxsparse.dense_masks(PARAMS)
    masks["conv"]["kernel"] = first(conv, (3, 3, 1, 4))
    masks["fc"]["kernel"] = first(fc, (40, 100))
    return masks


def test_summary_as_text():
    assert str(jaxsparse.summary(PARAMS, masks_with(36, 1000))) == "\n".join(
        [
            "layer        shape         active  weights  sparsity  dead in  dead out",
            "conv/kernel  (3, 3, 1, 4)      36       36    0.0000        0         0",
            "fc/kernel    (40, 100)      1,000    4,000    0.7500       30         0",
            "total                       1,036    4,036    0.7433       30         0",
            "and 104 parameters that stay dense",
        ]
    )


def test_summary_speaks_of_dead_channels_only_where_there_are_any():
    assert str(jaxsparse.summary(PARAMS, masks_with(36, 4000))).splitlines() == [
        "layer        shape         active  weights  sparsity",
        "conv/kernel  (3, 3, 1, 4)      36       36    0.0000",
        "fc/kernel    (40, 100)      4,000    4,000    0.0000",
        "total                       4,036    4,036    0.0000",
        "and 104 parameters that stay dense",
    ]


def test_summary_says_which_matrices_stay_dense():
    params = PARAMS | {"wte": {"embedding": jnp.ones((50, 8))}, "cls": jnp.ones((1, 1, 8))}
    summary = jaxsparse.summary(params, jaxsparse.dense_masks(params))
    assert str(summary).splitlines()[-1] == (
        "and 512 parameters that stay dense: wte/embedding (50, 8); and 3 vectors"
    )
    assert summary.num_other == 512
    assert summary.dense == {
        "cls": (1, 1, 8),
        "conv/bias": (4,),
        "fc/bias": (100,),
        "wte/embedding": (50, 8),
    }


def test_summary_as_numbers():
    masks = masks_with(18, 400)
    summary = jaxsparse.summary(PARAMS, masks)
    assert summary.layers == (
        LayerSummary("conv/kernel", (3, 3, 1, 4), 18, 36, DeadChannels(0, 0), 4),
        LayerSummary("fc/kernel", (40, 100), 400, 4000, DeadChannels(36, 0), 100),
    )
    assert [layer.density for layer in summary.layers] == [0.5, 0.1]
    assert (summary.num_active, summary.num_prunable, summary.num_other) == (418, 4036, 104)
    assert summary.sparsity == jaxsparse.sparsity(masks) == 1 - 418 / 4036
    assert summary.num_active == jaxsparse.num_active(masks)


def test_summary_counts_what_the_rules_say():
    rules = ((r"fc/kernel", True),)
    summary = jaxsparse.summary(PARAMS, masks_with(0, 400), rules)
    assert [layer.path for layer in summary.layers] == ["fc/kernel"]
    assert summary.sparsity == pytest.approx(0.9)
    assert jaxsparse.sparsity(masks_with(0, 400), rules) == pytest.approx(0.9)


def test_summary_of_an_empty_layer_and_an_empty_leaf():
    params = {"a": {"kernel": jnp.ones((2, 2))}, "b": {"kernel": jnp.ones((0, 3))}}
    summary = jaxsparse.summary(params, jax.tree.map(lambda x: jnp.zeros(x.shape, bool), params))
    assert [layer.density for layer in summary.layers] == [0.0, 0.0]
    assert summary.sparsity == 1.0


def test_summary_names_the_leaf_that_differs():
    masks = masks_with(1, 1)
    masks["fc"]["bias"] = jnp.ones(99, bool)
    with pytest.raises(ValueError, match=r"masks at fc/bias has shape \(99,\)"):
        jaxsparse.summary(PARAMS, masks)


@pytest.mark.parametrize(
    ("mask", "num_in", "num_out"),
    [
        ([[1, 0, 0], [0, 0, 0]], 1, 2),
        ([[1, 1, 1], [1, 1, 1]], 0, 0),
        ([[0, 0, 0], [0, 0, 0]], 2, 3),
        # Two places of a convolution with 2 inputs and 3 outputs: one weight each is enough.
        ([[[1, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 1, 0]]], 0, 1),
        ([1, 0, 0, 1], 0, 2),  # rank 1 has outputs only
        (0, 0, 0),
    ],
)
def test_dead_channels_by_eye(mask, num_in, num_out):
    assert dead_channels(np.array(mask, bool)) == (num_in, num_out)
    assert dead_channels(jnp.array(mask, bool)) == (num_in, num_out)


@pytest.mark.parametrize(
    ("conv", "fc", "alarms"),
    [
        (4, 100, []),
        (3, 100, ["conv/kernel: 3 weights are left, and none reaches 1 of 4 outputs"]),
        (
            0,
            99,
            [
                "conv/kernel: no weight is left",
                "fc/kernel: 99 weights are left, and none reaches 1 of 100 outputs",
            ],
        ),
    ],
)
def test_alarms_name_the_layers_near_empty(conv, fc, alarms):
    assert jaxsparse.summary(PARAMS, masks_with(conv, fc)).alarms == alarms


# Attention kernels, whose outputs are those of all heads; and other layouts.
@pytest.mark.parametrize(
    ("path", "shape", "active", "alarm", "dead"),
    [
        ("attn/query", (768, 12, 64), np.s_[:128, 3, 5], "767 of 768", (640, 767)),
        ("attn/query", (768, 12, 64), np.s_[7, 3], "704 of 768", (767, 704)),
        ("attn/query", (768, 12, 64), np.s_[7], None, (767, 0)),
        ("attn/out", (12, 64, 768), np.s_[2, 5, :128], "640 of 768", (767, 640)),
        ("fc", (768, 768), np.s_[:100, :100], "668 of 768", (668, 668)),  # 10,000 weights
        ("conv", (3, 3, 4, 8), np.s_[1, 1, :, :6], "2 of 8", (0, 2)),
    ],
)
def test_alarms_count_the_outputs_that_no_weight_reaches(path, shape, active, alarm, dead):
    mask = np.zeros(shape, bool)
    mask[active] = True
    masks = {path: {"kernel": mask}}
    (layer,) = jaxsparse.summary(masks, masks).layers
    expected = f"{path}/kernel: {mask.sum():,} weights are left, and none reaches {alarm} outputs"
    assert layer.alarm == (alarm and expected)
    assert layer.dead == dead


def test_channels_by_given_axes():
    mask = np.zeros((2, 3, 4), bool)
    mask[0, 1, 2] = mask[0, 1, 3] = mask[1, 2, 2] = True
    masks = {"mix": {"kernel": mask}}
    stack = {"mix/kernel": jaxsparse.KernelAxes((1,), (2,), (), (0,))}
    (layer,) = jaxsparse.summary(masks, masks, axes=stack).layers
    assert (layer.dead, layer.num_outputs) == ((2 + 2, 2 + 3), 8)
    assert dead_channels(mask, jaxsparse.KernelAxes((0, 1), (2,))) == (4, 2)
    assert dead_channels(mask) == (1, 2)
    weight = {"weight": np.eye(3, 5, dtype=bool)}  # Equinox's (out, in)
    assert jaxsparse.summary(weight, weight).dead == (2, 0)
    with pytest.raises(ValueError, match="axes at mix/kernel .* must name each of its 3 axes once"):
        jaxsparse.summary(masks, masks, axes={"mix/kernel": jaxsparse.KernelAxes((0,), (1,))})


def test_alarms_of_a_scalar_and_of_a_leaf_without_entries():
    rules = ((r".", True),)
    masks = {"a": jnp.zeros((), bool), "b": jnp.ones((), bool), "c": jnp.ones((0, 3), bool)}
    params = jax.tree.map(lambda m: jnp.ones(m.shape), masks)
    assert jaxsparse.summary(params, masks, rules).alarms == ["a: no weight is left"]
