"""Rounds of a tiny network with batch norm and dropout: rewound to the bit, cut off, other arms."""

import functools
import json

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxsparse
from experiments import loop
from experiments.data.augment import crop_and_flip
from experiments.records.run_folder import read_metrics
from experiments.tickets import arms, rounds
from experiments.tickets.rounds import Pruning
from jaxsparse.survivors import Survivors
from tests.checkpoint.states import bits
from tests.experiments.small_runs import Net, make_run

pytestmark = pytest.mark.variants  # long, and one Python shows it for both

CONFIG = {"model": "net", "seed": 0}
RATE = optax.piecewise_constant_schedule(0.1, {10: 0.1, 15: 0.1})
PRUNING = Pruning(0.2, 2, 6, "rewind", False, {"min_keep": 1})


def dense_run(**fields):
    defaults = {
        "model": Net(norm=True, dropout_rate=0.25),
        "augment": functools.partial(crop_and_flip, mode="zero", pad=2),
        "method": jaxsparse.dense(total_steps=20),
        "tx": optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(RATE, momentum=0.9)),
    }
    return make_run(**(defaults | fields))


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The folder and the rounds of a driver that was never cut off."""
    out = tmp_path_factory.mktemp("rounds")
    return out, rounds.find(dense_run(), PRUNING, out, CONFIG)


def count_of(state):
    return int(state.opt_state[1][1].count)


def test_rounds_start_at_step_k_and_have_the_planned_weights(straight):
    out, found = straight
    assert [row.round for row in found.rows] == [0, 1, 2]
    assert [row.summary["num_active"] for row in found.rows] == [402, 322, 258]  # of 402 weights
    assert [row.density for row in found.rows] == [1.0, 322 / 402, 258 / 402]
    assert [r["step"] for r in read_metrics(out / "start")] == list(range(7))
    for row in found.rows:
        name = f"round{row.round:02}"
        assert [r["step"] for r in read_metrics(out / name)] == list(range(6, 21))
        assert json.loads((out / name / "summary.json").read_text()) == row.summary
    nested = jax.tree.map(lambda a, b: not (a & ~b).any(), found.rows[2].masks, found.rows[1].masks)
    assert jax.tree.all(nested)
    # A stretch of 14 steps on a network of density d costs 14 d of 14.
    assert found.rows[0].summary["train_flops_ratio"] == 1.0
    jaxsparse.check(found.end.params, found.end.opt_state, found.end.masks)
    assert int(found.end.step) == count_of(found.end) == 20


def test_the_dense_round_is_the_run_that_was_never_divided(straight, tmp_path):
    """So that step, data, augmentation, dropout, schedule and momentum go on at step k."""
    out, _ = straight
    loop.train(dense_run(), tmp_path, CONFIG | {"schedule": "dense"}, title="")
    losses = lambda path: {r["step"]: r["train_loss"] for r in read_metrics(path) if r["step"] > 6}
    ours = {step: loss for step, loss in losses(out / "round00").items()}
    assert ours == losses(tmp_path)


def test_a_ticket_is_theta_k_with_its_statistics_and_a_schedule_at_k(straight):
    _, found = straight
    masks, early = found.rows[2].masks, found.early
    run = arms.static_run(dense_run(), masks, 20)
    state = arms.ticket(run, early, masks)
    assert bits(state.params) == bits(jaxsparse.apply_masks(early.params, masks))
    assert bits(state.collections) == bits(early.collections)
    assert int(state.step) == count_of(state) == 6
    assert not any(x.any() for x in jax.tree.leaves(state.opt_state[1][0]))  # fresh momentum
    assert bits(early.params) != bits(loop.create_state(dense_run()).params)


def test_at_step_0_it_is_the_original_paper():
    run, start = dense_run(), loop.create_state(dense_run())
    early = rounds._early(run, 0, None, CONFIG)
    assert bits(early) == bits(start)
    masks = jaxsparse.prune_survivors(early.params, early.masks, 0.2)
    state = arms.ticket(arms.static_run(run, masks, 20), early, masks)
    static = run._replace(method=jaxsparse.static(masks=masks, total_steps=20))
    assert bits(state) == bits(loop.create_state(static))


def ticket(arm, straight, r=1, **changes):
    _, found = straight
    trained = found.end
    return rounds._ticket(
        dense_run(),
        PRUNING._replace(arm=arm, **changes),
        r,
        found.early,
        trained,
        trained.replace(step=jnp.int32(99)),
        found.rows[2].masks,
    )


def test_learning_rate_rewinding_keeps_weights_and_replays_the_schedule(straight):
    run, state = ticket("learning_rate_rewinding", straight)
    end = straight[1].end
    assert (bits(state.params), bits(state.collections)) == (
        bits(end.params),
        bits(end.collections),
    )
    assert int(state.step) == count_of(state) == 6 and run.steps == 20
    assert [round(float(RATE(count_of(state) + n)), 6) for n in (0, 4, 9)] == [0.1, 0.01, 0.001]


def test_fine_tuning_goes_on_for_as_many_steps_at_the_last_rate(straight):
    run, state = ticket("fine_tuning", straight)
    end = straight[1].end
    assert bits(state.params) == bits(end.params)
    assert int(state.step) == count_of(state) == 20 and run.steps - 20 == 20 - 6
    assert float(RATE(count_of(state))) == pytest.approx(1e-3)


def test_the_order_of_the_data_is_fixed_or_drawn_for_each_round(straight):
    seeds = [
        ticket("rewind", straight, r, reseed=reseed)[0].seed for reseed in (0, 1) for r in (1, 2)
    ]
    assert seeds[:2] == [0, 0] and len(set(seeds)) == 3
    assert ticket("rewind", straight, 2, reseed=True)[0].seed == seeds[3]


def test_cut_off_within_a_round_and_between_rounds_it_ends_in_the_same_bits(
    straight, tmp_path, monkeypatch
):
    record = loop.record

    def cut_off_at(number):
        calls = []

        def record_or_end(*args):
            calls.append(args[2])
            if len(calls) == number:
                raise KeyboardInterrupt
            return record(*args)

        with monkeypatch.context() as patch:
            patch.setattr(loop, "record", record_or_end)
            with pytest.raises(KeyboardInterrupt):
                rounds.find(dense_run(), PRUNING, tmp_path, CONFIG)
        return calls[-1]

    # 6 steps, 14 of the dense network, and 8 of the first round: it goes on from step 10.
    assert cut_off_at(28) == 14
    assert cut_off_at(11) == 7  # the first step of the second round
    found = rounds.find(dense_run(), PRUNING, tmp_path, CONFIG)
    out, theirs = straight
    assert bits(found.end) == bits(theirs.end)
    differ = {"steps_per_second", "peak_memory_mib"}
    for a, b in zip(found.rows, theirs.rows, strict=True):
        assert {k for k in a.summary if a.summary[k] != b.summary[k]} <= differ
        assert (a.density, bits(a.masks)) == (b.density, bits(b.masks))
        name = f"round{a.round:02}"
        assert read_metrics(tmp_path / name) == read_metrics(out / name)


def test_weights_that_came_back_are_an_error(straight):
    """Such as those that Adam moves if nothing masks its updates: the masks would not tell."""
    _, found = straight
    ended = rounds.Stretch(found.early, {})
    with pytest.raises(ValueError, match="round 2 ends with 402 weights .*, 258 were planned"):
        rounds._row(2, ended, Survivors(2, 258, 402, None), found.rows[2].masks)


def test_a_ticket_without_a_path_ends_the_rounds(tmp_path, capsys, monkeypatch):
    create = loop.create_state

    def lopsided(run):
        """The first layer has the largest weights, so the last one loses all of its own."""
        state = create(run)
        large = state.params["Dense_0"]["kernel"] + 10
        return state.replace(
            params=state.params | {"Dense_0": state.params["Dense_0"] | {"kernel": large}}
        )

    monkeypatch.setattr(loop, "create_state", lopsided)
    run = dense_run(model=Net(), method=jaxsparse.dense(total_steps=1), augment=None)
    pruning = PRUNING._replace(rate=0.5, rewind_step=0, options={})
    found = rounds.find(run, pruning, tmp_path, CONFIG)
    assert len(found.rows) == 1
    assert "the ticket of round 1 has no path from an image to a logit" in capsys.readouterr().err
