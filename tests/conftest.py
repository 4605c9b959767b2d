"""Set-up of all tests: 8 CPU devices, no rank promotion, hypothesis without chance or clock.

Strict dtype promotion is asked for where only our code runs (optax itself does not hold it).
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_NUM_CPU_DEVICES"] = "8"

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile(
    "ci", deadline=None, derandomize=True, max_examples=50, database=None
)
hypothesis.settings.load_profile("ci")


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)
