"""An average of params over steps keeps weights that were dropped since, until it is masked."""

import numpy as np
import optax
import pytest

import jaxsparse
from tests.trees import FIXED, NUM_WEIGHTS, fill, prunable

STEPS, EVERY = 12, 3


EMA = optax.ema(0.9, debias=True)


def run(key, forget=False):
    """Trains as the README does; returns params, their two averages, and the last masks."""
    method = jaxsparse.granet_st(sparsity=0.7, total_steps=STEPS, update_interval=EVERY)
    tx = jaxsparse.masked(optax.sgd(0.1))
    params = fill(FIXED, 0)
    masks = method.init(key, params)
    params = jaxsparse.apply_masks(params, masks)
    opt_state, average, state = tx.init(params), params, EMA.init(params)
    for n in range(1, STEPS + 1):
        grads = fill(FIXED, n)
        updates, opt_state = tx.update(grads, opt_state, params, masks=masks)
        params = optax.apply_updates(params, updates)
        average = optax.incremental_update(params, average, 0.1)
        debiased, state = EMA.update(params, state)
        if method.is_due(n):
            event = method.update(params, grads, masks, n, key=key)
            params, opt_state = jaxsparse.apply_event(tx, event, params, opt_state)
            masks = event.masks
            if forget:
                average = jaxsparse.apply_masks(average, event.kept)
    return masks, {"incremental_update": average, "ema": debiased}


def num_nonzero(tree):
    return sum(np.count_nonzero(leaf) for leaf in prunable(tree))


@pytest.mark.parametrize("kind", ["incremental_update", "ema"])
def test_an_average_holds_ghosts_until_it_is_masked(kind, key):
    masks, averages = run(key)
    average = averages[kind]
    active = jaxsparse.num_active(masks)
    assert active == NUM_WEIGHTS - int(0.7 * NUM_WEIGHTS)
    assert num_nonzero(average) > 1.3 * active, "no ghost: the test shows nothing"
    with pytest.raises(ValueError, match="inactive entries are not 0"):
        jaxsparse.check(average, (), masks)

    evaluated = jaxsparse.apply_masks(average, masks)
    jaxsparse.check(evaluated, (), masks)
    assert num_nonzero(evaluated) == active
    assert jaxsparse.sparsity(jaxsparse.masks_from_params(evaluated)) == jaxsparse.sparsity(masks)
    on = [
        (a[m] == b[m]).all()
        for a, b, m in zip(*map(prunable, (average, evaluated, masks)), strict=True)
    ]
    assert all(on)


def test_the_average_of_a_kept_weight_forgets_its_former_life(key):
    """Masking by `event.kept` at every event leaves weights alone that were never dropped."""
    masks, averages = run(key)
    _, forgetting = run(key, forget=True)
    old, new = averages["incremental_update"], forgetting["incremental_update"]
    old = jaxsparse.apply_masks(old, masks)
    jaxsparse.check(new, (), masks)
    differ = [(a != b).sum() for a, b in zip(*map(prunable, (old, new)), strict=True)]
    assert 0 < sum(differ) < jaxsparse.num_active(masks)
