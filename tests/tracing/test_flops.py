"""FLOPs are counted per use of a leaf: 2 per multiply-add, products only."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from jax.experimental import pallas, sparse
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxsparse.nn import DyReLUOptions, LeNet5, LeNet300100, cifar_resnet
from jaxsparse.tracing.flops import OTHER, layer_flops, sparse_flops

IMAGE = jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32)


def flops_of(model):
    params = jax.eval_shape(model.init, jax.random.key(0), IMAGE)["params"]
    return layer_flops(lambda params, x: model.apply({"params": params}, x), params, IMAGE)


def test_lenet5_by_hand():
    assert flops_of(LeNet5()) == {
        "Conv_0/kernel": 2 * 28 * 28 * 6 * (5 * 5 * 1),
        "Conv_1/kernel": 2 * 10 * 10 * 16 * (5 * 5 * 6),
        "Dense_0/kernel": 2 * 400 * 120,
        "Dense_1/kernel": 2 * 120 * 84,
        "Dense_2/kernel": 2 * 84 * 10,
    }


def test_lenet_300_100_by_hand():
    assert sum(flops_of(LeNet300100()).values()) == 2 * (784 * 300 + 300 * 100 + 100 * 10)


def test_grouped_strided_convolution():
    def forward(params, x):
        return lax.conv_general_dilated(
            x,
            params["kernel"],
            (2, 2),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=4,
        )

    flops = layer_flops(forward, {"kernel": jnp.ones((3, 3, 2, 12))}, jnp.ones((1, 8, 8, 8)))
    assert flops == {"kernel": 2 * (4 * 4 * 12) * (3 * 3 * 2)}


def test_a_transposed_convolution():
    layer = nn.ConvTranspose(1, (2, 2), strides=(2, 2))
    x = jax.ShapeDtypeStruct((1, 2, 2, 3), jnp.float32)
    params = jax.eval_shape(layer.init, jax.random.key(0), x)["params"]
    flops = layer_flops(lambda params, x: layer.apply({"params": params}, x), params, x)
    assert flops == {"kernel": 2 * (2 * 2 * 3) * (2 * 2 * 1)}


def test_a_shared_kernel_counts_every_use_and_its_scale_does_not():
    params = {"kernel": jnp.ones((8, 8)), "scale": jnp.ones(())}
    forward = lambda p, x: jax.nn.relu(x @ p["kernel"]) @ (p["scale"] * p["kernel"])
    assert layer_flops(forward, params, jnp.ones((1, 8))) == {"kernel": 2 * 2 * 64}


def test_scan_counts_every_turn_also_when_the_carry_starts_as_a_parameter():
    def forward(params, x):
        body = lambda h, kernel: (jnp.tanh((h + x) @ kernel), None)
        return lax.scan(body, params["start"], params["kernel"])[0]

    params = {"kernel": jnp.ones((5, 8, 8)), "start": jnp.ones((1, 8))}
    assert layer_flops(forward, params, jnp.ones((1, 8))) == {"kernel": 5 * 2 * 64}


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint, lambda f: jax.vmap(f, (None, 0))])
def test_wrapped_functions_count_the_same(wrap):
    forward = wrap(lambda p, x: jax.nn.relu(x @ p["kernel"].T))
    assert layer_flops(forward, {"kernel": jnp.ones((4, 8))}, jnp.ones((1, 8))) == {"kernel": 64}


def test_products_of_data_with_data_are_other():
    forward = lambda p, x: (x @ p["kernel"]) @ x.T
    flops = layer_flops(forward, {"kernel": jnp.ones((8, 8))}, jnp.ones((3, 8)))
    assert flops == {"kernel": 2 * 3 * 8 * 8, OTHER: 2 * 3 * 3 * 8}


def test_cond_counts_the_dearest_branch():
    def forward(params, x):
        twice = lambda x: x @ params["kernel"] @ params["kernel"]
        return lax.cond(x.sum() > 0, twice, lambda x: x @ params["kernel"], x)

    flops = layer_flops(forward, {"kernel": jnp.ones((8, 8))}, jnp.ones((1, 8)))
    assert flops == {"kernel": 2 * 2 * 64}


def test_a_product_in_a_while_loop_is_refused():
    def forward(params, x):
        return lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ params["kernel"], x)

    with pytest.raises(ValueError, match="while holds products"):
        layer_flops(forward, {"kernel": jnp.ones((8, 8))}, jnp.ones((1, 8)))


# --- kernels that are made from several leaves

QK = {"q": jnp.ones((8, 4)), "k": jnp.ones((8, 12))}


def joined(params):
    return jnp.concatenate([params["q"], params["k"]], 1)


def raveled(params):
    flat, unravel = ravel_pytree(params)
    return unravel(flat)["k"]


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        (joined, {"q": 64, "k": 192}),
        (lambda p: joined(p) * jnp.arange(8.0)[:, None], {"q": 64, "k": 192}),
        (lambda p: joined(p).reshape(8, 4, 4)[:, 1:].reshape(8, 12), {"k": 192}),
        (lambda p: joined(p).T[::-1][:14].T, {"k": 192, "q": 32}),
        (lambda p: jnp.split(joined(p), [2], 1)[0], {"q": 32}),
        (lambda p: jnp.pad(p["q"], ((0, 0), (1, 3))), {"q": 64, OTHER: 64}),
        (raveled, {"k": 192}),
        (lambda p: jnp.stack([p["q"], p["k"][:, 4:8]]).mean(0), {"q": 32, "k": 32}),
        (
            lambda p: jax.scipy.linalg.block_diag(p["q"][:4], p["k"][4:]),
            {"q": 32, "k": 96, OTHER: 128},
        ),
    ],
    ids="joined scaled reshaped flipped split padded raveled averaged diagonal".split(),
)
def test_every_leaf_of_a_kernel_has_its_share(kernel, expected):
    assert layer_flops(lambda p, x: x @ kernel(p), QK, jnp.ones((1, 8))) == expected


def test_gates_that_a_cell_joins_before_use():
    cell = nn.RNN(nn.OptimizedLSTMCell(6))
    x = jax.ShapeDtypeStruct((1, 5, 3), jnp.float32)
    params = jax.eval_shape(cell.init, jax.random.key(0), x)["params"]
    flops = layer_flops(lambda params, x: cell.apply({"params": params}, x), params, x)
    by_hand = {f"cell/i{gate}/kernel": 5 * 2 * 3 * 6 for gate in "ifgo"}
    assert flops == by_hand | {f"cell/h{gate}/kernel": 5 * 2 * 6 * 6 for gate in "ifgo"}


def test_experts_of_leaves_of_their_own():
    forward = lambda p, x: lax.ragged_dot(x, jnp.stack([p["a"], p["b"]]), np.array([3, 1]))
    params = {"a": jnp.ones((8, 16)), "b": jnp.ones((8, 16))}
    assert layer_flops(forward, params, jnp.ones((4, 8))) == {"a": 2 * 2 * 128, "b": 2 * 2 * 128}
    whole = lambda p, x: lax.ragged_dot(x, p["experts"], np.array([3, 1]))
    experts = {"experts": jnp.ones((2, 8, 16))}
    assert layer_flops(whole, experts, jnp.ones((4, 8))) == {"experts": 2 * 4 * 128}


def test_an_adapter_multiplies_its_factors_once_a_pass():
    """The kernel that it is added to owns the sum; the larger of its factors is charged."""
    params = {"w": jnp.ones((8, 16)), "a": jnp.ones((8, 2)), "b": jnp.ones((2, 16))}
    forward = lambda p, x: x @ (p["w"] + p["a"] @ p["b"])
    assert layer_flops(forward, params, jnp.ones((1, 8))) == {"w": 2 * 128, "b": 2 * 8 * 2 * 16}
    assert layer_flops(forward, params, jnp.ones((5, 8)))["b"] == 2 * 8 * 2 * 16
    even = {"a": jnp.ones((8, 2)), "b": jnp.ones((2, 8))}
    factors = lambda p, x: x @ (p["a"] @ p["b"])
    assert layer_flops(factors, even, jnp.ones((1, 8))) == {"a": 128 + 64, "b": 128 + 64}


def test_learned_queries_are_no_data():
    params = {"latents": jnp.ones((3, 8)), "kernel": jnp.ones((8, 8))}
    forward = lambda p, x: (p["latents"] @ p["kernel"]) @ x.T
    flops = layer_flops(forward, params, jnp.ones((5, 8)))
    assert flops == {"kernel": 2 * 3 * 64 + 2 * 3 * 8 * 5}


def test_shares_that_are_no_whole_numbers_add_up():
    params = {path: jnp.ones((2, 5)) for path in "abc"}
    flops = layer_flops(lambda p, x: x @ (p["a"] + p["b"] + p["c"]), params, jnp.ones((1, 2)))
    assert sorted(flops.values()) == [6, 7, 7] and sum(flops.values()) == 2 * 2 * 5


def test_products_with_constants_are_other():
    matrix = np.ones((8, 4), np.float32)
    forward = lambda p, x: (x @ matrix) @ p["kernel"] + jnp.dot(matrix.T, matrix).sum()
    flops = layer_flops(forward, {"kernel": jnp.ones((4, 2))}, jnp.ones((1, 8)))
    assert flops == {"kernel": 2 * 4 * 2, OTHER: 2 * 8 * 4 + 2 * 4 * 8 * 4}


def test_patches_are_cut_out_by_a_product():
    """JAX cuts them out with a kernel of zeros and ones, each output of one input channel."""
    patches = functools.partial(
        lax.conv_general_dilated_patches,
        filter_shape=(3, 3),
        window_strides=(1, 1),
        padding="VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    forward = lambda p, x: patches(x) @ p["kernel"][None, None]
    flops = layer_flops(forward, {"kernel": jnp.ones((18, 5))}, jnp.ones((1, 6, 6, 2)))
    assert flops == {"kernel": 2 * 4 * 4 * 18 * 5, OTHER: 2 * 4 * 4 * 18 * 3 * 3}


# --- loops


def test_a_carry_may_take_several_turns_to_become_data():
    def forward(params, x):
        body = lambda carry, _: ((carry[1], x), carry[0] @ params["kernel"])
        return lax.scan(body, (params["start"], params["start"]), None, length=5)

    params = {"kernel": jnp.ones((8, 8)), "start": jnp.ones((100, 8))}
    assert layer_flops(forward, params, jnp.ones((100, 8))) == {"kernel": 5 * 2 * 100 * 64}


def test_a_scan_over_leaves_that_are_stacked_shares_its_turns():
    forward = lambda p, x: lax.scan(lambda h, w: (h @ w, None), x, jnp.stack([p["a"], p["b"]]))[0]
    params = {"a": jnp.ones((8, 8)), "b": jnp.ones((8, 8))}
    assert layer_flops(forward, params, jnp.ones((1, 8))) == {"a": 128, "b": 128}
    made = lambda p, x: x @ lax.scan(lambda c, w: (c, 2 * w), 0, jnp.stack([p["a"], p["b"]]))[1][1]
    assert layer_flops(made, params, jnp.ones((1, 8))) == {"a": 64, "b": 64}


# --- what is refused


def foreign(x, kernel):
    return jax.ffi.ffi_call("mine", jax.ShapeDtypeStruct((1, 8), jnp.float32))(x, kernel)


@pytest.mark.parametrize(
    ("forward", "name"),
    [
        (lambda p, x: foreign(x, p["kernel"]), "ffi_call mine"),
        (lambda p, x: foreign(x, x) @ p["kernel"], "ffi_call mine"),
        (lambda p, x: jax.pure_callback(lambda x: x, x, x) @ p["kernel"], "pure_callback"),
        (
            lambda p, x: x @ sparse.BCOO((p["kernel"][0], jnp.ones((8, 2), int)), shape=(8, 8)),
            "bcoo_dot_general",
        ),
    ],
    ids=["foreign", "of data alone", "callback", "sparse"],
)
def test_what_cannot_be_looked_into_is_refused(forward, name):
    with pytest.raises(ValueError, match=f"{name} cannot be looked into"):
        layer_flops(forward, {"kernel": jnp.ones((8, 8))}, jnp.ones((1, 8)))


def test_a_foreign_call_in_a_loop_is_refused():
    forward = lambda p, x: lax.while_loop(lambda x: x.sum() < 9, lambda x: foreign(x, x), x)
    with pytest.raises(ValueError, match="while holds products"):
        layer_flops(forward, {"kernel": jnp.ones((8, 8))}, jnp.ones((1, 8)))


def test_what_gives_nothing_back_and_what_is_constant_is_no_product():
    def forward(params, x):
        jax.debug.print("{}", x)
        ones = jax.ShapeDtypeStruct((8,), x.dtype)
        return x @ params["kernel"] + jax.pure_callback(lambda: np.ones(8, np.float32), ones)[None]

    assert layer_flops(forward, {"kernel": jnp.ones((8, 8))}, jnp.ones((1, 8))) == {"kernel": 128}


def test_kernels_of_ours_that_multiply_entry_by_entry_count_nothing():
    """Channel-major, norms in training and DyReLU run in them."""

    def flops(layout, train):
        model = cifar_resnet(8, layout=layout, dyrelu=DyReLUOptions())
        image = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
        variables = jax.eval_shape(model.init, jax.random.key(0), image)
        params = variables.pop("params")
        apply = functools.partial(model.apply, train=train, mutable=list(variables))
        forward = lambda params, x, others: apply({"params": params, **others}, x)
        return layer_flops(forward, params, image, variables)

    assert flops("CHWN", True) == flops("CHWN", False) == flops("NHWC", False)


def test_what_passes_operands_on_keeps_them_apart():
    forward = lambda p, x: jnp.matmul(*lax.optimization_barrier((x, p["kernel"])))
    assert layer_flops(forward, {"kernel": jnp.ones((8, 8))}, jnp.ones((1, 8))) == {"kernel": 128}


def test_a_leaf_with_the_name_of_other_products():
    params = {OTHER: jnp.ones((8, 8))}
    assert layer_flops(lambda p, x: x @ p[OTHER], params, jnp.ones((1, 8))) == {OTHER: 128}
    with pytest.raises(ValueError, match="a leaf 'other', the name of products of no leaf"):
        layer_flops(lambda p, x: (x @ p[OTHER]) @ x.T, params, jnp.ones((1, 8)))


def test_sparse_flops_of_a_layer_that_stays_dense():
    assert sparse_flops({"a": 100, "b": 50, OTHER: 7}, {"a": 0.1, "b": 0.5}) == 42.0


def sharded(mesh_shape, in_specs, out_specs, **options):
    axes = ("x", "y")[: len(mesh_shape)]
    mesh = jax.make_mesh(mesh_shape, axes, axis_types=(AxisType.Auto,) * len(axes))
    product = lambda x, kernel: x @ kernel
    product = jax.shard_map(
        product, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False, **options
    )
    return lambda params, x: product(x, params["kernel"])


@pytest.mark.parametrize(
    "forward",
    [
        sharded((8,), (P("x"), P()), P("x")),
        sharded((4, 2), (P("x"), P(None, "y")), P("x", "y")),
        sharded((4, 2), (P(("x", "y")), P()), P(("x", "y"))),
        sharded((4, 2), (P("x"), P()), P("x"), axis_names={"x"}),
    ],
    ids=["one axis", "two axes", "two axes on one", "one axis of two"],
)
def test_shard_map_counts_the_products_of_all_devices(forward):
    flops = layer_flops(forward, {"kernel": jnp.ones((8, 8))}, jnp.ones((64, 8)))
    assert flops == {"kernel": 2 * 64 * 8 * 8}


def test_a_mesh_axis_that_splits_nothing_is_refused():
    forward = sharded((4, 2), (P("x"), P()), P("x"))
    with pytest.raises(ValueError, match="its mesh axis y splits no input or output"):
        layer_flops(forward, {"kernel": jnp.ones((8, 8))}, jnp.ones((64, 8)))


def test_a_product_in_a_pallas_kernel_is_refused():
    def kernel(x, y, out):
        out[...] = x[...] @ y[...]

    shape = jax.ShapeDtypeStruct((8, 8), jnp.float32)
    forward = lambda p, x: pallas.pallas_call(kernel, out_shape=shape)(x, p["kernel"])
    with pytest.raises(ValueError, match="pallas_call holds products"):
        layer_flops(forward, {"kernel": jnp.ones((8, 8))}, jnp.ones((8, 8)))


def test_a_product_with_a_rule_of_ones_own_counts():
    product = jax.custom_batching.custom_vmap(lambda x, kernel: x @ kernel)
    product.def_vmap(lambda size, batched, x, kernel: (x @ kernel, True))
    forward = lambda p, x: product(x, p["kernel"])
    assert layer_flops(forward, {"kernel": jnp.ones((4, 8))}, jnp.ones((1, 4))) == {"kernel": 64}
