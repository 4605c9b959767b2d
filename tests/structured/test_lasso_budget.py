"""The lasso's time budget: the table of published constants, and the optimizer that it predicts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsparse.structured.gradient_reset import compactor_sgd
from jaxsparse.structured.lasso_budget import lasso_preflight
from jaxsparse.structured.resrep import with_row_masks

pytestmark = pytest.mark.variants  # our own code, which knows little of versions

# Steps in all at a learning rate of 0.01 that falls as a cosine: the smallest lambda with which a
# row settles that is masked after 10 % and after 40 % of them.
TABLE = {
    2_000: (2e-3, None),
    3_900: (1e-3, 5e-3),
    7_800: (5e-4, 1e-3),
    15_600: (2e-4, 5e-4),
    31_200: (1e-4, 5e-4),
}


def preflight(total_steps, share, **options):
    schedule = optax.cosine_decay_schedule(0.01, total_steps)
    mask_step = int(share * total_steps)
    return lasso_preflight(schedule, total_steps=total_steps, mask_step=mask_step, **options)


@pytest.mark.parametrize("total_steps", TABLE)
@pytest.mark.filterwarnings("ignore:resrep")
def test_the_smallest_lasso_that_settles(total_steps):
    found = tuple(preflight(total_steps, share).enough for share in (0.1, 0.4))
    assert found == TABLE[total_steps]


def test_ten_epochs_of_cifar_are_too_few():
    with pytest.warns(UserWarning, match="ends with a norm of 0.85 .* take lasso=0.001") as told:
        found = preflight(3_900, 0.1)
    assert found.settles_at is None and found.reach < 0.2 and str(found) == str(told[0].message)
    with pytest.warns(UserWarning, match="no lasso up to 0.01 does; take more steps or mask ear"):
        preflight(2_000, 0.4)


@pytest.mark.parametrize("snap", [False, True])
def test_it_is_what_the_optimizer_does(snap):
    steps, mask_step, options = 2_000, 200, {"lasso": 2e-3, "momentum": 0.99, "snap": snap}
    schedule = optax.cosine_decay_schedule(0.01, steps)
    told = lasso_preflight(schedule, total_steps=steps, mask_step=mask_step, **options)
    tx = compactor_sgd(lambda step: schedule(step + mask_step), **options)
    q = {"q": jnp.eye(2)}
    state = with_row_masks(tx.init(q), {"q": np.array([False, True])})

    def step(carry, _):
        q, state = carry
        updates, state = tx.update(jax.tree.map(jnp.zeros_like, q), state, q)
        q = optax.apply_updates(q, updates)
        return (q, state), jnp.linalg.norm(q["q"][:, 0])

    _, norms = jax.jit(lambda c: jax.lax.scan(step, c, length=steps - mask_step))((q, state))
    last = int(np.flatnonzero(norms >= 1e-5)[-1])
    assert told.settles_at == pytest.approx(mask_step + last + 1, abs=60 if not snap else 3)
    assert told.reach > 1.5
    text = f"below 1e-05 from step {told.settles_at:,} on"
    assert str(told).endswith(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_step": 100}, r"mask_step 100 must be a whole number of steps in \[0, 99\]"),
        ({"lasso": 0.0}, r"lasso 0.0 must be in \(0, inf\)"),
        ({"row_norm": 0.0}, r"row_norm 0.0 must be in \(0, inf\)"),
        ({"momentum": 1.0}, r"momentum 1.0 must be in \[0, 1\)"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        lasso_preflight(0.1, **{"total_steps": 100, "mask_step": 0, **options})
