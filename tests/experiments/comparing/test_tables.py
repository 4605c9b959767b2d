"""Tables of groups: methods in the order of the schedules, numbers in the form of their metric."""

import math

from experiments.comparing.seeds import Group, Stats
from experiments.comparing.tables import (
    difference_text,
    make_tables,
    number_text,
    percent,
    render,
    stats_text,
)


def group(method, sparsity, dataset="sample", model="lenet5", **flags):
    return Group(dataset, model, method, sparsity, flags, ())


GROUPS = [
    group("rigl", 0.98),
    group("granet", 0.9),
    group("mine", 0.9),
    group("rigl", 0.9),
    group("dense", 0.0),
]


def test_methods_have_the_order_of_the_schedules_and_sparsities_ascend():
    (table,) = make_tables(GROUPS)
    assert table.title == "sample, lenet5"
    assert {label: list(row) for label, row in table.rows.items()} == {
        "dense": [0.0],
        "rigl": [0.9, 0.98],
        "granet": [0.9],
        "mine": [0.9],  # not among the schedules
    }
    assert list(table.rows) == ["dense", "rigl", "granet", "mine"]


def test_a_table_for_each_data_set_and_model():
    groups = [group("rigl", 0.9, model=name) for name in ("vgg16", "lenet5")]
    groups += [group("rigl", 0.9, dataset="full")]
    assert [table.title for table in make_tables(groups)] == [
        "full, lenet5",
        "sample, lenet5",
        "sample, vgg16",
    ]


def test_labels_have_the_flags_in_which_groups_differ():
    groups = [group("rigl", 0.9, steps=100, seed_of=1), group("rigl", 0.9, steps=200, seed_of=1)]
    (table,) = make_tables([*groups, group("set", 0.9, seed_of=1)])
    assert list(table.rows) == ["set", "rigl steps=100", "rigl steps=200"]


def test_rows_and_columns_without_text_are_left_out():
    (table,) = make_tables(GROUPS)
    cell = lambda group: "" if group.method in ("dense", "mine") else f"{group.sparsity}"
    assert render(table, cell, heading="x").splitlines() == [
        "sample, lenet5: x",
        "sparsity  90 %  98 %",
        "rigl       0.9  0.98",
        "granet     0.9",
    ]
    assert render(table, cell, heading="x", markdown=True).splitlines() == [
        "sample, lenet5: x",
        "",
        "| sparsity | 90 % | 98 % |",
        "| --- | --- | --- |",
        "| rigl | 0.9 | 0.98 |",
        "| granet | 0.9 |  |",
    ]
    assert render(table, lambda _: "", heading="x") == ""


def test_numbers():
    assert number_text(0.12345, "best_test_accuracy") == "12.35"
    assert number_text(0.12345, "train_flops_ratio") == "0.123"
    assert number_text(1234.5, "num_active") == "1,234"
    assert stats_text(Stats(0.5, 0.01, 2), "test_accuracy") == "50.00 ± 1.00 (2)"
    assert difference_text(Stats(-0.5, math.nan, 1), "test_accuracy") == "-50.00 (1)"
    assert [percent(share) for share in (0.9, 0.9995, 1 - 0.9)] == ["90 %", "99.95 %", "10 %"]
