"""Train, sweep, inspect and use recurrent text models."""

__version__ = "0.1.0"
