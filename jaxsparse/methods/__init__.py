"""The published methods, one file per family; each is a call of `jaxsparse.method.compose`."""

from jaxsparse.methods.east import east
from jaxsparse.methods.fixed import dense, static
from jaxsparse.methods.gradual import gmp, granet, granet_st
from jaxsparse.methods.itop import rigl_itop, set_itop
from jaxsparse.methods.rigl import rigl, set_, snfs

__all__ = [
    "dense",
    "east",
    "gmp",
    "granet",
    "granet_st",
    "rigl",
    "rigl_itop",
    "set_",
    "set_itop",
    "snfs",
    "static",
]
