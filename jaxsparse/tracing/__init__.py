"""Everything that is read off a function's jaxpr.

`flops` and `training_flops` count work, `connectivity` finds the weights that have an effect (by
`reach`), and `kernel_axes` tells inputs from outputs. They share `jaxprs` (the walk), `primitives`
(kinds of operations) and `owners` (which leaf an entry is made from).
"""
