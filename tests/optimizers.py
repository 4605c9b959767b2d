"""The table of optimizers for the tests: every one of optax's that `masked` goes around."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib

import jaxsparse


class Row(NamedTuple):
    """One optimizer.

    Attributes:
      tx: the transformation, not yet masked.
      num_slots: slots of the shape of a matrix (8, 16), with which the tests guard themselves
        against looking at none.
      writes: whether it puts something of its own into slots off the mask (see `masked`).
      extra: what its update asks for besides.
    """

    tx: optax.GradientTransformation
    num_slots: int
    writes: bool = False
    extra: dict[str, Any] = {}


def is_matrix(params):
    return jax.tree.map(lambda x: x.ndim > 1, params)


def labels(params):
    return jax.tree.map(lambda x: "matrix" if x.ndim > 1 else "vector", params)


def quartic(params):
    return sum((x**4).sum() for x in jax.tree.leaves(params))


def every_second(tx, should_skip: Callable | None = None):
    return optax.MultiSteps(tx, 2, should_skip_update_fn=should_skip).gradient_transformation()


def aged(*after):
    adam = optax.scale_by_adam(), jaxsparse.scale_by_age()
    return optax.chain(*adam, *after, optax.scale_by_learning_rate(0.01))


MOMENTUM = optax.sgd(0.01, momentum=0.9)
ADAM = optax.adam(0.01)
KEY = jax.random.key(7)
VALUE = {"value": jnp.float32(1.0)}  # a loss, for those whose learning rate follows it

ROWS = {
    "sgd": Row(optax.sgd(0.01), 0),
    "momentum": Row(MOMENTUM, 1),
    "momentum_bfloat16": Row(optax.sgd(0.01, 0.9, accumulator_dtype=jnp.bfloat16), 1),
    "nesterov": Row(optax.sgd(0.01, momentum=0.9, nesterov=True), 1),
    "signum": Row(optax.signum(0.01), 1),
    "noisy_sgd": Row(optax.noisy_sgd(0.01, key=KEY), 0),
    "optimistic": Row(optax.optimistic_gradient_descent(0.01), 1),
    "polyak_sgd": Row(optax.polyak_sgd(0.01), 0, extra=VALUE),
    "lion": Row(optax.lion(0.01), 1),
    # Adam and its relatives.
    "adam": Row(ADAM, 2),
    "adam_bfloat16": Row(optax.adam(0.01, mu_dtype=jnp.bfloat16), 2),
    "adamw": Row(optax.adamw(0.01, weight_decay=0.1), 2),
    "adamw_on_matrices": Row(optax.adamw(0.01, weight_decay=0.1, mask=is_matrix), 2),
    "aged_adamw": Row(aged(optax.add_decayed_weights(0.1)), 3),
    "nadamw": Row(optax.nadamw(0.01), 2),
    "radam": Row(optax.radam(0.01), 2),
    "amsgrad": Row(optax.amsgrad(0.01), 3),
    "yogi": Row(optax.yogi(0.01), 2),
    "adan": Row(optax.adan(0.01), 4),
    "novograd": Row(optax.novograd(0.01), 1),
    "optimistic_adam": Row(optax.optimistic_adam_v2(0.01), 3),
    "adabelief": Row(optax.adabelief(0.01), 2, writes=True),
    "adamax": Row(optax.adamax(0.01), 2, writes=True),
    "ademamix": Row(contrib.ademamix(0.01), 3),
    "simplified_ademamix": Row(contrib.simplified_ademamix(0.001), 2),
    "adopt": Row(contrib.adopt(0.01), 2),
    "acprop": Row(contrib.acprop(0.01), 2, writes=True),
    "sophia": Row(contrib.sophia(0.01), 2, extra={"obj_fn": quartic}),
    # Second moments only, and large-batch scaling.
    "rmsprop": Row(optax.rmsprop(0.01, momentum=0.9, initial_scale=1.0), 2),
    "rmsprop_centered": Row(optax.rmsprop(0.01, momentum=0.9, centered=True), 3),
    "adagrad": Row(optax.adagrad(0.1), 1),
    "adadelta": Row(optax.adadelta(1.0), 2),
    # Rows and columns of (8, 16) are factored; the convolution keeps whole second moments.
    "adafactor": Row(optax.adafactor(0.01, min_dim_size_to_factor=8), 0, writes=True),
    "adafactor_whole": Row(optax.adafactor(0.01, momentum=0.9), 2, writes=True),
    "lamb": Row(optax.lamb(0.01), 2),
    "lars": Row(optax.lars(1.0), 1),
    "fromage": Row(optax.fromage(0.01), 0),
    "muon": Row(contrib.muon(0.01), 1),
    "galore": Row(contrib.galore(0.01, rank=2), 0),
    # Without a learning rate, or averaging.
    "prodigy": Row(contrib.prodigy(1.0), 4),
    "dadapt_adamw": Row(contrib.dadapt_adamw(1.0), 3),
    "dog": Row(contrib.dog(1.0), 1),
    "dowg": Row(contrib.dowg(1.0), 1),
    "cocob": Row(contrib.cocob(), 5),
    "mechanize": Row(contrib.mechanize(MOMENTUM), 2),
    "momo": Row(contrib.momo(0.1), 1, extra=VALUE),
    "momo_adam": Row(contrib.momo_adam(0.1), 2, extra=VALUE),
    "madgrad": Row(contrib.madgrad(0.01), 3),
    "schedule_free_sgd": Row(contrib.schedule_free_sgd(0.1), 1),
    "schedule_free_adamw": Row(contrib.schedule_free_adamw(0.01), 2),
    "sam": Row(optax.GradientTransformation(*contrib.sam(MOMENTUM, optax.sgd(0.05))), 2),
    # Wrappers and chains.
    "clipped": Row(optax.chain(optax.clip_by_global_norm(0.5), ADAM), 2),
    "adaptively_clipped": Row(optax.chain(optax.adaptive_grad_clip(0.1), ADAM), 2),
    "coupled_decay": Row(optax.chain(optax.add_decayed_weights(0.1), MOMENTUM), 1),
    "noise_then_momentum": Row(
        optax.chain(optax.add_noise(0.1, 0.55, KEY), MOMENTUM), 1, writes=True
    ),
    "centralized": Row(optax.chain(optax.centralize(), ADAM), 2, writes=True),
    "averaged_updates": Row(optax.chain(MOMENTUM, optax.ema(0.9)), 2),
    "every_other_step": Row(optax.chain(ADAM, optax.apply_every(2)), 3),
    "plateau": Row(optax.chain(ADAM, contrib.reduce_on_plateau()), 2, extra=VALUE),
    "scheduled": Row(optax.sgd(optax.cosine_decay_schedule(0.1, 60), momentum=0.9), 1),
    "injected": Row(
        optax.inject_hyperparams(optax.adamw)(learning_rate=optax.linear_schedule(0.1, 0.01, 50)), 2
    ),
    "partitioned": Row(optax.partition({"matrix": ADAM, "vector": MOMENTUM}, labels), 2),
    "partitioned_with_age": Row(
        optax.partition({"matrix": aged(optax.scale(1.0)), "vector": MOMENTUM}, labels), 3
    ),
    "trace_of_matrices": Row(
        optax.chain(optax.masked(optax.trace(0.9), is_matrix), optax.scale(-0.01)), 1
    ),
    "multi_steps": Row(every_second(ADAM), 3),
    "multi_steps_finite": Row(every_second(ADAM, optax.skip_not_finite), 3),
    "apply_if_finite": Row(optax.apply_if_finite(ADAM, 3), 2),
    "real_and_imaginary": Row(contrib.split_real_and_imaginary(ADAM), 2),
}
