"""The state that a run on a mesh starts with, made by all processes together."""

import functools

import jax
from jax.sharding import Mesh

from experiments import loop
from experiments.mesh import layout
from experiments.mesh.processes import is_first
from experiments.records import alarms
from experiments.training.run import Run, RunState


def created(run: Run, mesh: Mesh, *, fsdp: bool) -> RunState:
    """Returns the state that a run starts with, with its masks if it has any.

    Args:
      run: what to train.
      mesh: over all devices.
      fsdp: cut the leaves up; otherwise each device holds the whole state.
    """
    create = lambda masks: loop.create_state(run._replace(masks=masks))
    places = layout.shardings(mesh, jax.eval_shape(create, run.masks), fsdp=fsdp)
    return jax.jit(create, out_shardings=places)(run.masks)


def with_masks(run: Run, mesh: Mesh, *, fsdp: bool) -> Run:
    """Returns the run with the initial masks that its scoring chooses; as it is if it has none.

    Raises:
      ValueError: the scores cannot choose masks; names the flag.
    """
    if run.scoring is None:
        return run
    shapes = jax.eval_shape(functools.partial(loop.initial_variables, run))
    places = layout.shardings(mesh, shapes, fsdp=fsdp)
    return loop.with_masks(run, places=places, hidden=not is_first())


def started(run: Run, mesh: Mesh, *, fsdp: bool) -> RunState:
    """Returns the state of step 0 of a run whose initial masks scores choose.

    Raises:
      ValueError: as `with_masks`, or the masks cut the network.
    """
    state = created(with_masks(run, mesh, fsdp=fsdp), mesh, fsdp=fsdp)
    alarms.check_start(run, state)
    return state
