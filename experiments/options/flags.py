"""Flags that several experiments share, as dataclasses to inherit from.

A config says its own flags first, in `--help` and in config.json, and then those of its bases:

    @flags.own_first
    @dataclasses.dataclass(frozen=True)
    class Config(flags.Running, flags.Pruning): ...
"""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Annotated, Any, Protocol, TypeVar

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
    "score_per_class": 10,
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
    """Evaluation, checkpoints and execution of the training loop."""

    eval_every: int = 100
    """Steps between validations."""
    checkpoint_every: int = 500
    """Steps between checkpoints, from which the same command goes on after a crash. 0 saves only
    one, at the end."""
    accumulate: int = 1
    """Number of micro-batches that a step's batch is cut into, to save memory; it divides
    --batch_size."""
    execution: cli.OptionalStr = None
    """masked (dense kernels with masked weights) or sparse (only the active weights, where that is
    faster on CPU; the same training up to rounding). Default: masked."""
    sparse_init: cli.OptionalStr = None
    """unit or layer: scale the initial weights to the initial masks, so that outputs keep their
    size, by the active inputs of each unit or by the density of each layer. Default: the weights
    are those of the dense network."""
    allow_cut: Annotated[bool, tyro.conf.FlagConversionOff] = False
    """Train even if masks that never change leave no path from an image to a logit. The network
    then gives every image the same logits. Default: such a run is refused."""
    gradient_flow: Annotated[bool, tyro.conf.FlagConversionOff] = False
    """Record the norm of the active weights' gradient at every validation, over all layers and in
    each layer. Each time costs as much as a step, and the first one a compilation."""


class Saving(Protocol):
    """Flags of a run that saves checkpoints."""

    @property
    def checkpoint_every(self) -> int:
        """Steps between checkpoints; 0 saves only one, at the end."""
        ...


def going_on(config: Saving) -> str:
    """Returns the line after Ctrl-C that says what the same command will do.

    >>> going_on(Running(checkpoint_every=0))
    'the same command starts over (--checkpoint_every=0)'
    """
    if config.checkpoint_every == 0:
        return "the same command starts over (--checkpoint_every=0)"
    every = f"one every {config.checkpoint_every} steps"
    return f"the same command goes on from the last checkpoint, of which there is {every}"


@dataclasses.dataclass(frozen=True)
class Meeting:
    """The processes of a run, and how they find each other."""

    coordinator: cli.OptionalStr = None
    """HOST:PORT of process 0, at which several processes meet."""
    num_processes: cli.OptionalInt = None
    """Number of processes of the run. Default: one."""
    process_id: cli.OptionalInt = None
    """Number of this process, from 0."""
    discover: bool = False
    """Let JAX find the processes, as it can on TPU pods, Slurm and Kubernetes."""
    start_timeout: int = 300
    """Seconds to wait for all processes to start."""
    heartbeat_timeout: int = 100
    """Seconds without a sign of life after which a process counts as dead and the others end."""


@dataclasses.dataclass(frozen=True)
class Tricks:
    """Changes of the network besides pruning; each works with every schedule."""

    dyrelu: cli.OptionalBool = None
    """Begin with DyReLU and let it fade into ReLU. Default: only with --schedule=east."""
    dyrelu_start: cli.OptionalFloat = None
    """Share of training after which DyReLU begins to fade. Default: 0.25."""
    dyrelu_stop: cli.OptionalFloat = None
    """Share of training after which DyReLU is gone, with its parameters. Default: 0.496, before the
    learning rate falls."""
    dyrelu_blend: cli.OptionalStr = None
    """The part that fades: coefficient (the slopes) or output (the result).
    Default: coefficient."""
    dyrelu_freeze: cli.OptionalBool = None
    """Freeze DyReLU's parameters while it fades. Default: they are trained."""
    dyrelu_late: cli.OptionalBool = None
    """Use ReLU before --dyrelu_start, as the authors' code. Default: DyReLU from the beginning."""
    weight_sharing: cli.OptionalBool = None
    """Let the blocks of a residual stage after the second share its kernels. The sparsity is that
    of the network without sharing. Default: only with --schedule=east, if the network has such
    blocks."""


@dataclasses.dataclass(frozen=True)
class Pruning:
    """Options of the methods; each method takes some of them."""

    update_interval: cli.OptionalInt = None
    """Steps between mask updates. Default: the method's published share of training."""
    start_step: cli.OptionalInt = None
    """No mask update before this step. Default: 0."""
    stop_step: cli.OptionalInt = None
    """Last step of gradual pruning (default: 1/2 of training), or end of mask updates (3/4)."""
    initial_sparsity: cli.OptionalFloat = None
    """Sparsity at the start of granet_st (default: 0.5) or gmp (default: 0). With weight sharing it
    is that of the kernels that are stored, and 0 keeps all of them."""
    drop_fraction: cli.OptionalFloat = None
    """Share of each layer's active weights that the first mask update replaces. Default: the
    method's published share."""
    redistribute: cli.OptionalBool = None
    """Let snfs move weights between layers, by the mean of their averaged gradient, as published.
    Default: each layer keeps its number of weights."""
    grow: cli.OptionalStr = None
    """The weights that snfs grows: gradient (those with the largest average) or random.
    Default: gradient."""
    distribution: cli.OptionalStr = None
    """How layers share the active weights: erk, erdos_renyi or uniform. Default: erk."""
    dense_layers: cli.OptionalStr = None
    """Regular expression: layers whose path it is found in keep all weights, and --sparsity is that
    of the others. RigL's uniform distribution is --distribution=uniform --dense_layers=^conv1/
    (^Conv_0/ in lenet5)."""
    scope: cli.OptionalStr = None
    """Gradual pruning and masks by scores compare weights over all layers (global) or in each layer
    (layer). Default: global."""
    min_keep: cli.OptionalInt = None
    """Smallest number of active weights of a layer; the other layers make up for it. With 0 a layer
    may come out empty. Default: 1; but global pruning may empty a layer."""
    init_masks: cli.OptionalStr = None
    """Start from masks that scores of the initial weights choose, in place of random ones: snip,
    grasp, synflow, magnitude or random (over all layers). They have the sparsity with which the
    schedule begins. --schedule=snip and its like keep them to the end. Default: random masks with
    the densities of --distribution."""
    score_per_class: cli.OptionalInt = None
    """Training images of each class that snip and grasp look at. Default: 10."""
    score_batch: cli.OptionalInt = None
    """Images of a micro-batch while snip and grasp score, to save memory. Batch norms of grasp use
    the statistics of each. Default: all at once."""
    score_rounds: cli.OptionalInt = None
    """Rounds in which snip, grasp or synflow score what is left and prune.
    Default: 100 for synflow, 1 for the others."""
    cycles: cli.OptionalInt = None
    """Number of cycles in which the density rises and falls, before the schedule's own mask
    updates. They work with every schedule but dense and gsm. Default: 2 for east, else 0."""
    cycle_multiplier: cli.OptionalFloat = None
    """Density in the middle of a cycle, over that at its ends; at least 1. Default: 3."""
    cycle_share: cli.OptionalFloat = None
    """Share of training that the first cycle takes. Default: 0.2."""
    cycle_growth: cli.OptionalFloat = None
    """Length of a cycle, over that of the cycle before. Default: 1."""
    cycle_shape: cli.OptionalStr = None
    """How the density rises and falls: cosine or triangular. Default: cosine."""
    cycle_interval: cli.OptionalInt = None
    """Steps between mask updates in a cycle. Default: 100, or fewer if that is under 20 updates."""
    pattern: cli.OptionalStr = None
    """Structure of the masks: 2:4 (two of every four input channels, or any n:m), 4x4 (blocks of
    rows x columns of the im2col matrix), channels (whole output channels, which have no gradient
    to grow by behind a ReLU) or channels(-2) (input channels). Default: unstructured."""
    pattern_layers: cli.OptionalStr = None
    """Regular expression: layers whose path it is found in have the pattern. Default: all."""


def pruning_options(config: Pruning) -> dict[str, Any]:
    """Returns the flags that are options of methods, for `make_method`."""
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(Pruning)}
