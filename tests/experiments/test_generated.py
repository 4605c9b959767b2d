"""Made-up images: the same on any number of processes, in batches that all devices divide."""

import numpy as np

from experiments.data.generated import Generated

OPTIONS = {"seed": 3, "batch_size": 12, "image_size": 9, "num_evaluation": 20}


def shared(name, count, number):
    """The arrays of batch `number`, joined from those of all processes."""
    parts = []
    for index in range(count):
        data = Generated(**OPTIONS, process=(index, count))
        batches = data.train(5) if name == "train" else data.evaluation()
        parts.append([next(batches) for _ in range(number + 1)][number])
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


def test_processes_share_out_the_same_images():
    for name in ("train", "evaluation"):
        for number in (0, 1):
            alone = shared(name, 1, number)
            for count in (2, 3):
                for ours, theirs in zip(shared(name, count, number), alone, strict=True):
                    np.testing.assert_array_equal(ours, theirs)


def test_an_evaluation_counts_each_image_once_in_batches_of_the_full_size():
    batches = list(Generated(**OPTIONS).evaluation())
    assert [len(images) for images, _, _ in batches] == [12, 12]
    assert np.concatenate([weights for _, _, weights in batches]).sum() == 20
    first, second = (images for images, _, _ in batches)
    assert not np.array_equal(first, second)
    assert len({image.tobytes() for image in first}) == 12
