"""FLOPs are counted per use of a leaf: 2 per multiply-add, products only."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.experimental import pallas
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxsparse.flops import OTHER, layer_flops, sparse_flops
from jaxsparse.nn import LeNet5, LeNet300100

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
