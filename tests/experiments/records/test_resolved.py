"""summary.json says what flags came to."""

import pytest

from experiments import cifar, fashion_mnist
from experiments.records.resolved import resolved


def of_cifar(**flags):
    config = cifar.Config(model="resnet20", steps=1000, sparsity=0.99, **flags)
    return resolved(cifar.run_of(config, cifar.blank(config)))


def test_east_by_its_defaults():
    assert of_cifar(schedule="east") == {
        "update_interval": 45,  # 4000 of 88,000
        "first_update_step": 405,
        "last_update_step": 990,
        "final_density_step": 400,
        "cycle_ends": [200, 400],
        "cycle_interval": 10,
        "cycle_multiplier": 3.0,
        "dyrelu_start_step": 250,
        "dyrelu_stop_step": 496,
        "dyrelu_late": False,
        "dyrelu_reduction": 4,
        "dyrelu_blend": "coefficient",
        "sharing_owners": 2,
    }


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"schedule": "dense"}, {}),
        ({"schedule": "static"}, {}),
        (
            {"schedule": "rigl"},
            {"update_interval": 50, "first_update_step": 50, "last_update_step": 700},
        ),
        (
            {"schedule": "gmp"},
            {
                "update_interval": 18,
                "first_update_step": 18,
                "last_update_step": 486,
                "final_density_step": 486,
            },
        ),
        (
            {"schedule": "static", "cycles": 1, "cycle_share": 0.1, "cycle_interval": 30},
            {
                "final_density_step": 100,
                "cycle_ends": [100],
                "cycle_interval": 30,
                "cycle_multiplier": 3.0,
            },
        ),
    ],
)
def test_other_schedules_have_what_they_do(flags, expected):
    assert of_cifar(**flags) == expected


def test_a_lenet():
    config = fashion_mnist.Config(schedule="static", dyrelu=True, dyrelu_stop=0.3, steps=100)
    found = resolved(fashion_mnist.run_of(config))
    assert (found["dyrelu_start_step"], found["dyrelu_stop_step"]) == (25, 30)
    assert "sharing_owners" not in found
