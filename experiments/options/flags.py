"""Flags that several experiments share, as dataclasses to inherit from.

A config says its own flags first, in `--help` and in config.json, and then those of its bases:

    @flags.own_first
    @dataclasses.dataclass(frozen=True)
    class Config(flags.Running, flags.Pruning): ...
"""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import tyro

from experiments.options import cli

Cls = TypeVar("Cls", bound=type)

DEFAULTS: Mapping[str, Any] = {
    "accumulate": 1,
    "augment": True,
    "dtype": "float32",
    "execution": "masked",
    "dyrelu_start": 0.25,
    "dyrelu_stop": 0.496,
    "dyrelu_blend": "coefficient",
    "dyrelu_freeze": False,
    "dyrelu_late": False,
    "start_step": 0,
    "distribution": "erk",
    "scope": "global",
    "cycle_multiplier": 3.0,
    "cycle_share": 0.2,
    "cycle_growth": 1.0,
    "cycle_shape": "cosine",
}
"""Defaults of flags that are left out, if they are the same in every run; see `defaults.py`."""


def own_first(cls: Cls) -> Cls:
    """Puts a dataclass's own fields before the inherited ones; all have defaults.

    >>> @dataclasses.dataclass
    ... class Base:
    ...     b: int = 0
    >>> @own_first
    ... @dataclasses.dataclass
    ... class Config(Base):
    ...     a: int = 0
    >>> [field.name for field in dataclasses.fields(Config)]
    ['a', 'b']
    """
    names = [name for base in cls.__mro__ for name in inspect.get_annotations(base)]
    fields: dict[str, Any] = cls.__dataclass_fields__
    cls.__dataclass_fields__ = {name: fields[name] for name in names if name in fields}
    return cls


@dataclasses.dataclass(frozen=True)
class Running:
    """What the loop does beside training."""

    eval_every: int = 100
    """Steps between validations."""
    checkpoint_every: int = 500
    """Steps between checkpoints, from which the same command goes on after a crash. 0: only one,
    at the end."""
    accumulate: int = 1
    """Micro-batches that a step's batch is cut into, to save memory; it divides batch_size."""
    execution: cli.OptionalStr = None
    """masked (dense kernels, of which masks keep some weights) or sparse (by the active weights
    alone where that is faster, on CPU; the same training up to rounding). Default: masked."""
    gradient_flow: Annotated[bool, tyro.conf.FlagConversionOff] = False
    """Record at every validation how long the gradient of the active weights is, over all and in
    each layer. Costs a step each time, and a compilation."""


def going_on(config: Running) -> str:
    """Says after Ctrl-C what the same command will do.

    >>> going_on(Running(checkpoint_every=0))
    'the same command starts over (--checkpoint_every=0)'
    """
    if config.checkpoint_every == 0:
        return "the same command starts over (--checkpoint_every=0)"
    every = f"one every {config.checkpoint_every} steps"
    return f"the same command goes on from the last checkpoint, of which there is {every}"


@dataclasses.dataclass(frozen=True)
class Tricks:
    """What is done to the network beside pruning it; each goes with every schedule."""

    dyrelu: cli.OptionalBool = None
    """Begin with DyReLU and let it fade into ReLU. Default: with the schedule east."""
    dyrelu_start: cli.OptionalFloat = None
    """Share of training after which DyReLU begins to fade. Default: 0.25."""
    dyrelu_stop: cli.OptionalFloat = None
    """Share after which it is gone, with its parameters. Default: 0.496, before the rate falls."""
    dyrelu_blend: cli.OptionalStr = None
    """coefficient or output: what fades, the slopes or what comes out. Default: coefficient."""
    dyrelu_freeze: cli.OptionalBool = None
    """Keep DyReLU's parameters as they are while it fades. Default: they are trained."""
    dyrelu_late: cli.OptionalBool = None
    """ReLU before --dyrelu_start, as in the authors' code. Default: DyReLU from the beginning."""
    weight_sharing: cli.OptionalBool = None
    """Let the blocks of a residual stage after the second share its kernels; the sparsity is that
    of the network without sharing. Default: with the schedule east, where the network has any."""


@dataclasses.dataclass(frozen=True)
class Pruning:
    """Options of the methods; each takes some of them."""

    update_interval: cli.OptionalInt = None
    """Steps between mask updates. Default: the method's published share of training."""
    start_step: cli.OptionalInt = None
    """No mask update before this step. Default: 0."""
    stop_step: cli.OptionalInt = None
    """Last step of gradual pruning, or end of mask updates. Default: 1/2 or 3/4 of training."""
    initial_sparsity: cli.OptionalFloat = None
    """Sparsity at the start of granet_st (default 0.5) or gmp (default 0); with weight sharing that
    of the kernels that are there, of which 0 is all."""
    drop_fraction: cli.OptionalFloat = None
    """Share of each layer's weights that an update replaces, at the start. Default: published."""
    distribution: cli.OptionalStr = None
    """erk, erdos_renyi or uniform: how layers share the weights. Default: erk."""
    dense_layers: cli.OptionalStr = None
    """Layers whose path holds this regular expression keep all weights, and the others have the
    sparsity: ^conv1/ with uniform is RigL's uniform (^Conv_0/ in lenet5)."""
    scope: cli.OptionalStr = None
    """global or layer: over what gradual pruning compares weights. Default: global."""
    min_keep: cli.OptionalInt = None
    """Fewest weights of each layer; the others make up for it. 0: a layer may come out empty.
    Default: 1, but 0 for what global pruning leaves."""
    cycles: cli.OptionalInt = None
    """Cycles in which the density rises and falls, before the schedule's own mask updates; go with
    every schedule. Default: 2 for east, 0 for the others."""
    cycle_multiplier: cli.OptionalFloat = None
    """Density in the middle of a cycle over that at its ends, at least 1. Default: 3."""
    cycle_share: cli.OptionalFloat = None
    """Share of training that the first cycle takes. Default: 0.2."""
    cycle_growth: cli.OptionalFloat = None
    """Length of a cycle over that of the one before. Default: 1."""
    cycle_shape: cli.OptionalStr = None
    """cosine or triangular. Default: cosine."""
    cycle_interval: cli.OptionalInt = None
    """Steps between mask updates in cycles. Default: 100, or less for 20 updates a cycle."""
    pattern: cli.OptionalStr = None
    """Structure of the masks: 2:4 (two of every four input channels, or any n:m), 4x4 (blocks of
    rows x columns of the im2col matrix), channels (whole output channels; behind a ReLU they have
    no gradient to grow by) or channels(-2) (input channels)."""
    pattern_layers: cli.OptionalStr = None
    """Layers whose path holds this regular expression have the pattern. Default: all."""


def pruning_options(config: Pruning) -> dict[str, Any]:
    """Returns the options of the method among the flags, for `make_method`."""
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(Pruning)}
