"""Parts of a state by name: the outermost is chosen, and parts that fit are listed."""

import jax.numpy as jnp
import pytest

from jaxsparse.checkpoint.names import fields, fields_by_fit, under
from jaxsparse.flat_state import flatten

PATHS = ["step", "run/masks/a/kernel", "run/masks/b", "best/masks/a/kernel", "old/run/masks/a"]


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("run/masks", {"a/kernel": "run/masks/a/kernel", "b": "run/masks/b"}),
        ("best", {"masks/a/kernel": "best/masks/a/kernel"}),
        ("step", {"": "step"}),  # the part is a leaf
        ("masks/b", {"": "run/masks/b"}),
        ("old/run", {"masks/a": "old/run/masks/a"}),
    ],
)
def test_the_outermost_part_of_a_name(part, expected):
    assert under(PATHS, part) == expected


def test_names_are_whole_words():
    assert under(["params/kernel", "my_params/kernel"], "params") == {"kernel": "params/kernel"}


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("masks", "has several parts masks; name one by its path: best/masks, run/masks"),
        ("mask", "has no part mask; it has step, run, best, old"),
    ],
)
def test_a_name_that_is_not_one_part(part, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        under(PATHS, part)


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["params/a", "params/b", "step"], ["params", "step"]),
        (["run/params/a", "run/params/b", "run/step"], ["run/params", "run/step"]),
        (["run/params/a", "run/params/b"], ["run/params/a", "run/params/b"]),
        (["run/params/a"], ["run/params/a"]),
        (["params", "params/a"], ["params"]),  # a leaf that another lies inside
    ],
)
def test_fields_are_where_paths_part(paths, expected):
    assert fields(paths) == expected


def test_a_field_fits_if_all_its_leaves_do():
    saved = {"params": {"a": jnp.ones(2), "b": jnp.ones(3)}, "opt_state": [1.0], "step": 1}
    _, records = flatten(saved)
    fit = lambda **changes: fields_by_fit(records, saved | changes)
    assert fit() == (["opt_state", "params", "step"], [])
    assert fit(opt_state={"mu": 1.0}) == (["params", "step"], ["opt_state"])
    shorter = {"a": jnp.ones(2), "b": jnp.ones(2)}
    assert fit(params=shorter) == (["opt_state", "step"], ["params"])
    assert fit(params={"a": jnp.ones(2)}) == (["opt_state", "step"], ["params"])
    assert fit(step=1.0) == (["opt_state", "params"], ["step"])  # another dtype
    assert fit(key=jnp.ones(2)) == (["opt_state", "params", "step"], ["key"])
