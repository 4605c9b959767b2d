"""The compiled kernels: how they are made and loaded, and which programs may call them.

Selection and sparse execution rest on them, and both do the same in JAX where there are none.
"""
