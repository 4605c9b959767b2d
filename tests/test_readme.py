"""The README's code runs as written, and a new criterion takes under 15 lines."""

import difflib
import functools
import re
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxsparse
import jaxsparse.nn
from jaxsparse.paths import leaves_by_path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_readmes_code_runs_in_order(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # it writes a checkpoint and a file of weights
    names: dict = {}
    with jax.numpy_rank_promotion("allow"):  # as users have it
        for block in BLOCKS:
            exec(compile(block, "README.md", "exec"), names)
    assert jaxsparse.num_active(names["state"].masks) == 266_200 - int(0.95 * 266_200)
    printed = capsys.readouterr().out
    assert "410" in printed  # granet_st's 10 % of 4,096, in the summary
    assert "mine: 4 events in 100 steps" in printed

    params = {"kernel": jax.random.normal(jax.random.key(0), (100, 100))}
    grads = {"kernel": jax.random.normal(jax.random.key(1), (100, 100))}
    masks = names["mine"].init(jax.random.key(2), params)
    event = names["mine"].update(jaxsparse.apply_masks(params, masks), grads, masks, 20)
    assert 0 < int(event.metrics.num_grown[0]) <= 100  # a tenth, some of it dropped and back


def test_the_readmes_torchvision_weights(monkeypatch):
    """On a state dict of the names and shapes that torchvision's narrower ResNet-18 would have."""
    block = re.search(r"<!-- torchvision -->\n```py\n(.*?)```", README, re.DOTALL)[1]
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
    exec(compile(block, "README.md", "exec"), names)
    assert jax.tree.leaves(names["masks"])[0].all()
    assert names["variables"]["params"]["fc"]["kernel"].shape[-1] == 10
    assert names["variables"]["params"]["conv1"]["kernel"].min() == 1
    assert names["variables"]["batch_stats"]["norm1"]["var"].min() == 1


def test_a_new_criterion_takes_under_15_lines_and_decides():
    block = re.search(r"<!-- new criterion -->\n```python\n(.*?)```", README, re.DOTALL)[1]
    assert len(block.strip().splitlines()) < 15
    names: dict = {"jaxsparse": jaxsparse}
    exec(compile(block, "README.md", "exec"), names)

    w, g = np.random.default_rng(0).normal(size=(2, 20, 20)).astype(np.float32)
    params, grads = {"kernel": jnp.asarray(w)}, {"kernel": jnp.asarray(g)}
    masks = names["method"].init(jax.random.key(0), params)
    event = names["method"].update(params, grads, masks, 50)  # the cubic has arrived: 40 of 400
    expected = np.zeros(400, bool)
    expected[np.argsort(-(-w * g).ravel())[:40]] = True
    np.testing.assert_array_equal(np.asarray(event.masks["kernel"]).ravel(), expected)


def test_the_readme_names_every_method():
    for name in ("granet_st", "granet", "gmp", "rigl", "set_", "snfs", "rigl_itop", "set_itop"):
        assert f"`{name}`" in README


def test_the_readmes_diff_is_that_of_the_examples():
    names = ("examples/dense_flax.py", "examples/sparse_flax.py")
    scripts = [(ROOT / name).read_text(encoding="utf-8").splitlines() for name in names]
    block = re.search(r"<!-- dense to sparse -->\n```diff\n(.*?)```", README, re.DOTALL)[1]
    assert block.splitlines() == list(difflib.unified_diff(*scripts, *names, lineterm="", n=1))
