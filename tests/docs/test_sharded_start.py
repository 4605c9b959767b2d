"""The page's code runs as written, on eight devices."""

import re
from pathlib import Path

import jax
from jax.sharding import PartitionSpec as P

PAGE = (Path(__file__).parents[2] / "docs" / "sharded_start.md").read_text(encoding="utf-8")


def test_the_code_runs_in_order():
    names: dict = {}
    with jax.numpy_rank_promotion("allow"):  # as users have it
        for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
            exec(compile(block, "sharded_start.md", "exec"), names)
    state = names["state"]
    for tree in (state.params, state.masks, state.opt_state[0].mu):
        assert tree["Dense_0"]["kernel"].sharding.spec == P("data")
    assert int(state.events.num_taken) == 2 and int(state.step) == 41
