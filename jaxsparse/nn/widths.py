"""The output channels of every convolution of a residual network, and which have to be equal."""

from collections.abc import Mapping, Sequence

from jaxsparse.checks import check_whole
from jaxsparse.paths import listed

SHORTCUT = "shortcut_conv"


def block_name(stage: int, number: int) -> str:
    """Returns the name of a block; stage and number count from 0.

    >>> block_name(1, 0)
    'stage2_block1'
    """
    return f"stage{stage + 1}_block{number + 1}"


def full_widths(
    stage_sizes: Sequence[int], width: int, convs: Sequence[str], expansion: int
) -> dict[str, int]:
    """Returns the output channels of every convolution, by the name of the layer.

    Args:
      stage_sizes: blocks per stage.
      width: of the stem and the first stage; it doubles from stage to stage.
      convs: names of a block's convolutions, of which the shortcut is added to the last.
      expansion: factor on the width of the last.

    >>> full_widths((1, 1), 16, ("conv1", "conv2"), 1)
    {'conv1': 16, 'stage1_block1/conv1': 16, 'stage1_block1/conv2': 16,
     'stage2_block1/conv1': 32, 'stage2_block1/conv2': 32, 'stage2_block1/shortcut_conv': 32}
    """
    found = {"conv1": width}
    for stage, num_blocks in enumerate(stage_sizes):
        inside = width * 2**stage
        for number in range(num_blocks):
            own = {conv: inside for conv in convs[:-1]} | {convs[-1]: inside * expansion}
            if number == 0 and (stage > 0 or expansion > 1):
                own[SHORTCUT] = inside * expansion
            found |= {f"{block_name(stage, number)}/{conv}": num for conv, num in own.items()}
    return found


def with_widths(
    full: Mapping[str, int], widths: Mapping[str, int], stage_sizes: Sequence[int], last: str
) -> dict[str, int]:
    """Returns the output channels of every convolution, some of them changed.

    Args:
      full: from `full_widths`.
      widths: those that differ, at least 1.
      stage_sizes: blocks per stage.
      last: name of the convolution that a block's shortcut is added to.

    Raises:
      ValueError: a name that is none of `full`, a width below 1, or unequal widths of convolutions
        whose outputs are added; names them.
    """
    for name, width in widths.items():
        if name not in full:
            raise ValueError(f"widths: no convolution is called {name}; there are {listed(full)}")
        check_whole(f"widths: {name}", width, 1, of="channels")
    found: dict[str, int] = {**full, **widths}
    for stage, num_blocks in enumerate(stage_sizes):
        blocks = [block_name(stage, number) for number in range(num_blocks)]
        entry = f"{blocks[0]}/{SHORTCUT}"
        added = [entry if entry in full else "conv1", *(f"{block}/{last}" for block in blocks)]
        for name in added[1:]:
            if found[name] != found[added[0]]:
                raise ValueError(
                    f"widths: {added[0]} has {found[added[0]]} channels and {name} {found[name]}, "
                    "but their outputs are added"
                )
    return found
