"""Functions that are equal if the same factory made them from equal arguments.

Python compares functions by identity, and a factory such as `erk()` makes a new function at every
call. JAX compares the static parts of trees. If these hold functions, two train states made from
equal parts have different structures, do not stack, and compile every step again. A factory
decorated by `comparable` returns functions that compare, hash and print by its arguments.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

Factory = TypeVar("Factory", bound=Callable[..., Any])


class Comparable:
    """A function together with the factory and the arguments that made it.

    Attributes:
      function: the function that a call runs.
      factory: the function that made it, without its decorator.
    """

    def __init__(self, factory: Callable[..., Any], arguments: dict[str, Any], function: Any):
        self.function = function
        self.factory, self._arguments = factory, arguments
        self._key = _key(tuple(arguments.values()))
        functools.update_wrapper(self, function, assigned=("__module__", "__doc__"), updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function."""
        return self.function(*args, **kwargs)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Comparable):
            return NotImplemented
        return self is other or (self.factory is other.factory and self._key == other._key)

    def __hash__(self) -> int:
        return hash((self.factory, self._key))

    def __repr__(self) -> str:
        said = (f"{name}={_short(value)}" for name, value in self._arguments.items())
        return f"{self.factory.__name__}({', '.join(said)})"


def comparable(factory: Factory) -> Factory:
    """Makes the functions of a factory compare, hash and print by the factory and its arguments.

    Arguments compare by value. Arrays, and other values that cannot be hashed, compare by identity;
    lists, tuples and dicts compare by what they hold.

    Args:
      factory: a function that returns a function, with the same behaviour for equal arguments.

    >>> @comparable
    ... def plus(n):
    ...     return lambda x: x + n
    >>> plus(1) == plus(1), plus(1) == plus(2), plus(1)(41), plus(1)
    (True, False, 42, plus(n=1))
    """
    signature = inspect.signature(factory)

    @functools.wraps(factory)
    def make(*args: Any, **kwargs: Any) -> Any:
        function = factory(*args, **kwargs)
        if isinstance(function, Comparable):  # from another factory, whose arguments say more
            return function
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return Comparable(factory, bound.arguments, function)

    return cast(Factory, make)


def made_by(function: Any, factory: Callable[..., Any]) -> bool:
    """Whether a function was made by a factory under `comparable`.

    >>> @comparable
    ... def plus(n):
    ...     return lambda x: x + n
    >>> made_by(plus(1), plus), made_by(abs, plus)
    (True, False)
    """
    return isinstance(function, Comparable) and function.factory is inspect.unwrap(factory)


class _Same:
    """Compares the value that it holds by identity."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def _key(value: Any) -> Any:
    """The value itself if it can be hashed, else something hashable that compares like it."""
    try:
        hash(value)
    except TypeError:
        if isinstance(value, dict):
            return tuple((name, _key(x)) for name, x in value.items())
        return tuple(map(_key, value)) if isinstance(value, list | tuple) else _Same(value)
    return value


def _short(value: Any, most: int = 60) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= most else f"{text[: most - 3]}..."
