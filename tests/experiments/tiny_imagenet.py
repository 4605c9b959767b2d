"""`imagenet.py` with a network of 8 channels, in this process or in one of its own.

python tests/experiments/tiny_imagenet.py FLAGS
"""

import functools
import sys

from experiments import imagenet
from experiments.options import cli, flags
from jaxsparse.nn.residual_blocks import BasicBlock
from jaxsparse.nn.resnet import ResNet

TINY = functools.partial(ResNet, stage_sizes=(1, 1), block=BasicBlock, width=8)
SHORT = "--model=tiny --image_size=16 --batch_size=16 --workers=0"


def main(argv):
    """Runs the script with these arguments; returns its exit status."""
    imagenet.MODELS["tiny"] = TINY
    return cli.run(imagenet.main, imagenet.Config, argv, going_on=flags.going_on)


if __name__ == "__main__":
    sys.exit(main(SHORT.split() + sys.argv[1:]))
