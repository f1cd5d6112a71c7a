"""The answer of a sweep: a table, plots and a page."""
