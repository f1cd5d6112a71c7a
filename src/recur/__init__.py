"""Train, sweep, inspect and use recurrent text models.

From Python:

    import recur

    run = recur.fit(["model=advanced_lstm"])    # what `python -m recur.train` does
    run = recur.load("outputs/...")             # a run folder or a checkpoint
    run.predict(["This film is great"])         # see recur.inference.run.Run
    recur.Ensemble([run, other])                # classifiers whose probabilities are averaged
    recur.compare("outputs")                    # runs ranked, a DataFrame

Everything is imported when it is first used, so that `import recur` takes no time.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recur.api import compose, fit
    from recur.errors import UserError
    from recur.inference.ensemble import Ensemble
    from recur.inference.run import Run, load
    from recur.leaderboard.frame import compare

__version__ = "0.1.0"
__all__ = ["Ensemble", "Run", "UserError", "compare", "compose", "fit", "load"]
_HOME = {
    "Ensemble": "recur.inference.ensemble",
    "Run": "recur.inference.run",
    "UserError": "recur.errors",
    "compare": "recur.leaderboard.frame",
    "compose": "recur.api",
    "fit": "recur.api",
    "load": "recur.inference.run",
}


if not TYPE_CHECKING:  # mypy would take every name for one that is there

    def __getattr__(name: str) -> object:
        if name not in _HOME:
            raise AttributeError(f"module 'recur' has no attribute {name!r}")
        if os.name == "nt":
            raise ImportError("recur needs Linux or macOS: on Windows run it in WSL")
        value = globals()[name] = getattr(import_module(_HOME[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
