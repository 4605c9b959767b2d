"""Quiet samples: which of them count, and what is printed if there are none."""

from benchmarks import quiet
from benchmarks.quiet import Sample


def test_disturbed_samples_do_not_count():
    samples = [Sample(0.001, 0.0), Sample(0.009, 0.5), Sample(0.003, 0.0)]
    assert quiet.milliseconds(samples) == (2.0, 1.5, 2.5, 2)
    assert str(quiet.milliseconds(samples)) == "2.00 [1.50, 2.50]"


def test_where_none_is_quiet_all_count_with_a_question_mark():
    found = quiet.milliseconds([Sample(0.010, 0.5), Sample(0.030, 1.5)])
    assert found.median == 20.0
    assert str(found) == "20.0 [15.0, 25.0]?"


def test_a_ratio_is_of_pairs_of_the_same_round():
    above = [Sample(4.0, 0.0), Sample(9.0, 0.0), Sample(8.0, 0.0)]
    below = [Sample(2.0, 0.0), Sample(1.0, 0.9), Sample(2.0, 0.0)]
    assert quiet.ratio(above, below) == (3.0, 2.5, 3.5, 2)


def test_programs_are_called_in_turn_there_and_back():
    called = []
    runs = {name: lambda name=name: called.append(name) for name in "ab"}
    samples = quiet.in_turn(runs, rounds=2, retries=0, seconds=0.0)
    assert [len(samples[name]) for name in "ab"] == [2, 2]
    assert "".join(called) == "aabb" + "ab" + "ba"
