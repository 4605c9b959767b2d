"""What a finished run cost, from its records alone."""

import jax.numpy as jnp
import pytest

import jaxsparse
from experiments.records.cost import flops_of_run, peak_memory
from experiments.records.run_folder import RunFolder, read_metrics

SIZES = {"a": 100, "b": 10}
DENSE = {"a": 1000, "b": 200, "other": 50}


def rigl(steps):
    return jaxsparse.rigl(sparsity=0.5, total_steps=steps, update_interval=2, stop_step=steps)


RECORDS = [
    {"step": 0, "density": 0.5, "layer_num_active": [45, 10]},
    {"step": 1, "train_loss": 2.0},
    {"step": 2, "density": 0.3, "layer_num_active": [28, 5]},
    {"step": 3, "val_accuracy": 0.5},
    {"step": 4, "layer_num_active": [10, 1]},
]
# f_S = 450 + 200 + 50 = 700 for steps 1 and 2, 280 + 100 + 50 = 430 for 3 and 4, then 170.
# The steps before the events, 2 and 4, take the dense gradient: 1250 - 700 and 1250 - 430 more.
TRAIN = 3 * (2 * 700 + 2 * 430 + 6 * 170) + 550 + 820


def test_flops_of_a_run_by_hand():
    assert flops_of_run(DENSE, RECORDS, SIZES, rigl(10), batch_size=8) == {
        "train_flops": 8 * TRAIN,
        "dense_train_flops": 8 * 3 * 1250 * 10,
        "train_flops_ratio": pytest.approx(TRAIN / 37_500),
        "test_flops": 170,
        "dense_test_flops": 1250,
        "test_flops_ratio": 170 / 1250,
    }


def test_a_run_that_starts_later_costs_its_own_steps():
    later = [record | {"step": record["step"] + 30} for record in RECORDS]
    method = rigl(40)
    found = flops_of_run(DENSE, later, SIZES, method, batch_size=8, start=30)
    assert found == flops_of_run(DENSE, RECORDS, SIZES, rigl(10), batch_size=8)


def test_the_records_of_a_folder_are_enough(tmp_path):
    with RunFolder.create(tmp_path, {}) as folder:
        for record in RECORDS:
            folder.log(**record)
    straight = flops_of_run(DENSE, RECORDS, SIZES, rigl(10), batch_size=1)
    assert flops_of_run(DENSE, read_metrics(tmp_path), SIZES, rigl(10), batch_size=1) == straight


def test_a_plan_and_a_run_that_follows_it_cost_the_same():
    params = {path: jnp.zeros((size // 5, 5)) for path, size in SIZES.items()}
    method = jaxsparse.gmp(
        sparsity=0.8, total_steps=9, update_interval=2, scope="layer", prunable=((r".", True),)
    )
    plan = method.plan(params, DENSE)
    records = [{"step": r.step, "layer_num_active": list(r.layers.values())} for r in plan.rows]
    run = flops_of_run(DENSE, records, SIZES, method, batch_size=1)
    assert run["train_flops"] == plan.train_flops
    assert run["train_flops_ratio"] == plan.train_flops_ratio
    assert run["test_flops_ratio"] == plan.test_flops_ratio


def test_records_without_a_start_or_of_another_network_are_refused():
    with pytest.raises(ValueError, match="densities start at step 2, not at 0"):
        flops_of_run(DENSE, RECORDS[1:], SIZES, rigl(10), batch_size=1)
    with pytest.raises(ValueError, match="shorter"):
        flops_of_run(DENSE, RECORDS, SIZES | {"c": 5}, rigl(10), batch_size=1)


class Device:
    """What JAX's devices say about their memory: a dict, or None on CPU."""

    def __init__(self, stats):
        self.stats = stats

    def memory_stats(self):
        return self.stats


def test_peak_memory_is_that_of_the_fullest_device_or_of_the_process():
    devices = [Device({"peak_bytes_in_use": n * 2**20}) for n in (3, 7, 5)]
    assert peak_memory(devices) == {"peak_memory_mib": 7.0, "peak_memory_of": "device"}
    for without in ([Device(None)], [Device({})], None):
        peak = peak_memory(without)
        assert peak["peak_memory_of"] == "process"
        assert 50 < peak["peak_memory_mib"] < 100_000  # an interpreter with JAX, in MiB not KiB
