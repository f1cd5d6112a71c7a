"""What a display refuses before it answers, and what showing a text costs."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from recur.inference.display import PAGE_CHARACTERS, LanguageDisplay, Options, _print_shaded
from recur.inference.io import Given
from recur.render import Shaded, terminal


@pytest.mark.parametrize("page", [None, "a.html"])
def test_only_a_page_has_a_longest_text_of_a_language_run(page, monkeypatch):
    monkeypatch.setattr("recur.inference.display.read_tokens", lambda tokenizer, text: (text.split(), None))
    display = LanguageDisplay(SimpleNamespace(tokenizer=None), Options(None, explain=False, page=page))
    texts = ("a" * PAGE_CHARACTERS, "b" * (PAGE_CHARACTERS + 1), " " * 5)
    fits, long, empty = display.check([Given(f"line {n}", text) for n, text in enumerate(texts)])
    assert fits.problem is None and "has no tokens" in str(empty.problem)
    if page is None:
        assert long.problem is None
    else:
        assert "line 1 must have at most 20,000 characters to be shown on a page, got 20,001" in str(long.problem)
        assert "--skip-bad-rows" in str(long.problem)


class Counted(list):
    """A list that counts how often it was read from its beginning."""

    reads = 0

    def __iter__(self):
        self.reads += 1
        return super().__iter__()


@pytest.mark.parametrize("colours", ["standard", "256", "truecolor", None])
def test_a_text_is_shaded_in_a_number_of_passes_that_its_length_does_not_change(colours):
    passes = []
    for length in (10, 1000):
        values = Counted([(-1) ** n * n / length for n in range(length)])
        line = terminal(Shaded("title", ["w"] * length, values, [""] * length), colours)
        passes.append(values.reads)
        assert line.plain.count("w") == length
    assert passes[0] == passes[1]


@pytest.mark.parametrize("no_color", [True, False])
def test_a_token_has_its_number_where_it_has_no_shade(no_color):
    """With NO_COLOR, under which rich still names the colours of the terminal, it had neither."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system="truecolor", no_color=no_color, highlight=False)
    shaded = Shaded("title", ["good", "film"], [0.5, -0.25], ["", ""])
    _print_shaded(console, shaded)
    assert ("good(+0.50) film(-0.25)" in out.getvalue()) == no_color
    display = LanguageDisplay(SimpleNamespace(tokenizer=None), Options(None, explain=False, page=None))
    display._console = console
    row = {"token": "good", "nats": 0.5, "bits": 0.721, "probability": 0.607, "rank": 3, "known": True}
    display._show(shaded, [row])
    assert ("0.721" in out.getvalue()) == no_color
