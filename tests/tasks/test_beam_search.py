"""Beam search against every continuation there is, of models small enough to try them all."""

from functools import partial
from itertools import product
from operator import methodcaller
from types import SimpleNamespace

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence

from recur.errors import UserError
from recur.inference import language
from recur.nn.language_model import LanguageModel
from recur.tasks.language_modeling import LanguageModelingTask
from recur.training import callbacks

VOCABULARY, TOKENS = 6, 3
PROMPT = torch.tensor([1, 4, 2])


def new_task(cell: str = "lstm", window: int | None = None) -> LanguageModelingTask:
    torch.manual_seed(3)
    net = partial(LanguageModel, embedding_dim=8, hidden_size=8, num_layers=2, cell=cell)
    task = LanguageModelingTask(net, vocab_size=VOCABULARY, window=window)
    for parameter in task.parameters():
        torch.nn.init.normal_(parameter, std=1.0)  # far from uniform, so that the order is no chance
    return task.eval()


def by_hand(task: LanguageModelingTask, continuation: tuple[int, ...]) -> float:
    """Log-probability of one continuation, each token from a fresh pass over all that stands before it."""
    text, total = PROMPT.tolist(), 0.0
    for token in continuation:
        read = torch.tensor(text if task.window is None else text[-task.window :])
        with torch.no_grad():
            hidden = task.net(PackedSequence(read, torch.ones(len(read), dtype=torch.int64)))
            total += task.net.logits(hidden.features[-1:]).double().log_softmax(1)[0, token].item()
        text.append(token)
    return total


def every(task: LanguageModelingTask, without: tuple[int, ...] = ()) -> dict[tuple[int, ...], float]:
    tokens = [token for token in range(VOCABULARY) if token not in without]
    return {one: by_hand(task, one) for one in product(tokens, repeat=TOKENS)}


@pytest.mark.parametrize(
    ("cell", "window", "without"),
    [("lstm", None, ()), ("gru", None, (0,)), ("mingru", None, ()), ("lstm", 4, ()), ("lstm", 2, (0, 3))],
)
def test_a_beam_of_all_prefixes_finds_the_best_of_all(cell, window, without) -> None:
    task = new_task(cell, window)
    known = every(task, without)
    best = sorted(known, key=known.__getitem__, reverse=True)
    width = (VOCABULARY - len(without)) ** (TOKENS - 1)
    found, logs = task.beam_search(PROMPT, tokens=TOKENS, beams=width, exclude=without)
    assert [tuple(row) for row in found.tolist()] == best[:width]
    assert logs.tolist() == pytest.approx([known[one] for one in best[:width]], abs=1e-5)
    if not without:
        more, logs = task.beam_search(PROMPT, tokens=TOKENS, beams=10_000)
        assert len(more) == VOCABULARY**TOKENS == len({tuple(row) for row in more.tolist()})
        assert logs.exp().sum().item() == pytest.approx(1, abs=1e-9), "all that can be written, each once"


def test_a_narrow_beam_says_how_likely_its_own_are() -> None:
    task = new_task()
    known = every(task)
    for beams in (1, 2, 5):
        found, logs = task.beam_search(PROMPT, tokens=TOKENS, beams=beams)
        assert found.shape == (beams, TOKENS) and logs.dtype == torch.float64
        assert logs.tolist() == sorted(logs.tolist(), reverse=True)
        assert logs.tolist() == pytest.approx([known[tuple(row)] for row in found.tolist()], abs=1e-5)
    greedy = task.generate(PROMPT[:, None], temperature=0)
    one, _ = task.beam_search(PROMPT, tokens=TOKENS, beams=1)
    assert one[0].tolist() == [next(greedy).item() for _ in range(TOKENS)]


@pytest.mark.parametrize("window", [None, 2, 4, 20])
def test_reading_a_text_says_of_its_tokens_what_the_beam_said_of_them(window: int | None) -> None:
    """A model of single windows reads a start token only where nothing stands before."""
    task, start = new_task(window=window), 5
    prompt = PROMPT if window is not None else torch.cat([torch.tensor([start]), PROMPT])
    found, logs = task.beam_search(prompt, tokens=TOKENS, beams=3)
    for continuation, log in zip(found, logs, strict=True):
        nll = task.token_nll(torch.cat([PROMPT, continuation]), start)[-TOKENS:]
        assert -nll.double().sum().item() == pytest.approx(log.item(), abs=1e-5)
    if window is not None:
        first, read = task.token_nll(PROMPT, start)[0], PackedSequence(torch.tensor([start]), torch.tensor([1]))
        with torch.no_grad():
            assert first == pytest.approx(-task.net.logits(task.net(read).features).log_softmax(1)[0, 1].item())


@pytest.mark.parametrize("window", [None, 2, 4, 20])
def test_a_start_token_that_stands_for_no_text_is_read_for_the_first_token_alone(monkeypatch, window) -> None:
    """Single windows of training hold no start token before the tokens of a text."""
    task, start, none = new_task(window=window), 5, PROMPT[:0]
    for parameter in task.parameters():
        parameter.data.mul_(2)  # so that one token before the others makes a difference
    found, logs = task.beam_search(none, tokens=TOKENS, beams=VOCABULARY**2, start_id=start)
    for continuation, log in zip(found, logs, strict=True):
        nll = task.token_nll(continuation, start)
        assert -nll.double().sum().item() == pytest.approx(log.item(), abs=1e-5)
    drawn = task.generate(none[:, None], generator=torch.Generator().manual_seed(0), start_id=start)
    written = [next(drawn).item() for _ in range(12)]
    continued, given = task._continued(none[:, None], start), next
    with torch.no_grad():
        for token, nll in zip(written, task.token_nll(torch.tensor(written), start), strict=True):
            assert given(continued).log_softmax(1)[0, token].item() == pytest.approx(-nll.item(), abs=1e-5)
            given = methodcaller("send", torch.tensor([token]))
    if window in (2, 4):
        other = task.generate(torch.tensor([[start]]), generator=torch.Generator().manual_seed(0))
        assert [next(other).item() for _ in range(12)] != written, "a text that begins with this very token"
    for empty in (task.generate(none[:, None]), (task.beam_search(none, tokens=1, beams=1) for _ in range(1))):
        with pytest.raises(UserError, match="prompt must have at least one token"):
            next(empty)

    monkeypatch.setattr(language.corpus, "start_id", lambda tokenizer: start)
    run = SimpleNamespace(task=task, tokenizer=None, require_forward=lambda: None)
    assert [token for (token,) in language.generate_ids(run, [], language.Sampling(tokens=12))] == written

    monkeypatch.setattr(callbacks, "readable", lambda tokenizer, ids: ids)
    tokenizer = SimpleNamespace(eos_id=None, encode=lambda text: [])
    data = SimpleNamespace(reverse=False, tokenizer=tokenizer, start_id=start)
    state = {"sanity_checking": False, "is_global_zero": True, "state": SimpleNamespace(fn="fit")}
    samples = callbacks.Samples(None, 12, 1.0)
    samples.on_validation_end(SimpleNamespace(datamodule=data, callbacks=[], loggers=[], **state), task)
    assert samples.last == written
