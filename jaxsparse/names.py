"""Which leaves are weights to prune, by their names, and which are embeddings, positions or norms.

A leaf is a weight if its own name is one that libraries give to weights (kernel, weight, w,
weight_ih, recurrent_kernel), and nothing marks it as a table or a norm. Three things can mark it:
the class of the module that holds it, the name of that module, and the first part of its own name
(token_embed_weight). Names are split into words, so "normal" is no norm and "embedding_to_hidden"
is no embedding. `tests/test_names.py` lists the names of thirty kinds of network.

The embedding of image patches is a convolution or projection of pixels, so it is pruned like any
first layer. Output layers (head, lm_head, classifier) are pruned too. SViTE prunes both (Chen et
al. 2021, "Chasing Sparsity in Vision Transformers"), and leaves out positions and class tokens.
"""

import re
from collections.abc import Iterable

# Names of weights, and the part before them: in_proj_weight. The suffixes are those of recurrent
# cells (PyTorch, Equinox, Haiku) and of PyTorch's weight normalisation, which calls its direction
# v.
_WEIGHT = re.compile(
    r"(?:(?P<of>.+)_)?(?:kernel|weight)|w"
    r"|(?:kernel|weight|w)_(?:ih|hh|hr|i|h|x|v)(?:_l\d+)?(?:_reverse)?",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"\d+(?:[dD](?![a-z]))?")  # Dense_0, Conv2d
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")

_NORM = re.compile(r"[a-z]*(?:norms?|normali[sz]ation)|[bgl]ns?")
_TABLE = re.compile(r"(?!un)[a-z]*emb(?:s|ed|eds|edder|edding|eddings)?|wte|table|codebook")
_OF_TABLE = {"in", "input", "token", "tokens", "word", "words", "position", "positions", "pos",
             "table", "matrix", "layer"}  # fmt: skip
_POSITION = {"pos", "position", "positions", "positional", "rel", "relative"}
_POSITION_TABLE = {"enc", "encoding", "encodings", "bias", "table"}
_PROJECTION = {"linear", "dense", "conv", "convolution", "proj", "project", "projection", "fc",
               "mlp", "to"}  # fmt: skip
_LAYER = {"attention", "cell", "einsum"}


def is_weight(path: str, rank: int, classes: Iterable[type] = ()) -> bool:
    """Returns whether a leaf is pruned by default.

    Args:
      path: path of the leaf, such as "Dense_0/kernel".
      rank: number of axes of the leaf; vectors and scalars are no weights.
      classes: the class of the node that holds the leaf, and its base classes. If one of them
        decides (Embedding, LayerNorm, Linear), names of modules do not count.

    >>> [is_weight(path, rank=2) for path in ("fc/kernel", "wte/weight", "cell/weight_ih")]
    [True, False, True]
    >>> is_weight("patch_embed/kernel", rank=4), is_weight("tok_embed/kernel", rank=2)
    (True, False)
    """
    *above, name = path.split("/")
    match = _WEIGHT.fullmatch(name)
    if rank < 2 or match is None or (match["of"] and says(match["of"], rank) is False):
        return False
    by_class = (says(cls.__name__, rank=2) for cls in classes)  # a stack of tables has three axes
    told = next((verdict for verdict in by_class if verdict is not None), None)
    return (says(_owner(above), rank) if told is None else told) is not False


def says(name: str, rank: int) -> bool | None:
    """Returns what the name of a module, or of its class, says about a weight in it.

    The last word marks a norm (layer_norm, bn1); so does the first (ln_f), unless another word
    names a projection (norm_proj). The last word marks a table (tok_embed, wte). A table with three
    axes or more is a convolution, such as the embedding of image patches, unless it holds
    positions. "patch_embed" is a projection of the image, whatever its shape.

    Args:
      name: name of a module or class.
      rank: number of axes of the weight.

    Returns:
      True for a layer that multiplies; False for an embedding, a position or a norm; None if the
      name does not tell.

    >>> [says(name, rank=2) for name in ("LayerNorm_0", "pos_embedding", "Conv2d", "normal")]
    [False, False, True, None]
    """
    words = [word.lower() for word in _WORD.findall(_NUMBER.sub(" ", name))]
    if not words:
        return None
    first, last, of = words[0], words[-1], set(words)
    if _NORM.fullmatch(last):
        return False
    if of & _PROJECTION or last in _LAYER:
        return True
    if _NORM.fullmatch(first) or last == "wpe" or (of & _POSITION and last in _POSITION_TABLE):
        return False
    begins_table = _TABLE.fullmatch(first) and {*words[1:]} <= _OF_TABLE  # embed_tokens
    if not (_TABLE.fullmatch(last) or begins_table):
        return None
    if of & _POSITION or "pos" in last:
        return False
    return rank > 2 or any(word.startswith("patch") for word in words)


def _owner(above: list[str]) -> str:
    """The name of the module that holds a leaf; for a module in a list, the name of the list.

    The name of a list counts only if it is a plural: "norms/0" is a norm, but "time_embed/0" is a
    layer of something called an embedding. Else the name is "".
    """
    if above and above[-1].isdecimal():
        return above[-2] if len(above) > 1 and above[-2].endswith("s") else ""
    return above[-1] if above else ""
