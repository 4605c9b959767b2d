"""What the name of a leaf says about it: a weight to prune, or an embedding, a position, a norm.

A leaf is a weight if its own name is one of those that libraries give to what they multiply by
(kernel, weight, w, weight_ih, recurrent_kernel) and nothing tells it apart as a table or a norm.
Three things may: the class of the module that holds it, the name of that module, and a first part
of its own name (token_embed_weight). Names are read as words, so "normal" is no norm and
"embedding_to_hidden" no embedding. `tests/test_names.py` has the names of some twenty libraries.
"""

import re
from collections.abc import Iterable

# What is multiplied by, and the part before it: in_proj_weight. The suffixes are those of recurrent
# cells (PyTorch, Equinox, Haiku) and of PyTorch's weight normalisation, whose direction is v.
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
      path: of the leaf, such as "Dense_0/kernel".
      rank: its number of axes; vectors and scalars are no weights.
      classes: the class of the node that holds it and those that this one derives from. Where one
        of them says what it is (Embedding, LayerNorm, Linear), names of modules do not count.

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

    A norm is told by its last word (layer_norm, bn1), or by its first (ln_f) unless it names a
    projection (norm_proj). A table is told by its last word (tok_embed, wte). One with three axes
    or more is a convolution, such as the embedding of the patches of an image, unless it is of
    positions. "patch_embed" is a projection of the image, whatever its shape.

    Returns:
      True: a layer that multiplies. False: an embedding, a position or a norm. None: nothing.

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
    """The name of the module that holds a leaf; of one in a list, that of a list of such modules.

    "norms/0" is a norm, but "time_embed/0" a layer of something that is called an embedding.
    """
    if above and above[-1].isdecimal():
        return above[-2] if len(above) > 1 and above[-2].endswith("s") else ""
    return above[-1] if above else ""
