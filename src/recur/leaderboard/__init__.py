"""What sweeps and runs achieved: a table, plots and a page.

    reading     folders of sweeps and runs to results
    table       the leaderboard: grouped over seeds, ranked
    text        as text, Markdown, CSV
    frame       as a DataFrame
    columns     the columns of the table
    importance  how much each setting matters
    plots       drawings for light and dark ground
    page        the page; its HTML, style and script are in `templates/`

To add a column: add one `Column` to `MEASURES` or `RESOURCES` in `columns.py`; `metric_column` makes one of anything
that a run records.
"""
