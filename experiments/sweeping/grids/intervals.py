"""Other update intervals than those of the grid `fashion_mnist`: LeNet-300-100 at 98 %.

    python experiments/sweep.py --grid=intervals --data_dir=data
    python experiments/compare.py experiments/results/intervals

Question: growing by gradient (RigL) was no better than growing at random (SET). Is the interval the
reason? The grid `fashion_mnist` has 100 steps for RigL and SET and 142 for GraNet and GraNet-ST.
This one has 71 and 568. The papers of the methods are named there.

Hardware and time: one core a run of an AMD EPYC; 24 runs, 200 seconds of one core.
Software: jax 0.10.2, commit ac00fbb.

Expected test accuracy in percent, mean ± standard deviation of n = 3 seeds:

                 set           rigl          granet        granet_st
    71 steps     86.69 ± 0.35  86.79 ± 0.22  88.55 ± 0.07  88.60 ± 0.08
    568 steps    86.36 ± 0.03  86.65 ± 0.21  88.45 ± 0.15  88.37 ± 0.16
"""

from experiments.sweeping.grid import Grid

GRIDS = tuple(
    Grid(
        "fashion_mnist",
        "lenet_300_100",
        ("set", "rigl", "granet", "granet_st"),
        (0.98,),
        seeds=3,
        flags={"steps": 8000, "eval_every": 400, "update_interval": interval},
        variant=f"every{interval}",
    )
    for interval in (71, 568)
)
