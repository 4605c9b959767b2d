"""The code of every page runs as written, in order, and comes to what the page says."""

import functools
import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jaxsparse
import jaxsparse.nn
from jaxsparse.paths import leaves_by_path
from tests.docs.pages import PAGES, marked_block, run, text_of


def _readme(after, printed):
    assert jaxsparse.num_active(after[-1]["optimizer"].masks) == 410
    assert "410" in printed


def _training_loops(after, printed):
    assert "410" in printed  # granet_st's 10 % of 4,096, in the summary
    assert jaxsparse.num_active(after[-1]["state"].masks) == 266_200 - int(0.95 * 266_200)


def _which_leaves(after, printed):
    plan = jaxsparse.rigl(sparsity=0.9, total_steps=1000).plan(after[-1]["params"])
    assert plan.num_prunable == 266_200
    assert "\n0.79699" in printed
    assert after[-1]["rules"] == (("", None),)


def _masks_and_optimizers(after, printed):
    assert printed.startswith("20 0.5")


def _sparse_init(after, printed):
    dense, masked, scaled = (float(number) for number in re.findall(r"\d+\.\d+", printed))
    assert masked < dense / 20 and scaled == pytest.approx(dense, rel=0.3)
    assert jaxsparse.num_active(after[-1]["state"].masks) == 266_200 - int(0.95 * 266_200)


def _frozen(after, printed):
    assert after[-1]["frozen"] == ["backbone/kernel"]
    masks = after[-1]["state"].masks
    assert masks["backbone"]["kernel"].all() and jaxsparse.num_active(masks) == 64**2 + 64


def _structured(after, printed):
    groups = after[0]["groups"]
    assert [group.width for group in groups] == [16, 16, 32, 32, 64, 64]
    assert "axis 1 stays whole: a constant array of shape (4,), at " in printed
    table = text_of("docs/structured.md").split("\n    group ")[1].split("    ...")[0]
    for row in f"group {table}".splitlines():
        assert row.strip() in printed
    values = after[-1]
    wide, thin, variables = values["model"], values["small"], values["variables"]
    sparse = variables | {"params": jaxsparse.apply_masks(variables["params"], values["masks"])}
    logits = [
        np.asarray(network.apply(variables, values["images"]))
        for network, variables in ((wide, sparse), (thin, values["small_variables"]))
    ]
    np.testing.assert_allclose(*logits, rtol=1e-4, atol=1e-6)
    assert float(re.search(r"^(\S+e-\d+)$", printed, re.MULTILINE)[1]) < 1e-5


def _stopping(after, printed):
    tuned, state = after[-1]["tuned"], after[-1]["state"]
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), tuned.params, state.params))
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), tuned.masks, state.masks))


def _your_own(after, printed):
    assert "mine: 4 events in 100 steps" in printed
    params = {"kernel": jax.random.normal(jax.random.key(0), (100, 100))}
    grads = {"kernel": jax.random.normal(jax.random.key(1), (100, 100))}
    mine = after[-1]["mine"]
    masks = mine.init(jax.random.key(2), params)
    event = mine.update(jaxsparse.apply_masks(params, masks), grads, masks, 20)
    assert 0 < int(event.metrics.num_grown[0]) <= 100  # a tenth, some of it dropped and back


def _lottery(after, printed):
    assert [line.split()[1] for line in printed.splitlines()[:3]] == ["205", "164", "132"]
    (_, of_rate), (_, of_end) = after[1]["rewound_rate"], after[1]["fine_tuned"]
    assert [int(state[1].count) for state in (of_rate, of_end)] == [5, 40]
    state = after[2]["state"]
    assert jaxsparse.num_active(state.masks) == 277 and int(state.step) == 0  # of 432
    assert jaxsparse.num_active(after[3]["masks"]) == 164


def _from_jaxpruner(after, printed):
    theirs, ours = after[-2], after[-1]
    active = 4096 - int(0.8 * 4096)
    assert jaxsparse.num_active(theirs["opt_state"].masks) == active
    assert np.count_nonzero(theirs["pruned_params"]["kernel"]) == active
    assert "_total_sparsity" in printed
    assert jaxsparse.num_active(ours["masks"]) == active
    jaxsparse.check(ours["params"], ours["opt_state"], ours["masks"])


def _several_devices(after, printed):
    """On eight devices, as the tests have them."""
    names = after[-1]
    state, sharded, born = names["state"], names["sharded"], names["born"]
    assert int(state.events.num_taken) == 2 and int(state.step) == 40
    assert {leaf.sharding.mesh for leaf in jax.tree.leaves(state)} == {names["mesh"]}
    assert (int(sharded.step), int(born.step)) == (41, 0)
    for made in (sharded, born):
        for tree in (made.params, made.masks, made.opt_state[0].mu):
            assert tree["Dense_0"]["kernel"].sharding.spec == P("data")
    assert printed.startswith("masks ")


def _studies(after, printed):
    names = after[-1]
    assert len(names["study"].results) == 12 and "checkpoint  lr      scope" in printed
    assert "in 600 steps a passive weight shrinks to 0.0061" in printed
    assert jaxsparse.num_active(names["masks"]) == 20
    before, after = map(float, printed.splitlines()[-1].split())
    assert abs(before - after) < 0.02


def _resrep(after, printed):
    narrow, costs = after[0]["narrow"], after[0]["costs"]
    (width,) = costs.widths.values()
    assert narrow.widths["stage1_block1/conv1"] < 0.6 * width
    assert float(re.search(r"^(\S+e-\d+)$", printed, re.MULTILINE)[1]) < 1e-5
    assert "does not map 0 to 0" in printed and "csgd: in 2,000 steps" in printed


def _inference(after, printed):
    names = after[-1]
    variables = names["variables"]
    params = jaxsparse.apply_masks(variables["params"], names["masks"])
    wanted = names["model"].apply(variables | {"params": params}, names["images"])
    np.testing.assert_allclose(names["logits"], wanted, rtol=1e-4, atol=1e-5)
    assert (names["logits"].argmax(-1) == names["classes"]).all()
    linear = [step for step in names["profile"].steps if step.kind == "linear"]
    assert [step.function for step in linear] == ["relu", "relu", ""]  # norms and sum are in them
    assert "XLA runs 1 x dot_general: it is a batch of products" in printed
    assert "threads 0 must be a whole number in [1, 256]" in printed
    assert "the input has shape (4, 5, 12, 3)" in printed
    assert "parts of the network need XLA" in printed


COMES_TO = {
    "README.md": _readme,
    "docs/training_loops.md": _training_loops,
    "docs/structured.md": _structured,
    "docs/which_leaves.md": _which_leaves,
    "docs/masks_and_optimizers.md": _masks_and_optimizers,
    "docs/sparse_init.md": _sparse_init,
    "docs/frozen_and_mixed_precision.md": _frozen,
    "docs/stopping_and_going_on.md": _stopping,
    "docs/your_own_criterion.md": _your_own,
    "docs/lottery_tickets.md": _lottery,
    "docs/from_jaxpruner.md": _from_jaxpruner,
    "docs/many_devices.md": _several_devices,
    "docs/studies.md": _studies,
    "docs/resrep_and_csgd.md": _resrep,
    "docs/inference.md": _inference,
}


LONG = {"docs/extreme_sparsity.md": pytest.mark.variants}  # it compiles four networks


@pytest.mark.parametrize("page", [pytest.param(page, marks=LONG.get(page, ())) for page in PAGES])
def test_a_pages_code_runs_in_order(page, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # pages write checkpoints and files of weights
    after = run(page)
    if page in COMES_TO:
        COMES_TO[page](after, capsys.readouterr().out)


def test_torchvisions_weights(monkeypatch):
    """On a state dict of the names and shapes that torchvision's narrower ResNet-18 would have."""
    small = functools.partial(jaxsparse.nn.resnet, width=4, stem="cifar")
    monkeypatch.setattr(jaxsparse.nn, "resnet", small)
    image = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    shapes = jax.eval_shape(small(18).init, jax.random.key(0), image)
    state_dict = {
        f"module.{jaxsparse.nn.torchvision_name(path)}": np.ones(
            leaf.shape if leaf.ndim < 2 else (*leaf.shape[:-3:-1], *leaf.shape[:-2])
        )
        for path, leaf in leaves_by_path(shapes).items()
    }
    torch = types.SimpleNamespace(load=lambda file: state_dict)
    monkeypatch.setitem(sys.modules, "torch", torch)
    names = {"jax": jax, "jnp": jnp, "jaxsparse": jaxsparse, "image": image}
    exec(marked_block("docs/networks_and_data.md", "torchvision"), names)
    assert jax.tree.leaves(names["masks"])[0].all()
    assert names["variables"]["params"]["fc"]["kernel"].shape[-1] == 10
    assert names["variables"]["params"]["conv1"]["kernel"].min() == 1
    assert names["variables"]["batch_stats"]["norm1"]["var"].min() == 1


def test_a_new_criterion_takes_under_15_lines_and_decides():
    block = marked_block("docs/your_own_criterion.md", "new criterion")
    assert len(block.strip().splitlines()) < 15
    names: dict = {}
    exec(block, names)

    w, g = np.random.default_rng(0).normal(size=(2, 20, 20)).astype(np.float32)
    params, grads = {"kernel": jnp.asarray(w)}, {"kernel": jnp.asarray(g)}
    masks = names["method"].init(jax.random.key(0), params)
    event = names["method"].update(params, grads, masks, 50)  # the cubic has arrived: 40 of 400
    expected = np.zeros(400, bool)
    expected[np.argsort(-(-w * g).ravel())[:40]] = True
    np.testing.assert_array_equal(np.asarray(event.masks["kernel"]).ravel(), expected)
