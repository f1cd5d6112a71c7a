"""The leaderboard as one HTML page that opens from disk: nothing is fetched, every text is escaped."""

import base64
import hashlib
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from recur.errors import UserError
from recur.leaderboard.plots import Picture, draw
from recur.leaderboard.table import Leaderboard, brief, short
from recur.render import figure, seconds_in_words
from recur.runs.files import check_links, write_atomic
from recur.runs.metrics import metric

_STYLE = """
:root { color-scheme: light dark; --ground: #f6f7f9; --card: #fff; --ink: #1b1f26; --soft: #5b6470; --line: #dfe3e8;
  --mark: #2f7ed8; --bad: #c4372b; --warn: #9a6a00; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171c; --card: #1c2027; --ink: #e6e9ee; --soft: #9aa4b2;
  --line: #303742; --mark: #6aa9f0; --bad: #ff8277; --warn: #e0b050; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 24px 20px 40px; display: grid; gap: 16px;
  grid-template-columns: repeat(12, minmax(0, 1fr)); }
header, section { grid-column: 1 / -1; }
h1 { font-size: 21px; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 14.5px; margin: 0 0 8px; }
code, .mono { font: 12.5px/1.45 ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
header code { color: var(--soft); display: block; margin-top: 4px; }
.tiles { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); }
.tile, .card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 16px; }
.tile b { display: block; font-size: 22px; line-height: 1.3; font-variant-numeric: tabular-nums; }
.tile b { overflow-wrap: anywhere; }
.tile span { color: var(--soft); font-size: 13px; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { text-align: left; padding: 5px 12px 5px 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
td.free { white-space: normal; overflow-wrap: anywhere; }
tbody tr:last-child td { border-bottom: 0; }
th { color: var(--soft); font-weight: 600; font-size: 12.5px; cursor: pointer; user-select: none; }
th[aria-sort=ascending]::after { content: " ↑"; } th[aria-sort=descending]::after { content: " ↓"; }
tr.best td { font-weight: 650; } tr.best td:nth-child(2) { color: var(--mark); }
.track { display: inline-block; width: 60px; margin-right: 10px; }
.bar { display: block; height: 8px; border-radius: 4px; background: var(--mark); opacity: .75; }
.failed { color: var(--bad); } .pruned, .stopped, .unfinished { color: var(--warn); }
svg { width: 100%; height: auto; display: block; color: var(--ink); }
.full { grid-column: 1 / -1; } .half { grid-column: span 6; }
summary { cursor: pointer; font-weight: 600; font-size: 14.5px; }
a { color: var(--mark); }
@media (max-width: 820px) { .half { grid-column: 1 / -1; } }
"""
_SCRIPT = """
for (const head of document.querySelectorAll("th")) head.addEventListener("click", () => {
  const table = head.closest("table"), body = table.tBodies[0], at = head.cellIndex;
  const down = head.getAttribute("aria-sort") === "ascending";
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const key = row => row.cells[at].dataset.sort ?? row.cells[at].textContent;
  const rows = [...body.rows].sort((a, b) => {
    const x = key(a), y = key(b), n = x - y;
    return x === "" ? 1 : y === "" ? -1 : (isNaN(n) ? x.localeCompare(y) : n) * (down ? -1 : 1);
  });
  body.append(...rows);
});
"""
# Should a text of the data get through all the same: nothing is fetched, and no script runs but the one above.
_HASH = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
_POLICY = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{_HASH}'"


def write(leaderboard: Leaderboard, folder: Path) -> Path:
    """Write the leaderboard, its plots and the page into a folder; return the page.

    Raises:
        UserError: the folder is a link, or holds one.
    """
    check_links(folder)
    if folder.is_symlink():
        raise UserError(str(folder), rule="is a link", remedy="name the folder that it points to with --out")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "leaderboard.md", leaderboard.as_markdown())
    write_atomic(folder / "runs.csv", leaderboard.as_csv())
    write_atomic(folder / "index.html", render(leaderboard, draw(leaderboard, folder), folder))
    return folder / "index.html"


def render(leaderboard: Leaderboard, pictures: Sequence[Picture], at: Path) -> str:
    """The page, to be written into folder `at`; links to runs are relative to it."""
    name = " and ".join("/".join(folder.absolute().parts[-2:]) for folder in leaderboard.folders)
    title = f"{leaderboard.metric} · {name}"
    told = [str(header.get("command", "")) for header in leaderboard.headers] + leaderboard.differences()
    commands = "".join(f"<code>{escape(line)}</code>" for line in told)
    parts = [
        f"<header><h1>{escape(title)}</h1>{commands}</header>",
        f'<section class="tiles">{"".join(_tiles(leaderboard))}</section>',
        f'<section class="card wide"><h2>Leaderboard</h2>{_leaderboard(leaderboard)}</section>',
    ]
    for picture in pictures:
        kind = "full" if picture.wide else "half"
        parts.append(f'<section class="card {kind}"><h2>{escape(picture.title)}</h2>{picture.svg}</section>')
    parts += [_troubles(leaderboard, at), _runs(leaderboard, at)]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style>"
        f"<main>{''.join(parts)}</main><script>{_SCRIPT}</script></html>\n"
    )


def _tiles(leaderboard: Leaderboard) -> list[str]:
    def tile(value: str, below: str) -> str:
        return f'<div class="tile"><b>{escape(value)}</b><span>{escape(below)}</span></div>'

    best = leaderboard.best
    tiles = []
    if best is not None:
        tiles.append(
            tile(
                best.result_text(),
                f"best {leaderboard.metric}" + (f" over {len(best.done)} seeds" if len(best.done) > 1 else ""),
            )
        )
        tiles.append(
            tile(
                ", ".join(map(brief, best.settings.values())) or "as configured",
                ", ".join(map(short, best.settings)) or "settings",
            )
        )
        seconds, count = best.of("wall_seconds"), best.of("parameters")
        if seconds is not None and count is not None:
            tiles.append(tile(seconds_in_words(seconds), f"a run of the best, {count:,.0f} parameters"))
    runs = len(leaderboard.results)
    tiles.append(
        tile(f"{runs} runs", f"{leaderboard.states_text()}; {seconds_in_words(leaderboard.seconds)} of computing")
    )
    return tiles


def _leaderboard(leaderboard: Leaderboard) -> str:
    means = [group.mean for group in leaderboard.groups if group.mean is not None]
    low, high = (min(means), max(means)) if means else (0.0, 1.0)
    head = "".join(f"<th>{escape(title)}</th>" for title in leaderboard.columns())
    lines = []
    for group, cells in zip(leaderboard.groups, leaderboard.rows(), strict=True):
        kind = (
            ' class="best"'
            if group is leaderboard.best
            else ""
            if group.mean is not None
            else f' class="{group.state}"'
        )
        columns = []
        for title, cell in zip(leaderboard.columns(), cells, strict=True):
            sort, bar = "", ""
            if title == leaderboard.metric:
                sort = f' data-sort="{"" if group.mean is None else group.mean}"'
                if group.mean is not None and high > low:
                    part = (group.mean - low) / (high - low)
                    bar = f'<span class="track"><span class="bar" style="width:{6 + 54 * part:.0f}px"></span></span>'
            elif title == "time":
                sort = f' data-sort="{group.of("wall_seconds") or ""}"'
            elif title == "parameters":
                sort = f' data-sort="{group.of("parameters") or ""}"'
            columns.append(f"<td{sort}>{bar}{escape(cell)}</td>")
        lines.append(f"<tr{kind}>{''.join(columns)}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _link(path: Path, at: Path, text: str) -> str:
    # Quoted for an address too: `#` and `?` are letters in a path, and none may begin with a scheme.
    return f'<a href="{escape(quote(os.path.relpath(path, at)), quote=True)}">{escape(text)}</a>'


def _troubles(leaderboard: Leaderboard, at: Path) -> str:
    bad = [result for result in leaderboard.results if result.state in ("failed", "stopped", "unfinished")]
    if not bad:
        return ""
    lines = [
        f'<tr><td>{result.number}</td><td class="{result.state}">{result.state}</td>'
        f'<td class="free mono">{escape(" ".join(f"{k}={v}" for k, v in result.settings.items()))}</td>'
        f'<td class="free">{escape(result.reason)}</td><td>{_link(result.folder / "output.log", at, "log")}</td></tr>'
        for result in bad
    ]
    head = "".join(f"<th>{title}</th>" for title in ("job", "state", "settings", "reason", "log"))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f'<section class="card wide"><h2>Not finished</h2>{table}</section>'


def _runs(leaderboard: Leaderboard, at: Path) -> str:
    keys = leaderboard.varied
    titles = ["sweep"] * (len(leaderboard.folders) > 1) + [
        "job",
        "state",
        leaderboard.metric,
        *map(short, keys),
        "seed",
        "epochs",
        "time",
    ]
    titles = list(dict.fromkeys(titles))
    own = [key for key in keys if key != "sweep"]
    lines = []
    for group in leaderboard.groups:
        for r in group.results:
            record = r.record or {}
            cells = [f"<td>{escape(r.sweep)}</td>"] if len(leaderboard.folders) > 1 else []
            seconds = metric(record, "wall_seconds")
            cells += [
                f"<td>{_link(r.folder, at, str(r.number))}</td>",
                f'<td class="{r.state}">{r.state}</td>',
                f"<td>{figure(r.value)}</td>",
                *[f"<td>{escape(brief(group.settings[key]))}</td>" for key in own],
                f"<td>{escape(r.seed)}</td>",
                f"<td>{escape(str(record.get('epochs', '')))}</td>",
                f'<td data-sort="{"" if seconds is None else seconds}">'
                f"{'' if seconds is None else seconds_in_words(seconds)}</td>",
            ]
            lines.append(f"<tr>{''.join(cells)}</tr>")
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f'<section class="card wide"><details><summary>All {len(lines)} runs</summary>{table}</details></section>'
