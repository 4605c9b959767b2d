"""The sum over leaves is XLA's own count, less element-wise work, for networks of many kinds.

XLA counts a network as it is lowered, before anything is simplified, and then the same network with
the results of its products given to it: the difference are its products. Two things are told to XLA
otherwise than JAX does. Loops are written out, as it counts a body once; and padding of a
convolution is part of the input, as it leaves it out where tables of papers, and `layer_flops`,
count it. (Along an axis on which the input is dilated padding stays, and neither counts it.)
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax import lax
from jax.extend import core

from jaxsparse.tracing.flops import OTHER, layer_flops

SHAPE = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)


def run(closed, args, product):
    """Runs a jaxpr with products by `product(eqn, left, right)` and loops written out."""
    values = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    values |= dict(zip(closed.jaxpr.invars, args, strict=True))
    read = lambda x: x.val if isinstance(x, core.Literal) else values[x]
    for eqn in closed.jaxpr.eqns:
        operands, params = [read(x) for x in eqn.invars], eqn.params
        inner = params.get("jaxpr") or params.get("call_jaxpr")
        if eqn.primitive.name in ("conv_general_dilated", "dot_general"):
            outputs = [product(eqn, *operands)]
        elif eqn.primitive.name == "scan":
            outputs = loop(inner, eqn, operands, product)
        elif inner is not None:
            inner = inner if hasattr(inner, "consts") else core.ClosedJaxpr(inner, ())
            outputs = run(inner, operands, product)
        else:
            found = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(params))
            outputs = found if eqn.primitive.multiple_results else [found]
        values.update(zip(eqn.outvars, outputs, strict=True))
    return [read(x) for x in closed.jaxpr.outvars]


def loop(body, eqn, operands, product):
    whole = lambda outer, inner: sum(
        len(x.aval.shape) == len(y.aval.shape) for x, y in zip(outer, inner, strict=True)
    )
    first, num_carry = whole(eqn.invars, body.jaxpr.invars), whole(eqn.outvars, body.jaxpr.outvars)
    constants, carry = operands[: first - num_carry], operands[first - num_carry : first]
    slices = []
    for turn in range(eqn.params["length"]):
        outputs = run(body, [*constants, *carry, *(x[turn] for x in operands[first:])], product)
        carry = outputs[:num_carry]
        slices.append(outputs[num_carry:])
    return [*carry, *(jnp.stack(each) for each in zip(*slices, strict=True))]


def padded(eqn, x):
    """The input of a product with its padding, and the product's parameters without."""
    params = dict(eqn.params)
    if "padding" in params:
        axes = params["dimension_numbers"].lhs_spec[2:]
        is_plain = [dilation == 1 for dilation in params["lhs_dilation"]]
        config = [(0, 0, 0)] * x.ndim
        for axis, padding, plain in zip(axes, params["padding"], is_plain, strict=True):
            config[axis] = (*padding, 0) if plain else (0, 0, 0)
        x = lax.pad(x, jnp.zeros((), x.dtype), config)
        pairs = zip(params["padding"], is_plain, strict=True)
        params["padding"] = tuple((0, 0) if plain else pair for pair, plain in pairs)
    return x, params


def products_by_xla(forward, *inputs):
    """FLOPs of all products, counted by XLA."""
    closed, args = jax.make_jaxpr(forward)(*inputs), jax.tree.leaves(inputs)
    given = []

    def multiplied(eqn, x, kernel):
        given.append(SHAPE(eqn.outvars[0].aval.shape))
        x, params = padded(eqn, x)
        return eqn.primitive.bind(x, kernel, **params)

    def without_products(given, *args):
        given, kept = list(given), []  # what products read is kept, or nothing would compute it

        def taken(eqn, x, kernel):
            kept.append((padded(eqn, x)[0], kernel))
            return given.pop(0)

        return run(closed, args, taken), kept

    count = lambda f, *args: jax.jit(f).lower(*args).cost_analysis().get("flops", 0)
    whole = count(lambda *args: run(closed, args, multiplied), *args)
    return whole - count(without_products, given, *args)


class ResNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        norm = functools.partial(nn.BatchNorm, use_running_average=True)
        x = nn.relu(norm()(nn.Conv(4, (3, 3))(x)))
        for stride, width in ((1, 4), (2, 6)):
            y = nn.relu(norm()(nn.Conv(width, (3, 3), strides=stride)(x)))
            y = norm()(nn.Conv(width, (3, 3))(y))
            x = nn.relu(y + (x if stride == 1 else nn.Conv(width, (1, 1), strides=stride)(x)))
        return nn.Dense(3)(nn.max_pool(x, (2, 2)).mean((1, 2)))


class UNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        first = nn.relu(nn.Conv(4, (3, 3))(x))
        second = nn.relu(nn.Conv(6, (3, 3), strides=2)(first))
        up = nn.ConvTranspose(4, (3, 3), strides=(2, 2))(second)
        far = nn.ConvTranspose(4, (5, 2), strides=(3, 2), padding=((2, 1), (0, 1)))(second)
        far = jnp.pad(far, ((0, 0), (0, 0), (0, 8 - far.shape[2]), (0, 0)))[:, :8, :8]
        return nn.Conv(2, (1, 1))(jnp.concatenate([first, up, far], -1))


class MobileNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu6(nn.Conv(4, (3, 3), strides=2)(x))
        for stride, width in ((1, 6), (2, 8)):
            x = nn.Conv(x.shape[-1], (3, 3), strides=stride, feature_group_count=x.shape[-1])(x)
            x = nn.Conv(width, (1, 1))(nn.relu6(x))
        return nn.Dense(3)(x.mean((1, 2)))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        mask = nn.make_causal_mask(x[..., 0])
        x = x + nn.MultiHeadDotProductAttention(2, qkv_features=12)(nn.LayerNorm()(x), mask=mask)
        return x + nn.Dense(8)(nn.gelu(nn.Dense(16)(nn.LayerNorm()(x)))), None


class GPT(nn.Module):
    """With the embedding for a head: one kernel, used as rows and as a matrix."""

    block: type[nn.Module] = Block

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(11, 8)
        x = embed(tokens)
        for _ in range(2):
            x, _ = self.block()(x)
        return embed.attend(nn.LayerNorm()(x))


class ScannedStack(nn.Module):
    @nn.compact
    def __call__(self, x):
        kinds = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        return nn.scan(Block, length=3, **kinds)()(x, None)[0]


class ViT(nn.Module):
    @nn.compact
    def __call__(self, x):
        patches = nn.Conv(8, (4, 4), strides=4, padding="VALID")(x).reshape(len(x), -1, 8)
        token = self.param("token", nn.initializers.zeros, (1, 1, 8))
        x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, 8)), patches], 1)
        x, _ = Block()(x + self.param("positions", nn.initializers.zeros, (1, x.shape[1], 8)))
        return nn.Dense(3)(x[:, 0])


class Experts(nn.Module):
    @nn.compact
    def __call__(self, x):
        init = nn.initializers.lecun_normal()
        first, last = self.param("in", init, (3, 8, 16)), self.param("out", init, (3, 16, 8))
        hidden = nn.relu(jnp.einsum("td,edf->etf", x, first))
        return jnp.einsum("te,etf,efd->td", nn.softmax(nn.Dense(3)(x)), hidden, last)


class Tied(nn.Module):
    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(8)
        return layer(nn.relu(layer(x)))


CNN = nn.Sequential(
    [nn.Conv(4, (3, 3)), nn.relu, nn.Conv(6, (5, 5), strides=2), lambda x: x.ravel(), nn.Dense(3)]
)
DILATED = nn.Sequential(
    [nn.Conv(4, (3, 3), kernel_dilation=2), nn.relu, nn.Conv(5, (2, 3), kernel_dilation=(1, 4))]
)
TOKENS = jax.ShapeDtypeStruct((1, 6), jnp.int32)
ZOO = {
    "mlp": (nn.Sequential([nn.Dense(16), nn.relu, nn.Dense(3)]), SHAPE((2, 8))),
    "cnn": (CNN, SHAPE((1, 8, 8, 3))),
    "dilated cnn": (DILATED, SHAPE((1, 9, 9, 3))),
    "resnet": (ResNet(), SHAPE((1, 9, 9, 3))),
    "u-net": (UNet(), SHAPE((1, 8, 8, 3))),
    "mobilenet": (MobileNet(), SHAPE((1, 9, 9, 3))),
    "local": (nn.ConvLocal(4, (3, 3), padding="VALID"), SHAPE((1, 6, 6, 2))),
    "lstm": (nn.RNN(nn.LSTMCell(6)), SHAPE((1, 4, 3))),
    "optimized lstm": (nn.RNN(nn.OptimizedLSTMCell(6)), SHAPE((1, 4, 3))),
    "gru": (nn.RNN(nn.GRUCell(6)), SHAPE((1, 4, 3))),
    "convolutional lstm": (nn.RNN(nn.ConvLSTMCell(4, (3, 3))), SHAPE((1, 3, 6, 6, 2))),
    "attention": (nn.MultiHeadDotProductAttention(2), SHAPE((2, 5, 8))),
    "gpt": (GPT(), TOKENS),
    "remat": (GPT(nn.remat(Block)), TOKENS),
    "scanned stack": (ScannedStack(), SHAPE((1, 6, 8))),
    "vit": (ViT(), SHAPE((1, 12, 12, 3))),
    "mixture of experts": (Experts(), SHAPE((4, 8))),
    "tied": (Tied(), SHAPE((1, 8))),
    "weight norm": (nn.WeightNorm(nn.Dense(8)), SHAPE((1, 8))),
}


@pytest.mark.parametrize("name", ZOO)
def test_a_linen_network(name):
    model, x = ZOO[name]
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    params = variables.pop("params")
    others = jax.tree.map(lambda x: jnp.ones(x.shape), variables)
    forward = lambda params, x: model.apply({"params": params, **others}, x)
    flops = layer_flops(forward, params, x)
    assert sum(flops.values()) == products_by_xla(forward, params, x) > 0


EQUINOX = {
    "conv": (functools.partial(eqx.nn.Conv2d, 3, 4, 3, padding=1), (3, 8, 8)),
    "transposed conv": (functools.partial(eqx.nn.ConvTranspose2d, 3, 4, 3, stride=2), (3, 4, 4)),
    "gru": (functools.partial(eqx.nn.GRUCell, 3, 4), (3,), (4,)),
    "attention": (functools.partial(eqx.nn.MultiheadAttention, 2, 8), (5, 8), (5, 8), (5, 8)),
}


@pytest.mark.parametrize("name", EQUINOX)
def test_an_equinox_network(name):
    make, *shapes = EQUINOX[name]
    model = eqx.filter_eval_shape(make, key=jax.random.key(0))
    params, static = eqx.partition(model, lambda x: isinstance(x, jax.ShapeDtypeStruct))
    forward = lambda params, *x: eqx.combine(params, static)(*x)
    inputs = [SHAPE(shape) for shape in shapes]
    flops = layer_flops(forward, params, *inputs)
    assert sum(flops.values()) == products_by_xla(forward, params, *inputs) > 0


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda rngs: nnx.Sequential(nnx.Linear(8, 16, rngs=rngs), nnx.relu), (2, 8)),
        (lambda rngs: nnx.LoRALinear(8, 16, lora_rank=2, rngs=rngs), (2, 8)),
        (lambda rngs: nnx.RNN(nnx.OptimizedLSTMCell(3, 4, rngs=rngs)), (1, 5, 3)),
    ],
    ids=["mlp", "lora", "lstm"],
)
def test_an_nnx_network(make, shape):
    graph, params, others = nnx.split(make(nnx.Rngs(0)), nnx.Param, ...)
    forward = lambda params, x: nnx.merge(graph, params, others, copy=True)(x)
    flops = layer_flops(forward, params, SHAPE(shape))
    assert sum(flops.values()) == products_by_xla(forward, params, SHAPE(shape)) > 0


def test_ragged_experts_count_like_a_product_for_each():
    """XLA has no count of its own: on CPU it multiplies every row with all experts."""
    sizes = (3, 0, 1)
    starts = np.cumsum([0, *sizes])

    def by_group(params, x):
        rows = [
            x[a:b] @ w for a, b, w in zip(starts[:-1], starts[1:], params["experts"], strict=True)
        ]
        return jnp.concatenate(rows)

    ragged = lambda params, x: lax.ragged_dot(x, params["experts"], np.array(sizes))
    inputs = {"experts": SHAPE((3, 8, 16))}, SHAPE((4, 8))
    flops = layer_flops(ragged, *inputs)
    assert flops == {"experts": products_by_xla(by_group, *inputs)}
    assert by_xla(ragged, *inputs) > len(sizes) * flops["experts"]


# --- without element-wise work XLA's count of the compiled program is the sum, to the unit

PLAIN = functools.partial(nn.Conv, padding="VALID", use_bias=False)
LINEAR = {
    "mlp": (nn.Sequential([nn.Dense(16, use_bias=False), nn.Dense(3, use_bias=False)]), (2, 8)),
    "cnn": (nn.Sequential([PLAIN(4, (3, 3)), PLAIN(6, (3, 3), strides=2)]), (1, 9, 9, 3)),
    "dilated cnn": (PLAIN(5, (3, 2), kernel_dilation=(2, 3)), (1, 9, 9, 3)),
    "depthwise": (nn.Sequential([PLAIN(8, (3, 3), feature_group_count=4)]), (1, 9, 9, 4)),
    "upsampling": (nn.ConvTranspose(5, (3, 3), strides=(2, 3), use_bias=False), (1, 4, 5, 3)),
    "heads": (nn.DenseGeneral((3, 4), axis=(1, 2), use_bias=False), (2, 5, 6)),
}


def by_xla(forward, *inputs):
    return jax.jit(forward).lower(*inputs).compile().cost_analysis()["flops"]


@pytest.mark.parametrize("name", LINEAR)
def test_a_network_without_elementwise_work(name):
    model, shape = LINEAR[name]
    params = jax.eval_shape(model.init, jax.random.key(0), SHAPE(shape))["params"]
    forward = lambda params, x: model.apply({"params": params}, x)
    assert sum(layer_flops(forward, params, SHAPE(shape)).values()) == by_xla(
        forward, params, SHAPE(shape)
    )


def test_xla_counts_the_body_of_a_loop_once():
    """And a unit or two for the loop itself."""
    forward = lambda p, x: lax.scan(lambda h, w: (h @ w, None), x, p["kernel"])[0]
    inputs = {"kernel": SHAPE((5, 8, 8))}, SHAPE((4, 8))
    assert layer_flops(forward, *inputs) == {"kernel": 5 * 512}
    assert 512 <= by_xla(forward, *inputs) < 2 * 512
    written_out = lambda p, x: lax.scan(lambda h, w: (h @ w, None), x, p["kernel"], unroll=5)[0]
    assert by_xla(written_out, *inputs) == 5 * 512
    assert OTHER not in layer_flops(written_out, *inputs)
