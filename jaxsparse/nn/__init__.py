"""Networks in Flax linen; each layer takes its kernel as a value, so masks apply from outside."""

from jaxsparse.nn.lenet import LeNet5, LeNet300100

__all__ = ["LeNet5", "LeNet300100"]
