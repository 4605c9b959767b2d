"""Live weights against a search through the graph of all connections, and networks that are cut."""

import functools

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxsparse
from jaxsparse.nn import VGG, cifar_resnet
from jaxsparse.paths import leaves_by_path, prunable_leaves, with_leaves
from jaxsparse.tracing.connectivity import Connectivity, LayerPaths

SHAPE = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)


def masks_of(shapes, density, seed):
    rng = np.random.default_rng(seed)
    of = density.get if isinstance(density, dict) else lambda _: density
    return {name: rng.random(shape) < of(name) for name, shape in shapes.items()}


class Graph:
    """Connections between numbered values, in the order of execution; slow and obvious."""

    def __init__(self):
        self.edges = []  # (from, to, name and index of the weight or None)
        self.size = 0

    def values(self, *shape):
        self.size += np.prod(shape)
        return np.arange(self.size - np.prod(shape), self.size).reshape(shape)

    def dense(self, x, name, width):
        y = self.values(width)
        self.edges += [(x[i], y[j], (name, i, j)) for i, j in np.ndindex(len(x), width)]
        return y

    def window(self, x, size, stride, pad):
        """Yields (place of an output, place in the window, place of the input there)."""
        height, width, _ = x.shape
        out = [(n + 2 * pad - size) // stride + 1 for n in (height, width)]
        for place in np.ndindex(*out):
            for tap in np.ndindex(size, size):
                row, col = (p * stride + t - pad for p, t in zip(place, tap, strict=True))
                if 0 <= row < height and 0 <= col < width:
                    yield place, tap, (row, col)

    def conv(self, x, name, width, *, size, stride, pad):
        found = list(self.window(x, size, stride, pad))
        y = self.values(*(n + 1 for n in max(place for place, _, _ in found)), width)
        for place, tap, at in found:
            for i, j in np.ndindex(x.shape[-1], width):
                self.edges.append(((*x[at],)[i], y[place][j], (name, *tap, i, j)))
        return y

    def conv_transpose(self, x, name, width, *, size, stride, pad):
        """Every input goes to a window of outputs; what lies beyond the edge, by `pad`, is cut."""
        rows, columns = (n * stride + size - stride - 2 * pad for n in x.shape[:2])
        y = self.values(rows, columns, width)
        for *place, i in np.ndindex(*x.shape):
            for *tap, j in np.ndindex(size, size, width):
                row, column = (p * stride + t - pad for p, t in zip(place, tap, strict=True))
                if 0 <= row < rows and 0 <= column < columns:
                    edge = (x[*place, i], y[row, column, j], (name, *tap, i, j))
                    self.edges.append(edge)
        return y

    def pool(self, x, *, size, stride):
        found = list(self.window(x, size, stride, 0))
        y = self.values(*(n + 1 for n in max(place for place, _, _ in found)), x.shape[-1])
        for place, _, at in found:
            self.edges += [(x[at][c], y[place][c], None) for c in range(x.shape[-1])]
        return y

    def add(self, x, y):
        z = self.values(*x.shape)
        for operand in (x, y):
            self.edges += [(a, b, None) for a, b in zip(operand.flat, z.flat, strict=True)]
        return z

    def live(self, masks, inputs, outputs):
        is_open = lambda weight: weight is None or masks[weight[0]][weight[1:]]
        edges = [edge for edge in self.edges if is_open(edge[2])]
        fed, heard = np.zeros((2, self.size), bool)
        fed[inputs.ravel()] = heard[outputs.ravel()] = True
        for a, b, _ in edges:
            fed[b] |= fed[a]
        for a, b, _ in reversed(edges):
            heard[a] |= heard[b]
        live = {name: np.zeros_like(mask) for name, mask in masks.items()}
        for a, b, weight in edges:
            if weight is not None and fed[a] and heard[b]:
                live[weight[0]][weight[1:]] = True
        return live


MLP = {"w1": (3, 5), "w2": (5, 5), "w3": (5, 5), "w4": (5, 2)}
CNN = {"c1": (3, 3, 2, 3), "c2": (3, 3, 3, 3), "c3": (2, 2, 3, 4), "w": (4, 3)}
UNET = {"down": (3, 3, 2, 3), "up": (3, 3, 3, 2), "out": (1, 1, 4, 2)}
EVERY = ((r".", True),)


def mlp(params, x):
    x = jax.nn.relu(x @ params["w1"] - 1.0)
    y = jnp.tanh(x @ params["w2"]) @ params["w3"]
    return jax.nn.softplus(x + y) @ params["w4"]


def mlp_graph():
    graph = Graph()
    inputs = graph.values(3)
    x = graph.dense(inputs, "w1", 5)
    y = graph.dense(graph.dense(x, "w2", 5), "w3", 5)
    return graph, inputs, graph.dense(graph.add(x, y), "w4", 2)


def conv(x, kernel, stride, pad):
    dims = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (stride,) * 2, ((pad,) * 2,) * 2, dimension_numbers=dims
    )


def cnn(params, x):
    """A strided convolution, a residual one, overlapping max-pooling, a valid one, a linear one."""
    x = jax.nn.relu(conv(x, params["c1"], 2, 1))
    x = x + jax.nn.relu(conv(x, params["c2"], 1, 1))
    x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 1, 1, 1), "VALID")
    x = conv(x, params["c3"], 1, 0)
    return x.mean((1, 2)) @ params["w"]


def cnn_graph():
    graph = Graph()
    inputs = graph.values(6, 6, 2)
    x = graph.conv(inputs, "c1", 3, size=3, stride=2, pad=1)
    x = graph.add(x, graph.conv(x, "c2", 3, size=3, stride=1, pad=1))
    x = graph.conv(graph.pool(x, size=2, stride=1), "c3", 4, size=2, stride=1, pad=0)
    return graph, inputs, graph.dense(x.ravel(), "w", 3)


def unet(params, x):
    """Half the size and back again, cut at the edges, beside what it began with."""
    low = jax.nn.relu(conv(x, params["down"], 2, 1))
    kernel = params["up"][::-1, ::-1]  # JAX's, which is that of the gradient, runs backwards
    dims = ("NHWC", "HWIO", "NHWC")
    up = lax.conv_transpose(low, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=dims)
    return conv(jnp.concatenate([x[:, 1:, 1:], jax.nn.relu(up)], -1), params["out"], 1, 0)


def unet_graph():
    graph = Graph()
    inputs = graph.values(6, 6, 2)
    low = graph.conv(inputs, "down", 3, size=3, stride=2, pad=1)
    up = graph.conv_transpose(low, "up", 2, size=3, stride=2, pad=1)
    x = np.concatenate([inputs[1:, 1:], up], -1)
    return graph, inputs, graph.conv(x, "out", 2, size=1, stride=1, pad=0)


def compiled(forward, shapes, *inputs, prunable=EVERY):
    """`live_weights` of masks alone, compiled once."""
    params = jax.tree.map(SHAPE, shapes, is_leaf=lambda x: isinstance(x, tuple))
    live = lambda masks: jaxsparse.live_weights(
        forward, params, masks, *map(SHAPE, inputs), prunable=prunable
    )
    return jax.jit(live)


NETWORKS = {
    "mlp": (compiled(mlp, MLP, (1, 3)), mlp_graph(), MLP),
    "cnn": (compiled(cnn, CNN, (1, 6, 6, 2)), cnn_graph(), CNN),
    "u-net": (compiled(unet, UNET, (1, 6, 6, 2)), unet_graph(), UNET),
}


@pytest.mark.parametrize("name", NETWORKS)
@hypothesis.given(seed=st.integers(0, 10**6), density=st.floats(0.02, 1.0))
def test_live_weights_are_those_that_a_search_finds(name, seed, density):
    live_of, (graph, inputs, outputs), shapes = NETWORKS[name]
    masks = masks_of(shapes, density, seed)
    chex.assert_trees_all_equal(live_of(masks), graph.live(masks, inputs, outputs))


def test_the_search_finds_neither_all_nor_nothing():
    """The comparison above would else be one of zeros."""
    for live_of, (graph, inputs, outputs), shapes in NETWORKS.values():
        masks = masks_of(shapes, 0.3, 3)
        live = graph.live(masks, inputs, outputs)
        found = [(int(live[name].sum()), int(masks[name].sum())) for name in shapes]
        assert all(0 < num_live for num_live, _ in found)
        assert any(num_live < num_active for num_live, num_active in found)
        chex.assert_trees_all_equal(live_of(masks), live)


def test_a_deep_chain_neither_underflows_nor_overflows():
    depth, width = 60, 64

    def forward(params, x):
        for layer in range(depth):
            x = jax.nn.relu(x @ params[f"w{layer}"])
        return x

    shapes = {f"w{layer}": (width, width) for layer in range(depth)}
    live_of = compiled(forward, shapes, (1, width))
    dense = {name: np.ones(shape, bool) for name, shape in shapes.items()}
    chex.assert_trees_all_equal(live_of(dense), dense)
    # 63^60 paths, beside a unit that is never fed: where counts overflow, infinity meets 0.
    starved = {name: mask & (np.arange(width) > 0) for name, mask in dense.items()}
    expected = {name: mask if name == "w0" else mask & mask.T for name, mask in starved.items()}
    chex.assert_trees_all_equal(live_of(starved), expected)
    way = np.random.default_rng(0).integers(0, width, depth + 1)
    one = {name: np.zeros(shape, bool) for name, shape in shapes.items()}
    for layer in range(depth):
        one[f"w{layer}"][way[layer], way[layer + 1]] = True
    chex.assert_trees_all_equal(live_of(one), one)
    one["w30"][:] = False
    assert not any(mask.any() for mask in jax.tree.leaves(live_of(one)))


def forward_of(model):
    """A forward function, the shapes of its params, and an image of 16 x 16."""
    image = SHAPE((1, 16, 16, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    stats = jax.tree.map(lambda x: jnp.zeros(x.shape), shapes["batch_stats"])
    forward = lambda params, x: model.apply({"params": params, "batch_stats": stats}, x)
    return forward, shapes["params"], image


def shifted(x, tap):
    """The reads of a 3 x 3 convolution through one of its taps: bool[height, width, channels]."""
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    return padded[tap[0] : tap[0] + x.shape[0], tap[1] : tap[1] + x.shape[1]]


def product(a, b):
    return (a.astype(np.float32) @ b.astype(np.float32)) > 0.5


def vgg_by_hand(masks):
    """Live weights of VGG-19 on 16 x 16 images, tap by tap; pooling is by pairs."""
    stages = np.split(np.arange(1, 17), np.cumsum((2, 2, 4, 4)))
    x, read = np.ones((16, 16, 3), bool), {}
    taps = list(np.ndindex(3, 3))
    for number, layers in enumerate(stages):
        if number:
            x = x.reshape(x.shape[0] // 2, 2, x.shape[1] // 2, 2, -1).any((1, 3))
        for layer in layers:
            read[layer] = x
            kernel = masks[f"conv{layer}/kernel"]
            x = np.any([product(shifted(x, tap), kernel[tap]) for tap in taps], axis=0)
    fed = x.any((0, 1))
    live = {"fc/kernel": masks["fc/kernel"] & fed[:, None]}
    heard = np.broadcast_to(masks["fc/kernel"].any(1), x.shape)
    for number, layers in reversed(list(enumerate(stages))):
        for layer in reversed(layers):
            kernel, x = masks[f"conv{layer}/kernel"], read[layer]
            flat = heard.reshape(-1, heard.shape[-1])
            reads = {tap: shifted(x, tap).reshape(-1, x.shape[-1]) for tap in taps}
            live[f"conv{layer}/kernel"] = kernel & np.array(
                [[product(reads[row, col].T, flat) for col in range(3)] for row in range(3)]
            )
            backward = [
                product(shifted(heard, (2 - row, 2 - col)), kernel[row, col].T) for row, col in taps
            ]
            heard = np.any(backward, axis=0)
        if number:
            heard = heard.repeat(2, 0).repeat(2, 1)
    return live


def test_vgg19_at_99_9_percent():
    forward, params, image = forward_of(VGG(19))
    kernels = {path: x.shape for path, x in prunable_leaves(params).items()}
    drawn = masks_of(kernels, jaxsparse.erk()(kernels, 0.001), 0)
    masks = with_leaves(jax.tree.map(lambda x: np.ones(x.shape, bool), params), drawn)
    live = jaxsparse.live_weights(forward, params, masks, image)
    by_hand = vgg_by_hand(drawn)
    chex.assert_trees_all_equal({path: leaves_by_path(live)[path] for path in by_hand}, by_hand)
    found = jaxsparse.count_live(masks, live)
    assert len(found.layers) == len(by_hand) == 17
    assert 0 < found.num_live < jaxsparse.num_active(masks)
    assert not found.is_cut and not found.alarms


@pytest.fixture(scope="module")
def resnet():
    """Forward function, dense masks, the image and `live_weights` of ResNet-8."""
    forward, params, image = forward_of(cifar_resnet(8))
    live = jax.jit(lambda masks: jaxsparse.live_weights(forward, params, masks, image))
    masks = jax.tree.map(lambda x: jnp.ones(x.shape, bool), params)
    return forward, params, masks, image, live


def without(masks, *paths):
    return with_leaves(masks, {p: jnp.zeros_like(leaves_by_path(masks)[p]) for p in paths})


@pytest.mark.parametrize(
    ("emptied", "dead", "end"),
    [
        ((), [], None),
        # A residual branch dies, the network lives.
        (["stage1_block1/conv2/kernel"], ["stage1_block1/conv1/kernel"], None),
        (["stage2_block1/shortcut_conv/kernel"], [], None),
        (["stage2_block1/conv1/kernel"], ["stage2_block1/conv2/kernel"], None),
        # A block loses both ways; of the two that end there the shortcut is executed last.
        (
            ["stage2_block1/conv1/kernel", "stage2_block1/shortcut_conv/kernel"],
            "all",
            "stage2_block1/shortcut_conv/kernel",
        ),
        (["conv1/kernel"], "all", "conv1/kernel"),
        (["fc/kernel"], "all", "fc/kernel"),
    ],
)
def test_branches_and_networks_that_die(resnet, emptied, dead, end):
    forward, params, masks, image, live_of = resnet
    masks = without(masks, *emptied)
    found = jaxsparse.count_live(masks, live_of(masks))
    assert jaxsparse.where_paths_end(forward, params, masks, image) == end
    assert found.is_cut == (end is not None)
    if dead == "all":
        assert found.num_live == 0
        assert found.alarms == ["no path is left from input to output"]
        return
    assert [layer.path for layer in found.layers if layer.is_dead] == dead
    assert [alarm.split(":")[0] for alarm in found.alarms] == dead
    others = {layer for layer in found.layers if layer.path not in (*emptied, *dead)}
    assert all(layer.num_live == layer.num_active for layer in others)


def test_alarms_as_text():
    layers = (LayerPaths("a/kernel", 1200, 0), LayerPaths("b/kernel", 3, 2), LayerPaths("c", 0, 0))
    assert Connectivity(layers).alarms == [
        "a/kernel: none of the 1,200 weights that are left lies on a path from input to output"
    ]
    assert (Connectivity(layers).num_live, Connectivity(layers).is_cut) == (2, False)
    assert Connectivity(layers[::2]).alarms == ["no path is left from input to output"]


# --- what a product is, and what it is not

ONE, NONE = [[True]], [[False]]


def live_in(forward, masks, *inputs, prunable=EVERY):
    """The live masks as lists, from masks as lists."""
    masks = {name: jnp.array(mask, bool) for name, mask in masks.items()}
    params = {name: SHAPE(mask.shape) for name, mask in masks.items()}
    live = jaxsparse.live_weights(forward, params, masks, *map(SHAPE, inputs), prunable=prunable)
    return {name: mask.tolist() for name, mask in live.items()}


@pytest.mark.parametrize("kernel", [ONE, NONE])
@pytest.mark.parametrize("first", [ONE, NONE])
def test_a_shared_kernel_lives_by_any_of_its_uses(first, kernel):
    """Once with a factor of its own behind `first`, once beside it."""
    forward = lambda p, x: (x @ p["first"]) @ (p["scale"] * p["kernel"]) + x @ p["kernel"]
    masks = {"first": first, "kernel": kernel, "scale": True}
    rules = ((r"scale", False), (r".", True))
    expected = {"first": ONE if first == kernel == ONE else NONE, "kernel": kernel, "scale": True}
    assert live_in(forward, masks, (1, 1), prunable=rules) == expected


def test_a_scale_that_is_pruned_closes_its_channel():
    forward = lambda p, x: (x @ p["w"]) * p["scale"][None]
    live = live_in(forward, {"w": [[True, True]], "scale": [True, False]}, (1, 1))
    assert live == {"w": [[True, False]], "scale": [True, False]}


def test_a_bias_starts_no_path():
    forward = lambda p, x: jax.nn.relu(x @ p["a"] + p["bias"][None]) @ p["b"]
    live = live_in(forward, {"a": NONE, "bias": [True], "b": ONE}, (1, 1))
    assert live == {"a": NONE, "bias": [False], "b": NONE}


W = [[True, False], [False, False]]


@pytest.mark.parametrize(
    ("make", "is_open"),
    [
        (lambda w: 2 * w, False),
        (jnp.tanh, False),
        (lambda w: w**3, False),
        (lambda w: w - 0.0, False),
        (lambda w: w / jnp.sqrt((w**2).sum(0, keepdims=True) + 1), False),
        (lambda w: jnp.where(w > 0.1, w, 0.0), False),
        (lambda w: jnp.maximum(w, 0), False),
        (lambda w: jnp.stack([w, 2 * w]).mean(0), False),
        (lambda w: jnp.pad(w, ((0, 0), (1, 1)))[:, 1:3], False),
        (lambda w: lax.dynamic_update_slice(jnp.zeros((3, 2)), w, (0, 0))[:2], False),
        (lambda w: w + 1, True),
        (lambda w: w + jnp.eye(2), True),
        (lambda w: w - w.mean(), True),
        (jnp.exp, True),
        (jax.nn.softplus, True),
        (lambda w: jnp.cos(w) * 2, True),
        (lambda w: w**-1, True),
        (lambda w: jnp.maximum(w, 0.1), True),
        (lambda w: jnp.where(w > 0.1, w, 0.1), True),
        (lambda w: (w <= 0).astype(jnp.float32), True),
        (lambda w: lax.cumlogsumexp(w), True),
        (lambda w: jnp.concatenate([w[:, :1], jnp.ones((2, 1))], 1), True),
        (lambda w: jnp.pad(w[:, :1], ((0, 0), (0, 1)), constant_values=1.0), True),
        (lambda w: jnp.stack([w[:, 0], jnp.ones(2)], 1), True),
        (lambda w: lax.dynamic_update_slice(jnp.ones((2, 2)), w[:, :1], (0, 0)), True),
    ],
)
def test_a_kernel_is_open_where_it_may_be_other_than_0(make, is_open):
    """Its second column is pruned; what reads that is live if the kernel is not 0 there."""
    forward = lambda p, x: (x @ make(p["w"])) @ p["out"]
    live = live_in(forward, {"w": W, "out": [[True], [True]]}, (1, 2))
    assert live == {"w": W, "out": [[True], [is_open]]}


@pytest.mark.parametrize(
    ("use", "takes_part"),
    [
        (lambda x, w: x + w, False),
        (lambda x, w: w - x, False),
        (lambda x, w: x / (w + 2), True),
        (lambda x, w: jnp.maximum(x, w), True),
        (lambda x, w: jnp.where(x > 0, w, 1.0), True),
        (lambda x, w: jnp.where(x > w, x, 0.0), True),
    ],
    ids=["bias", "subtracted", "divides", "threshold", "chosen", "compared"],
)
def test_a_parameter_beside_data_takes_part_if_it_is_not_just_added(use, takes_part):
    forward = lambda p, x: use(x, p["w"][None]) @ p["out"]
    live = live_in(forward, {"w": [True, True], "out": [[True], [True]]}, (1, 2))
    assert live == {"w": [takes_part] * 2, "out": [[True], [True]]}


def test_every_part_of_a_joined_kernel_is_live_by_itself():
    forward = lambda p, x: (x @ jnp.concatenate([p["q"], p["k"]], 1)) @ p["out"]
    masks = {"q": W, "k": [[False], [True]], "out": [[True], [True], [True]]}
    assert live_in(forward, masks, (1, 2)) == {**masks, "out": [[True], [False], [True]]}
    masks["out"] = [[False], [True], [False]]
    assert not any(jax.tree.leaves(live_in(forward, masks, (1, 2))))


def test_an_adapter_opens_what_its_kernel_lacks():
    forward = lambda p, x: x @ (p["w"] + p["a"] @ p["b"]) @ p["out"]
    masks = {"w": W, "a": [[False], [True]], "b": [[False, True]], "out": [[True], [True]]}
    assert live_in(forward, masks, (1, 2)) == masks


@pytest.mark.parametrize("sizes", [lambda x: jnp.array([1, 1]), lambda x: (x > 0).sum(0)])
def test_experts_are_live_in_whatever_row_they_may_meet(sizes):
    forward = lambda p, x: lax.ragged_dot(x, p["experts"], sizes(x)) @ p["out"]
    masks = {"experts": [W, [[False, False], [True, False]]], "out": [[True], [True]]}
    assert live_in(forward, masks, (2, 2)) == masks
    none = {"experts": np.zeros((2, 2, 2), bool), "out": masks["out"]}
    assert not np.any(live_in(forward, none, (2, 2))["experts"])


def test_paths_that_end_at_a_kernel_of_several_leaves():
    forward = lambda p, x: (x @ jnp.concatenate([p["q"], p["k"]], 1)) @ p["out"]
    masks = {"q": np.zeros((2, 1), bool), "k": np.zeros((2, 1), bool), "out": np.ones((2, 1), bool)}
    assert jaxsparse.where_paths_end(forward, masks, masks, SHAPE((1, 2))) == "k and q"
    ragged = lambda p, x: lax.ragged_dot(x, p["experts"], np.array([1, 1]))
    empty = {"experts": np.zeros((2, 2, 2), bool)}
    assert jaxsparse.where_paths_end(ragged, empty, empty, SHAPE((2, 2))) == "experts"


def test_what_passes_operands_on_joins_none_of_them():
    pair = lambda p, x: lax.optimization_barrier((x @ p["a"], x @ p["b"]))
    live = live_in(lambda p, x: pair(p, x)[1], {"a": ONE, "b": ONE}, (1, 1))
    assert live == {"a": NONE, "b": ONE}


def test_taps_that_read_nothing_but_padding_are_dead():
    live = live_in(lambda p, x: conv(x, p["w"], 1, 1), {"w": np.ones((3, 3, 1, 1))}, (1, 1, 1, 1))
    assert np.argwhere(live["w"]).tolist() == [[1, 1, 0, 0]]


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: jnp.sort(x, -1),
        lambda x: lax.scan(lambda c, row: (c + row, c * row), x[0], x)[1],
        lambda x: lax.cond(x.sum() > 0, lambda x: x, lambda x: -x, x),
        lambda x: lax.while_loop(lambda x: x.sum() < 9, lambda x: x + 1, x),
        lambda x: jax.nn.softmax(x, -1),
        lambda x: (x - x.mean(-1, keepdims=True)) * lax.rsqrt(x.var(-1, keepdims=True) + 1),
        lambda x: x @ (x.T @ x),
    ],
    ids=["sort", "scan", "cond", "while", "softmax", "layer norm", "attention"],
)
def test_what_mixes_data_joins_their_paths(mix):
    """Only the second channel is read, and depends on the first through the mix alone."""
    forward = lambda p, x: mix(x @ p["a"]) @ p["b"]
    masks = {"a": [[True, False]], "b": [[False], [True]]}
    assert live_in(forward, masks, (1, 1)) == masks
    masks["a"] = [[False, False]]
    assert live_in(forward, masks, (1, 1)) == {"a": [[False, False]], "b": [[False], [False]]}


@pytest.mark.parametrize(
    "move",
    [
        lambda x: jnp.concatenate([x[:, 1:], jnp.ones((1, 1))], -1),
        lambda x: jnp.pad(x, ((0, 0), (0, 1)), constant_values=5.0)[:, 1:],
        lambda x: jnp.split(x, 2, -1)[1] * jnp.array([[1.0, 0.0]]),
        lambda x: x[:, jnp.array([1, 1])],
        lambda x: jax.checkpoint(jnp.flip)(x).astype(jnp.bfloat16).reshape(1, 2)[:, :1],
        lambda x: jnp.where(x[:, :1] > 0, x[:, 1:], 0.0) * 0 + x[:, 1:],
    ],
    ids=["concatenate", "pad", "split", "take", "flip", "where"],
)
def test_what_moves_data_moves_their_paths(move):
    """The second of two channels goes on alone, except in `where`, which looks at the first."""
    forward = lambda p, x: move(x @ p["a"]).sum(-1)
    looked_at = "where" in move.__code__.co_names
    live = live_in(forward, {"a": [[True, True]]}, (1, 1))
    assert live == {"a": [[looked_at, True]]}


def test_masks_of_another_shape():
    params = {"kernel": SHAPE((2, 2))}
    with pytest.raises(ValueError, match=r"masks at kernel has shape \(2, 3\)"):
        jaxsparse.live_weights(
            lambda p, x: x @ p["kernel"], params, {"kernel": np.ones((2, 3), bool)}, SHAPE((1, 2))
        )


def test_an_input_that_no_layer_reads():
    masks = {"kernel": jnp.ones((2, 2), bool)}
    forward = lambda p, x: jnp.ones((1, 2)) @ p["kernel"]
    assert jaxsparse.where_paths_end(forward, masks, masks, SHAPE((1, 2))) is None
    live = jaxsparse.live_weights(forward, masks, masks, SHAPE((1, 2)))
    assert jaxsparse.count_live(masks, live).is_cut


def test_what_is_printed():
    layers = (LayerPaths("conv/kernel", 1200, 1100), LayerPaths("fc/kernel", 3, 0))
    assert str(Connectivity(layers)) == "\n".join(
        [
            "layer        active   live",
            "conv/kernel   1,200  1,100",
            "fc/kernel         3      0",
            "total         1,203  1,100",
            "alarm: fc/kernel: none of the 3 weights that are left lies on a path from input to "
            "output",
        ]
    )
    assert str(Connectivity(layers[1:])).endswith("\nalarm: no path is left from input to output")
    assert str(Connectivity(())).splitlines()[1] == "total       0     0"
