"""The compiled kernels: how they are compiled and loaded, and which programs may call them.

Selection and sparse execution use them. Both give the same results in JAX if there are no kernels.
"""
