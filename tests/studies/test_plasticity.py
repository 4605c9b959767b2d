"""The study on networks whose accuracies are known, and on one that trains."""

import functools
import json
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import jaxsparse
from jaxsparse.scores import random, saliency
from jaxsparse.studies import Cell, Checkpoint, Plasticity, pruning_plasticity
from tests.checkpoint.states import bits

PARAMS = {"fc": {"kernel": jnp.arange(1.0, 41.0).reshape(5, 8), "bias": jnp.ones(8)}}


def known_accuracy(checkpoint):
    """Pre .90, pruned .60, after .88, control .91; to the end .92 without pruning, .85 with."""
    is_pruned = not bool(checkpoint.masks["fc"]["kernel"].all())
    return {
        (False, "pre"): 0.90,
        (True, "pre"): 0.60,
        (True, "frozen"): 0.88,
        (False, "frozen"): 0.91,
        (True, "schedule"): 0.89,
        (False, "schedule"): 0.915,
        (True, "end"): 0.85,
        (False, "end"): 0.92,
    }[is_pruned, checkpoint.rest]


def study(**options):
    arguments = {
        "checkpoints": {10: Checkpoint(PARAMS, rest="pre")},
        "rates": (0.5,),
        "train_fn": lambda checkpoint, how: checkpoint._replace(rest=how),
        "eval_fn": known_accuracy,
    }
    return pruning_plasticity(**(arguments | options))


def test_the_known_answer():
    (found,) = study(final_gap=True).results
    assert found.cell == Cell(10, 0.5, "layer", False, "frozen")
    expected = {
        "acc_pre": 0.90,
        "acc_pruned": 0.60,
        "acc_after": 0.88,
        "control_after": 0.91,
        "plasticity": -0.02,
        "plasticity_vs_control": -0.03,
        "recovery": 0.9333,
        "acc_end": 0.85,
        "control_end": 0.92,
        "final_gap": -0.07,
        "sparsity_pre": 0.0,
        "sparsity": 0.5,
        "num_pruned": 20,
    }
    assert {n: found.as_dict()[n] for n in expected} == pytest.approx(expected, abs=5e-5)


def test_the_table(key):
    text = str(study(learning_rates=("frozen", "schedule"), score=random, key=key, grad_fn=zeros))
    assert [line.split() for line in text.splitlines()] == [
        "checkpoint lr scope regrown rate sparsity pre pruned after control plasticity vs control "
        "recovery".split(),
        "10 frozen layer no 0.5 0.5000 0.9000 0.6000 0.8800 0.9100 -0.0200 -0.0300 0.9333".split(),
        "10 schedule layer no 0.5 0.5000 0.9000 0.6000 0.8900 0.9150 -0.0100 -0.0250 "
        "0.9667".split(),
    ]


def zeros(checkpoint):
    return jax.tree.map(jnp.zeros_like, checkpoint.params)


def test_what_was_not_measured_is_nan():
    (found,) = study(rates=(0.0,), control=False, eval_fn=lambda checkpoint: 0.9).results
    assert found.plasticity == 0 and found.num_pruned == 0
    for name in ("recovery", "control_after", "plasticity_vs_control", "final_gap"):
        assert math.isnan(getattr(found, name))


def test_a_study_that_was_cut_off_goes_on():
    """What is known is neither trained nor loaded again, the control arm among it."""
    asked = []

    def train_fn(checkpoint, how):
        asked.append((bool(checkpoint.masks["fc"]["kernel"].all()), how))
        return checkpoint._replace(rest=how)

    load = {10: lambda: Checkpoint(PARAMS, rest="pre"), 20: lambda: Checkpoint(PARAMS, rest="pre")}
    grid = {"checkpoints": load, "rates": (0.25, 0.5), "train_fn": train_fn, "final_gap": True}
    lines = []
    whole = study(**grid, save=lambda found: lines.append(json.dumps(found.as_dict())))
    assert len(lines) == 4 and len(asked) == 2 * (2 + 2 * 2)
    asked.clear()
    known = [Plasticity.from_dict(json.loads(line)) for line in lines[:3]]
    del load[10]
    again = study(**grid | {"checkpoints": {10: None, **load}}, known=known)
    assert again == whole
    assert asked == [(False, "frozen"), (False, "end")]


def test_json_has_no_nan():
    (found,) = study(control=False).results
    line = json.dumps({n: None if x != x else x for n, x in found.as_dict().items()})
    assert str(Plasticity.from_dict(json.loads(line))) == str(found)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(6, (3, 3))(x)))
        return nn.Dense(3)(x.reshape(len(x), -1))


@functools.cache
def parts():
    """A CNN with batch norm, trained for 30 steps; `train` donates what it is given."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(60, 4, 4, 1)), jnp.float32)
    labels = jnp.asarray(images.sum((1, 2, 3)) // 3 + 1, jnp.int32).clip(0, 2)
    tx = jaxsparse.masked(optax.sgd(0.1, momentum=0.9))

    def loss(params, rest):
        variables = {"params": params, "batch_stats": rest["stats"]}
        logits, new = Net().apply(variables, images, train=True, mutable=["batch_stats"])
        found = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return found, {"stats": new["batch_stats"], "step": rest["step"] + 1}

    @functools.partial(jax.jit, donate_argnums=0)
    def step(c):
        grads, rest = jax.grad(loss, has_aux=True)(c.params, c.rest)
        updates, opt_state = tx.update(grads, c.opt_state, c.params, masks=c.masks)
        return Checkpoint(optax.apply_updates(c.params, updates), c.masks, opt_state, rest)

    def train_fn(checkpoint, how):
        for _ in range(3 if how == "frozen" else 6):
            checkpoint = step(checkpoint)
        return checkpoint

    def eval_fn(c):
        logits = Net().apply({"params": c.params, "batch_stats": c.rest["stats"]}, images)
        return float((logits.argmax(-1) == labels).mean())

    grad_fn = jax.jit(lambda c: jax.grad(loss, has_aux=True)(c.params, c.rest)[0])
    variables = Net().init(jax.random.key(0), images)
    rest = {"stats": variables["batch_stats"], "step": jnp.int32(0)}
    masks = jaxsparse.dense_masks(variables["params"])
    start = Checkpoint(variables["params"], masks, tx.init(variables["params"]), rest)
    for _ in range(10):
        start = step(start)
    return start, tx, {"train_fn": train_fn, "eval_fn": eval_fn, "grad_fn": grad_fn}


def test_on_a_network_that_trains():
    start, tx, functions = parts()
    before = bits(start)
    seen = []

    def train_fn(checkpoint, how):
        seen.append(jax.tree.map(jnp.copy, checkpoint))
        return functions["train_fn"](checkpoint, how)

    grid = {"rates": (0.5, 0.9), "scopes": ("layer", "global"), "regenerate": (False, True)}
    options = functions | {"train_fn": train_fn} | grid
    found = pruning_plasticity({10: start}, **options, tx=tx)
    assert bits(start) == before  # although `train_fn` donates what it is given
    # Each arm trains once, the control first or last, from the same statistics and step.
    assert len(seen) == 8 + 1
    for checkpoint in seen:
        chex.assert_trees_all_equal(checkpoint.rest, start.rest)
        jaxsparse.check(checkpoint.params, checkpoint.opt_state, checkpoint.masks)
    for result in found.results:
        assert result.sparsity == pytest.approx(
            0.0 if result.cell.regenerate else result.cell.rate, abs=0.01
        )
        assert result.num_pruned == pytest.approx(342 * result.cell.rate, abs=2)  # by layer
    # Half of a layer of 288 has regrown, at 0 and without momentum.
    kernels = lambda c: (c.params["Dense_0"]["kernel"], c.opt_state[0].trace["Dense_0"]["kernel"])
    dense = [c for c in seen if c.masks["Dense_0"]["kernel"].all()]
    num_zero = [tuple(int((x == 0).sum()) for x in kernels(c)) for c in dense]
    assert len(dense) == 5 and (0, 0) in num_zero and (144, 144) in num_zero
    # Two studies are the same: nothing hangs on what was done before.
    assert pruning_plasticity({10: start}, **functions, **grid, tx=tx) == found


@pytest.mark.variants
def test_the_attention_of_an_nnx_transformer_in_bfloat16():
    attention = nnx.MultiHeadAttention(2, 16, rngs=nnx.Rngs(0), param_dtype=jnp.bfloat16)
    params = nnx.state(attention, nnx.Param)
    found = pruning_plasticity(
        {0: Checkpoint(params)},
        (0.75,),
        train_fn=lambda checkpoint, how: checkpoint,
        eval_fn=lambda c: jaxsparse.sparsity(jaxsparse.masks_from_params(c.params)),
        grad_fn=lambda c: c.params,
        scopes=("global",),
        regenerate=(False, True),
        score=saliency,
    )
    assert [r.sparsity for r in found.results] == pytest.approx([0.75, 0.0], abs=1e-3)
    assert [r.acc_after for r in found.results] == pytest.approx([0.75, 0.75], abs=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rates": (0.5, 1.0)}, r"rates 1.0 must be in \[0, 1\)"),
        ({"scopes": ("block",)}, "scopes 'block' must be of global and layer"),
        ({"learning_rates": ("end",)}, "learning_rates 'end' must be of frozen and schedule"),
        ({"regenerate": (True,)}, "need grad_fn"),
        ({"score": saliency}, "need grad_fn"),
        ({"checkpoints": {0: Checkpoint(PARAMS, opt_state=(), rest="pre")}}, "give tx"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        study(**options)
