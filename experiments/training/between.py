"""Changes of a run's state between two steps, made on the host; see `Between`."""

import jax
import jax.numpy as jnp

from experiments.training.run import Run, RunState


def is_due(run: Run, step: int) -> bool:
    """Whether the state changes after this many completed steps."""
    return any(each.is_due(step) for each in run.between)


def after(run: Run, state: RunState, step: int) -> RunState:
    """Makes the changes that are due after a step, in the order of `Run.between`.

    Args:
      run: whose changes they are.
      state: after the step.
      step: completed steps.

    Raises:
      ValueError: a change gave a state that the compiled steps do not take; names the first leaf.
    """
    for each in run.between:
        if each.is_due(step):
            changed = each.change(state)
            _check_alike(state, changed, step)
            state = changed
    return state


def _check_alike(before: RunState, after: RunState, step: int) -> None:
    """Refuses a state whose leaves are others, or have other shapes or dtypes."""
    old, new = (jax.tree.leaves_with_path(state) for state in (before, after))
    if jax.tree.structure(before) != jax.tree.structure(after):
        raise ValueError(
            f"the change after step {step} gave a state of another structure; a change of the "
            "network belongs to Run.surgeries"
        )
    for (path, x), (_, y) in zip(old, new, strict=True):
        kinds = [(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in (x, y)]
        if kinds[0] != kinds[1]:
            was, now = (f"{dtype}{list(shape)}" for shape, dtype in kinds)
            raise ValueError(
                f"the change after step {step} made {jax.tree_util.keystr(path)} {now}, and the "
                f"compiled steps take {was}"
            )
