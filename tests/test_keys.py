"""Keys that fold in what they are for."""

import jax

from jaxsparse.keys import fold_key


def test_fold_key_depends_on_every_item_and_on_nothing_else(key):
    data = [
        ("event", 3, "fc/kernel"),
        ("event", 4, "fc/kernel"),
        ("event", 3, "fc/bias"),
        ("init",),
    ]
    drawn = [tuple(jax.random.key_data(fold_key(key, *items)).tolist()) for items in data]
    assert len(set(drawn)) == len(drawn)
    traced = jax.jit(lambda step: fold_key(key, "event", step, "fc/kernel"))(3)
    assert tuple(jax.random.key_data(traced).tolist()) == drawn[0]
    # Written down, since a hash that changed between versions would change every resumed run.
    assert drawn[0] == (2107366509, 3071701558)
    assert fold_key(None, "event", 3) is None
