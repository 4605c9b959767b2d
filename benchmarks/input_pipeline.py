"""Reading ImageNet against the limit of its decoder, and against Pillow.

    python -m benchmarks.input_pipeline

The limit is to decode, cut and resize the same JPEGs from memory to the same crops, and nothing
else. The pipeline also reads records, draws crops, flips, makes batches and hands them on, through
shared memory if a worker does it. All are timed in turn, in seconds of CPU over all processes and
threads, so that "images a second" are those of one core. Ratios are those of the same round.

The images are made up: 500 x 375 pixels with detail of every scale, JPEG quality 90.
"""

import argparse
import io
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from array_record.python import array_record_data_source, array_record_module
from PIL import Image

from experiments.data import decoding
from experiments.data.crops import Box, crop_of, random_box
from experiments.data.imagenet_records import Example, Records
from experiments.data.order import Order, chunks

SIZE, HEIGHT, WIDTH = 224, 375, 500
BATCH = 64  # images of a chunk
NUM_TRAIN = 1_281_167
SEED = 0


def photo(rng: np.random.Generator) -> bytes:
    """Makes a JPEG with detail of every scale, as in a photo."""
    pixels = np.full((HEIGHT, WIDTH, 3), 128.0, np.float32)
    for scale, contrast in ((1, 8), (2, 10), (8, 15), (32, 30), (128, 40)):
        shape = (HEIGHT // scale + 2, WIDTH // scale + 2, 3)
        coarse = rng.normal(0, contrast, shape).astype(np.float32)
        pixels += cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


class Repeated:
    """Images in files, repeated to as many as ImageNet has: its order takes time of its own."""

    def __init__(self, paths: Sequence[str]):
        self._source = array_record_data_source.ArrayRecordDataSource(paths)

    def __len__(self) -> int:
        return NUM_TRAIN

    def __getitem__(self, index: int) -> bytes:
        return self._source[index % len(self._source)]


def stored(images: Sequence[bytes], folder: Path) -> Records:
    """Writes images as TFDS does, four into a file, as the images of a batch lie in many files."""
    paths = [str(folder / f"{first}.array_record") for first in range(0, len(images), 4)]
    for number, path in enumerate(paths):
        writer = array_record_module.ArrayRecordWriter(path, "group_size:1")
        for image in images[4 * number : 4 * number + 4]:
            example = Example()
            example.features.feature["image"].bytes_list.value.append(image)
            example.features.feature["label"].int64_list.value.append(number)
            example.features.feature["file_name"].bytes_list.value.append(b"an image")
            writer.write(example.SerializeToString())
        writer.close()
    return Records("train", Repeated(paths), [(path, 4) for path in paths])


def pillow_image(data: bytes, rng: np.random.Generator, size: int) -> np.ndarray:
    """What `train_image` does, with Pillow as torchvision uses it."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    box = random_box(rng, image.height, image.width)
    edges = (box.left, box.top, box.left + box.width, box.top + box.height)
    image = image.resize((size, size), Image.Resampling.BILINEAR, box=edges)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image)


def boxes_of(order: Order, num_chunks: int) -> list[list[Box]]:
    """Draws the crops of the first chunks, as the pipeline will draw them."""
    return [
        [random_box(order.rng(step, place), HEIGHT, WIDTH) for place in range(BATCH)]
        for step in range(num_chunks)
    ]


def limit(images: Sequence[bytes], order: Order, num_chunks: int) -> Callable[[], None]:
    """Returns a program that decodes, cuts and resizes, for `num_chunks` chunks."""
    boxes = boxes_of(order, num_chunks)
    data = [
        [images[index % len(images)] for index in order.images(step, range(BATCH))]
        for step in range(num_chunks)
    ]

    def run() -> None:
        for chunk, of_chunk in zip(data, boxes, strict=True):
            for one, box in zip(chunk, of_chunk, strict=True):
                crop_of(one, box, SIZE)

    return run


class Pipeline:
    """The pipeline as training has it; a call takes as many chunks as are made meanwhile.

    It starts and ends with full buffers, so that it makes what it hands on.
    """

    def __init__(self, make: decoding.TrainChunks, num_chunks: int, workers: int):
        self._chunks = decoding.run(make, decoding.ENDLESS, workers)
        self._num_chunks = num_chunks
        self()

    def __call__(self) -> None:
        """Takes chunks, and waits until the buffers are full again."""
        for _ in range(self._num_chunks):
            np.asarray(next(self._chunks).images)
        before = -1.0
        while (now := cpu_seconds()) - before > 0.02:
            before = now
            time.sleep(0.5)

    def close(self) -> None:
        """Ends its workers."""
        self._chunks.close()


def cpu_seconds() -> float:
    """Seconds of CPU of this process and its workers."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def seconds(run: Callable[[], None]) -> float:
    """Seconds of CPU of a call."""
    start = cpu_seconds()
    run()
    return cpu_seconds() - start


def spread(values: Sequence[float], digits: int) -> str:
    """Median and quartiles, such as "0.91 [0.90, 0.92]"."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{median:,.{digits}f} [{low:,.{digits}f}, {high:,.{digits}f}]"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--chunks", type=int, default=8, help="chunks of 64 images in a sample")
    args = parser.parse_args()
    cv2.setNumThreads(0)
    rng = np.random.default_rng(SEED)
    images = [photo(rng) for _ in range(BATCH * args.chunks)]
    order = Order(NUM_TRAIN, BATCH, SEED)
    with tempfile.TemporaryDirectory() as folder:
        make = decoding.TrainChunks(
            stored(images, Path(folder)), order, 0, chunks(range(BATCH), BATCH), SIZE
        )
        pipelines = {
            "pipeline, in this process": Pipeline(make, args.chunks, 0),
            "pipeline, a worker": Pipeline(make, args.chunks, 1),
            "the same with Pillow": Pipeline(make._replace(crop=pillow_image), args.chunks, 0),
        }
        runs = {"limit": limit(images, order, args.chunks), **pipelines}
        times: dict[str, list[float]] = {name: [] for name in runs}
        for number in range(args.rounds):
            for name in list(runs)[:: 1 if number % 2 == 0 else -1]:
                times[name].append(seconds(runs[name]))
        for pipeline in pipelines.values():
            pipeline.close()
    size = statistics.mean(map(len, images)) / 1000
    print(f"{len(images)} JPEGs of {WIDTH} x {HEIGHT}, {size:.0f} kB each; {args.rounds} rounds\n")
    print("| | images/s per core | share of the limit |\n|---|---|---|")
    for name, taken in times.items():
        speed = [len(images) / one for one in taken]
        share = [bound / one for bound, one in zip(times["limit"], taken, strict=True)]
        print(f"| {name} | {spread(speed, 0)} | {spread(share, 3)} |")


if __name__ == "__main__":
    main()
