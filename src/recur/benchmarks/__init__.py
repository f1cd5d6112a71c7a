"""Benchmarks: rivals in the same process, in alternation."""
