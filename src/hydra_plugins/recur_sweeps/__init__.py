"""Hydra looks for plugins here."""
