"""The way to PyTorch is the inverse of the way from it, to the bit; clashing names are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse
from jaxsparse.export import to_jax_layout, to_torch_layout
from jaxsparse.nn import resnet, torchvision_name
from jaxsparse.paths import leaves_by_path
from tests.export.test_pytorch import PARAMS, RENAME

RNG = np.random.default_rng(1)


def bits(tree):
    """Dtype, shape and bytes of every leaf, by path or name."""
    return {
        path: (str(x.dtype), x.shape, np.ascontiguousarray(x).tobytes())
        for path, x in leaves_by_path(tree).items()
    }


def some_masks(params, prunable=None):
    """Half of the prunable entries."""
    paths = jaxsparse.prunable_paths(params, prunable)
    leaves = {p: RNG.random(x.shape) < 0.5 for p, x in leaves_by_path(params).items()}
    dense = jaxsparse.dense_masks(params)
    return jax.tree.unflatten(
        jax.tree.structure(params),
        [leaves[p] if p in paths else m for p, m in leaves_by_path(dense).items()],
    )


@pytest.mark.parametrize("rename", [RENAME, None])
def test_there_and_back(rename):
    state_dict = jaxsparse.params_to_torch(PARAMS, rename=rename)
    again = jaxsparse.params_from_torch(state_dict, PARAMS, rename=rename)
    assert bits(again) == bits(PARAMS)
    name = "layers.0.weight" if rename else "Conv_0.weight"
    np.testing.assert_array_equal(
        state_dict[name], PARAMS["Conv_0"]["kernel"].transpose(3, 2, 0, 1)
    )
    assert len(state_dict) == 6


def test_every_bit_of_the_values():
    values = np.array([[np.nan, -0.0, 1e-45], [np.inf, -np.inf, 3.0]], np.float32)
    values.view(np.uint32)[0, 0] = 0xFFC12345  # a NaN with a sign and a payload
    params = {"fc": {"kernel": values}}
    state_dict = jaxsparse.params_to_torch(params)
    np.testing.assert_array_equal(state_dict["fc.weight"].view(np.uint32), values.T.view(np.uint32))
    assert bits(jaxsparse.params_from_torch(state_dict, params)) == bits(params)
    there = {"fc.weight": RNG.normal(size=(3, 2)).astype(np.float32), "fc.bias": np.zeros(3, "f")}
    like = {"fc": {"kernel": np.zeros((2, 3), "f"), "bias": np.zeros(3, "f")}}
    here = jaxsparse.params_from_torch(there, like)
    assert bits(jaxsparse.params_to_torch(here)) == bits(there)


@pytest.mark.parametrize("ndim", range(6))
def test_layouts_are_inverse(ndim):
    x = RNG.normal(size=(2, 3, 4, 5, 6)[:ndim])
    for path in ("a/kernel", "a/embedding", "weight"):
        for there, back in ((to_torch_layout, to_jax_layout), (to_jax_layout, to_torch_layout)):
            np.testing.assert_array_equal(back(path, there(path, x)), x)
    if ndim == 4:
        assert to_torch_layout("a/kernel", x).shape == (5, 4, 2, 3)


def test_a_transposed_convolution_as_the_docstring_has_it():
    params = {"up": {"kernel": RNG.normal(size=(3, 2, 4, 5)).astype(np.float32)}}
    there = lambda path, x: np.flip(x.transpose(2, 3, 0, 1), (2, 3))
    back = lambda path, x: np.flip(x, (2, 3)).transpose(2, 3, 0, 1)
    state_dict = jaxsparse.params_to_torch(params, layout=there)
    assert state_dict["up.weight"].shape == (4, 5, 3, 2)
    assert bits(jaxsparse.params_from_torch(state_dict, params, layout=back)) == bits(params)
    assert all(step > 0 for step in state_dict["up.weight"].strides)  # PyTorch takes no others


def test_arrays_own_their_memory():
    params = {"fc": {"kernel": jnp.ones((2, 3)), "bias": np.ones(3, np.float32)}}
    for x in jaxsparse.params_to_torch(params).values():
        assert x.flags.writeable and x.flags.c_contiguous and x.flags.owndata
        x += 1
    assert (params["fc"]["bias"] == 1).all() and (params["fc"]["kernel"] == 1).all()


@pytest.mark.parametrize(
    ("dtype", "there"),
    [
        ("bfloat16", "float32"),
        ("float8_e4m3fn", "float32"),
        ("float16", "float16"),
        ("int4", "int8"),
        ("int32", "int32"),
        ("complex64", "complex64"),
    ],
)
def test_dtypes_that_pytorch_takes(dtype, there):
    params = {"a": {"kernel": jnp.arange(6).reshape(2, 3).astype(dtype)}}
    state_dict = jaxsparse.params_to_torch(params)
    assert state_dict["a.weight"].dtype == there
    assert bits(jaxsparse.params_from_torch(state_dict, params)) == bits(params)


def test_masks_in_the_form_of_torch_nn_utils_prune():
    masks = some_masks(PARAMS)
    params = jaxsparse.apply_masks(PARAMS, masks)
    state_dict = jaxsparse.params_to_torch(params, masks, rename=RENAME)
    assert sorted(state_dict) == [
        "bn.bias",
        "bn.scale",
        "fc.weight_mask",
        "fc.weight_orig",
        "layers.0.bias",
        "layers.0.weight_mask",
        "layers.0.weight_orig",
        "tokens.weight",
    ]
    for name in ("fc", "layers.0"):
        mask, weight = (state_dict[f"{name}.weight_{end}"] for end in ("mask", "orig"))
        assert mask.dtype == weight.dtype and mask.shape == weight.shape
    assert bits(jaxsparse.params_from_torch(state_dict, params, rename=RENAME)) == bits(params)
    assert bits(jaxsparse.masks_from_torch(state_dict, params, rename=RENAME)) == bits(masks)
    # An average keeps weights that were dropped, but only in "orig".
    dense = jaxsparse.params_to_torch(PARAMS, masks, rename=RENAME)
    assert bits(jaxsparse.params_from_torch(dense, params, rename=RENAME)) == bits(params)
    np.testing.assert_array_equal(
        dense["layers.0.weight_orig"], PARAMS["Conv_0"]["kernel"].transpose(3, 2, 0, 1)
    )


def test_masks_alone():
    masks = some_masks(PARAMS)
    state_dict = jaxsparse.masks_to_torch(masks, rename=RENAME)
    assert sorted(state_dict) == ["fc.weight_mask", "layers.0.weight_mask"]
    assert all(mask.dtype == bool for mask in state_dict.values())
    assert bits(jaxsparse.masks_from_torch(state_dict, PARAMS, rename=RENAME)) == bits(masks)
    tokens = (("Embed_0", True),)
    masks = some_masks(PARAMS, tokens)
    state_dict = jaxsparse.masks_to_torch(masks, rename=RENAME, prunable=tokens)
    np.testing.assert_array_equal(state_dict["tokens.weight_mask"], masks["Embed_0"]["embedding"])


def test_resnets_by_torchvisions_names():
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(resnet(18, width=4, num_classes=10).init, jax.random.key(0), image)
    variables = jax.tree.map(lambda x: RNG.normal(size=x.shape).astype(np.float32), shapes)
    state_dict = jaxsparse.params_to_torch(variables, rename=torchvision_name)
    assert len(state_dict) == len(jax.tree.leaves(variables))
    assert state_dict["layer2.0.downsample.0.weight"].shape[2:] == (1, 1)
    assert state_dict["fc.weight"].shape[0] == 10
    np.testing.assert_array_equal(
        state_dict["layer1.0.bn2.running_var"],
        variables["batch_stats"]["stage1_block1"]["norm2"]["var"],
    )
    again = jaxsparse.params_from_torch(state_dict, shapes, rename=torchvision_name)
    assert bits(again) == bits(variables)

    params = variables["params"]
    masks = some_masks(params)
    both = jaxsparse.params_to_torch(params, masks, rename=torchvision_name)
    found = jaxsparse.masks_from_torch(both, params, rename=torchvision_name)
    assert bits(found) == bits(masks)


@pytest.mark.parametrize(
    ("params", "options", "message"),
    [
        (
            {"norm": {"scale": np.ones(3), "weight": np.ones(3)}},
            {},
            r"leaves norm/scale and norm/weight would both be norm.weight; give them names of thei",
        ),
        ({"a.b": {"bias": np.ones(3)}, "a": {"b.bias": np.ones(3)}}, {}, "would both be a.b.bias"),
        (
            {"a": {"kernel": np.ones((2, 2))}},
            {"rename": {}},
            "rename gives no name for the leaf a/",
        ),
        ({"key": jax.random.key(0)}, {}, r"leaf key is key<fry>\(\), which is no array of numbers"),
        (
            {"a": {"kernel": np.ones((2, 2)), "kernel_mask": np.ones((2, 2))}},
            {
                "masks": {"a": {"kernel": np.eye(2) > 0, "kernel_mask": np.ones((2, 2), bool)}},
                "rename": lambda path: path,
            },
            "leaves a/kernel_mask and a/kernel would both be a/kernel_mask",
        ),
        (
            {"a": {"kernel": np.ones((2, 2)), "bias": np.ones(2)}},
            {"masks": {"a": {"kernel": np.eye(2) > 0, "bias": np.arange(2) > 0}}},
            "masks at a/bias: 1 of 2 entries are False, but the leaf is not prunable",
        ),
        (
            {"a": {"kernel": np.ones((2, 2))}},
            {"masks": {"a": {"kernel": np.ones((2, 3), bool)}}},
            r"masks at a/kernel has shape \(2, 3\), params has \(2, 2\)",
        ),
    ],
)
def test_refusals(params, options, message):
    with pytest.raises(ValueError, match=message):
        jaxsparse.params_to_torch(params, **options)


def test_masks_that_are_none():
    with pytest.raises(ValueError, match="masks at a/kernel has dtype float32; it must be bool"):
        jaxsparse.masks_to_torch({"a": {"kernel": np.ones((2, 2))}})
    with pytest.raises(ValueError, match="masks at a/bias: 2 of 2 entries are False"):
        jaxsparse.masks_to_torch({"a": {"kernel": np.eye(2) > 0, "bias": np.zeros(2, bool)}})


def test_pytorch_computes_the_same():
    torch = pytest.importorskip("torch")
    from torch.nn.utils import prune

    params = {
        "0": {"kernel": jnp.asarray(RNG.normal(size=(3, 3, 2, 4)), jnp.float32)},
        "2": {"kernel": jnp.asarray(RNG.normal(size=(4, 5)), jnp.bfloat16), "bias": jnp.ones(5)},
    }
    masks = some_masks(params)
    params = jaxsparse.apply_masks(params, masks)
    conv = torch.nn.Conv2d(2, 4, 3, bias=False)
    model = torch.nn.Sequential(conv, torch.nn.Flatten(), torch.nn.Linear(4, 5))
    tensors = lambda arrays: {name: torch.from_numpy(x) for name, x in arrays.items()}
    model.load_state_dict(tensors(jaxsparse.params_to_torch(params)))
    x = torch.randn(3, 2, 3, 3)
    y = jnp.asarray(x.permute(0, 2, 3, 1).numpy()).reshape(3, -1)
    y = y @ params["0"]["kernel"].reshape(-1, 4)
    y = y @ params["2"]["kernel"].astype(jnp.float32) + params["2"]["bias"][None]
    np.testing.assert_allclose(model(x).detach().numpy(), y, atol=1e-4)

    for layer in (model[0], model[2]):
        prune.identity(layer, "weight")
    model.load_state_dict(tensors(jaxsparse.params_to_torch(params, masks)))
    np.testing.assert_allclose(model(x).detach().numpy(), y, atol=1e-4)
    again = jaxsparse.masks_from_torch(model.state_dict(), params)
    assert bits(again) == bits(masks)
    for name, mask in tensors(jaxsparse.masks_to_torch(masks)).items():
        layer = model[int(name[0])]
        prune.remove(layer, "weight")
        prune.custom_from_mask(layer, "weight", mask)
    np.testing.assert_allclose(model(x).detach().numpy(), y, atol=1e-4)
