"""ResRep's arm: its times, the refusal of short runs, masks between steps, and the merge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.structured import resrep
from experiments.structured.resrep import Times, times_of
from experiments.structured.setting import ResRep, Stretch, multiply_adds
from experiments.training import between
from jaxsparse.structured import row_masks, with_row_masks
from tests.experiments.structured.tiny import BASE, STEPS, make_setting, reached

pytestmark = pytest.mark.variants

PATH = "stage1_block1/compactor1/matrix"


def long_setting(**fields):
    """An epoch has 4 steps, and 5 rows may go."""
    return make_setting(steps=10_000, rate=0.01, **fields)


def test_times_are_the_published_ones_or_shares_of_a_short_run():
    assert times_of(long_setting()) == Times(start=20, interval=100, last=3920, quota=4)
    assert times_of(make_setting(steps=100)) == Times(5, 1, 40, 4)
    given = {"mask_start": 7, "mask_interval": 3, "mask_stop": 20, "mask_quota": 2}
    times = times_of(long_setting(resrep=ResRep(**given)))
    assert times == Times(7, 3, 19, 2)
    assert [step for step in range(30) if times.is_due(step)] == [10, 13, 16, 19]
    # One choice has to do for 5 rows.
    assert times_of(long_setting(resrep=ResRep(mask_interval=3000))).quota == 5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mask_interval": 0}, "mask_interval 0 must be a whole number, at least 1"),
        ({"mask_start": -1}, "mask_start -1 must be a whole number, at least 0"),
        ({"mask_stop": 10_000}, r"mask_stop 10000 must be a whole number in \[1, 9999\]"),
        ({"mask_quota": 0}, "mask_quota 0 must be a whole number, at least 1"),
        ({"mask_stop": 30, "mask_start": 20}, "--mask_stop=30 comes before the first choice of"),
        (
            {"lasso": 1e-5},
            "--lasso=1e-05 is too small: .* and nothing is pruned; take lasso=0.001",
        ),
    ],
)
def test_flags_that_cannot_work(given, message):
    with pytest.raises(ValueError, match=message):
        resrep.check(long_setting(resrep=ResRep(**given)))


def test_the_penalty_is_the_published_one_where_that_is_enough():
    early = ResRep(mask_stop=500, snap=False)
    assert resrep.preflight_of(long_setting(resrep=early)).lasso == 5e-4
    slow = make_setting(steps=40_000, rate=0.01, resrep=early)
    assert resrep.preflight_of(slow).lasso == 1e-4
    with pytest.raises(ValueError, match=r"--steps=8 are too few: .* or take a higher --arm_rate"):
        resrep.check(make_setting())
    with pytest.raises(
        ValueError, match=r"target 0.1 cannot be reached: the smallest widths leave"
    ):
        resrep.check(long_setting(target=0.1))


@pytest.fixture(scope="module")
def begun():
    setting = make_setting(resrep=ResRep(lasso=5.0, mask_start=0, mask_interval=2, mask_stop=5))
    return setting, resrep.begin(setting, reached(setting), Stretch(0.5, BASE + STEPS))


def test_masks_are_chosen_between_steps(begun):
    setting, (run, state, _) = begun
    assert [step for step in range(20) if between.is_due(run, step)] == [BASE + 2, BASE + 4]
    norms = jnp.array([3.0, 1.0, 2.0, 0.5, 4.0, 5.0])
    params = jax.tree.map(lambda x: x, state.params)
    params["stage1_block1"]["compactor1"]["matrix"] = jnp.diag(norms)
    (mask,) = row_masks(
        between.after(run, state.replace(params=params), BASE + 2).opt_state
    ).values()
    costs = resrep.costs_of(setting)
    least = next(n for n in range(6, 0, -1) if costs({PATH: n}) <= 0.5 * costs({}))
    assert mask.sum() == least < 6
    np.testing.assert_array_equal(mask, norms >= np.sort(norms)[-least])


def test_rows_that_have_come_to_0_are_merged_away(begun):
    setting, (run, state, narrow) = begun
    assert int(state.step) == BASE
    mask = np.array([True, False, True, True, False, True])
    rows = np.where(mask, 1.0, [0.0, 1e-7, 0.0, 0.0, 1e-3, 0.0])
    params = jax.tree.map(lambda x: x, state.params)
    params["stage1_block1"]["compactor1"]["matrix"] = jnp.diag(jnp.asarray(rows, jnp.float32))
    opt_state = with_row_masks(state.opt_state, {PATH: mask})
    state = state.replace(params=params, opt_state=opt_state)
    found = narrow(reached(setting)._replace(model=run.model, state=state))
    assert found.is_merged and found.model.conv_widths()["stage1_block1/conv1"] == 5
    assert found.notes["unsettled_rows"] == 1
    assert found.notes["masked_ratio"] == resrep.costs_of(setting)({PATH: 4}) / multiply_adds(
        setting.model, setting.image
    )
    assert (found.notes["lasso"], found.notes["mask_last"]) == (5.0, 4)
