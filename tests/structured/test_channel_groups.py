"""Groups by tracing: known tables, removal against zeroing, networks of libraries, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse.structured import channel_groups
from tests.structured.networks import CASES


def shown(member):
    each = member.indices.shape[1]
    return f"{member.path}[{member.axis}]" + (f"x{each}" if each > 1 else "")


def table(groups):
    return {g.name: (g.width, " ".join(map(shown, g.members))) for g in groups}


def example(case):
    rng = np.random.default_rng(0)
    params = {path: rng.normal(size=shape) for path, shape in case.shapes.items()}
    is_ids = case.x == (2, 5)
    x = rng.integers(0, 5, case.x) if is_ids else rng.normal(size=case.x)
    return jax.tree.map(lambda y: jnp.asarray(y, jnp.float32), params), (
        jnp.asarray(x) if is_ids else jnp.asarray(x, jnp.float32)
    )


def groups_of(case):
    abstract = jax.eval_shape(lambda: example(case))
    return channel_groups(case.apply, *abstract, inner=case.inner)


@pytest.fixture(autouse=True)
def as_users_have_it():
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("name", CASES)
def test_groups(name):
    assert table(groups_of(CASES[name])) == dict(CASES[name].groups)


def removed(params, group, unit):
    """The parameters without a unit, and those with zeros in its place."""
    narrow, zeroed = ({path: np.array(x) for path, x in params.items()} for _ in range(2))
    for member in group.members:
        at = member.indices[unit]
        narrow[member.path] = np.delete(narrow[member.path], at, member.axis)
        np.moveaxis(zeroed[member.path], member.axis, 0)[at] = 0
    return narrow, zeroed


@pytest.mark.parametrize("name", CASES)
def test_a_network_without_a_unit_computes_what_it_does_with_zeros(name):
    case = CASES[name]
    params, x = example(case)
    for group in groups_of(case):
        for unit in (0, group.width // 2):
            narrow, zeroed = removed(params, group, unit)
            np.testing.assert_allclose(
                case.apply(narrow, x), case.apply(zeroed, x), rtol=1e-4, atol=1e-4
            )
