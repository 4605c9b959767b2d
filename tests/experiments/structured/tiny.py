"""A study of a network with one block, on random images, and a row for it in the tables."""

import jax.numpy as jnp
import numpy as np
import optax

import jaxsparse
from experiments import loop
from experiments.data.dataset import Dataset
from experiments.structured import networks
from experiments.structured.setting import Reached, Setting
from experiments.training.recipes import RECIPES
from jaxsparse.nn import ResNet
from jaxsparse.nn.residual_blocks import BasicBlock
from tests.experiments.small_runs import make_run, normalise, split

BASE, STEPS = 4, 8
INNER, OUTER = "params/stage1_block1/conv1", "params/conv1"


def tiny(width=6, num_classes=3):
    return ResNet((1,), BasicBlock, width=width, stem="cifar", num_classes=num_classes)


def images(folder=None, val_fraction=0.1):
    return Dataset("random", split(0, 48), split(1, 8), split(2, 8), 3)


def add_to(monkeypatch):
    """Adds --model=tiny and --dataset=random, for the length of a test."""
    monkeypatch.setitem(networks.MODELS, "tiny", (tiny, 6))
    row = networks.Data(images, normalise, lambda key, step, images: images)
    monkeypatch.setitem(networks.DATA, "random", row)


def make_setting(*, steps=STEPS, rate=0.1, **fields):
    method = jaxsparse.dense(total_steps=BASE)
    base = make_run(model=tiny(), dataset=images(), method=method)
    fields = {"target": 0.5, "timed_steps": 0} | fields
    recipe, schedule = RECIPES["granet"], optax.cosine_decay_schedule(rate, steps)
    return Setting("tiny", base, steps, recipe, schedule, **fields)


def reached(setting):
    """The end of a base that has not been trained, with norms that differ."""
    state = loop.create_state(setting.base)
    rng = np.random.default_rng(0)
    block = state.params["stage1_block1"]
    scale = jnp.asarray(rng.uniform(0.5, 2.0, 6), jnp.float32)
    norm = {"scale": scale, "bias": scale - 1.0}
    params = {**state.params, "stage1_block1": {**block, "norm1": norm}}
    return Reached(setting.model, state.replace(params=params, step=jnp.int32(BASE)), 0.4)
