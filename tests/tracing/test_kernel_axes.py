"""Axes by tracing: tables of uses, products of unit vectors as the oracle, networks, refusals."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxsparse.axes import default_axes
from jaxsparse.paths import leaf_shapes, leaves_by_path, prunable_paths
from jaxsparse.tracing.kernel_axes import kernel_axes, look_at_kernels
from jaxsparse.types import KernelAxes
from tests.transformers import NAMES, network

IN_OUT, OUT_IN = ((0,), (1,), (), ()), ((1,), (0,), (), ())
X = jnp.ones((2, 4))


def ones(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def axes_of_w(forward, shape, *inputs):
    found, others = look_at_kernels(forward, {"w": ones(*shape)}, *inputs)
    return found.get("w") or others["w"]


def _fori(w, x):
    return lax.fori_loop(0, 3, lambda i, x: x @ w[i], x)


def _while(w, x):
    return lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] @ w), (0, x))[1]


def _ragged(w, x):
    return lax.ragged_dot(x, w, jnp.array([1, 0, 1]))


def _looked_up(w, x):
    return jnp.einsum("bi,bio->bo", x, w[jnp.array([2, 0])])


def _gated(w, x):
    return jnp.einsum("be,bi,eio->bo", x[:, :3], x, w)


def _scattered(w, x):
    return x @ jnp.zeros((4, 6)).at[:, 1:6].set(w)


# Functions that are linear in w and in x, the shape of w, and (inputs, outputs, window, batch).
BILINEAR = {
    "matrix": (lambda w, x: x @ w, (4, 5), IN_OUT),
    "transposed": (lambda w, x: x @ w.T, (5, 4), OUT_IN),
    "weights first": (lambda w, x: w @ x.T, (5, 4), OUT_IN),
    "heads": (lambda w, x: jnp.einsum("bi,iho->bho", x, w), (4, 3, 2), ((0,), (1, 2), (), ())),
    "heads as a matrix": (
        lambda w, x: (x @ w.reshape(4, 6)).reshape(2, 3, 2), (4, 3, 2), ((0,), (1, 2), (), ())
    ),
    "a matrix as heads": (
        lambda w, x: jnp.einsum("bi,iho->bho", x, w.reshape(4, 3, 2)), (4, 6), IN_OUT
    ),
    "back from heads": (
        lambda w, x: jnp.einsum("bhi,hio->bo", x.reshape(2, 2, 2), w),
        (2, 2, 5),
        ((0, 1), (2,), (), ()),
    ),
    "there and back": (
        lambda w, x: x @ w.reshape(4, 5).reshape(2, 10).reshape(4, 5),
        (2, 2, 5),
        ((0, 1), (2,), (), ()),
    ),
    "outputs on both sides": (
        lambda w, x: jnp.einsum("bi,hio->bho", x, w), (3, 4, 2), ((1,), (0, 2), (), ())
    ),
    "a stack by vmap": (
        lambda w, x: jax.vmap(jnp.matmul)(x, w), (2, 4, 5), ((1,), (2,), (), (0,))
    ),
    "an ensemble by vmap": (
        lambda w, x: jax.vmap(jnp.matmul, (None, 0))(x, w), (3, 4, 5), ((1,), (0, 2), (), ())
    ),
    "experts by index": (_looked_up, (3, 4, 5), ((1,), (2,), (), (0,))),
    "rows by index": (lambda w, x: x @ w[jnp.array([3, 1, 0, 2])], (4, 5), IN_OUT),
    "ragged": (_ragged, (3, 4, 5), ((1,), (2,), (), (0,))),
    "one of a stack": (lambda w, x: x @ w[1], (3, 4, 5), ((1,), (2,), (), (0,))),
    "slices": (lambda w, x: jnp.split(x @ w[:, 1:5], 2, 1)[0], (4, 6), IN_OUT),
    "scattered": (_scattered, (4, 5), IN_OUT),
    "padded and reversed": (
        lambda w, x: x @ jnp.pad(w, ((0, 1), (0, 0)))[::-1][1:], (4, 5), IN_OUT
    ),
    "in bfloat16": (
        lambda w, x: x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16), (4, 5), IN_OUT
    ),
    "checkpointed": (jax.checkpoint(lambda w, x: x @ w), (4, 5), IN_OUT),
    "compiled": (jax.jit(lambda w, x: x @ w.T), (5, 4), OUT_IN),
}  # fmt: skip


@pytest.mark.parametrize("name", BILINEAR)
def test_axes_against_every_pair_of_a_weight_and_a_datum(name):
    """Along inputs weights read other data for the same results, along outputs the reverse."""
    forward, shape, expected = BILINEAR[name]
    assert axes_of_w(lambda p, x: forward(p["w"], x), shape, X) == expected
    forward, size = jax.jit(forward), int(np.prod(shape))
    one = lambda i, shape: np.eye(1, int(np.prod(shape)), i, dtype=np.float32).reshape(shape)
    product = lambda i, j: np.asarray(forward(one(i, shape), one(j, X.shape)) != 0).ravel()
    meets = np.array([[product(i, j) for j in range(X.size)] for i in range(size)])
    results, data = meets.any(1), meets.any(2)  # of each weight, which it goes to and reads
    for axis in range(len(shape)):
        weights = np.moveaxis(np.arange(size).reshape(shape), axis, -1).reshape(-1, shape[axis])
        pairs = [(i, j) for row in weights for i in row for j in row if i < j]
        pairs = [(i, j) for i, j in pairs if results[i].any() and results[j].any()]
        if pairs:  # of one kernel of a stack the others meet nothing
            same = [(results[i] == results[j]).all() for i, j in pairs]
            reads_same = [(data[i] == data[j]).all() for i, j in pairs]
            assert len({*same}) == len({*reads_same}) == 1
            role = {(True, False): "inputs", (False, True): "outputs", (False, False): "batch"}
            assert axis in getattr(KernelAxes(*expected), role[same[0], reads_same[0]])


def conv(**options):
    usual = {"padding": "SAME", "dimension_numbers": ("NWC", "WIO", "NWC")}
    return lambda w, x: lax.conv_general_dilated(x, w, (1,), **usual | options)


def _standardised(w, x):
    return conv()((w - w.mean((0, 1))) / jnp.sqrt(w.var((0, 1)) + 1e-3), x)


LINE = ones(2, 7, 4)
CONVOLUTIONS = {
    "plain": (conv(), (3, 4, 6), LINE, ((1,), (2,), (0,), ())),
    "grouped": (conv(feature_group_count=2), (3, 2, 6), LINE, ((1,), (2,), (0,), ())),
    "depthwise": (conv(feature_group_count=4), (3, 1, 8), LINE, ((1,), (2,), (0,), ())),
    "transposed": (
        conv(lhs_dilation=(2,), padding=((1, 1),)), (3, 4, 6), LINE, ((1,), (2,), (0,), ())
    ),
    "outputs first": (
        conv(dimension_numbers=("NWC", "OIW", "NWC")), (6, 4, 3), LINE, ((1,), (0,), (2,), ())
    ),
    "inputs and outputs changed": (
        conv(dimension_numbers=("NWC", "WOI", "NWC")), (3, 6, 4), LINE, ((2,), (1,), (0,), ())
    ),
    "a stack": (jax.vmap(conv()), (5, 3, 4, 6), ones(5, 2, 7, 4), ((2,), (3,), (1,), (0,))),
    "a grouped stack": (
        jax.vmap(conv(feature_group_count=2)), (5, 3, 2, 6), ones(5, 2, 7, 4),
        ((2,), (3,), (1,), (0,)),
    ),
    "an ensemble": (
        jax.vmap(conv(), (0, None)), (5, 3, 4, 6), LINE, ((2,), (0, 3), (1,), ())
    ),
    "a grouped ensemble": (
        jax.vmap(conv(feature_group_count=2), (0, None)), (5, 3, 2, 6), LINE,
        ((2,), (0, 3), (1,), ()),
    ),
    "standardised": (_standardised, (3, 4, 6), LINE, ((1,), (2,), (0,), ())),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name):
    forward, shape, x, expected = CONVOLUTIONS[name]
    with jax.numpy_rank_promotion("allow"):
        assert axes_of_w(lambda p, x: forward(p["w"], x), shape, x) == expected


LOOPS = {
    "scan over layers": (
        lambda w, x: lax.scan(lambda x, w: (x @ w, None), x, w)[0],
        (3, 4, 4),
        ((1,), (2,), (), (0,)),
    ),
    "scan with the same layer": (
        lambda w, x: lax.scan(lambda x, _: (x @ w, None), x, None, length=3)[0],
        (4, 4),
        IN_OUT,
    ),
    "scan that carries it": (
        lambda w, x: lax.scan(lambda c, _: ((c[0], c[1] @ c[0]), None), (w, x), None, length=3)[0],
        (4, 4),
        IN_OUT,
    ),
    "fori by index": (_fori, (3, 4, 4), ((1,), (2,), (), (0,))),
    "while": (_while, (4, 4), IN_OUT),
    "cond": (
        lambda w, x: lax.cond(x.sum() > 0, lambda w: x @ w, lambda w: -(x @ w), w),
        (4, 5),
        IN_OUT,
    ),
    "chosen by cond": (
        lambda w, x: x @ lax.cond(x.sum() > 0, lambda w: w, lambda w: 2 * w, w),
        (4, 5),
        IN_OUT,
    ),
}


@pytest.mark.parametrize("name", LOOPS)
def test_loops(name):
    forward, shape, expected = LOOPS[name]
    assert axes_of_w(lambda p, x: forward(p["w"], x), shape, X) == expected


@pytest.mark.parametrize("mask", [lambda w, m: w * m, lambda w, m: jnp.where(m > 0, w, 0.0)])
def test_a_mask_that_is_an_input(mask):
    forward = lambda p, m, x: x @ mask(p["w"], m).T
    assert axes_of_w(forward, (5, 4), jnp.ones((5, 4)), X) == OUT_IN


def test_data_that_the_function_has_in_it():
    assert axes_of_w(lambda p: X @ p["w"], (4, 5)) == IN_OUT


def test_shards():
    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))
    gathered = lambda w, x: x @ lax.all_gather(w, "d", axis=1, tiled=True).reshape(4, 6)
    specs = {"in_specs": (P(None, "d"), P("d")), "out_specs": P("d"), "check_vma": False}
    forward = jax.shard_map(gathered, mesh=mesh, **specs)
    expected = ((0,), (1, 2), (), ())
    assert axes_of_w(lambda p, x: forward(p["w"], x), (4, 2, 3), X) == expected


def test_kernels_that_are_joined_before_use():
    params = {"q": ones(4, 3), "k": ones(4, 5), "m": ones(2, 4, 3), "z": ones(2, 4, 3)}

    def forward(p, x):
        stacked = jnp.einsum("bi,khio->bkho", x, jnp.stack([p["m"], p["z"]]))
        return x @ jnp.concatenate([p["q"], p["k"]], 1), stacked

    found = kernel_axes(forward, params, X)
    heads = ((1,), (0, 2), (), ())
    assert found == {"k": IN_OUT, "q": IN_OUT, "m": heads, "z": heads}


@pytest.mark.parametrize(
    ("forward", "shape", "why"),
    [
        (lambda w, x: x + w[None], (4,), "joined with data by add"),
        (lambda w, x: x * w[None], (4,), "joined with data by mul"),
        (lambda w, x: x, (4, 5), "takes part in no product"),
        (lambda w, x: w[x.astype(int)], (4, 5), "takes part in no product"),
        (
            lambda w, x: jnp.einsum("bc,bc->b", *[w[x[i].astype(int)] for i in (0, 1)]),
            (9, 5),
            "looked up and compared, not multiplied",
        ),
        (lambda w, x: x @ jnp.linalg.qr(w)[0], (4, 4), "goes through qr"),
        (lambda w, x: x @ (w @ w), (4, 4), "multiplied by other weights before any data"),
        (lambda w, x: x @ (jnp.eye(4) + w @ w.T) @ w, (4, 4), None),
        (lambda w, x: conv()(x[:1].reshape(1, 2, 2), w), (3, 1, 2), "image of a convolution"),
        (
            lambda w, x: jnp.einsum("bhi,hio->bho", x.reshape(2, 2, 2), w.reshape(2, 2, 5)),
            (4, 5),
            "its axis 0 is partly batch and partly inputs",
        ),
        (lambda w, x: x @ (w + w.T), (4, 4), "its axis 0 is partly inputs and partly outputs"),
        (
            lambda w, x: (x @ w) @ w.T,
            (4, 5),
            "used in more than one way: inputs (0,), outputs (1,); inputs (1,), outputs (0,)",
        ),
        (
            lambda w, x: lax.scan(lambda w, _: (w.T, x @ w), w, None, length=3)[1],
            (4, 4),
            "changed by a loop",
        ),
        (lambda w, x: x @ lax.map(lambda w: 2 * w, w), (4, 4), "an output of a scan"),
    ],
)
def test_what_is_not_known_is_left_out_with_the_reason(forward, shape, why):
    found = axes_of_w(lambda p, x: forward(p["w"], x), shape, X)
    assert found == IN_OUT if why is None else why in found


def test_flattened_params_are_not_guessed():
    params = {"a": jnp.ones((4, 5)), "b": jnp.ones((5, 3))}
    flat, unravel = ravel_pytree(params)
    forward = lambda p, x: x @ p["a"] @ p["b"]
    found, others = look_at_kernels(lambda p, x: forward(unravel(ravel_pytree(p)[0]), x), params, X)
    assert not found and set(others) == {"a", "b"} and flat.size == 35


# Networks.


@pytest.mark.parametrize("name", NAMES)
def test_transformers_go_by_the_default_rules(name):
    net = network(name)
    found, others = look_at_kernels(net.forward, net.params, net.inputs)
    shapes = leaf_shapes(leaves_by_path(net.params))
    kernels = {path: default_axes(path, shapes[path]) for path in prunable_paths(net.params)}
    assert {path: found[path] for path in kernels} == kernels
    # The embedding of the GPT is looked up, and its logits are products with it.
    table = {path: axes for path, axes in found.items() if path not in kernels}
    assert list(table.values()) == ([OUT_IN] if name.endswith("gpt") else [])
    assert not set(others) & {*kernels}


def linen(module, x, **options):
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    forward = lambda p, x: module.apply({**variables, "params": p}, x, **options)
    return kernel_axes(forward, variables["params"], x)


class _Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.SelfAttention(2, name="attn")(x) + nn.Dense(4)(nn.Dense(8)(x)), None


class _Scanned(nn.Module):
    axis: int = 0

    @nn.compact
    def __call__(self, x):
        axes, rngs = {"params": self.axis}, {"params": True}
        layers = nn.scan(nn.remat(_Block), variable_axes=axes, split_rngs=rngs, length=3)
        return layers(name="layers")(x, None)[0]


@pytest.mark.filterwarnings("ignore:.*SelfAttention:DeprecationWarning")
@pytest.mark.parametrize("axis", [0, 1])
def test_layers_of_a_linen_scan_are_a_batch(axis):
    with jax.numpy_rank_promotion("allow"):
        found = linen(_Scanned(axis), ones(2, 5, 4))
    inputs = 1 - axis
    assert found["layers/Dense_0/kernel"] == ((inputs,), (2,), (), (axis,))
    assert found["layers/attn/query/kernel"] == ((inputs,), (2, 3), (), (axis,))
    assert found["layers/attn/out/kernel"] == ((inputs, 2), (3,), (), (axis,))


@pytest.mark.parametrize(
    ("module", "shape", "expected"),
    [
        (nn.Einsum((3, 4, 2), "bi,hio->bho"), (2, 4), {"kernel": ((1,), (0, 2), (), ())}),
        (
            nn.ConvTranspose(6, (3,), transpose_kernel=True),
            (1, 7, 4),
            {"kernel": ((2,), (1,), (0,), ())},
        ),
        (nn.ConvLocal(6, (3,)), (1, 7, 4), {"kernel": ((1,), (2,), (), (0,))}),
        (nn.WeightNorm(nn.Dense(5)), (2, 4), {"layer_instance/kernel": IN_OUT}),
        (
            nn.RNN(nn.OptimizedLSTMCell(5)),
            (2, 3, 4),
            {f"cell/{a}{b}/kernel": IN_OUT for a in "hi" for b in "fgio"},
        ),
        (nn.Dense(16, dot_general_cls=nn.Fp8DirectDotGeneralOp), (2, 16), {"kernel": IN_OUT}),
    ],
    ids=["einsum", "transposed", "local", "weight norm", "lstm", "fp8"],
)  # fmt: skip
def test_other_layers_of_linen(module, shape, expected):
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        found = linen(module, ones(*shape))
    assert {path: axes for path, axes in found.items() if axes.inputs} == expected


def test_equinox():
    of_four, of_image = (ones(4),), (ones(4, 5, 5),)
    modules = [
        (lambda key: eqx.nn.MLP(4, 2, 8, 1, key=key), of_four),
        (lambda key: eqx.nn.Conv2d(4, 8, 3, key=key), of_image),
        (lambda key: eqx.nn.ConvTranspose2d(4, 8, 3, key=key), of_image),
        (lambda key: eqx.nn.MultiheadAttention(2, 8, key=key), (ones(5, 8),) * 3),
        (lambda key: eqx.nn.GRUCell(4, 8, key=key), (ones(4), ones(8))),
    ]
    for make, inputs in modules:
        shapes = eqx.filter_eval_shape(make, jax.random.key(0))
        params, static = eqx.partition(shapes, lambda x: isinstance(x, jax.ShapeDtypeStruct))
        found = kernel_axes(lambda p, *x, s=static: eqx.combine(p, s)(*x), params, *inputs)
        leaves = leaf_shapes(leaves_by_path(params))
        kernels = {p: s for p, s in leaves.items() if "weight" in p}
        assert kernels and found == {p: default_axes(p, s) for p, s in kernels.items()}
