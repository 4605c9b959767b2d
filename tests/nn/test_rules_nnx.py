"""Rules by the classes of an NNX model's layers."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import jaxsparse
from jaxsparse.nn.rules_nnx import prunable_by_class


class PositionTable(nnx.Module):
    def __init__(self, rngs):
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (16, 8)))


class Places(PositionTable):
    """A layer that is recognised by its base class."""


class Net(nnx.Module):
    def __init__(self, rngs):
        self.tokens = nnx.Embed(99, 8, rngs=rngs)
        self.places = Places(rngs)
        self.embed = nnx.Linear(8, 8, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(8, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)])
        self.cell = nnx.GRUCell(8, 8, rngs=rngs)
        self.heads = nnx.Dict(a=nnx.Linear(8, 2, rngs=rngs))
        self.same = self.embed  # shared: one leaf


KERNELS = ["cell/dense_h/kernel", "cell/dense_i/kernel", "heads/a/kernel"]


@pytest.fixture(scope="module")
def model():
    return nnx.eval_shape(lambda: Net(nnx.Rngs(0)))


def test_classes_decide(model):
    rules = prunable_by_class(model)
    by_class = [*KERNELS[:2], "embed/kernel", KERNELS[2], "norms/1/kernel"]
    for params in (nnx.state(model, nnx.Param), nnx.as_pure(nnx.state(model, nnx.Param))):
        assert jaxsparse.prunable_paths(params, rules) == by_class
        assert jaxsparse.prunable_paths(params) == [*KERNELS, "places/kernel"]


def test_rules_name_what_differs(model):
    assert prunable_by_class(model) == (
        ("^(embed/kernel|norms/1/kernel)$", True),
        ("^(places/kernel)$", False),
        ("", None),
    )
    assert prunable_by_class(nnx.Linear(2, 2, rngs=nnx.Rngs(0))) == (("", None),)
    assert prunable_by_class(PositionTable(nnx.Rngs(0))) == (("^(kernel)$", False),)


def test_a_method_takes_them(model, key):
    method = jaxsparse.static(sparsity=0.5, total_steps=1, prunable=prunable_by_class(model))
    params = nnx.state(model, nnx.Param)
    masks = jax.eval_shape(method.init, key, params)
    assert jax.tree.structure(masks) == jax.tree.structure(params)
    assert list(method.plan(params).sizes) == jaxsparse.prunable_paths(params, method.prunable)
    assert hash(method.prunable)


def test_a_path_of_regex_characters():
    class Odd(nnx.Module):
        def __init__(self, rngs):
            self.parts = nnx.Dict({"embed": nnx.Linear(2, 2, rngs=rngs)})
            self.fc = nnx.Param(jnp.ones(2))
            setattr(self, "a.embed", nnx.Linear(2, 2, rngs=rngs))

    model = Odd(nnx.Rngs(0))
    rules = prunable_by_class(model)
    paths = jaxsparse.prunable_paths(nnx.state(model, nnx.Param), rules)
    assert paths == ["a.embed/kernel", "parts/embed/kernel"]
