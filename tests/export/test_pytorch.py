"""PyTorch's layouts, checked against its formulas; names; entries that are left over."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxsparse
from jaxsparse.export import to_jax_layout

RNG = np.random.default_rng(0)


def draw(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def torch_linear(x, weight, bias):
    """torch.nn.functional.linear: x A^T + b."""
    return x @ weight.T + bias


def torch_conv2d(x, weight, bias, groups=1):
    """torch.nn.functional.conv2d as documented: NCHW, OIHW, cross-correlation, no padding."""
    num, _, height, width = x.shape
    out, inputs, kh, kw = weight.shape
    y = np.zeros((num, out, height - kh + 1, width - kw + 1))
    for o in range(out):
        first = o // (out // groups) * inputs
        for i in range(y.shape[2]):
            for j in range(y.shape[3]):
                patch = x[:, first : first + inputs, i : i + kh, j : j + kw]
                y[:, o, i, j] = (patch * weight[o]).sum((1, 2, 3)) + bias[o]
    return y


def torch_conv1d(x, weight, bias):
    """torch.nn.functional.conv1d, in terms of conv2d."""
    return torch_conv2d(x[:, :, None], weight[:, :, None], bias)[:, :, 0]


CASES = {
    "linear": (nn.Dense(5), torch_linear, (2, 4), (5, 4)),
    "conv": (nn.Conv(5, (3, 2), padding="VALID"), torch_conv2d, (2, 4, 6, 7), (5, 4, 3, 2)),
    "square conv": (nn.Conv(4, (3, 3), padding="VALID"), torch_conv2d, (2, 4, 6, 7), (4, 4, 3, 3)),
    "conv1d": (nn.Conv(5, (3,), padding="VALID"), torch_conv1d, (2, 4, 6), (5, 4, 3)),
    "grouped": (
        nn.Conv(6, (3, 2), padding="VALID", feature_group_count=2),
        lambda x, w, b: torch_conv2d(x, w, b, groups=2),
        (2, 4, 6, 7),
        (6, 2, 3, 2),
    ),
    "depthwise": (
        nn.Conv(8, (3, 3), padding="VALID", feature_group_count=4),
        lambda x, w, b: torch_conv2d(x, w, b, groups=4),
        (2, 4, 6, 7),
        (8, 1, 3, 3),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_layouts_against_pytorchs_formulas(name):
    module, torch_function, input_shape, weight_shape = CASES[name]
    x, weight, bias = draw(*input_shape), draw(*weight_shape), draw(weight_shape[0])
    mask = RNG.random(weight_shape) < 0.5
    state_dict = {"weight_orig": weight, "weight_mask": mask.astype(np.float32), "bias": bias}
    x_last = jnp.asarray(np.moveaxis(x, 1, -1))
    like = jax.eval_shape(module.init, jax.random.key(0), x_last)["params"]

    params = jaxsparse.params_from_torch(state_dict, like)
    with jax.numpy_rank_promotion("allow"):  # flax adds biases so
        ours = module.apply({"params": params}, x_last)
    theirs = np.moveaxis(torch_function(x, weight * mask, bias), 1, -1)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)

    masks = jaxsparse.masks_from_torch(state_dict, params)
    np.testing.assert_array_equal(masks["kernel"], params["kernel"] != 0)
    assert masks["bias"].all()


# A model with a transposed layer of a square shape, so that a wrong layout would go unseen.
PARAMS = {
    "Conv_0": {"kernel": draw(3, 3, 2, 4), "bias": draw(4)},
    "BatchNorm_0": {"scale": draw(4), "bias": draw(4)},
    "Embed_0": {"embedding": draw(7, 4)},
    "Dense_0": {"kernel": draw(4, 4).astype(jnp.bfloat16)},
}
RENAME = [
    (r"Conv_(\d+)/kernel", r"layers.\1.weight"),
    (r"Conv_(\d+)/bias", r"layers.\1.bias"),
    (r"BatchNorm_0/(scale|bias)", r"bn.\1"),
    (r"Embed_0/.*", "tokens.weight"),
    (r"Dense.*", "fc.weight"),
]
CONV, FC = RNG.random((4, 2, 3, 3)) < 0.5, RNG.random((4, 4)) < 0.5
STATE = {
    "layers.0.weight": draw(4, 2, 3, 3) * CONV,
    "layers.0.bias": np.array([0, 1, 2, 3]),
    "bn.scale": draw(4),
    "bn.bias": draw(4),
    "bn.num_batches_tracked": np.int64(7),
    "tokens.weight": draw(7, 4),
    "fc.weight": draw(4, 4) * FC,
}


@pytest.mark.parametrize(
    "state_dict",
    [
        STATE,
        {"layers.0.weight": CONV.astype(np.float32), "fc.weight": FC},
        {"layers.0.weight_mask": CONV, "fc.weight_mask": FC},
    ],
    ids=["zeros in weights", "dict of masks", "masks of torch.nn.utils.prune"],
)
def test_masks_of_every_kind(state_dict):
    masks = jaxsparse.masks_from_torch(state_dict, PARAMS, rename=RENAME)
    np.testing.assert_array_equal(masks["Conv_0"]["kernel"], CONV.transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(masks["Dense_0"]["kernel"], FC.T)
    assert masks["Conv_0"]["bias"].all() and masks["Embed_0"]["embedding"].all()
    assert jax.tree.map(np.shape, masks) == jax.tree.map(np.shape, PARAMS)


def test_params_keep_the_dtypes_of_the_tree():
    params = jaxsparse.params_from_torch(STATE, PARAMS, rename=RENAME)
    assert jax.tree.map(lambda x: x.dtype, params) == jax.tree.map(lambda x: x.dtype, PARAMS)
    np.testing.assert_array_equal(params["Embed_0"]["embedding"], STATE["tokens.weight"])
    expected = STATE["fc.weight"].T.astype(jnp.bfloat16)
    np.testing.assert_array_equal(params["Dense_0"]["kernel"], expected)
    assert jnp.result_type(params["Conv_0"]["bias"]) == jnp.float32


def test_params_do_not_follow_a_model_that_trains_on():
    memory = np.zeros(64 + 16, np.float32)
    start = -memory.ctypes.data // 4 % 16  # JAX takes memory over where it is aligned to 64 bytes
    bias = memory[start : start + 64]
    like = {"bias": jax.ShapeDtypeStruct((64,), jnp.float32)}
    params = jaxsparse.params_from_torch({"bias": bias}, like)
    bias += 1  # as an optimizer of PyTorch does
    assert (params["bias"] == 0).all()


@pytest.mark.parametrize(
    "rename",
    [
        {"Dense_0/kernel": "fc.weight", "Conv_0/kernel": "layers.0.weight"},
        lambda path: {"Dense_0/kernel": "fc.weight"}.get(path, "layers.0.weight"),
        [(r"Dense.*", "fc.weight"), (r".*", "layers.0.weight")],  # the first match wins
    ],
    ids=["dict", "function", "pairs"],
)
def test_ways_to_rename(rename):
    masks = jaxsparse.masks_from_torch(STATE, PARAMS, rename=rename)
    assert int(masks["Dense_0"]["kernel"].sum()) == FC.sum()


def test_names_alike_need_no_renaming():
    params = {"fc": {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)}}
    state_dict = {"fc.weight": np.array([[1, 0, 2], [0, 0, 3]]), "fc.bias": np.array([4, 5])}
    masks = jaxsparse.masks_from_torch(state_dict, params)
    np.testing.assert_array_equal(masks["fc"]["kernel"], [[1, 0], [0, 0], [1, 1]])
    filled = jaxsparse.params_from_torch(state_dict, params)
    np.testing.assert_array_equal(filled["fc"]["bias"], [4, 5])


def test_a_layout_of_ones_own():
    # Equinox has PyTorch's layouts.
    params = {"linear": {"weight": np.zeros((2, 3), np.float32)}}
    state_dict = {"linear.weight": np.array([[1, 0, 2], [0, 0, 3]])}
    masks = jaxsparse.masks_from_torch(state_dict, params, layout=lambda path, x: x)
    np.testing.assert_array_equal(masks["linear"]["weight"], [[1, 0, 1], [0, 0, 1]])


def test_a_transposed_convolution_as_the_docstring_has_it():
    # conv_transpose2d: every input pixel adds its value times the kernel, stride apart.
    x, weight = draw(1, 4, 3, 3), draw(4, 4, 3, 3)
    theirs = np.zeros((1, 4, 7, 7))
    for i in range(3):
        for j in range(3):
            block = np.einsum("nc,cohw->nohw", x[:, :, i, j], weight)
            theirs[:, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3] += block
    module = nn.ConvTranspose(4, (3, 3), strides=(2, 2), padding="VALID", use_bias=False)
    like = {"kernel": jax.ShapeDtypeStruct((3, 3, 4, 4), jnp.float32)}
    params = jaxsparse.params_from_torch(
        {"weight": weight}, like, layout=lambda path, x: np.flip(x, (2, 3)).transpose(2, 3, 0, 1)
    )
    ours = module.apply({"params": params}, jnp.asarray(np.moveaxis(x, 1, -1)))
    np.testing.assert_allclose(ours, np.moveaxis(theirs, 1, -1), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"layers.0.weight": np.ones((4, 2, 3, 2))},
            r"layers.0.weight has shape \(4, 2, 3, 2\), \(3, 2, 2, 4\) in JAX's layout, and the "
            r"leaf Conv_0/kernel has \(3, 3, 2, 4\)",
        ),
        (
            {"head.weight": np.eye(3)},
            r"head.weight \(3, 3\) is left over, and 6 of its 9 entries are 0",
        ),
        (
            {"layers.0.bias_mask": np.array([1, 0, 1, 1])},
            r"layers.0.bias_mask \(4,\) is left over, and 1 of its 4 entries are 0",
        ),
    ],
)
def test_entries_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        jaxsparse.masks_from_torch(STATE | change, PARAMS, rename=RENAME)


def test_a_leaf_without_a_partner():
    with pytest.raises(
        ValueError, match=r"no entry fc.weight for the leaf Dense_0/kernel \(4, 4\)"
    ):
        without = {name: x for name, x in STATE.items() if name != "fc.weight"}
        jaxsparse.masks_from_torch(without, PARAMS, rename=RENAME)
    with pytest.raises(ValueError, match=r"it has module.layers.0.weight \(4, 2, 3, 3\), module."):
        moved = {f"module.{name}": x for name, x in STATE.items()}
        jaxsparse.masks_from_torch(moved, PARAMS, rename=RENAME)
    with pytest.raises(ValueError, match="rename gives no name for the leaf Conv_0/kernel"):
        jaxsparse.masks_from_torch(STATE, PARAMS, rename={"Dense_0/kernel": "fc.weight"})


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            {"head.weight": np.ones((3, 3)), "head.bias": np.ones(3)},
            r"head.weight \(3, 3\), head.b",
        ),
        ({f"layers.{i}.bias": np.ones(4) for i in range(1, 9)}, r"layers.3.bias \(4,\) and 5 more"),
        (
            {"head.weight_orig": np.ones(3), "head.weight_mask": np.ones(3)},
            "takes head.weight_orig",
        ),
    ],
)
def test_weights_that_no_leaf_took_are_those_of_another_network(extra, message):
    with pytest.raises(ValueError, match=message + ".*another network.*strict=False"):
        jaxsparse.params_from_torch(STATE | extra, PARAMS, rename=RENAME)
    jaxsparse.params_from_torch(STATE | extra, PARAMS, rename=RENAME, strict=False)


def test_statistics_may_be_left_over_and_asked_for_alone():
    statistics = {"bn.running_mean": draw(4), "bn.running_var": draw(4)}
    state_dict = STATE | statistics
    jaxsparse.params_from_torch(state_dict, PARAMS, rename=RENAME)
    means = jaxsparse.params_from_torch(
        state_dict, {"mean": np.zeros(4, np.float32)}, rename={"mean": "bn.running_mean"}
    )
    np.testing.assert_array_equal(means["mean"], statistics["bn.running_mean"])


def test_a_matrix_that_no_leaf_took_may_be_dense():
    jaxsparse.masks_from_torch(STATE | {"head.weight": np.ones((3, 3))}, PARAMS, rename=RENAME)


def test_torch_tensors():
    torch = pytest.importorskip("torch")
    from torch.nn.utils import prune

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4, 5))
    for layer in (model[0], model[2]):
        prune.random_unstructured(layer, "weight", 0.5)
    like = {
        "0": {"kernel": np.zeros((3, 3, 2, 4), np.float32), "bias": np.zeros(4, np.float32)},
        "2": {"kernel": np.zeros((4, 5), np.float32), "bias": np.zeros(5, np.float32)},
    }
    params = jaxsparse.params_from_torch(model.state_dict(), like)
    masks = jaxsparse.masks_from_torch(model.state_dict(), like)
    jaxsparse.check(params, (), masks)
    assert jaxsparse.num_active(masks) == 36 + 10
    x = torch.randn(3, 2, 3, 3)
    y = jnp.asarray(x.permute(0, 2, 3, 1).numpy()).reshape(3, -1)
    y = y @ params["0"]["kernel"].reshape(-1, 4) + params["0"]["bias"][None]
    y = y @ params["2"]["kernel"] + params["2"]["bias"][None]
    np.testing.assert_allclose(y, model(x).detach().numpy(), atol=1e-6)
    halved = {name: x.bfloat16() for name, x in model.state_dict().items()}
    again = jaxsparse.masks_from_torch(halved, like)
    np.testing.assert_array_equal(again["2"]["kernel"], masks["2"]["kernel"])


def test_to_jax_layout_leaves_vectors_and_embeddings():
    assert to_jax_layout("fc/bias", np.zeros(3)).shape == (3,)
    assert to_jax_layout("tokens/embedding", np.zeros((7, 4))).shape == (7, 4)
    assert to_jax_layout("fc/kernel", np.zeros((7, 4))).shape == (4, 7)
    assert to_jax_layout("conv/kernel", np.zeros((2, 3, 5, 6, 7))).shape == (5, 6, 7, 3, 2)
