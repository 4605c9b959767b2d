"""Products: which axes are summed over, which go on, and what a kernel's axes are for."""

from typing import Any

from jaxsparse.structured.record import Axis, Record, Value, shapes_of
from jaxsparse.structured.relations import Axes, Relation, barrier


def _dot(eqn: Any, operands: list[Value], record: Record) -> list[Axes]:
    """Joins summed axes with each other and batch axes with each other; the others go on."""
    contracted, batch = eqn.params["dimension_numbers"]
    sums = list(zip(*contracted, strict=True))
    for axes in sums:
        _sum_over(eqn, operands, axes, record)
    found = [record.join(_at(operands, axes)) for axes in zip(*batch, strict=True)]
    for side, x in enumerate(operands):
        gone = {*contracted[side], *batch[side]}
        free = [units for axis, units in enumerate(x.axes) if axis not in gone]
        if _is_kernel(operands, side):
            for axis in contracted[side]:
                record.use(x.axes[axis], "input", eqn.primitive.name)
            _outputs_of(eqn, free, record)
        found += free
    return [tuple(found)]


def _at(operands: list[Value], axes: tuple[int, int]) -> list[Axis]:
    return [x.axes[axis] for x, axis in zip(operands, axes, strict=True)]


def _is_kernel(operands: list[Value], side: int) -> bool:
    return not operands[side].is_data and operands[1 - side].is_data


def _sum_over(eqn: Any, operands: list[Value], axes: tuple[int, int], record: Record) -> None:
    """Joins two axes that a product sums over.

    A sum over data alone is noted: the scale 1 / sqrt(width) of attention's scores depends on it.
    """
    pair = _at(operands, axes)
    joined = record.join(pair)
    if any(units is None for units in pair) or all(x.is_data for x in operands):
        why = record.reason_at(eqn, f"{eqn.primitive.name} sums over them, without weights")
        record.note(joined, why)


def _outputs_of(eqn: Any, free: list[Axis], record: Record) -> None:
    """Records the axes that a kernel gives to the result.

    Those of one kernel, such as heads and head size, are factors of one output: as if the kernel
    were a matrix whose result is reshaped.
    """
    several = [units for units in free if units is not None]
    for units in several:
        record.use(units, "output", eqn.primitive.name)
    if len(several) > 1:
        sizes = [len(units) for units in several]
        what = record.reason_at(eqn, f"a kernel with outputs {tuple(sizes)}")
        record.split(None, several, sizes, what)


def _convolution(eqn: Any, operands: list[Value], record: Record) -> list[Axes]:
    """Joins the channels that a kernel reads, and hands on those that it makes.

    With g groups the channels read are (g, inputs of a group), those made (g, outputs of a group).
    A depthwise convolution has one input in a group.
    """
    p, (image, kernel) = eqn.params, operands
    if p["batch_group_count"] > 1:
        return barrier(eqn, operands, record)
    numbers, groups = p["dimension_numbers"], p["feature_group_count"]
    (lhs_batch, lhs_feature, *lhs_space) = numbers.lhs_spec
    (rhs_out, rhs_in, *rhs_space) = numbers.rhs_spec
    (out_batch, out_feature, *out_space) = numbers.out_spec
    read, inputs, outputs = image.axes[lhs_feature], kernel.axes[rhs_in], kernel.axes[rhs_out]
    window = "x".join(str(eqn.invars[1].aval.shape[axis]) for axis in rhs_space)
    if _is_kernel(operands, 1):
        record.use(inputs, "input", f"{eqn.primitive.name} {window}")
        record.use(outputs, "output", f"{eqn.primitive.name} {window}")
    if groups == 1:
        record.join([read, inputs])
    else:
        outputs = _grouped(eqn, (read, inputs, outputs), record)

    why = record.reason_at(eqn, "a kernel's window")
    record.freeze([kernel.axes[axis] for axis in rhs_space], why)
    why = record.reason_at(eqn, "the positions of an image")
    record.freeze([image.axes[axis] for axis in lhs_space], why)
    found = {out_batch: image.axes[lhs_batch], out_feature: outputs}
    shape = shapes_of(eqn)[0]
    found.update((axis, record.frozen(shape[axis], why)) for axis in out_space)
    return [tuple(found[axis] for axis in range(len(shape)))]


def _grouped(eqn: Any, axes: tuple[Axis, Axis, Axis], record: Record) -> Axis:
    """Ties the channels read and made by their groups; returns those made."""
    read, inputs, outputs = axes
    groups, kernel = eqn.params["feature_group_count"], eqn.invars[1].aval.shape
    (out, in_, *_) = eqn.params["dimension_numbers"].rhs_spec
    if outputs is None:  # of a uniform kernel, which blurs: they are tied to what is read alone
        outputs = record.units.new(kernel[out])
    new = lambda size: record.units.new(size) if size > 1 else None
    whole, num_in, num_out = new(groups), kernel[in_], kernel[out] // groups
    sides = [(read, inputs, num_in), (outputs, new(num_out), num_out)]
    for units, inner, size in sides:
        if units is not None:
            what = record.reason_at(eqn, f"a convolution in {groups} groups of {size}")
            record.split(units, (whole, inner), (groups, size), what)
    return outputs


PRODUCTS: dict[str, Relation] = {"dot_general": _dot, "conv_general_dilated": _convolution}
"""By the name of the primitive: the axes of its results."""
