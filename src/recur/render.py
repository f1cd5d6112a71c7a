"""How texts and their tokens are shown: on a terminal, as HTML, as Markdown; nothing in a text can act there.

Texts are of unknown origin. A control character could move a terminal's cursor or recolour it, a bidirectional
override could reorder a line, `<script>` could run in a page and `|` could break a table. So every text passes
`printable` first, and then `html.escape` or `markdown`.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2
    from rich.text import Text

# C0 and C1 controls, line and paragraph separators, bidirectional marks and overrides, surrogates, byte order mark.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufff9-\ufffb]")
_MARKDOWN = re.compile(r"[^\w\s,?]|_")
_MARKUP = re.compile(r"[&<>|\\`*~\[\]]|(?<!\w)_|_(?!\w)")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_PALE = 0.1  # logits or nats: a text in which no token has more is shaded as if one had, and so looks pale
FOR, AGAINST = (64, 132, 214), (226, 112, 40)  # blue and orange: colour-blind readers can tell them apart


def printable(text: str) -> str:
    r"""The text on one line; what could act on a terminal or reorder a line is written out, such as `\x1b` or `\n`."""
    if text.isprintable():
        return text
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode("ascii"), text)


def escape_controls(text: str) -> str:
    """`printable`, with line ends and tabs as they are: for text that may have many lines."""
    if text.isprintable():
        return text
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


def shortened(text: str, length: int) -> str:
    """`printable`, of at most so many characters; a longer text ends in an ellipsis."""
    text = printable(text[: length + 1])  # what is cut off need not be read: it may be a megabyte
    return text if len(text) <= length else text[: length - 1] + "…"


def markdown(text: str) -> str:
    """`printable`, as Markdown (and so HTML) that reads as the text itself, table cells included."""
    return _MARKDOWN.sub(lambda match: f"&#{ord(match[0])};", printable(text))


def markdown_cell(text: str) -> str:
    """`printable`, for a cell of a Markdown table: what could be markup is escaped, figures and names stay readable."""
    return _MARKUP.sub(lambda match: f"&#{ord(match[0])};", printable(text))


def csv_cell(text: str) -> str:
    """A cell that no spreadsheet takes for a formula: `'` goes before one that begins like it and is no number."""
    begins = text.lstrip("'")[:1]  # one that begins with `'` gets another, so that taking one away is the inverse
    return f"'{text}" if begins in tuple("=+-@\t\r") and not _NUMBER.fullmatch(text) else text


@dataclass(frozen=True)
class Shaded:
    """One text whose tokens are shaded by a number each.

    Attributes:
        title: what was found, such as the label and its probability.
        tokens: the pieces, in order.
        values: a number for each; 0 is unshaded, positive blue, negative orange, the largest magnitude strongest.
        notes: what to say about each token when the pointer rests on it.
        footer: lines below the text.
        separator: what stands between tokens: a space for words, nothing for characters and byte pairs.
        unknown: whether each token is outside the vocabulary; such tokens are underlined.
    """

    title: str
    tokens: Sequence[str]
    values: Sequence[float]
    notes: Sequence[str]
    footer: Sequence[str] = ()
    separator: str = " "
    unknown: Sequence[bool] = field(default_factory=list)

    def strengths(self) -> list[float]:
        """How strongly each token is shaded, from -1 to 1; 0 for next to nothing."""
        top = max(_PALE, *(abs(value) for value in self.values)) if self.values else _PALE
        return [_strength(value / top) for value in self.values]

    def is_unknown(self, index: int) -> bool:
        """Whether the token is outside the vocabulary."""
        return bool(self.unknown) and self.unknown[index]


def _strength(part: float) -> float:
    """A part of the largest value as a strength: a little more contrast among the small ones."""
    return 0.0 if abs(part) < 0.04 else math.copysign(abs(part) ** 0.75, part)


def terminal(shaded: Shaded, colours: str | None) -> "Text":
    """The text as `rich` prints it in colour; without colours, with each token's number beside it.

    Args:
        shaded: the text.
        colours: what the terminal has, as `rich` says: `truecolor`, `256`, `standard` (sixteen), or None.
    """
    from rich.color import Color
    from rich.style import Style
    from rich.text import Text

    line = Text()
    top = max(map(abs, shaded.values), default=0.0)
    for index, (token, strength) in enumerate(zip(shaded.tokens, shaded.strengths(), strict=True)):
        if index:
            line.append(shaded.separator)
        token = printable(token)
        if colours is None:
            line.append(f"{token}({shaded.values[index]:+.2f})")
            continue
        # Dark ink on every shaded token: readable whatever the terminal's own colours are.
        ink = Style(color="rgb(16,16,16)", bgcolor=Color.from_rgb(*_on_white(strength))) if strength else Style()
        if colours == "standard":  # sixteen colours have no shades: only what is strong gets one
            far = abs(shaded.values[index]) > top / 3
            ink = Style(color="black", bgcolor="cyan" if shaded.values[index] > 0 else "yellow") if far else Style()
        line.append(token, ink + Style(underline=shaded.is_unknown(index)))
    return line


def _on_white(strength: float) -> tuple[int, int, int]:
    """The colour of a strength on white paper."""
    red, green, blue = (round(255 + (end - 255) * abs(strength)) for end in (FOR if strength > 0 else AGAINST))
    return red, green, blue


@cache
def templates(folder: Path) -> "jinja2.Environment":
    """The Jinja2 templates of a folder of this package. Every value is escaped for HTML, and a missing one is an error.

    Texts of unknown origin should pass the filter `printable` as well.
    """
    import jinja2  # takes a tenth of a second, and only pages want it

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["printable"] = printable
    return environment


def page(title: str, texts: Sequence[Shaded], legend: Sequence[tuple[float, str]]) -> str:
    """A page that stands alone: no script, no style sheet, no image from anywhere.

    Args:
        title: of the page.
        texts: the texts, in order.
        legend: pairs of a shade between -1 and 1 and what it means.
    """
    template = templates(Path(__file__).parent / "templates").get_template("explanation.html")
    return template.render(title=title, texts=texts, legend=legend)


def _page_mark(command: str) -> bytes:
    return f'<meta name="generator" content="{command}">'.encode()


def is_page(path: Path, command: str = "recur.predict") -> bool:
    """Whether a file is a page that a command of this package wrote."""
    try:
        with path.open("rb") as file:
            return _page_mark(command) in file.read(1024)
    except OSError:
        return False


def tree_lines(title: str, settings: Mapping[str, Any]) -> list[str]:
    """Nested settings as the lines of a tree: groups in the order of their names, after the plain values."""
    from rich.console import Console
    from rich.text import Text
    from rich.tree import Tree

    def grow(tree: Tree, node: Mapping[str, Any]) -> Tree:
        groups = {key: value for key, value in node.items() if isinstance(value, Mapping) and value}
        for key, value in node.items():
            if key not in groups:
                tree.add(Text(printable(f"{key}: {'null' if value is None else value}")))
        for key in sorted(groups, key=str):
            grow(tree.add(Text(printable(str(key)))), groups[key])
        return tree

    console = Console(width=120, color_system=None, force_terminal=False)
    with console.capture() as text:
        console.print(grow(Tree(Text(printable(title))), settings))
    return [line.rstrip() for line in text.get().splitlines()]


def seconds_in_words(seconds: float) -> str:
    """`42 s`, `3 min 05 s`, `2 h 07 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def figure(value: float | None) -> str:
    """A metric in a few characters."""
    if value is None:
        return ""
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.3g}"
