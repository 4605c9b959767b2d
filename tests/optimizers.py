"""The table of optimizers for the tests: every one of optax's that `masked` goes around.

Learning rates are such that each converges on the problem of test_optimizers.py.
"""

from collections.abc import Callable
from typing import NamedTuple

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
      extra: names of what its update asks for besides: the loss, or a function of params.
      dense: whether it converges without masks; `optax.centralize` never moves the mean of a full
        column.
    """

    tx: optax.GradientTransformation
    num_slots: int
    writes: bool = False
    extra: tuple[str, ...] = ()
    dense: bool = True


def is_matrix(params):
    return jax.tree.map(lambda x: x.ndim > 1, params)


def labels(params):
    return jax.tree.map(lambda x: "matrix" if x.ndim > 1 else "vector", params)


def every_second(tx, should_skip: Callable | None = None):
    return optax.MultiSteps(tx, 2, should_skip_update_fn=should_skip).gradient_transformation()


def aged(learning_rate, *after):
    adam = optax.scale_by_adam(), jaxsparse.scale_by_age()
    return optax.chain(*adam, *after, optax.scale_by_learning_rate(learning_rate))


def scaled_adam(scale, learning_rate):
    return optax.chain(optax.scale_by_adam(), scale, optax.scale_by_learning_rate(learning_rate))


def to_zero(learning_rate):
    return optax.linear_schedule(learning_rate, 0.0, 150)


MOMENTUM = optax.sgd(0.05, momentum=0.9)
ADAM = optax.adam(0.05)
KEY = jax.random.key(7)

ROWS = {
    "sgd": Row(optax.sgd(0.3), 0),
    "momentum": Row(MOMENTUM, 1),
    "momentum_bfloat16": Row(optax.sgd(0.05, 0.9, accumulator_dtype=jnp.bfloat16), 1),
    "nesterov": Row(optax.sgd(0.05, momentum=0.9, nesterov=True), 1),
    "sign_sgd": Row(optax.sign_sgd(0.03), 0),
    "signum": Row(optax.signum(0.03), 1),
    "noisy_sgd": Row(optax.noisy_sgd(0.3, key=KEY), 0),
    "optimistic": Row(optax.optimistic_gradient_descent(0.3), 1),
    "polyak_sgd": Row(optax.polyak_sgd(1.0), 0, extra=("value",)),
    "lion": Row(optax.lion(0.05), 1),
    "rprop": Row(optax.rprop(0.01), 2),
    # Adam and its relatives.
    "adam": Row(ADAM, 2),
    "adam_bfloat16": Row(optax.adam(0.05, mu_dtype=jnp.bfloat16), 2),
    "adamw": Row(optax.adamw(0.05, weight_decay=0.01), 2),
    "adamw_on_matrices": Row(optax.adamw(0.05, weight_decay=0.01, mask=is_matrix), 2),
    "aged_adamw": Row(aged(0.05, optax.add_decayed_weights(0.01)), 3),
    "nadam": Row(optax.nadam(0.05), 2),
    "nadamw": Row(optax.nadamw(0.05, weight_decay=0.01), 2),
    "radam": Row(optax.radam(0.3), 2),
    "amsgrad": Row(optax.amsgrad(0.1), 3),
    "yogi": Row(optax.yogi(0.05), 2),
    "adan": Row(optax.adan(0.1, b1=0.9, b2=0.9, b3=0.99), 4),
    "novograd": Row(optax.novograd(0.01), 1),
    "optimistic_adam": Row(optax.optimistic_adam_v2(0.05), 3),
    "adabelief": Row(optax.adabelief(0.05), 2, writes=True),
    "adamax": Row(optax.adamax(0.1), 2, writes=True),
    "adamaxw": Row(optax.adamaxw(0.1, weight_decay=0.01), 2, writes=True),
    "ademamix": Row(contrib.ademamix(0.05), 3),
    "simplified_ademamix": Row(contrib.simplified_ademamix(0.003, b1=0.9), 2),
    "adopt": Row(contrib.adopt(0.1), 2),
    "sophia": Row(contrib.sophia(0.05, b1=0.8, gamma=0.1), 2, writes=True, extra=("obj_fn",)),
    # Second moments only, and large-batch scaling.
    "rmsprop": Row(optax.rmsprop(0.05, momentum=0.9, initial_scale=1.0), 2),
    "rmsprop_centered": Row(optax.rmsprop(0.01, momentum=0.9, centered=True), 3),
    "adagrad": Row(optax.adagrad(0.5), 1),
    "adadelta": Row(optax.adadelta(10.0), 2),
    "by_stddev": Row(optax.chain(optax.scale_by_stddev(), optax.scale(-0.03)), 2),
    # Rows and columns of (8, 16) are factored; the convolution keeps whole second moments.
    "adafactor": Row(optax.adafactor(0.1, min_dim_size_to_factor=8), 0, writes=True),
    "adafactor_whole": Row(optax.adafactor(0.2, momentum=0.9), 2, writes=True),
    "lamb": Row(optax.lamb(0.1), 2),
    "lars": Row(optax.lars(10.0), 1),
    "fromage": Row(optax.fromage(0.1), 0),
    "by_trust_ratio": Row(scaled_adam(optax.scale_by_trust_ratio(), 0.05), 2),
    "by_block_norm": Row(scaled_adam(optax.scale_by_param_block_norm(), 0.03), 2),
    "by_block_rms": Row(scaled_adam(optax.scale_by_param_block_rms(), 0.1), 2),
    "muon": Row(contrib.muon(0.1), 1),
    "galore": Row(contrib.galore(0.3, rank=4, update_proj_gap=10), 0),
    # Without a learning rate, or averaging.
    "prodigy": Row(contrib.prodigy(1.0), 4),
    "dadapt_adamw": Row(contrib.dadapt_adamw(1.0), 3),
    "dog": Row(contrib.dog(2.0), 1),
    "dowg": Row(contrib.dowg(1.0), 1),
    "cocob": Row(contrib.cocob(), 5),
    "mechanize": Row(contrib.mechanize(MOMENTUM, s_init=1e-2), 2),
    "momo": Row(contrib.momo(0.5), 1, extra=("value",)),
    "momo_adam": Row(contrib.momo_adam(0.1), 2, extra=("value",)),
    "madgrad": Row(contrib.madgrad(0.05), 3),
    "schedule_free_sgd": Row(contrib.schedule_free_sgd(0.5), 1),
    "schedule_free_adamw": Row(contrib.schedule_free_adamw(0.1), 2),
    "sam": Row(contrib.sam(MOMENTUM, optax.sgd(0.02)), 2),
    "sam_opaque": Row(
        contrib.sam(MOMENTUM, optax.sgd(0.02), opaque_mode=True), 1, True, extra=("grad_fn",)
    ),
    # Wrappers and chains.
    "clipped": Row(optax.chain(optax.clip_by_global_norm(0.5), ADAM), 2),
    "clipped_by_block": Row(optax.chain(optax.clip_by_block_rms(0.1), optax.sgd(0.5)), 0),
    "adaptively_clipped": Row(optax.chain(optax.adaptive_grad_clip(0.1), ADAM), 2),
    "normalized": Row(optax.chain(contrib.normalize(), optax.sgd(to_zero(0.3))), 0),
    "normalized_update": Row(
        optax.chain(optax.normalize_by_update_norm(), optax.sgd(to_zero(0.3))), 0
    ),
    "coupled_decay": Row(optax.chain(optax.add_decayed_weights(0.001), MOMENTUM), 1),
    "noise_then_momentum": Row(
        optax.chain(optax.add_noise(0.01, 0.55, KEY), MOMENTUM), 1, writes=True
    ),
    "centralized": Row(optax.chain(optax.centralize(), ADAM), 2, writes=True, dense=False),
    "averaged_updates": Row(optax.chain(optax.sgd(0.2), optax.ema(0.9)), 1),
    "every_other_step": Row(optax.chain(ADAM, optax.apply_every(2)), 3),
    "every_other_mask": Row(
        optax.conditionally_mask(optax.adam(0.1), lambda step, *_, **__: step % 2 == 0), 2
    ),
    "plateau": Row(optax.chain(ADAM, contrib.reduce_on_plateau(patience=20)), 2, extra=("value",)),
    "clipped_sam": Row(optax.chain(optax.clip(5.0), contrib.sam(MOMENTUM, optax.sgd(0.02))), 2),
    "scheduled": Row(optax.sgd(optax.cosine_decay_schedule(0.1, 150), momentum=0.9), 1),
    "injected": Row(optax.inject_hyperparams(optax.adamw)(learning_rate=to_zero(0.1)), 2),
    "partitioned": Row(optax.partition({"matrix": ADAM, "vector": MOMENTUM}, labels), 2),
    "partitioned_with_age": Row(
        optax.partition({"matrix": aged(0.05), "vector": MOMENTUM}, labels), 3
    ),
    "trace_of_matrices": Row(
        optax.chain(optax.masked(optax.trace(0.9), is_matrix), optax.scale(-0.05)), 1
    ),
    "multi_steps": Row(every_second(optax.adam(0.1)), 3),
    "multi_steps_itself": Row(optax.MultiSteps(aged(0.1), 2), 4),
    "multi_steps_finite": Row(every_second(optax.adam(0.1), optax.skip_not_finite), 3),
    "apply_if_finite": Row(optax.apply_if_finite(ADAM, 3), 2),
    "zero_nans": Row(optax.chain(optax.zero_nans(), ADAM), 2),
    "snapshot": Row(optax.chain(ADAM, optax.snapshot("norm", optax.tree.norm)), 2),
    "real_and_imaginary": Row(contrib.split_real_and_imaginary(ADAM), 2),
}
