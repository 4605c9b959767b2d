"""Training FLOPs by hand: 3 f_S a step, 2 f_S + f_D where the dense gradient is needed."""

import pytest

from jaxsparse.tracing.training_flops import training_flops

DENSE = {"kernel": 100, "other": 0}
SPARSE = {"kernel": 0.2}  # f_D = 100, f_S = 20


# Evci et al. (2020), appendix on FLOPs: with one event in Delta T + 1 = 101 steps, a step costs
# (3 f_S T + 2 f_S + f_D) / (T + 1).
@pytest.mark.parametrize(
    ("dense_gradient", "a_step"),
    [("never", 60.0), ("events", (60 * 100 + 2 * 20 + 100) / 101), ("always", 140.0)],
)
@pytest.mark.parametrize("event_step", [1, 50, 100])
def test_static_rigl_and_snfs(dense_gradient, a_step, event_step):
    run = {0: SPARSE, event_step: SPARSE}
    total = training_flops(DENSE, run, 101, dense_gradient=dense_gradient)
    assert total / 101 == pytest.approx(a_step, rel=1e-12)


def test_the_known_answer_of_rigl_to_four_digits():
    total = training_flops(DENSE, {0: SPARSE, 100: SPARSE}, 101, dense_gradient="events")
    assert round(total / 101, 4) == 60.7921


def test_every_step_costs_what_the_masks_in_force_cost():
    # Steps 1 and 2 at density 1, steps 3 to 5 at .5, steps 6 to 10 at .1; a dense leaf of 7.
    run = {5: {"a": 0.1}, 0: {"a": 1.0}, 2: {"a": 0.5}}  # in any order
    dense = {"a": 100, "b": 7}
    by_hand = 3 * (2 * 107 + 3 * 57 + 5 * 17)
    assert training_flops(dense, run, 10) == by_hand
    # The gradient of an event is that of its own step, at the masks before it: steps 2 and 5.
    extra = (107 - 107) + (107 - 57)
    assert training_flops(dense, run, 10, dense_gradient="events") == by_hand + extra
    everywhere = 2 * (107 - 107) + 3 * (107 - 57) + 5 * (107 - 17)
    assert training_flops(dense, run, 10, dense_gradient="always") == by_hand + everywhere


def test_at_the_last_step_nothing_grows():
    run = {0: {"kernel": 0.5}, 10: {"kernel": 0.1}}
    assert training_flops(DENSE, run, 10, dense_gradient="events") == 3 * 50 * 10


def test_a_run_without_sparsity_and_a_run_of_no_steps():
    assert training_flops(DENSE, {0: {}}, 7) == 3 * 100 * 7
    assert training_flops(DENSE, {0: {}}, 0) == 0.0


# Spec 6.2: train and test multipliers of GraNet on ImageNet, published as .34/.28, .23/.16 (dense
# start) and .37/.35, .25/.20 (from ERK at 50 %): 75 events of 4,000 steps, cubic, in a million.
@pytest.mark.parametrize(
    ("start", "end", "predicted", "published"),
    [
        (1.0, 0.28, 0.334, 0.34),
        (1.0, 0.16, 0.223, 0.23),
        (0.7143, 0.35, 0.377, 0.37),
        (0.7143, 0.20, 0.239, 0.25),
    ],
)
def test_published_pairs_of_granet_agree_with_each_other(start, end, predicted, published):
    course = {4000 * i: {"k": end + (start - end) * (1 - i / 75) ** 3} for i in range(76)}
    flops = {"k": 8_178_368_512}
    ratio = training_flops(flops, course, 1_000_000) / training_flops(flops, {0: {}}, 1_000_000)
    # The continuous path has mean 1/4 where 75 steps of it have (1 + 1/75)^2 / 4.
    assert ratio == pytest.approx(predicted, abs=0.002)
    assert ratio == pytest.approx(published, abs=0.011)
    with_term = training_flops(flops, course, 1_000_000, dense_gradient="events")
    dense = training_flops(flops, {0: {}}, 1_000_000)
    assert 0 < with_term / dense - ratio < 1e-4  # why the papers can leave it out


@pytest.mark.parametrize(
    ("densities", "message"),
    [
        ({}, "start at step None, not at 0"),
        ({5: SPARSE}, "start at step 5, not at 0"),
        ({0: SPARSE, 11: SPARSE}, "step 11 is beyond the 10 steps"),
    ],
)
def test_what_is_no_run_is_refused(densities, message):
    with pytest.raises(ValueError, match=message):
        training_flops(DENSE, densities, 10)


def test_a_misspelt_dense_gradient_is_refused():
    with pytest.raises(ValueError, match="dense_gradient 'event' must be 'never', 'events' or"):
        training_flops(DENSE, {0: SPARSE}, 10, dense_gradient="event")
