"""The quiz is right, and would notice a wrong formula."""

import math

import pytest
import torch

from recur.course import costs, formulas, nets
from recur.errors import UserError


def test_the_quiz_agrees_with_autograd():
    rows = formulas.quiz(seed=3)
    assert {row["arm"] for row in rows} == {"formula", "finite differences", "engine"}
    assert all(row["error"] < (1e-6 if row["arm"] == "finite differences" else 1e-12) for row in rows)


def test_the_quiz_notices_a_forgotten_factor(monkeypatch):
    right = formulas.lstm_step_gradient

    def wrong(**inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        return {**right(**inputs), "c": torch.ones(3, 4, dtype=torch.float64)}

    monkeypatch.setattr(formulas, "lstm_step_gradient", wrong)
    worst = next(r["error"] for r in formulas.quiz(0) if (r["arm"], r["x"]) == ("formula", "all"))
    assert worst > 1e-2


def test_the_step_is_torchs():
    torch.manual_seed(0)
    cell = torch.nn.LSTMCell(5, 4).double()
    x, h, c = (torch.randn(3, n, dtype=torch.float64) for n in (5, 4, 4))
    ours = formulas.lstm_step(x, h, c, cell.weight_ih, cell.weight_hh, cell.bias_ih + cell.bias_hh)
    for a, b in zip(ours, cell(x, (h, c)), strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_the_shapes_are_the_guides():
    found = {row["arm"]: row["distance"] for row in formulas.shapes(1)}
    assert found["shapes that differ from the guides'"] == 0
    assert found["backward half of the last output and h_n[-1]"] > 0.05


def test_the_notebook_s_shapes_are_of_its_own_sizes():
    """An embedding of 256 over 40 words; one of 100 was looked at, which has the same outputs."""
    words, output, *_ = [got for got, _ in formulas._notebook()]
    assert (words.shape, output.shape) == ((4, 10, 256), (4, 10, 512))


def test_what_is_said_of_packed_texts_and_h_n_is_so_of_torch_s_layer_and_of_recur_s():
    rows = {(row["arm"], row["x"]): row["distance"] for row in formulas.shapes(1) if "x" in row}
    assert {x for _, x in rows} == {"torch", "recur", "worst"} and len(rows) == 18
    for (arm, x), distance in rows.items():
        assert distance >= 0.01 if "padded" in arm else distance <= 1e-6, (arm, x)
        worst = min if "padded" in arm else max
        assert rows[arm, "worst"] == worst(rows[arm, "torch"], rows[arm, "recur"])


def test_another_order_of_h_n_would_be_noticed():
    torch.manual_seed(0)
    stack, x = torch.nn.LSTM(3, 4, 2, bidirectional=True), torch.randn(5, 2, 3)
    final = stack(x)[1][0]
    assert formulas._gap(formulas._by_layer(stack, x), final) < 1e-6
    assert formulas._gap(formulas._by_layer(stack, x), final[[0, 2, 1, 3]]) > 0.01


def test_packing_compares_the_same_texts():
    rows = costs.packing(0, [0.0, 0.5], mean=6, batch=4, hidden=8, rounds=1)
    assert {row["arm"] for row in rows} == {"padded", "packed, sorted", "packed, unsorted", "recur"}
    assert {row["useful"] for row in rows if row["x"] == 0.0} == {1.0}
    assert all(0.5 < row["useful"] < 0.8 for row in rows if row["x"] == 0.5)


def test_the_parameters_of_the_cells_are_one_three_four():
    rows = {row["arm"]: row["parameters"] for row in costs.cells(0, [8], length=6, batch=4, rounds=1)}
    assert (rows["gru"], rows["lstm"]) == (3 * rows["rnn"], 4 * rows["rnn"])
    for cell in ("gru", "lstm"):  # the guide speaks of torch's layers, and recur's alone were timed
        assert rows[f"{cell}, torch dense"] == rows[f"{cell}, torch packed"] == rows[cell]


def test_reading_both_ways_cheats():
    rows = {row["arm"]: row["perplexity"] for row in costs.peek(0, tokens=8000, steps=60, hidden=32)}
    assert rows["both ways"] < rows["best possible"] < rows["one way"]


@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_the_slopes_are_autograds(name):
    x = torch.linspace(-4, 4, 33, dtype=torch.float64).requires_grad_(True)
    slope = torch.autograd.grad(getattr(torch, name)(x).sum(), x)[0]
    assert torch.allclose(getattr(formulas, f"{name}_slope")(x), slope, atol=1e-14)


def test_a_window_shorter_than_what_the_feed_forward_net_reads_is_refused():
    with pytest.raises(UserError, match="window must be at least 8, got 7: the feed-forward net reads"):
        costs.explosions(0, rates=[1], steps=1, window=7)
    assert {row["failed"] for row in costs.explosions(0, rates=[0.1], steps=1, window=8)} == {0.0}


def test_a_gradient_grows_by_the_rate_and_a_nonlinearity_takes_away():
    slopes = {(row["arm"], row["x"]): row["slope"] for row in nets.growth(0, [0.8, 1.2], steps=15, hidden=8)}
    for rate in (0.8, 1.2):
        assert slopes["identity", rate] == pytest.approx(math.log10(rate), abs=1e-9)
        assert slopes["tanh", rate] < slopes["identity", rate] and slopes["relu", rate] < slopes["identity", rate]


def test_the_characters_are_fed_as_the_guide_s_code_has_them_one_hot_and_embedded():
    x, y, count = nets._windows()
    assert (len(x), len(y), x.shape[1]) == (53, 53, 10)
    assert (x[1:, -1] == y[:-1]).all()  # what follows a window ends the next one
    widths = {kind: nets._Characters(kind, count, 4).lstm.input_size for kind in ("scalar", "one-hot", "embedding")}
    assert widths == {"scalar": 1, "one-hot": count, "embedding": 32}
    rows = {row["arm"]: row for row in nets.characters(0, epochs=6, hidden=8)}
    assert {row["learned"] for row in rows.values()} == {7}  # none knows the sentence yet
    assert all(row["curve"][0]["loss"] > row["loss"] for row in rows.values())


def test_rounding_moves_a_loss_less_than_other_weights_do():
    apart = {row["arm"]: row["distance"] for row in nets.luck(0, count=2, epochs=3, hidden=8)}
    assert 0 < apart["64 bits"] < 0.01 * apart["other weights"] and apart["other order"] < 0.01 * apart["other weights"]
