"""The command that compares runs: `python -m recur.results FOLDER [FOLDER ...]`."""

import os
from pathlib import Path

from recur import cli


def main() -> None:
    """Print the leaderboard; write it with plots and a page."""
    cli.guard(_results)


def _results() -> None:
    parser = cli.Parser(
        prog="recur.results",
        description="Rank the runs of sweeps, and runs of their own: a leaderboard here; CSV, Markdown, plots and a "
        "page on disk.",
    )
    parser.add_argument("folder", nargs="+", help="a sweep, a run, or a folder with some below it, such as outputs/")
    parser.add_argument(
        "--metric", help="rank by this one, e.g. test/accuracy, wall_seconds (default: what the runs monitor)"
    )
    parser.add_argument("--mode", choices=("max", "min"), help="whether more or less is better (default: as known)")
    parser.add_argument("--top", type=int, default=20, help="settings to print (default: %(default)s)")
    parser.add_argument(
        "--out", help="where to write (default: results in the folder, comparison in the first of several)"
    )
    given = parser.parse_args()

    from recur.leaderboard import page
    from recur.leaderboard.table import Leaderboard
    from recur.leaderboard.text import as_text
    from recur.render import printable

    several = "comparison" if len(given.folder) > 1 else "results"
    # A folder that is typed may be a link; one in the sweep's folder may not.
    out = Path(given.out).resolve() if given.out else Path(os.path.expanduser(given.folder[0])) / several
    page.check_out(out)
    leaderboard = Leaderboard.of(given.folder, given.metric, given.mode)
    print(as_text(leaderboard, given.top))
    print(printable(f"page       {page.write(leaderboard, out)}"))


if __name__ == "__main__":
    main()
