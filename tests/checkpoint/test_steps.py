"""Which folders are checkpoints, and how damaged ones are put aside."""

import pytest

from jaxsparse.checkpoint.steps import set_aside, steps


def made(folder, *items):
    for item in items:
        (folder / item).mkdir(parents=True)
    return folder


def test_a_whole_checkpoint_has_a_number_for_a_name(tmp_path):
    made(
        tmp_path, "0/contents", "12/contents/x", "damaged-3", "007", "-1", "4.orbax-checkpoint-tmp"
    )
    (tmp_path / "5").touch()  # a file
    assert sorted(steps(tmp_path)) == [0, 12]
    assert steps(tmp_path / "none") == []


@pytest.mark.parametrize("items", [["1"], ["1/arrays"], ["1/_CHECKPOINT_METADATA"]])
def test_what_a_deletion_left_of_ours_is_taken_for_ours(items, tmp_path):
    assert steps(made(tmp_path, *items)) == [1]


@pytest.mark.parametrize("items", [["1/default"], ["1/arrays", "1/model"]])
def test_another_program_wrote_it(items, tmp_path):
    with pytest.raises(ValueError, match=r"checkpoint .*/1 was not written by jaxsparse; take"):
        steps(made(tmp_path, *items))


def test_nothing_is_overwritten_by_what_is_put_aside(tmp_path):
    made(tmp_path, "3", "4", "damaged-3", "damaged-3-again")
    assert set_aside(tmp_path, {}) is None
    note = set_aside(tmp_path, {4: "short", 3: "odd"})
    assert note == (
        f"checkpoint 4 cannot be read (short) and is now {tmp_path}/damaged-4; "
        f"checkpoint 3 cannot be read (odd) and is now {tmp_path}/damaged-3-again-again"
    )
    names = ["damaged-3", "damaged-3-again", "damaged-3-again-again", "damaged-4"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
