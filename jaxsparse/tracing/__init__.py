"""Everything that is read off a function's jaxpr.

`flops` and `training_flops` count work, `connectivity` finds the weights that have an effect (over
`reach`), `kernel_axes` tells inputs from outputs. They share `jaxprs` (walking) and `owners` (which
leaf an entry is made of).
"""
