"""A configuration of jaxpruner's is read as there; what is not served is refused by name."""

import dataclasses
import types

import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse
from jaxsparse.compat.config import Config, all_algorithm_names, read_config
from jaxsparse.units import joined, split_into

BASE = {"algorithm": "magnitude", "dist_type": "erk", "sparsity": 0.8}
UPDATES = {"update_freq": 10, "update_start_step": 20, "update_end_step": 45}


def test_defaults_are_jaxpruners():
    config = read_config(BASE)
    assert config.drop_fraction == 0.1 and config.rng_seed == 8 and config.update_steps == []
    skips = {name: read_config(BASE | UPDATES | {"algorithm": name}).skip_gradients
             for name in all_algorithm_names()}  # fmt: skip
    assert [name for name, skip in skips.items() if skip] == ["set", "rigl"]


def test_anything_with_items_or_attributes_is_a_configuration():
    @dataclasses.dataclass
    class Mine:
        algorithm: str = "magnitude"
        dist_type: str = "erk"
        sparsity: float = 0.8
        update_start_step: int | None = None  # None is missing

    class ConfigDict:  # of ml_collections: items, and no attributes to list
        __slots__ = ()

        def items(self):
            return BASE.items()

    for config in (Mine(), ConfigDict(), types.SimpleNamespace(**BASE), BASE):
        assert read_config(config) == read_config(BASE)


@pytest.mark.parametrize(
    ("updates", "steps"),
    [
        (UPDATES, [20, 30, 40]),
        ({"update_freq": 7, "update_start_step": 0, "update_end_step": 14}, [0, 7, 14]),
        ({"update_freq": 7, "update_start_step": 5, "update_end_step": 5}, [5]),
        ({"update_start_step": 5, "update_end_step": 5}, [5]),
        ({"update_freq": 7, "update_end_step": 5}, []),
    ],
)
def test_calls_with_an_update(updates, steps):
    assert read_config(BASE | updates).update_steps == steps


def test_sparsity_types():
    config = read_config(BASE | {"sparsity_type": "nm_2,4"})
    assert config.pattern.name == "2:4(-1)" and config.fixed_density == 0.5
    config = read_config(BASE | {"sparsity_type": "channel_-2"})
    assert config.pattern.name == "channels(-2)" and config.fixed_density is None
    pattern = read_config(BASE | {"sparsity_type": "block_2,4"}).pattern
    matrix = jaxsparse.block(2, 4).cut((6, 8))
    assert pattern.cut((6, 8))._replace(pattern="") == matrix._replace(pattern="")
    # A block of a convolution goes over all its channels.
    groups = pattern.cut((4, 8, 3, 5))
    kernel = np.arange(4 * 8 * 3 * 5).reshape(4, 8, 3, 5)
    first = jnp.zeros(groups.split, bool).at[0, :, 1].set(True)
    np.testing.assert_array_equal(kernel[joined(first, kernel)], kernel[:2, 4:8].ravel())
    assert split_into(groups, jnp.asarray(kernel)).shape == groups.split
    with pytest.raises(ValueError, match="blocks do not divide its first axes 3 x 8"):
        pattern.cut((3, 8))


def test_keys_of_single_leaves():
    custom = {("Dense_0", "kernel"): 0.5, "Dense_1/kernel": 0}
    config = read_config(BASE | {"custom_sparsity_map": custom})
    assert config.custom_sparsity_map == {"Dense_0/kernel": 0.5, "Dense_1/kernel": 0.0}


def test_what_no_prune_ignores():
    assert read_config({"algorithm": "no_prune", "sparsity": 7}) == Config("no_prune")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"algorithm": None}, "algorithm None must be one of no_prune, magnitude, random"),
        ({"algorithm": "grasp"}, "algorithm 'grasp' must be one of no_prune"),
        ({"algorithm": "magnitude_ste"}, "straight-through estimators keep dense weights"),
        ({"dist_type": "even"}, "dist_type 'even' must be 'erk' or 'uniform'"),
        ({"dist_type": None}, "dist_type None must be 'erk' or 'uniform'"),
        ({"sparsity": 1.0}, "sparsity 1.0 must be in \\[0, 1\\)"),
        ({"drop_fraction": 1.5}, r"drop_fraction 1.5 must be in \[0, 1\]"),
        ({"sparsity_type": "2:4"}, "sparsity_type '2:4' must be such as 'nm_2,4'"),
        ({"sparsity_type": "block_2"}, "sparsity_type 'block_2' must be such as"),
        ({"sparsity_type": "block_0,2"}, "sparsity_type 'block_0,2' must have sides of 1 or"),
        ({"sparsity_type": "channel_1,2"}, "sparsity_type 'channel_1,2' must be such as"),
        ({"sparsity_type": "nm_4,2"}, r"n_of_m\(4, 2\): n must be at least 1 and below m"),
        (UPDATES | {"update_start_step": -1}, "update_start_step -1 must be a whole number, at"),
        (
            UPDATES | {"update_end_step": 19},
            "update_end_step 19 must be a whole number, at least 20",
        ),
        (UPDATES | {"update_end_step": None}, "update_end_step None must be a whole number"),
        (UPDATES | {"update_freq": None}, "update_freq None must be a whole number, at least 1"),
        (UPDATES | {"update_freq": 0}, "update_freq 0 must be a whole number, at least 1"),
        (
            UPDATES | {"update_freq": 50},
            "update_freq 50 has no multiple from update_start_step 20 to update_end_step 45",
        ),
        ({"algorithm": "rigl"}, "algorithm 'rigl' would never change its masks"),
        (
            UPDATES | {"algorithm": "set", "update_start_step": 45},
            "algorithm 'set' would never change its masks .*; static_sparse keeps them",
        ),
        ({"use_packed_masks": True}, "use_packed_masks True is not served: masks are bool"),
        ({"is_sparse_gradients": False}, "is_sparse_gradients False is not served: the optimizer"),
        ({"eps": 1e-5}, "eps 1e-05 is not served; there are algorithm, custom_sparsity_map"),
        (
            {"algorithm": "global_magnitude", "sparsity_type": "nm_2,4"},
            r"sparsity_type '2:4\(-1\)' does not go with global_magnitude",
        ),
        (
            {"algorithm": "global_magnitude", "custom_sparsity_map": {"a": 0.5}},
            "custom_sparsity_map {'a': 0.5} does not go with global_magnitude, but for leaves tha",
        ),
    ],
)
def test_refusals(change, message):
    with pytest.raises(ValueError, match=message):
        read_config(BASE | change)


def test_a_configuration_that_is_none():
    with pytest.raises(ValueError, match="config 'rigl' must be a mapping or have attributes"):
        read_config("rigl")
