"""What the server has done before it forks the tests' commands: the imports, for all of them once."""

import contextlib
import gc
import importlib
import pkgutil

LIBRARIES = (
    "lightning.pytorch.loggers",
    "torchmetrics.classification",
    "hydra",
    "datasets",
    "tokenizers",
    "matplotlib.backends.backend_agg",
    "torch.utils.tensorboard",
    "captum.attr",
    "rich.console",
    "rich.table",
    "jinja2",
    "sklearn.linear_model",
    "sklearn.feature_extraction.text",
)
PACKAGES = ("config", "data", "inference", "leaderboard", "nn", "runs", "sweeps", "tasks", "training")

for library in LIBRARIES:
    with contextlib.suppress(ImportError):  # an extra that is not installed
        importlib.import_module(library)
for package in PACKAGES:
    for module in pkgutil.walk_packages(importlib.import_module(f"recur.{package}").__path__, f"recur.{package}."):
        with contextlib.suppress(ImportError):
            importlib.import_module(module.name)
importlib.import_module("hydra.core.plugins").Plugins.instance()  # imports every plugin there is
gc.collect()
gc.freeze()  # a collection in a forked process would else write to, and so copy, every page of the above
