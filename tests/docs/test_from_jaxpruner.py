"""The page's code runs as written, and it tells of every key and algorithm."""

import re
from pathlib import Path

import jax
import numpy as np

import jaxsparse
from jaxsparse.compat.config import Config, all_algorithm_names

PAGE = (Path(__file__).parents[2] / "docs" / "from_jaxpruner.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_code_runs_in_order(capsys):
    names: dict = {}
    with jax.numpy_rank_promotion("allow"):  # as users have it
        *theirs, ours = BLOCKS
        for block in theirs:
            exec(compile(block, "from_jaxpruner.md", "exec"), names)
        active = 4096 - int(0.8 * 4096)
        assert jaxsparse.num_active(names["opt_state"].masks) == active
        assert np.count_nonzero(names["pruned_params"]["kernel"]) == active
        assert "_total_sparsity" in capsys.readouterr().out
        exec(compile(ours, "from_jaxpruner.md", "exec"), names)
    assert jaxsparse.num_active(names["masks"]) == active
    jaxsparse.check(names["params"], names["opt_state"], names["masks"])


def test_it_names_what_is_served():
    keys = set(Config._fields) - {"pattern", "fixed_density"} | {"sparsity_type"}
    for name in (*keys, *all_algorithm_names()):
        assert f"`{name}`" in PAGE


def test_its_names_of_ours_exist():
    for name in re.findall(r"`(\w+)\(", PAGE):
        if name not in ("RigL", "print"):
            assert hasattr(jaxsparse, name), name
