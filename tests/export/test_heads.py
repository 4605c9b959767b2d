"""Attention kernels from and to PyTorch, checked against the formula of attention."""

import jax
import numpy as np
import pytest
from flax import linen as nn

import jaxsparse
from jaxsparse.export.heads import as_leaf, as_tensor, part_of_three
from tests.leaves import bits
from tests.transformers import network

WIDTH, HEADS = 8, 2
RNG = np.random.default_rng(0)
ATTENTION = nn.MultiHeadDotProductAttention(HEADS)
X = RNG.normal(size=(3, 5, WIDTH)).astype(np.float32)
LIKE = jax.eval_shape(ATTENTION.init, jax.random.key(0), X)["params"]
JOINED = [
    (r"(query|key|value)/kernel", "in_proj_weight"),
    (r"(query|key|value)/bias", "in_proj_bias"),
]
APART = [(rf"{name}/(kernel|bias)", rf"{name[0]}_proj.\1") for name in ("query", "key", "value")]
OUT = [(r"out/kernel", "out_proj.weight"), (r"out/bias", "out_proj.bias")]


def draw(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def state_dict():
    """The state of torch.nn.MultiheadAttention(8, 2), with a third of the weights 0."""
    weights = {"in_proj_weight": draw(3 * WIDTH, WIDTH), "out_proj.weight": draw(WIDTH, WIDTH)}
    weights = {n: np.where(RNG.random(x.shape) < 2 / 3, x, 0) for n, x in weights.items()}
    return weights | {"in_proj_bias": draw(3 * WIDTH), "out_proj.bias": draw(WIDTH)}


def apart(entries):
    """The same with one matrix each, as in most models that write attention out."""
    found = {name: x for name, x in entries.items() if name.startswith("out")}
    for end, name in (("kernel", "in_proj_weight"), ("bias", "in_proj_bias")):
        thirds = zip("qkv", np.split(entries[name], 3), strict=True)
        found |= {f"{letter}_proj.{end}": x for letter, x in thirds}
    return found


def torch_attention(x, entries):
    """torch.nn.functional.multi_head_attention_forward, batch first, one example at a time."""
    results = []
    for example in x:
        q, k, v = np.split(example @ entries["in_proj_weight"].T + entries["in_proj_bias"], 3, 1)
        heads = []
        for head in range(HEADS):
            of_head = np.s_[:, head * WIDTH // HEADS : (head + 1) * WIDTH // HEADS]
            scores = q[of_head] @ k[of_head].T / np.sqrt(WIDTH // HEADS)
            share = np.exp(scores - scores.max(1, keepdims=True))
            heads.append(share / share.sum(1, keepdims=True) @ v[of_head])
        results.append(np.concatenate(heads, 1) @ entries["out_proj.weight"].T)
    return np.stack(results) + entries["out_proj.bias"]


@pytest.mark.parametrize("names", [JOINED, APART], ids=["joined", "apart"])
def test_attention_from_pytorch_and_back(names):
    entries = state_dict()
    theirs = entries if names is JOINED else apart(entries)
    rename = [*names, *OUT]
    params = jaxsparse.params_from_torch(theirs, LIKE, rename=rename)
    with jax.numpy_rank_promotion("allow"):  # flax adds biases so
        ours = jax.jit(ATTENTION.apply)({"params": params}, X)
    np.testing.assert_allclose(ours, torch_attention(X, entries), atol=1e-5)

    masks = jaxsparse.masks_from_torch(theirs, LIKE, rename=rename)
    assert bits(masks["query"]["kernel"]) == bits(np.asarray(params["query"]["kernel"] != 0))
    assert {n: bits(x) for n, x in jaxsparse.params_to_torch(params, rename=rename).items()} == {
        n: bits(x) for n, x in theirs.items()
    }
    pruned = jaxsparse.params_to_torch(params, masks, rename=rename)
    again = jaxsparse.params_from_torch(pruned, LIKE, rename=rename)
    assert jax.tree.map(bits, again) == jax.tree.map(bits, params)
    again = jaxsparse.masks_from_torch(
        jaxsparse.masks_to_torch(masks, rename=rename), LIKE, rename=rename
    )
    assert jax.tree.map(bits, again) == jax.tree.map(bits, masks)


@pytest.mark.parametrize("name", ["linen gpt", "nnx vit"])
def test_whole_transformers_there_and_back(name):
    params = network(name).params
    entries = jaxsparse.params_to_torch(params)
    attention = [x for n, x in entries.items() if ".attn." in n]
    assert {x.shape for x in attention} == {(16, 16), (16,)}
    again = jaxsparse.params_from_torch(entries, params)
    assert jax.tree.map(bits, again) == jax.tree.map(bits, params)


def test_axes_by_hand():
    kernel = draw(2, 3, 4)  # (heads, in, features)
    axes = {"mix/kernel": jaxsparse.KernelAxes((1,), (0, 2))}
    params = {"mix": {"kernel": kernel}}
    entries = jaxsparse.params_to_torch(params, axes=axes)
    x = draw(3)
    expected = np.einsum("i,hio->ho", x, kernel).ravel()
    np.testing.assert_allclose(entries["mix.weight"] @ x, expected, rtol=1e-5)
    again = jaxsparse.params_from_torch(entries, params, axes=axes)
    assert bits(again["mix"]["kernel"]) == bits(kernel)
    masks = {"mix": {"kernel": kernel > 0}}
    again = jaxsparse.masks_from_torch(
        jaxsparse.masks_to_torch(masks, axes=axes), params, axes=axes
    )
    assert bits(again["mix"]["kernel"]) == bits(kernel > 0)
    with pytest.raises(ValueError, match=r"mix.weight has shape \(8, 3\), .* and the leaf mix/ker"):
        jaxsparse.params_from_torch(entries, params)


@pytest.mark.parametrize(
    ("path", "shape", "tensor"),
    [
        ("query/kernel", (8, 2, 4), (8, 7)),  # of other inputs
        ("query/kernel", (8, 2, 4), (16, 8)),  # two thirds
        ("mix/kernel", (8, 2, 4), (24, 8)),  # no name of a third
        ("query/kernel", (8, 2, 4), (8, 8, 1)),
        ("query/bias", (2, 4), (2, 4)),
        ("query/scale", (2, 4), (8,)),
        ("conv/kernel", (3, 8, 4), (4, 24)),  # a convolution is no matrix
    ],
)
def test_tensors_that_are_none_of_the_leaf(path, shape, tensor):
    assert as_leaf(path, np.zeros(tensor), shape) is None


def test_other_leaves_keep_their_layouts():
    for path, shape in {
        "fc/kernel": (8, 4),
        "conv/kernel": (3, 8, 4),
        "fc/bias": (4,),
        "fc/weight": (4, 8),
        "scale": (2, 4),
    }.items():
        assert as_tensor(path, np.zeros(shape)) is None


def test_leaves_of_one_name_that_are_no_three():
    params = {name: {"kernel": draw(8, 2, 4)} for name in ("query", "key", "value")}
    rename = lambda path: "qkv.weight"
    both = {name: params[name] for name in ("query", "key")}
    with pytest.raises(ValueError, match="leaves key/kernel and query/kernel would both be qkv.w"):
        jaxsparse.params_to_torch(both, rename=rename)
    joined = jaxsparse.params_to_torch(params, rename=rename)["qkv.weight"]
    of = lambda name: params[name]["kernel"].reshape(8, 8).T
    np.testing.assert_array_equal(joined, np.concatenate([of("query"), of("key"), of("value")]))
    assert [part_of_three(f"{x}/kernel") for x in ("to_q", "k_proj", "V", "out")] == [0, 1, 2, None]
