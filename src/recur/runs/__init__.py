"""A run on disk: its folder, checkpoints, journal, metrics, and what may be trusted."""
