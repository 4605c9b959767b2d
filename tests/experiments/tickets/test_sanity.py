"""The two conditions of the protocol, on accuracies laid out to be read."""

from experiments.tickets import sanity


def seeds(**arms):
    """By seed: accuracies in percent of each arm."""
    accuracy = lambda x: dict.fromkeys(
        ("val_accuracy", "test_accuracy", "best_val_accuracy", "best_test_accuracy"), x / 100
    )
    number = len(next(iter(arms.values())))
    return [
        {name: accuracy(values[i]) | {"num_params": 10} for name, values in arms.items()}
        for i in range(number)
    ]


def verdicts(**arms):
    found = sanity.over_seeds(seeds(**arms))["conditions"]
    return [found[name]["holds"] for name in ("reaches_dense", "beats_reinit")]


def test_the_conditions_often_disagree():
    same = {"dense": [98.0, 98.2, 98.1]}
    winner = verdicts(ticket=[98.1, 98.1, 98.1], reinit=[97.0, 97.2, 97.1], **same)
    as_good = verdicts(ticket=[98.1, 98.1, 98.1], reinit=[98.2, 98.0, 98.1], **same)
    only_better = verdicts(ticket=[97.0, 97.1, 97.2], reinit=[96.0, 96.2, 96.1], **same)
    assert (winner, as_good, only_better) == ([True, True], [True, False], [False, True])


def test_one_seed_gives_no_verdict_and_the_differences_are_paired():
    assert verdicts(dense=[98.0], ticket=[99.0], reinit=[97.0]) == [None, None]
    # 1 better at every seed, though the seeds differ by 10.
    assert verdicts(dense=[80.0, 90.0], ticket=[81.0, 91.0], reinit=[80.0, 90.0]) == [True, True]


def test_the_report_has_both_conditions_at_every_rate():
    found = sanity.over_seeds(
        seeds(
            dense=[98.0, 98.2], ticket=[98.1, 98.2], reinit=[97.0, 97.2], small_dense=[96.0, 96.1]
        )
    )
    text = sanity.describe({0.01: found, 0.1: found})
    assert text.count("1. the ticket reaches the dense network: yes, +0.05 ± 0.05 (2)") == 2
    assert text.count("2. the ticket beats its mask re-initialised: yes, +1.05 ± 0.05 (2)") == 2
    assert "small_dense          10  96.05 ± 0.07 (2)" in text
