"""A language run through its commands: trained, made to write, evaluated, read; alone and on two ranks."""

import json
from pathlib import Path

import pytest
import torch

from conftest import train
from recur.data.corpus import prompt_ids
from recur.errors import UserError
from recur.inference.language import Sampling, Writer, unknown_words
from recur.inference.run import load
from support.commands import run_command

SMALL = [
    "data=synthetic_text",
    "model=language_model",
    *(f"data.synthetic.{split}_size={size}" for split, size in (("train", 6000), ("val", 800), ("test", 800))),
    "data.eval_batch_size=2",
    "data.batch_size=4",
    "model.net.embedding_dim=24",
    "model.net.hidden_size=24",
    "model.net.num_layers=1",
    "model.net.dropout=0",
    "optimizer.lr=0.02",
    "trainer.max_epochs=2",
]


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small run on the embedded stories."""
    folder = tmp_path_factory.mktemp("runs") / "stories"
    train(folder, *SMALL, "trainer=cpu")
    return folder


def written(*words: object) -> str:
    done = run_command("generate", *map(str, words))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_run_says_how_far_it_is_from_the_floor(stories):
    record = json.loads((stories / "metrics.json").read_text())
    assert 4.5 < record["ceiling"]["perplexity"] < record["test"]["perplexity"] < 12
    content = torch.load(stories / "checkpoints" / "best.ckpt", weights_only=True)
    weights = content["state_dict"]
    assert (
        weights["net.decoder.weight"].untyped_storage().data_ptr()
        == weights["net.embedding.weight"].untyped_storage().data_ptr()
    )
    net = load(stories).task.net
    assert net.decoder.weight is net.embedding.weight
    assert any("events.out" in path.name for path in stories.iterdir())


@pytest.mark.slow
def test_same_seed_same_text_and_each_setting_matters(stories):
    first = written(stories, "--prompt", "the king", "--tokens", 30, "--seed", 4)
    assert first.startswith("the king ") and first == written(
        stories, "--prompt", "the king", "--tokens", 30, "--seed", 4
    )
    assert first != written(stories, "--prompt", "the king", "--tokens", 30, "--seed", 5)
    greedy = written(stories, "--prompt", "the king", "--tokens", 30, "--greedy")
    assert greedy == written(stories, "--prompt", "the king", "--tokens", 30, "--top-k", 1, "--seed", 9)
    # Several samples: the first is as long, each begins with the prompt.
    several = written(stories, "--prompt", "the king", "--tokens", 30, "--samples", 3, "--seed", 4).split("-" * 40)
    assert len(several) == 3 and all(text.strip().startswith("the king") for text in several)
    assert len(set(several)) == 3


def test_a_text_begins_where_a_line_begins(stories):
    words = {"the", "some", "three", "one", "this", "he", "she", "it", "they", ""}
    lines = written(stories, "--tokens", 60, "--temperature", 0.5).split("\n")
    assert lines[0].split(" ")[0] in words and len(lines) > 3


def test_unknown_prompt_words_are_said(stories):
    done = run_command("generate", str(stories), "--prompt", "the zebra sees the yak", "--tokens", "3", "--no-unknown")
    assert "not in the vocabulary, read as <unk>: 'zebra', 'yak'" in done.stderr and done.returncode == 0
    assert done.stdout.count("<unk>") == 2


def test_mistakes_are_one_line(stories, trained_run, tmp_path):
    for words, message in (
        ([stories, "--tokens", 0], "--tokens must be at least 1, got 0"),
        (
            [stories, "--temperature", 0],
            "--temperature must be from 0.001 to 1000, got 0.0: greedy takes the likeliest",
        ),
        ([stories, "--top-p", 1.5], "--top-p must be above 0 and at most 1, got 1.5"),
        ([stories, "--beams", 4, "--temperature", 0.5], "--temperature is for sampling, and a beam search leaves"),
        ([stories, "--greedy", "--top-k", 3], "--top-k does nothing with greedy, which leaves nothing to chance"),
        ([stories, "--greedy", "--seed", 3], "--seed does nothing with greedy"),
        ([stories, "--beams", 0], "--beams must be from 1 to 1,000, got 0"),
        ([stories, "--beams", 2, "--samples", 3], "--samples must be at most the 2 beams, got 3"),
        ([trained_run], "wants a language run"),
        ([tmp_path / "nothing"], "there is no run at"),
    ):
        done = run_command("generate", *map(str, words))
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_a_language_run_is_evaluated_and_read(stories):
    record = json.loads((stories / "metrics.json").read_text())
    done = run_command("evaluate", str(stories), "--cache", "100", "--dynamic", "0.001")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["test"]
    for name in ("loss", "perplexity", "accuracy"):
        assert found[name] == pytest.approx(record["test"][name], rel=1e-5)
    assert {"neural_cache", "dynamic_evaluation"} <= found.keys()
    done = run_command("predict", str(stories), "the king sees the queen .", "--json")
    assert done.returncode == 0, done.stderr
    assert [row["token"] for row in json.loads(done.stdout)["tokens"]] == ["the", "king", "sees", "the", "queen", "."]


def test_pieces_of_a_text_make_the_text(tmp_path):
    from recur.data.text import Tokenizer

    text = "naïve café — 漢字 🙂\nline two"
    for kind, eos in (("character", False), ("bpe", False), ("whitespace", True)):
        tokenizer = Tokenizer.train([text], kind, eos=eos)
        ids = prompt_ids(tokenizer, text)
        writer = Writer(tokenizer)
        assert "".join(writer.piece(index) for index in ids) + writer.end() == text, kind
        assert unknown_words(tokenizer, text.replace("\n", "\r\n")) == [], kind  # read as the newline that is known
    assert unknown_words(tokenizer, "line three") == ["'three'"]


UNUSABLE = {
    "temperature": (1e-320, float("nan"), float("inf"), 0.0),  # 1e-320 divided logits to infinity
    "samples": (0, 1_000_000_000),
    "tokens": (0,),
    "top_k": (0,),
    "top_p": (0.0, 1.5, float("nan")),
    "seed": (-1, 2**63),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, some in UNUSABLE.items() for value in some])
def test_a_setting_of_sampling_out_of_its_range_is_refused(name, value):
    with pytest.raises(UserError) as caught:
        Sampling(**{name: value})
    assert caught.value.key == name


def test_from_python_it_is_the_same_text(stories):
    run = load(stories)
    settings = {"tokens": 30, "seed": 4, "samples": 2}
    texts = run.generate("the king", **settings)
    assert len(texts) == 2 and texts == run.generate("the king", **settings)
    printed = written(stories, "--prompt", "the king", "--tokens", 30, "--seed", 4, "--samples", 2)
    assert printed == f"{texts[0]}\n{'-' * 40}\n{texts[1]}\n"
    coldest = run.generate("the king", tokens=20, temperature=0.001)
    assert coldest == run.generate("the king", tokens=20, greedy=True)
    scores = run.token_nll("the king sees the queen .")
    assert scores.tokens == ["the", "king", "sees", "the", "queen", "."] and len(scores.nll) == len(scores.ranks) == 6
    with pytest.raises(UserError, match="must have at least one token"):
        run.token_nll("")


def test_a_beam_writes_what_is_likelier_than_the_greedy_text(stories):
    run = load(stories)
    greedy = run.generate("the king", tokens=8, greedy=True)[0]
    found = run.beam_search("the king", beams=16, tokens=8)
    assert [one.text for one in found[:3]] == run.generate("the king", tokens=8, beams=16, samples=3)
    assert len({tuple(one.ids) for one in found}) == 16
    logs = [one.log_probability for one in found]
    assert logs == sorted(logs, reverse=True)
    # By reading the whole text: what it says of the tokens behind the prompt.
    for one in (found[0], found[-1]):
        assert one.log_probability == pytest.approx(-sum(run.token_nll(one.text).nll[2:]), abs=1e-4)
    assert logs[0] >= -sum(run.token_nll(greedy).nll[2:]) - 1e-4
    done = run_command(
        "generate", stories, "--prompt", "the king", "--tokens", 8, "--beams", 16, "--samples", 2, "--no-unknown"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"\n{'-' * 40}\n".join(one.text for one in found[:2]) + "\n"
    assert f"recur: log-probability 1: {logs[0]:.6f} nats" in done.stderr


@pytest.mark.slow
def test_two_ranks_train_resume_and_count_every_token(tmp_path):
    """Each rank has its own streams; figures are of all tokens; weights stay tied; the carried state is per rank."""
    folder = tmp_path / "two"
    train(folder, *SMALL, "trainer=ddp_cpu", "callbacks.ema.decay=0.9")
    record = json.loads((folder / "metrics.json").read_text())
    assert record["world_size"] == 2
    content = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert len(content["carried_state"]) == 2 and content["carried_state"][0][0][0].shape == (1, 4, 24)
    assert not torch.equal(content["carried_state"][0][0][0], content["carried_state"][1][0][0])
    run = load(folder)
    assert run.task.net.decoder.weight is run.task.net.embedding.weight
    done = run_command("evaluate", str(folder))  # the same streams, on one rank
    assert json.loads(done.stdout)["test"]["perplexity"] == pytest.approx(record["test"]["perplexity"], rel=1e-5)


@pytest.mark.slow
def test_the_embedded_experiment_comes_within_three_percent_of_the_floor(tmp_path):
    train(tmp_path / "lm", "experiment=lm")
    record = json.loads((tmp_path / "lm" / "metrics.json").read_text())
    assert record["test"]["perplexity"] <= 1.03 * record["ceiling"]["perplexity"]


@pytest.mark.slow
def test_the_guides_sentence_is_said_back(tmp_path):
    train(tmp_path / "sentence", "experiment=char_sentence")
    text = written(tmp_path / "sentence", "--prompt", "hello pyto", "--tokens", 53, "--greedy")
    assert text == "hello pytorch, this is a simple character-level language model.\n"
