"""The narrower network of an arm in its summary: sizes, accuracies, seconds a step."""

from typing import Any

import jax

from experiments.records.progress import Progress
from experiments.records.report import evaluate
from experiments.structured.setting import Narrow, Setting, multiply_adds
from jaxsparse.nn import ResNet


def sizes(setting: Setting, narrow: Narrow) -> dict[str, Any]:
    """Returns multiply-adds and parameters, before and after, by name.

    "sparsity" is the share of the multiply-adds that is gone, by which tables compare runs.
    """
    of_model = lambda model: multiply_adds(model, setting.image)
    before, after = of_model(setting.model), of_model(narrow.model)
    params, num_left = (_num_params(setting, model) for model in (setting.model, narrow.model))
    return {
        "multiply_adds": after,
        "multiply_adds_before": before,
        "num_params": num_left,
        "num_params_before": params,
        "params_ratio": num_left / params,
        "test_flops": 2 * after,
        "dense_test_flops": 2 * before,
        "test_flops_ratio": after / before,
        "sparsity": 1 - after / before,
        "widths": narrow.model.conv_widths(),
    }


def _num_params(setting: Setting, model: ResNet) -> int:
    shapes = jax.eval_shape(model.init, jax.random.key(0), setting.image)["params"]
    return sum(x.size for x in jax.tree.leaves(shapes))


def merged_accuracy(setting: Setting, reached: Progress, narrow: Narrow) -> dict[str, Any]:
    """Returns the accuracies of a network that was merged after training; {} if it was not.

    Earlier networks of the training were wide, so the best one is the last. The accuracy of the
    network before the merge, "unmerged_test_accuracy", says what the merge has cost.
    """
    if not narrow.is_merged:
        return {}
    run, data = reached.run._replace(model=narrow.model), setting.base.dataset
    test, val = (evaluate(run, narrow.variables, split) for split in (data.test, data.val))
    return {
        "test_accuracy": test,
        "val_accuracy": val,
        "best_step": reached.step,
        "best_test_accuracy": test,
        "best_val_accuracy": val,
        "unmerged_test_accuracy": evaluate(reached.run, reached.state.variables, data.test),
    }


def training_flops(setting: Setting, first: int, last: int, flops: float) -> dict[str, float]:
    """Returns the FLOPs of an arm's training, and of as many steps at full width.

    Args:
      setting: of the study.
      first: the step that the arm starts at.
      last: its last step.
      flops: multiply-adds of an image, summed over the arm's steps.
    """
    each = 6.0 * setting.base.batch_size  # 2 for a multiply-add, 3 for forward and backward
    dense = each * multiply_adds(setting.model, setting.image) * (last - first)
    return {
        "train_flops": each * flops,
        "dense_train_flops": dense,
        "train_flops_ratio": each * flops / dense,
    }
