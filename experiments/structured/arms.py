"""The table of arms: the ways to make a trained network narrower that `--arms` names.

A new criterion of one-shot pruning is a row here and a function in `one_shot.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from experiments.options.cli import nearest
from experiments.structured import csgd, one_shot, resrep
from experiments.structured.setting import Begun, Reached, ResRep, Setting, Stretch, as_it_is
from jaxsparse.checks import check_whole


class Arm(NamedTuple):
    """A way to a narrower network.

    Attributes:
      says: what it does, in a line.
      begin: (setting, network so far, stretch) to the training that is about to start.
      check: refuses what cannot work, before anything is trained; returns lines on what will
        happen.
      stretches: of its training.
      takes: the flags that tell its runs from others, beside those that all arms have.
    """

    says: str
    begin: Callable[[Setting, Reached, Stretch], Begun]
    check: Callable[[Setting], list[str]]
    stretches: Callable[[Setting], Sequence[Stretch]]
    takes: tuple[str, ...]


def once(setting: Setting) -> list[Stretch]:
    """All steps of an arm at once."""
    return [Stretch(setting.target, setting.base.steps + setting.steps)]


def in_parts(setting: Setting) -> list[Stretch]:
    """Narrowings at equal distances in the first half, each to the same share of what was left.

    The second half of the arm, in which the learning rate falls, is for the final network.

    Raises:
      ValueError: more narrowings than steps in the first half.
    """
    number = check_whole("narrowings", setting.narrowings, 1, max(setting.steps // 2, 1))
    ends = [setting.steps * i // (2 * number) for i in range(1, number)] + [setting.steps]
    return [
        Stretch(setting.target ** (i / number), setting.base.steps + end)
        for i, end in enumerate(ends, start=1)
    ]


def _dense(setting: Setting, reached: Reached, stretch: Stretch) -> Begun:
    variables = reached.state.variables
    run, state = setting.going_on(reached.step, stretch.last, reached.model, variables, setting.tx)
    return Begun(run, state, as_it_is)


_WIDTHS = ("target", "round_to")


def _one_shot(
    says: str,
    criterion: one_shot.Criterion,
    *,
    ranking: str | None = None,
    takes: tuple[str, ...] = (),
    stretches: Callable[[Setting], Sequence[Stretch]] = once,
) -> Arm:
    """An arm that removes channels by a criterion; without a ranking it has that of `--ranking`."""
    of = lambda setting: ranking or setting.ranking

    def begin(setting: Setting, reached: Reached, stretch: Stretch) -> Begun:
        options = {"criterion": criterion, "ranking": of(setting)}
        return one_shot.begin(setting, reached, stretch, **options)

    def check(setting: Setting) -> list[str]:
        stretches(setting)
        return one_shot.check(setting, ranking=of(setting))

    own = _WIDTHS if ranking else (*_WIDTHS, "ranking")
    return Arm(says, begin, check, stretches, (*own, *takes))


ARMS: Mapping[str, Arm] = {
    "dense": Arm("the control: trained on at full width", _dense, lambda setting: [], once, ()),
    "resrep": Arm(
        "compactors that are trained to the target and merged; inner channels of blocks only",
        resrep.begin,
        resrep.check,
        once,
        ("target", *ResRep._fields),
    ),
    "csgd": Arm(
        "filters in clusters that become equal; every group of channels loses the same share",
        csgd.begin,
        csgd.check,
        once,
        (*_WIDTHS, "centripetal"),
    ),
    "l1": _one_shot("one-shot, by the L1 norm of kernels", one_shot.by_l1),
    "norm_scale": _one_shot("one-shot, by the scales of batch norms", one_shot.by_norm_scale),
    "taylor": _one_shot(
        "one-shot, by the derivative of the loss by a gate behind the norms",
        one_shot.by_taylor,
        takes=("score_batches",),
    ),
    "activation": _one_shot(
        "one-shot, by the mean activation that the next layers read",
        one_shot.by_activation,
        takes=("score_batches",),
    ),
    "random": _one_shot("one-shot, at random: the control of the criteria", one_shot.by_random),
    "isomorphic": _one_shot(
        "one-shot, by the L1 norm, groups compete with groups of the same structure",
        one_shot.by_l1,
        ranking="isomorphic",
    ),
    "gradual": _one_shot(
        "by the L1 norm, in --narrowings steps in the first half of training",
        one_shot.by_l1,
        takes=("narrowings",),
        stretches=in_parts,
    ),
}


def named(names: str) -> dict[str, Arm]:
    """Returns the arms of a list with commas, in its order.

    Raises:
      ValueError: an unknown arm (the nearest one is named), one twice, or none.

    >>> list(named("resrep,l1"))
    ['resrep', 'l1']
    """
    listed = [name.strip() for name in names.split(",") if name.strip()]
    if not listed or len(set(listed)) < len(listed):
        raise ValueError(f"--arms={names} must name one or more arms, each once")
    return {name: ARMS[nearest(name, ARMS, kind="arm")] for name in listed}


def describe() -> str:
    """Returns a line for each arm."""
    width = max(map(len, ARMS))
    return "\n".join(f"{name:{width}}  {arm.says}" for name, arm in ARMS.items())
