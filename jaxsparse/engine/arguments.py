"""What `compile_inference` and its result are given: masks for variables, and inputs in words."""

from collections.abc import Mapping

import jax

from jaxsparse.masks import apply_masks
from jaxsparse.paths import leaves_by_path, listed, with_leaves
from jaxsparse.types import PyTree


def masked_variables(variables: PyTree, masks: PyTree) -> PyTree:
    """Returns variables whose inactive weights are 0."""
    if isinstance(variables, Mapping) and "params" in variables:
        return {**variables, "params": _masked_leaves(variables["params"], masks)}
    return _masked_leaves(variables, masks)


def _masked_leaves(variables: PyTree, masks: PyTree) -> PyTree:
    """The same; leaves that have no mask are dense, such as the statistics in an NNX state."""
    given, leaves = leaves_by_path(masks), leaves_by_path(variables)
    for path in given:
        if path not in leaves:
            what = f"masks have a leaf {path}" if path else f"masks are a {type(masks).__name__}"
            raise ValueError(f"{what}, params have {listed(leaves)}")
    return with_leaves(variables, apply_masks({path: leaves[path] for path in given}, given))


def shown(tree: PyTree) -> str:
    """A tree of inputs in a few words, such as "an array" or "{'a': array, 'b': array}"."""
    leaves, structure = jax.tree.flatten(tree)
    if jax.tree_util.treedef_is_leaf(structure) and hasattr(tree, "dtype"):
        return "an array"
    if not leaves or len(leaves) > 8 or not all(hasattr(x, "dtype") for x in leaves):
        return f"a {type(tree).__name__}"
    return str(jax.tree.map(lambda x: "array", tree)).replace("'array'", "array")
