"""The arrows of the design point one way, and the public names are complete and documented."""

import ast
import graphlib
import inspect
import sys
from pathlib import Path

import pytest

import jaxsparse

ROOT = Path(jaxsparse.__file__).parent

# What each module may import: types <- {keys, paths} <- masks <- {distributions, ...} <- ... .
CORE = {"types", "integers", "keys", "names", "paths", "counting", "comparable", "masks", "axes"}
TOOLS = CORE | {"distributions", "schedules", "scores", "selection", "groups", "ranking"}
STEPS = TOOLS | {"timetable"}
STARTS = STEPS | {"patterns", "budget"}
MAY_IMPORT = {
    "types": set(),
    "integers": set(),
    "keys": {"types"},
    "names": set(),
    "paths": {"types", "names"},
    "counting": set(),
    "comparable": set(),
    "overwritten": {"types"},
    "masks": {"types", "paths"},
    "axes": {"types", "paths"},
    "distributions": CORE,
    "schedules": CORE,
    "groups": {"types"},
    "scores": CORE | {"groups"},
    "search": set(),
    "ties": set(),
    "kernels": {"counting", "kernels"},
    "bisection": CORE | {"search", "ties"},
    "histogram": {"types"},
    "selection": {"types", "integers", "counting", "bisection", "histogram", "kernels"},
    "ranking": {"types", "ties", "groups"},
    "patterns": CORE | {"groups"},
    "timetable": TOOLS,
    "stages": STEPS,
    "jaxprs": set(),
    "axis_views": {"types"},
    "axis_operations": {"types", "jaxprs", "axis_views"},
    "traced_axes": CORE | {"jaxprs", "axis_views", "axis_operations"},
    "owners": set(),
    "products": set(),
    "flops": CORE | {"jaxprs", "owners", "products"},
    "signals": {"jaxprs", "owners"},
    "connectivity": CORE | {"signals", "owners"},
    "accounting": CORE | {"flops"},
    "plan": STEPS | {"flops", "accounting"},
    "budget": STEPS,
    "starts": STARTS,
    "recipe": STARTS | {"starts", "plan"},
    "method": STEPS | {"budget", "flops", "patterns", "plan", "recipe"},
    "cycles": STEPS | {"stages", "recipe", "method"},
    "methods": STEPS | {"stages", "plan", "method", "cycles", "methods"},
    "inside_optax": {"types"},
    "transforms": CORE | {"overwritten", "inside_optax"},
    "frozen": CORE | {"overwritten", "jaxprs", "method"},
    "events": CORE | {"method"},
    "age": CORE,
    "metrics": CORE,
    "changes": CORE,
    "csr": CORE,
    "export": CORE | {"csr", "flat_state", "export"},
    "flat_state": CORE,
    "checkpoint": CORE | {"flat_state", "checkpoint"},
    "compat": STARTS | {"starts", "stages", "method", "methods", "transforms", "compat"},
    "sparse_optimizer": CORE
    | {"overwritten", "method", "metrics", "patterns", "transforms", "frozen", "events"},
    "train_state": CORE
    | {"method", "metrics", "changes", "transforms", "frozen", "events", "sparse_optimizer"},
    "sparse": CORE | {"csr", "kernels", "sparse"},
    "nn": CORE | {"distributions", "method", "metrics", "nn", "sparse", "sparse_optimizer"},
}


def imports(path):
    """The dotted names of all modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


def modules():
    """Module or folder of the package -> dotted names that it imports."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        part = path.relative_to(ROOT).with_suffix("").parts[0]
        if part != "__init__":
            found.setdefault(part, set()).update(imports(path))
    return found


IMPORTS = modules()
INSIDE = {
    part: {name.split(".")[1] for name in names if name.startswith("jaxsparse.")}
    for part, names in IMPORTS.items()
}


@pytest.mark.parametrize("part", IMPORTS)
def test_arrows(part):
    assert INSIDE[part] <= MAY_IMPORT[part]
    assert "jaxsparse" not in IMPORTS[part]  # the front door is for users


def test_no_cycle_even_between_files():
    graph = {}
    for path in ROOT.rglob("*.py"):
        name = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
        graph[name.removesuffix(".__init__")] = {
            n for n in imports(path) if n.startswith("jaxsparse")
        }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_what_comes_from_outside():
    def users(package):
        return {
            part for part, names in IMPORTS.items() for n in names if n.split(".")[0] == package
        }

    assert users("flax") == {"nn", "train_state"}
    assert users("orbax") == {"checkpoint"}
    assert users("safetensors") == {"export"}
    # Orbax is slow to import.
    assert not any(
        name.startswith("jaxsparse.checkpoint") for name in imports(ROOT / "__init__.py")
    )
    assert users("experiments") == users("tests") == set()
    allowed = {"jax", "numpy", "optax", "chex", "flax", "orbax", "safetensors", "jaxsparse"}
    outside = {n.split(".")[0] for names in IMPORTS.values() for n in names}
    assert {n for n in outside - allowed if n not in sys.stdlib_module_names} == set()


def test_public_names_are_sorted_complete_and_documented():
    names = jaxsparse.__all__
    assert names == sorted(names)
    public = {n for n, x in vars(jaxsparse).items() if n[0] != "_" and not inspect.ismodule(x)}
    assert public == set(names)
    assert [n for n in names if not inspect.getdoc(getattr(jaxsparse, n))] == []
