"""Where Hydra finds the sweepers of recur; what they do is in `recur.sweeps`."""

from recur.sweeps import sweeper


class Grid(sweeper.Grid):
    """`hydra/sweeper=grid`."""


class Random(sweeper.Random):
    """`hydra/sweeper=random`."""


class Optuna(sweeper.Optuna):
    """`hydra/sweeper=optuna`."""
