"""Changes of a linen layer that come before any interceptor of ours looks at its fields.

Flax puts the interceptor that was entered first outermost. `model.apply` of a narrowed model enters
its interceptor last, so one around the call, such as that of `sparse_execution`, would see the
layer's old widths. Interceptors of ours therefore call `prepare` first.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator

from flax import linen as nn

_PREPARE: contextvars.ContextVar[tuple[Callable[[nn.Module], None], ...]] = contextvars.ContextVar(
    "prepare", default=()
)


@contextlib.contextmanager
def preparing(change: Callable[[nn.Module], None]) -> Iterator[None]:
    """Lets `prepare` call `change` inside the context; it may be called repeatedly for a layer."""
    token = _PREPARE.set((*_PREPARE.get(), change))
    try:
        yield
    finally:
        _PREPARE.reset(token)


def prepare(layer: nn.Module) -> None:
    """Applies the changes of the contexts around to a bound layer."""
    for change in _PREPARE.get():
        change(layer)
