"""The arrows of the design point one way, and the public names are complete and documented."""

import ast
import graphlib
import inspect
import sys
from pathlib import Path

import pytest

import jaxsparse

ROOT = Path(jaxsparse.__file__).parent

# What each module or folder may import; the ground comes first, and no arrow points upward.
GROUND = {"types", "integers", "keys", "names", "paths", "counting", "comparable", "masks", "axes"}
GROUND |= {"checks", "text_table", "fingerprints", "meshes", "processes", "whole_files"}
TOOLS = GROUND | {"distributions", "rounded_counts", "schedules", "units", "scores", "selection"}
PLANNED = TOOLS | {
    "timetable",
    "event_rows",
    "patterns",
    "pattern_rules",
    "unit_counts",
    "tracing",
    "planned_counts",
    "plan",
}
EVENTS = PLANNED | {"stages", "redistribution", "one_shot", "event"}
METHODS = EVENTS | {"method", "cycles", "variants"}
STATES = GROUND | {
    "invariants",
    "method",
    "metrics",
    "overwritten",
    "tracing",
    "transforms",
    "frozen",
    "pattern_rules",
}
MAY_IMPORT = {
    "types": set(),
    "integers": set(),
    "names": set(),
    "checks": {"types", "integers"},
    "text_table": set(),
    "counting": {"types", "meshes"},
    "fingerprints": {"types", "counting", "paths", "meshes"},
    "meshes": {"types"},
    "processes": {"types", "meshes"},
    "comparable": set(),
    "whole_files": set(),
    "keys": {"types"},
    "paths": {"types", "names"},
    "masks": {"types", "counting", "paths"},
    "axes": {"types", "paths"},
    "units": {"types"},
    "kernels": {"counting", "kernels"},
    "distributions": GROUND,
    "rounded_counts": GROUND,
    "schedules": GROUND,
    "scores": GROUND | {"units", "tracing"},
    "selection": GROUND | {"units", "kernels", "tracing", "selection"},
    "patterns": GROUND | {"units"},
    "pattern_rules": GROUND | {"units", "patterns"},
    "timetable": TOOLS,
    "tracing": GROUND | {"tracing"},
    "event_rows": TOOLS | {"timetable"},
    "unit_counts": TOOLS | {"timetable", "event_rows"},
    "planned_counts": TOOLS | {"timetable"},
    "plan": TOOLS | {"timetable", "tracing", "planned_counts"},
    "stages": TOOLS | {"event_rows"},
    "redistribution": TOOLS | {"event_rows"},
    "one_shot": TOOLS | {"timetable", "patterns", "pattern_rules", "unit_counts"},
    "survivors": TOOLS | {"patterns", "pattern_rules", "unit_counts"},
    "lottery": TOOLS | {"event_rows", "pattern_rules", "survivors"},
    "shuffle": TOOLS | {"patterns", "pattern_rules", "one_shot"},
    "rewinding": GROUND | {"inside_optax", "overwritten"},
    "at_init": PLANNED | {"one_shot", "at_init"},
    "event": PLANNED | {"one_shot", "stages", "redistribution"},
    "method": EVENTS - {"stages", "redistribution"},
    "cycles": EVENTS | {"method"},
    "variants": EVENTS | {"method"},
    "methods": METHODS | {"methods"},
    "inside_optax": {"types"},
    "overwritten": {"types"},
    "transforms": GROUND | {"overwritten", "inside_optax"},
    "frozen": GROUND | {"overwritten", "tracing", "method"},
    "event_counts": GROUND | {"method"},
    "age": GROUND | {"inside_optax"},
    "gradient_flow": GROUND,
    "gsm": GROUND | {"selection", "rates"},
    "rates": set(),
    "structured": GROUND | {"rates", "tracing", "structured"},
    "invariants": GROUND,
    "sparse_init": GROUND,
    "metrics": GROUND,
    "mask_history": GROUND,
    "csr": GROUND,
    "flat_state": GROUND,
    "export": GROUND | {"csr", "flat_state", "tracing", "export"},
    "checkpoint": GROUND | {"flat_state", "checkpoint"},
    "compat": METHODS | {"methods", "transforms", "compat"},
    "sparse_optimizer": STATES | {"event_counts"},
    "train_state": STATES | {"event_counts", "mask_history", "sparse_optimizer"},
    "studies": GROUND | {"scores", "selection", "transforms", "studies"},
    "engine": GROUND | {"kernels", "tracing", "engine"},
    "sparse": GROUND | {"csr", "engine", "inside_optax", "kernels", "sparse"},
    "nn": GROUND
    | {"distributions", "rounded_counts", "method", "inside_optax"}
    | {"metrics", "nn", "sparse", "sparse_optimizer", "structured", "tracing"},
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
    assert users("safetensors") == users("onnx") == users("onnxruntime") == {"export"}
    # Orbax is slow to import.
    assert not any(
        name.startswith("jaxsparse.checkpoint") for name in imports(ROOT / "__init__.py")
    )
    assert users("experiments") == users("tests") == set()
    allowed = {"jax", "numpy", "optax", "chex", "flax", "orbax", "safetensors", "jaxsparse"}
    allowed |= {"onnx", "onnxruntime"}
    outside = {n.split(".")[0] for names in IMPORTS.values() for n in names}
    assert {n for n in outside - allowed if n not in sys.stdlib_module_names} == set()


def test_public_names_are_sorted_complete_and_documented():
    names = jaxsparse.__all__
    assert names == sorted(names)
    public = {n for n, x in vars(jaxsparse).items() if n[0] != "_" and not inspect.ismodule(x)}
    assert public == set(names)
    assert [n for n in names if not inspect.getdoc(getattr(jaxsparse, n))] == []
