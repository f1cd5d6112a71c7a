"""LightningModules: loss, metrics, carried state, optimizers."""
