"""Set-up of all tests: 8 CPU devices, no rank promotion, hypothesis without chance or clock.

The tests compile some ten thousand small programs, and most of their time is XLA's. So XLA
optimises little here, in this process and in those that it starts. What one test has compiled the
next one takes from a cache, which each worker has for itself and its processes.

Strict dtype promotion is asked for where only our code runs (optax itself does not hold it).
"""

import gc
import os
import tempfile
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_NUM_CPU_DEVICES"] = "8"

# Many tests compile the same program from other Python functions. The folder goes with the process.
_cache = tempfile.TemporaryDirectory(prefix="jaxsparse-tests-")
QUICK = {
    "JAX_COMPILATION_CACHE_DIR": _cache.name,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    # Selections on a mesh have a pointer in their program, which no compiled program keeps.
    "JAX_REMOVE_CUSTOM_PARTITIONING_PTR_FROM_CACHE_KEY": "1",
}
# Eight devices that share two cores wait for each other in collectives: each has to get a thread,
# and more time than XLA's 40 seconds on a busy machine.
QUICK["NPROC"] = "16"
QUICK["XLA_FLAGS"] = "--xla_cpu_collective_call_terminate_timeout_seconds=300"
if version("jaxlib") < "0.11":  # later ones lack the flag
    QUICK["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
os.environ.update(QUICK)

import hypothesis
import jax
import pytest

from jaxsparse.kernels import load

gc.set_threshold(100_000, 50, 100)  # tracing makes many objects, few of them in circles
jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile(
    "ci", deadline=None, derandomize=True, max_examples=50, database=None
)
hypothesis.settings.load_profile("ci")


def pytest_addoption(parser):
    parser.addoption(
        "--first-cases",
        action="store_true",
        help="the first case of the first test of a file; CI does so on its second Python",
    )


# The pages that the second Python runs, one of each kind.
PAGES = {"README", "training_loops", "masks_and_optimizers", "export"}


def pytest_configure(config):
    """Leaves out the benchmarks and the parts of the experiments, before they are imported.

    The second Python runs the scripts of the experiments.
    """
    if config.getoption("--first-cases"):
        tests = Path(__file__).parent
        parts = [path.name for path in (tests / "experiments").iterdir() if path.is_dir()]
        folders = [tests / "benchmarks"]
        folders += [root / "experiments" / part for root in (tests, tests.parent) for part in parts]
        config.option.ignore = [*(config.option.ignore or []), *map(str, folders)]


@pytest.hookimpl(trylast=True)  # of those that -m has chosen
def pytest_collection_modifyitems(config, items):
    """Keeps the first case of a file's first test; of the conformance one of each test.

    Another version of JAX or Flax breaks most tests of a file at once, if it breaks any.
    """
    if not config.getoption("--first-cases"):
        return
    seen, kept, others, first = set(), [], [], {}
    for item in items:
        cases = getattr(item, "callspec", None)
        params = cases.params if cases else {}
        kinds = {"engine": params.get("engine")}
        if "conformance" in item.path.parts:
            kinds["name"] = params.get("name")
        if "docs" in item.path.parts and "page" in params:
            kinds["page"] = Path(str(params["page"])).stem
        function = item.nodeid.split("[")[0]
        test = (function, *kinds.values())
        is_first = first.setdefault(item.path, function) == function
        chosen = is_first or "conformance" in item.path.parts
        chosen = chosen and (not cases or test not in seen)
        chosen = chosen and kinds.get("page", "README") in PAGES
        (kept if chosen else others).append(item)
        seen.add(test)
    items[:] = kept
    config.hook.pytest_deselected(items=others)


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


@pytest.fixture(params=["compiled", "jax"])
def engine(request, monkeypatch) -> str:
    """Runs a test with the kernels, which it skips where there are none, and in JAX alone.

    What is compiled once stays as it is: a test makes the functions that it compiles itself.
    """
    if request.param == "jax":
        backend = load.Backend("jax", "as the test asks")
        monkeypatch.setattr(load, "backend", lambda: backend)
    elif load.backend().name != "compiled":
        pytest.skip(load.backend().why)
    return request.param


@pytest.fixture
def compiled() -> None:
    """Runs a test with the kernels, which it skips where there are none."""
    if load.backend().name != "compiled":
        pytest.skip(load.backend().why)


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Unloads what a file's tests have compiled: a process has room for some thousands of programs.

    Each takes a few mappings of memory, of which Linux gives a process 65,530; at the end of them
    XLA crashes. What another file needs again comes from the cache on disk.
    """
    yield
    jax.clear_caches()
