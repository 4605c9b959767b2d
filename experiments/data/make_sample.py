"""Makes the shipped sample of Fashion-MNIST from the full set, bit for bit.

python experiments/data/make_sample.py --data_dir=DIR [--out=FOLDER]
"""

import argparse
import gzip
import hashlib
import io
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script sees its own folder only

from experiments.data import fashion_mnist

# Split, prefix of its files, and number of images of each class.
SPLITS = (("train", "train", 500), ("test", "t10k", 100))


def balanced_order(labels: np.ndarray, per_class: int) -> np.ndarray:
    """Picks the first images of every class, taking turns between the classes.

    Round r has the r-th image of each class, so a cut at any multiple of the number of classes is
    balanced. In file order instead, the first 500 images of each class would end without the
    classes that fill up early, and the end is the validation set.

    Args:
      labels: int[n], class of each image in file order.
      per_class: number of images to pick of each class, at least 1.

    Returns:
      int[per_class * number of classes], indices into `labels`; in file order within a round.

    Raises:
      ValueError: a class has fewer than `per_class` images.

    >>> balanced_order(np.array([0, 0, 0, 1, 1, 0]), per_class=2)
    array([0, 3, 1, 4])
    """
    rounds = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < per_class:
            raise ValueError(f"class {label} has {len(members)} images, expected {per_class}")
        rounds.append(members[:per_class])
    return np.sort(np.stack(rounds), axis=0).T.ravel()


def gzipped_idx(array: np.ndarray) -> bytes:
    """Encodes an array as gzipped IDX, without a time stamp or a name.

    Args:
      array: uint8, any shape.

    Returns:
      The bytes of the file, which are the same on every machine with the same zlib.
    """
    header = np.array([0x0800 | array.ndim, *array.shape], ">u4").tobytes()
    buffer = io.BytesIO()
    # GzipFile is used, as the header that gzip.compress writes depends on the Python version.
    with gzip.GzipFile("", "wb", compresslevel=9, fileobj=buffer, mtime=0) as file:
        file.write(header + array.tobytes())
    return buffer.getvalue()


def make_sample(data_dir: Path, out: Path) -> None:
    """Writes the four files of the sample and prints their sizes and sha256.

    Args:
      data_dir: folder of the full set, see `fashion_mnist.read`.
      out: folder for the sample, created if missing; files of the same names are replaced.

    Raises:
      FileNotFoundError: the full set is not in `data_dir`.
      ValueError: one of its files is damaged.
    """
    splits = fashion_mnist.read(data_dir)
    out.mkdir(parents=True, exist_ok=True)
    for split, prefix, per_class in SPLITS:
        images_name, labels_name = f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"
        images, labels = splits[split]
        order = balanced_order(labels, per_class)
        for name, array in (
            (images_name, images[order, :, :, 0]),
            (labels_name, labels[order].astype(np.uint8)),
        ):
            content = gzipped_idx(array)
            (out / f"{name}.gz").write_bytes(content)
            print(f"{hashlib.sha256(content).hexdigest()}  {name}.gz  {len(content):,} bytes")


def main() -> int:
    """Runs the command line; an error is one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser(description="Makes the shipped sample of Fashion-MNIST.")
    parser.add_argument("--data_dir", type=Path, required=True, help="folder of the full set")
    parser.add_argument("--out", type=Path, default=fashion_mnist.SAMPLE_DIR)
    args = parser.parse_args()
    try:
        make_sample(args.data_dir, args.out)
    except (OSError, ValueError) as error:
        print(f"make_sample.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
