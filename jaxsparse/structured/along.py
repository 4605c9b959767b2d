"""Operations along an axis: reductions end it, and windows, sorts and cumulative sums freeze it."""

from typing import Any

from jaxsparse.structured.record import Record, Value, shapes_of
from jaxsparse.structured.relations import Axes, Relation


def _argument(eqn: Any, operands: list[Value], record: Record) -> list[Axes]:
    """Freezes the axis that is searched: the result is an index along it."""
    (along,), axes = eqn.params["axes"], operands[0].axes
    record.freeze([axes[along]], record.reason_at(eqn, f"searched by {eqn.primitive.name}"))
    return [(*axes[:along], *axes[along + 1 :])]


def _reduce(eqn: Any, operands: list[Value], record: Record) -> list[Axes]:
    """Ends the axes that are reduced, with a note: a mean over channels depends on their number."""
    gone, x = eqn.params["axes"], operands[0]
    for axis in gone:
        record.note(x.axes[axis], record.reason_at(eqn, f"{eqn.primitive.name} runs over them"))
    return [tuple(units for axis, units in enumerate(x.axes) if axis not in gone)]


def _along(eqn: Any, operands: list[Value], record: Record) -> list[Axes]:
    """Freezes the axis that an operation runs along, such as cumsum or sort; others go on."""
    p, name = eqn.params, eqn.primitive.name
    joined = record.join_values(operands, eqn.invars[0].aval.shape)
    along = p.get("axis", p.get("dimension", -1)) % len(joined)
    outputs = []
    why = record.reason_at(eqn, f"{name} runs along it")
    record.freeze([joined[along]], why)
    for shape in shapes_of(eqn):
        end = record.frozen(shape[along], why)
        outputs.append((*joined[:along], end, *joined[along + 1 :]))
    return outputs


def _reduce_window(eqn: Any, operands: list[Value], record: Record) -> list[Axes]:
    """Freezes the axes that a window slides over, such as those of pooling; others go on."""
    p, out = eqn.params, shapes_of(eqn)
    num = len(out)
    joined = record.join_values(operands[:num], eqn.invars[0].aval.shape)
    why = record.reason_at(eqn, f"a window of {eqn.primitive.name}")
    axes = []
    for i, units in enumerate(joined):
        window = (p["window_dimensions"][i], p["window_strides"][i], *p["padding"][i])
        dilation = (p.get("base_dilation") or (1,) * len(joined))[i]
        if (*window, dilation) != (1, 1, 0, 0, 1):
            record.freeze([units], why)
            units = record.frozen(out[0][i], why)
        axes.append(units)
    return [tuple(axes)] * num


ALONG: dict[str, Relation] = {
    **dict.fromkeys(["argmax", "argmin"], _argument),
    **dict.fromkeys(
        """reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum reduce_xor""".split(),
        _reduce,
    ),
    **dict.fromkeys("cumlogsumexp cummax cummin cumprod cumsum sort top_k".split(), _along),
    **dict.fromkeys(
        "reduce_window reduce_window_max reduce_window_min reduce_window_sum".split(),
        _reduce_window,
    ),
}
"""By the name of the primitive: the axes of its results."""
