"""The groups of networks of this library and of others, and what they say of themselves."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxsparse.nn import resnet
from jaxsparse.structured import channel_groups
from tests.transformers import NAMES, network


def ones(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def of_linen(model, x, **options):
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    return channel_groups(model.apply, variables, x, **options)


@pytest.fixture(scope="module")
def resnet50():
    return of_linen(resnet(50), ones(1, 224, 224, 3))


def test_resnet50_has_33_free_widths_and_4_that_blocks_share(resnet50):
    alone = [group for group in resnet50 if len(group.producers) == 1]
    shared = {group.name: group for group in resnet50 if len(group.producers) > 1}
    assert len(alone) == 33 and alone[0].name == "params/conv1" and alone[0].width == 64
    blocks = (3, 4, 6, 3)
    assert {name: (g.width, len(g.producers)) for name, g in shared.items()} == {
        f"params/stage{i}_block1/shortcut_conv": (128 * 2**i, 1 + blocks[i - 1])
        for i in range(1, 5)
    }
    # All channels but those of the image and of the logits are in one group each.
    for path, shape in resnet50.shapes.items():
        for axis, size in enumerate(shape):
            tied = [m for g in resnet50.of(path, axis) for m in g.members if m.path == path]
            is_window = len(shape) == 4 and axis < 2
            is_end = (path, axis) in {("params/conv1/kernel", 2), ("params/fc/kernel", 1)}
            if is_window or is_end or path == "params/fc/bias":
                assert not tied
            else:
                assert np.sort(tied[0].indices.ravel()).tolist() == list(range(size))


def test_blocks_of_all_stages_have_one_signature(resnet50):
    by_signature = {}
    for group in resnet50:
        by_signature.setdefault(group.signature, []).append(group.name.rsplit("/")[-1])
    counts = sorted((len(names), *set(names)) for names in by_signature.values())
    assert counts == [(1, "conv1"), *[(1, "shortcut_conv")] * 4, (16, "conv1"), (16, "conv2")]


def test_statistics_are_narrowed_with_their_channels(resnet50):
    group = resnet50["params/stage1_block1/conv1"]
    assert [str(member) for member in group.members] == [
        "params/stage1_block1/conv1/kernel axis 3, output",
        "params/stage1_block1/conv2/kernel axis 2, input",
        "batch_stats/stage1_block1/norm1/mean axis 0",
        "batch_stats/stage1_block1/norm1/var axis 0",
        "params/stage1_block1/norm1/bias axis 0",
        "params/stage1_block1/norm1/scale axis 0",
    ]
    assert group.notes == () and group.consumers == ("params/stage1_block1/conv2/kernel",)


@pytest.mark.parametrize("name", NAMES)
def test_transformers(name):
    net = network(name)
    groups = channel_groups(net.forward, net.params, net.inputs)
    stream, heads, gate = groups
    assert [group.width for group in groups] == [16, 2, 4]  # whole heads; parts of the hidden width
    assert len(stream.notes) > 0 and heads.notes == gate.notes == ()
    made = {path.split("/")[-2] for path in heads.producers}
    assert made == {"query", "key", "value"} and len(heads.members) == 7
    assert [path.split("/")[-2] for path in heads.consumers] == ["out"]
    assert groups.of("position", 0) == () and groups.of("position", 1) == (stream,)
    inside = channel_groups(net.forward, net.params, net.inputs, inner=True)
    assert [group.width for group in inside] == [16, 8, 8, 8]  # queries with keys; values; gates


class Mixed(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.ConvTranspose(12, (3, 3), strides=(2, 2))(x)
        x = nn.relu(nn.GroupNorm(3)(x))
        x = nn.avg_pool(nn.max_pool(x, (2, 2), strides=(2, 2)), (2, 2))
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=True)(x).max((1, 2)))


def test_a_norms_groups_are_removed_whole_or_from_inside():
    whole, inside = (of_linen(Mixed(), ones(2, 4, 4, 3), inner=inner) for inner in (False, True))
    for groups, width, each in ((whole, 3, 4), (inside, 4, 3)):
        (group,) = groups
        assert group.width == width
        assert [member.indices.shape[1] for member in group.members] == [each] * 5
        first = group.members[0].indices[0].tolist()
        assert first == list(range(0, 12, 12 // each) if groups is inside else range(each))
    assert whole.groups[0].notes == () and "GroupNorm" in inside.groups[0].notes[0]


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
        return x + nn.Dense(8)(nn.gelu(nn.Dense(16)(x))), None


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        split = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        x, _ = nn.scan(nn.remat(Block), length=3, **split)()(nn.Dense(8)(x), None)
        x = nn.RNN(nn.LSTMCell(6))(x)
        return nn.Dense(2)(x[:, -1])


def test_layers_of_a_scan_shrink_together():
    groups = of_linen(Scanned(), ones(2, 5, 4))
    assert [group.width for group in groups] == [8, 2, 16, 6]
    path = "params/ScanCheckpointBlock_0/Dense_0/kernel"
    assert groups.shapes[path][0] == 3 and groups.of(path, 0) == ()
    assert "axis 0 stays whole: the turns of a scan" in groups.explain(path)
    assert len(groups.groups[3].members) == 4 + 4 + 4 + 4 + 1  # two kernels and a bias of 4 gates


def test_equinox():
    model = eqx.nn.MLP(4, 2, 8, 2, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_array)
    apply = lambda params, x: jax.vmap(eqx.combine(params, static))(x)
    groups = channel_groups(apply, params, ones(3, 4))
    assert [group.name for group in groups] == ["layers/0", "layers/1"]
    assert [member.path for member in groups["layers/1"].members] == [
        "layers/1/weight",
        "layers/2/weight",
        "layers/1/bias",
    ]


def two_branches(p, x):
    h = jnp.concatenate([x @ p["a"], x @ p["a"]], -1)
    return (h[:, :4] @ p["b"]) @ p["c"] + jax.nn.softmax(h[:, 4:]) @ p["d"]


SHAPES = {"a": ones(3, 5), "b": ones(4, 6), "c": ones(6, 2), "d": ones(6, 2)}


def test_the_table_and_its_sentences():
    groups = channel_groups(two_branches, SHAPES, ones(2, 3))
    line = two_branches.__code__.co_firstlineno + 2
    assert str(groups).replace(f"test_groups.py:{line}", "n.py:3").split("\n") == TABLE
    assert groups.explain("a").startswith("a (3, 5):\n  axis 0 stays whole: axis 1 of the input.")
    for line in [
        "axis 1: 4 units of the group a, removed together with b axis 0, d axis 0.",
        "axis 1: 1 unit of the group a (2), removed together with d axis 0 (2 indices a unit).",
    ]:
        assert line in groups.explain("a")
    assert "axis 0: 1 unit of 2 indices of the group a (2), removed" in groups.explain("d")
    assert [group.name for group in groups.of("a")] == ["a", "a (2)"]
    assert [group.name for group in groups.of("b", -1)] == ["b"]
    assert groups["b"].members[0].indices.tolist() == [[i] for i in range(6)]


NOTES = "reduce_max runs over them, at n.py:3 and 1 more"
TABLE = [
    "group  width  producers  read by       others  notes",
    f"a          4          1  b and 1 more       0  {NOTES}",
    f"a (2)      1          1  d                  0  {NOTES}",
    "b          6          1  c                  0",
    "",
    "axes that stay  because of            first",
    "             1  axis 1 of the input   a axis 0",
    "             2  axis 1 of the output  c axis 1",
]


def test_what_is_not_there():
    groups = channel_groups(two_branches, SHAPES, ones(2, 3))
    with pytest.raises(KeyError, match="no group e; there are a"):
        groups["e"]
    for call in (groups.explain, groups.of):
        with pytest.raises(ValueError, match="there is no leaf e; the leaves are a, b, c, d"):
            call("e")
