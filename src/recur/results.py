"""The door to a sweep's leaderboard: `python -m recur.results SWEEP [SWEEP ...]`."""

from pathlib import Path

from recur import cli


def main() -> None:
    """Print the leaderboard; write it with pictures and a page."""
    cli.guard(_results)


def _results() -> None:
    parser = cli.Parser(
        prog="recur.results",
        description="Rank the runs of sweeps: a leaderboard here; CSV, Markdown, pictures and a page on disk.",
    )
    parser.add_argument("sweep", nargs="+", help="folder of a sweep")
    parser.add_argument(
        "--metric", help="rank by this one, e.g. test/accuracy, wall_seconds (default: the sweep's own)"
    )
    parser.add_argument("--mode", choices=("max", "min"), help="whether more or less is better (default: guessed)")
    parser.add_argument("--top", type=int, default=20, help="settings to print (default: %(default)s)")
    parser.add_argument("--out", help="where to write (default: results in the first sweep's folder)")
    given = parser.parse_args()

    from recur.leaderboard import page
    from recur.leaderboard.table import Leaderboard

    leaderboard = Leaderboard.of(given.sweep, given.metric, given.mode)
    print(leaderboard.as_text(given.top))
    several = "comparison" if len(given.sweep) > 1 else "results"
    # A folder that is typed may be a link; one in the sweep's folder may not.
    out = Path(given.out).resolve() if given.out else Path(given.sweep[0]) / several
    written = page.write(leaderboard, out)
    print(f"page       {written}")


if __name__ == "__main__":
    main()
