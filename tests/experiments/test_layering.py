"""The arrows between the folders of experiments/ point one way, and a run loads only its own."""

import ast
import graphlib
from pathlib import Path

import pytest

import experiments

ROOT = Path(experiments.__file__).parent

# What each folder and script may import; no arrow points upward. The scripts and `loop.py` stand
# outside the folders: a folder that starts runs may import the scripts that train.
A_RUN = {"data", "training", "options", "records"}
TRAINS = A_RUN | {"loop"}
SCRIPTS = TRAINS | {"fashion_mnist", "mnist", "cifar"}
MAY_IMPORT = {
    "data": {"data"},
    "training": {"data", "training"},
    "options": {"training", "options"},
    "records": A_RUN,
    "mesh": TRAINS | {"mesh"},
    "loop": A_RUN,
    "fashion_mnist": TRAINS,
    "mnist": TRAINS | {"fashion_mnist"},
    "cifar": TRAINS,
    "imagenet": TRAINS | {"mesh"},
    "comparing": {"options", "records", "comparing"},
    "sweeping": SCRIPTS | {"lottery", "tickets", "sweeping"},
    "tickets": SCRIPTS | {"comparing", "tickets"},
    "lottery": {"options", "records", "loop", "tickets"},
    "ablations": {"options", "records", "loop", "tickets"},
    "structured": TRAINS | {"comparing", "tickets", "structured"},
    "resrep": TRAINS | {"structured", "sweeping"},
    "studying": TRAINS | {"studying"},
    "plasticity": SCRIPTS | {"studying"},
    "demo": SCRIPTS,
    "plan": SCRIPTS,
    "sweep": SCRIPTS | {"sweeping"},
    "compare": {"options", "records", "comparing"},
}


def name_of(path):
    """The dotted name of a file's module."""
    name = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
    return name.removesuffix(".__init__")


def imports(path):
    """The dotted names of the modules of experiments/ that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        yield from (name for name in names if name in FILES)


FILES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}
GRAPH = {name: set(imports(path)) - {name, "experiments"} for name, path in FILES.items()}
PARTS = sorted({name.split(".")[1] for name in FILES if name != "experiments"})


def loaded_by(name):
    """All modules of experiments/ that importing one loads."""
    found, todo = set(), [name]
    while todo:
        module = todo.pop()
        if module not in found:
            found.add(module)
            todo += GRAPH[module]
    return found


@pytest.mark.parametrize("part", PARTS)
def test_arrows(part):
    names = {name for module in GRAPH if module.split(".")[1:2] == [part] for name in GRAPH[module]}
    assert {name.split(".")[1] for name in names} <= MAY_IMPORT[part]


def test_no_cycle_even_between_files():
    # `from folder import file` counts as the file: a folder's own file is empty.
    folders = {name for name, path in FILES.items() if path.stem == "__init__"}
    files = {name: needs - folders for name, needs in GRAPH.items() if name not in folders}
    graphlib.TopologicalSorter(files).prepare()  # raises CycleError
    assert all(not GRAPH[folder] for folder in folders)


@pytest.mark.parametrize("script", ["fashion_mnist", "cifar", "demo", "plan"])
def test_training_loads_nothing_of_comparing_or_sweeping(script):
    parts = {name.split(".")[1] for name in loaded_by(f"experiments.{script}")}
    assert parts & {"comparing", "sweeping", "compare", "sweep"} == set()


def test_comparing_loads_nothing_that_trains():
    parts = {name.split(".")[1] for name in loaded_by("experiments.compare")}
    assert parts & {"loop", "data", "cifar", "fashion_mnist", "sweeping"} == set()
