"""Methods made of methods: with a pattern, or from given masks.

Cycles of density are in `jaxsparse.cycles`.
"""

from collections.abc import Callable

from jaxsparse.comparable import comparable
from jaxsparse.masks import check_masks
from jaxsparse.method import Method, recipe_of, remade
from jaxsparse.pattern_rules import check_pattern_rules, patterns_in
from jaxsparse.patterns import Pattern, PatternRules
from jaxsparse.types import PyTree


def starting_from(method: Method, masks: PyTree) -> Method:
    """Returns the method with given masks at the start, in place of drawn or dense ones.

        masks = jaxsparse.magnitude_masks(params, sparsity=0.5)
        method = jaxsparse.starting_from(jaxsparse.granet_st(sparsity=0.9, ...), masks)

    Everything else stays: the targets, the stages, a pattern, cycles. It goes with `with_pattern`
    and `with_cycles` in either order. `plan` starts from the counts of the masks.

    The sparsity of the method says nothing about the start then, only about its targets:

    * An event without a target, such as RigL's exchange, keeps the counts that are there.
    * An event that prunes to a target (GMP, GraNet) removes what is above it. A layer that has
      fewer weights, or with scope "global" a network that has, keeps all of them.
    * An event of `with_cycles` brings the count to its target exactly, up or down.

    Args:
      method: one that `compose` made, as all published ones are.
      masks: bool, the structure and shapes of params; leaves that the method does not prune, frozen
        ones among them, are taken as all True. Methods compare them by identity.

    Raises:
      ValueError: no method of `compose`, or masks that are not bool. When called with params: masks
        that do not fit them, or that lack the pattern; names the leaf.

    >>> import jax.numpy as jnp
    >>> from jaxsparse import rigl
    >>> masks = {"kernel": jnp.arange(100).reshape(10, 10) < 25}
    >>> method = starting_from(rigl(sparsity=0.9, total_steps=1000), masks)
    >>> [row.num_active for row in method.plan({"kernel": jnp.zeros((10, 10))}).rows[:2]]
    [25, 25]
    """
    recipe = recipe_of(method)
    check_masks(masks, masks)
    return remade(method, recipe._replace(masks=_giving(masks)))


@comparable
def _giving(masks: PyTree) -> Callable[[], PyTree]:
    """A function, since arrays compare entry by entry and it compares by their identity."""
    return lambda: masks


def with_pattern(method: Method, pattern: Pattern | PatternRules) -> Method:
    """Returns the method with masks of a structure: N:M, blocks, whole channels.

        jaxsparse.with_pattern(jaxsparse.rigl(sparsity=0.5, ...), jaxsparse.n_of_m(2, 4))

    Blocks and channels are single weights to the method: it scores each by the sum over its
    entries, counts, drops and grows them. The targets of the timetable are rounded to whole groups,
    at least one in a leaf that keeps at least one weight; `plan` shows the counts. Beware of scope
    "global": sums differ little within a layer, so one threshold takes whole layers. (At 80 % in
    blocks of 4 x 4 it empties 8 of the 53 layers of a ResNet-50 as initialised.) Take scope
    "layer", or set `min_keep`.

    N:M fixes the density of its leaves at n/m, whatever the distribution says; the other leaves
    share the method's sparsity. An event drops anywhere in the leaf by score; then every group that
    lost entries grows as many. Methods that change the sparsity during training are refused, and so
    is sparsity 0.

    Methods that grow by gradient (RigL, SNFS, GraNet) see a gradient of 0 for inactive output
    channels in front of a ReLU: their masks would stand still, see `channels`. Give them
    `channels("inputs")`.

    Initial masks have the pattern, and so have masks after every event. Masks that are given must
    have it: `pattern_masks` makes such ones, `check_pattern` checks them. Calls of `update` do not
    check: an event restores N:M, but it counts a block or channel with one active entry as active,
    so that unstructured masks come out nearly dense; a method without events returns them as they
    are.

    Args:
      method: one that `compose` made, as all published ones are.
      pattern: for all prunable leaves; or ordered (path regex, pattern or None) pairs: for each
        leaf the first regex found in its path decides, and one without a match is unstructured.

    Raises:
      ValueError: no method of `compose`, or one that has a pattern already.
        When called with params: a rule that is no leaf's first match; a pattern that does not
        divide its leaf; a sparsity that n/m rules out, or that changes beside N:M; leaves that are
        ranked together (scope "global") with groups of different sizes.

    >>> from jaxsparse import block, channels, rigl, with_pattern
    >>> rules = [("^conv1/", None), ("fc/", channels()), (".*", block((4, 4)))]
    >>> with_pattern(rigl(sparsity=0.9, total_steps=1000), rules).name
    'rigl channels+4x4'
    """
    recipe, rules = recipe_of(method), check_pattern_rules(pattern)
    if recipe.pattern:
        raise ValueError(f"method {method.name} has a pattern already")
    names = patterns_in(rules)
    name = f"{method.name} {'+'.join(names)}" if names else method.name
    return remade(method, recipe._replace(pattern=rules), name=name)
