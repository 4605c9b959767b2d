"""The cost of a network by the widths of its layers."""

import pytest

from jaxsparse.structured.channel_costs import Ruled, cost_table

pytestmark = pytest.mark.variants  # our own code, which knows little of versions

FLOPS = {"a": 2 * 9 * 3 * 4, "b": 2 * 9 * 4 * 6, "c": 2 * 6 * 5, "other": 20}
TABLE = cost_table(
    FLOPS, [Ruled("a", None, "p"), Ruled("b", "p", "q"), Ruled("c", "q")], {"p": 4, "q": 6}
)


def test_the_table_is_the_cost_of_narrower_layers():
    for p, q in ((4, 6), (1, 6), (3, 2)):
        assert TABLE({"p": p, "q": q}) == 9 * 3 * p + 9 * p * q + 5 * q + 10
    depthwise = cost_table({"d": 2 * 49 * 6}, [Ruled("d", None, "q")], {"q": 6})
    assert depthwise({"q": 4}) == 49 * 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cost_table(FLOPS, [Ruled("z", "p")], {"p": 4}), "z has no FLOPs; there are a, b"),
        (lambda: cost_table(FLOPS, [Ruled("b", "z")], {"p": 4}), "b: no width of z; there are p"),
        (lambda: cost_table(FLOPS, [], {"p": 4}), "p rules the width of no layer"),
        (
            lambda: cost_table(FLOPS, [Ruled("b", "p"), Ruled("b", None, "p")], {"p": 4}),
            "b is ruled twice",
        ),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
