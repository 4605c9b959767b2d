"""Paths of leaves, and which are prunable: boxes, classes, rules that leave it to the default."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx

import jaxsparse
from jaxsparse.paths import (
    check_rules,
    dense_shapes,
    describe_dense,
    leaf_paths,
    leaves_by_path,
    prunable_paths,
)

KEY = jax.random.key(0)


def shape(*dims):
    return jax.ShapeDtypeStruct(dims, jnp.float32)


def is_shape(x):
    return isinstance(x, jax.ShapeDtypeStruct)


# --- paths


class Memory(eqx.Module):
    key: Any
    value: Any


class MemoryNNX(nnx.Module):
    def __init__(self):
        self.key, self.value = nnx.Param(jnp.ones(2)), nnx.Param(jnp.ones(3))


class Boxed(nn.Module):
    @nn.compact
    def __call__(self, x):
        self.param("value", nn.with_partitioning(nn.initializers.ones, (None,)), (2,))
        return nn.Dense(3, kernel_init=nn.with_partitioning(nn.initializers.ones, ("a", "b")))(x)


@pytest.mark.parametrize(
    ("tree", "paths"),
    [
        # "value" beside others is a name that people chose.
        ({"mem": {"key": 1, "value": 2}}, ["mem/key", "mem/value"]),
        ({"mem": Memory(1, 2)}, ["mem/key", "mem/value"]),
        ({"mem": Memory(None, 2)}, ["mem/value"]),  # a hole beside it, as in a part of a model
        ({"mem/key": 1, "mem/value": 2}, ["mem/key", "mem/value"]),
        ({"mem/value": 2}, ["mem/value"]),
        ({"value": 1}, ["value"]),
        ({"value": {"value": {"value": 1}}}, ["value/value"]),
        ([{"value": 1}, {"value": 2, "a": ()}], ["0", "1/value"]),
        # A box of one value has none: NNX's variables, here and as a dict; linen's partitioned.
        (nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0))), ["bias", "kernel"]),
        (nnx.state(MemoryNNX()), ["key", "value"]),
        (nnx.as_pure(nnx.state(MemoryNNX())), ["key", "value"]),
        (MemoryNNX(), ["key", "value"]),
        ({"fc": {"kernel": {"value": 1}}}, ["fc/kernel"]),
        (
            Boxed().init(KEY, jnp.ones((1, 2)))["params"],
            ["Dense_0/bias", "Dense_0/kernel", "value"],
        ),
    ],
)
def test_a_last_value_is_left_out_if_it_is_a_box(tree, paths):
    assert leaf_paths(tree) == paths
    assert list(leaves_by_path(tree)) == paths


def test_paths_of_nodes():
    tree = {"a": {"value": Memory(1, 2)}, "b": Memory(3, 4), "c": 5}
    is_leaf = lambda node: isinstance(node, Memory)
    assert leaf_paths(tree, is_leaf) == ["a", "b", "c"]


def test_check_finds_the_slots_of_a_leaf_called_value():
    params = {"mem": {"key": jnp.ones(2), "value": jnp.ones(2)}}
    masks = {"mem": {"key": jnp.ones(2, bool), "value": jnp.array([True, False])}}
    params = jaxsparse.apply_masks(params, masks)
    # Not a tree like params, as under optax.masked: only names tell which slot belongs to what.
    jaxsparse.check(params, {"mu": {"mem": {"key": jnp.ones(2), "value": jnp.zeros(2)}}}, masks)
    with pytest.raises(ValueError, match="optimizer slot mu/mem/value: 1 of 1 inactive"):
        jaxsparse.check(params, {"mu": {"mem": {"key": None, "value": jnp.ones(2)}}}, masks)


# --- classes


class LearnedPositions(eqx.nn.Embedding):
    """A table by the class that it derives from."""


class Embedding(NamedTuple):
    weight: Any


class Block(eqx.Module):
    weight: Any


class Net(eqx.Module):
    tokens: eqx.nn.Embedding
    places: LearnedPositions
    table: Embedding
    scaled: eqx.nn.LayerNorm
    groups: list
    embed: eqx.nn.Linear
    patch_embedding: eqx.nn.Conv2d
    norm: eqx.nn.WeightNorm
    cell: eqx.nn.LSTMCell
    gru: eqx.nn.GRUCell
    attention: eqx.nn.MultiheadAttention
    posemb: Block
    block: Block

    def __init__(self, key):
        self.tokens = eqx.nn.Embedding(99, 8, key=key)
        self.places = LearnedPositions(99, 8, key=key)
        self.table = Embedding(jnp.ones((99, 8)))
        self.scaled = eqx.nn.LayerNorm((8, 16))
        self.groups = [
            eqx.nn.RMSNorm((8, 16)),
            eqx.nn.GroupNorm(2, 8),
            eqx.nn.Linear(8, 4, key=key),
        ]
        self.embed = eqx.nn.Linear(8, 4, key=key)
        self.patch_embedding = eqx.nn.Conv2d(3, 8, 4, key=key)
        self.norm = eqx.nn.WeightNorm(eqx.nn.Linear(8, 4, key=key))
        self.cell = eqx.nn.LSTMCell(8, 4, key=key)
        self.gru = eqx.nn.GRUCell(8, 4, key=key)
        self.attention = eqx.nn.MultiheadAttention(2, 8, key=key)
        self.posemb = Block(jnp.ones((99, 8)))
        self.block = Block(jnp.ones((8, 8)))


EQUINOX = [
    "groups/2/weight",
    "embed/weight",  # a Linear, whatever it is called
    "patch_embedding/weight",
    "norm/layer/weight",
    "cell/weight_ih",
    "cell/weight_hh",
    "gru/weight_ih",
    "gru/weight_hh",
    "attention/query_proj/weight",
    "attention/key_proj/weight",
    "attention/value_proj/weight",
    "attention/output_proj/weight",
    "block/weight",
]


@pytest.fixture(scope="module")
def net():
    return eqx.filter(eqx.filter_eval_shape(Net, KEY), is_shape)


def test_modules_are_told_by_their_class(net):
    assert prunable_paths(net) == EQUINOX


def test_classes_stay_where_trees_are_changed(net):
    assert prunable_paths(jax.eval_shape(jaxsparse.dense_masks, net)) == EQUINOX
    found = []
    jax.eval_shape(lambda net: found.extend(prunable_paths(net)) or 0, net)
    assert found == EQUINOX
    assert prunable_paths([net, {"again": net}]) == [
        *(f"0/{path}" for path in EQUINOX),
        *(f"1/again/{path}" for path in EQUINOX),
    ]


def test_a_stack_of_tables_is_one():
    make = lambda key: {"e": eqx.nn.Embedding(9, 4, key=key), "f": eqx.nn.Linear(4, 4, key=key)}
    stack = eqx.filter_eval_shape(eqx.filter_vmap(make), jax.random.split(KEY, 3))
    assert stack["e"].weight.shape == (3, 9, 4)
    assert prunable_paths(eqx.filter(stack, is_shape)) == ["f/weight"]


def test_names_decide_where_classes_are_not_at_hand(net):
    bare = leaves_by_path(net)
    added = {"tokens/weight", "places/weight", "groups/0/weight"}  # no telling names
    lost = {"embed/weight"}
    assert set(prunable_paths(bare)) == (set(EQUINOX) | {*added, "scaled/weight"}) - lost


def test_an_nnx_model_as_it_is_has_classes():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.tokens = nnx.Embed(9, 8, rngs=rngs)
            self.embed = nnx.Linear(8, 8, rngs=rngs)

    model = nnx.eval_shape(lambda: Model(nnx.Rngs(0)))
    rules = ((r"kernel$", None),)
    assert prunable_paths(model, rules) == ["embed/kernel"]
    with pytest.raises(ValueError, match="no leaf is prunable"):
        prunable_paths(nnx.state(model, nnx.Param), rules)


# --- rules

TREE = {
    "wte": {"weight": shape(9, 4)},
    "fc": {"kernel": shape(4, 4), "bias": shape(4)},
    "head": {"kernel": shape(4, 9), "lora": shape(4, 2)},
}


@pytest.mark.parametrize(
    ("rules", "paths"),
    [
        (((r"", None),), ["fc/kernel", "head/kernel"]),
        (((r"^head", False), (r"", None)), ["fc/kernel"]),
        (((r"^wte", True), (r"", None)), ["fc/kernel", "head/kernel", "wte/weight"]),
        (((r"lora", True), (r"^head", None)), ["head/kernel", "head/lora"]),
        (((r"^(wte|fc)", None), (r".", False)), ["fc/kernel"]),
    ],
)
def test_a_rule_may_leave_it_to_the_default(rules, paths):
    assert prunable_paths(TREE, rules) == paths
    assert prunable_paths(TREE, check_rules(rules)) == paths
    assert prunable_paths(TREE, [list(rule) for rule in rules]) == paths


def test_methods_take_such_rules():
    rules = ((r"^head", False), (r"", None))
    method = jaxsparse.rigl(sparsity=0.5, total_steps=100, update_interval=10, prunable=rules)
    assert list(method.plan(TREE).sizes) == ["fc/kernel"]
    assert method.prunable == rules


def test_rules_are_all_used():
    with pytest.raises(ValueError, match="prunable rule '' is the first match of no leaf; there"):
        prunable_paths(TREE, ((r".", True), (r"", None)))


@pytest.mark.parametrize("rules", [((r"fc", 1),), ((r"fc", "None"),), ((None, None),), ("ab", 3)])
def test_what_is_no_rule(rules):
    with pytest.raises(ValueError, match=r"must be \(path regex, True, False or None\) pairs"):
        prunable_paths(TREE, rules)


# --- what stays dense


def test_what_stays_dense():
    assert dense_shapes(TREE) == {"fc/bias": (4,), "head/lora": (4, 2), "wte/weight": (9, 4)}
    assert dense_shapes(TREE, ((r"wte", True),)).keys() == {
        "fc/kernel", "fc/bias", "head/kernel", "head/lora"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("shapes", "line"),
    [
        ({}, "and 0 parameters that stay dense"),
        ({"a": (4,), "b": (), "c": (1, 1, 4), "d": (4, 1)}, "and 13 parameters that stay dense"),
        ({"a": (2, 3)}, "and 6 parameters that stay dense: a (2, 3)"),
        (
            {"a": (2, 3), "b": (4,), "c": (3, 3)},
            "and 19 parameters that stay dense: c (3, 3), a (2, 3); and 1 vector",
        ),
        (
            {f"w{i}": (2, i) for i in range(2, 12)} | {"b": (4,), "c": ()},
            "and 135 parameters that stay dense: w11 (2, 11), w10 (2, 10), w9 (2, 9), w8 (2, 8), "
            "w7 (2, 7), w6 (2, 6), w5 (2, 5), w4 (2, 4) and 2 more; and 2 vectors",
        ),
    ],
)
def test_what_stays_dense_in_a_line(shapes, line):
    assert describe_dense(shapes) == line
