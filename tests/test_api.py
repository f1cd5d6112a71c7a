"""Composing and training from Python."""

import signal
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

import recur
from conftest import EASY
from recur.errors import UserError
from recur.exporting import folder as folders


def test_overrides_may_be_words_or_a_mapping() -> None:
    settings = {"optimizer.lr": 0.5, "trainer": "cpu", "data.tokenizer.kind": "whitespace", "hydra.run.dir": "here"}
    typed = recur.compose([f"{key}={value}" for key, value in settings.items()])
    mapped = recur.compose(settings)
    assert typed == mapped and typed["optimizer"]["lr"] == 0.5
    strange = {"data.cache_dir": "a folder, with {marks}: it's", "data.max_length": None, "test": False}
    config = recur.compose({**strange, "optimizer.betas": [0.5, 0.75], "name": ""})
    assert (config["data"]["cache_dir"], config["data"]["max_length"], config["test"]) == (*strange.values(),)
    assert config["optimizer"]["betas"] == [0.5, 0.75] and config["name"] == ""
    for text in ("2024", "true", "null", "1e-3", "jörg's", "a\\b", "a [1] {b}"):  # a text stays one
        assert recur.compose({"name": text})["name"] == text
    assert recur.compose({"data": "files", "data.train": ["/home/jörg/a.csv"]})["data"]["train"] == ["/home/jörg/a.csv"]
    assert recur.compose({"data.cache_dir": Path("2024")})["data"]["cache_dir"].endswith("2024")
    assert recur.compose({"seed": 3, "optimizer.lr": 1e-7})["optimizer"]["lr"] == 1e-7
    with pytest.raises(UserError, match="optimizer"):
        recur.compose(["optimizer.lrr=1"])
    with pytest.raises(TypeError, match="several words"):
        recur.compose("optimizer.lr=1")


class Bag(nn.Module):
    """A network with neither an embedding nor a recurrent stack: counts of tokens, one linear layer."""

    def __init__(self, vocab_size: int, num_classes: int, vectors: torch.Tensor | None = None) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.head = nn.Linear(vocab_size, 1 if num_classes == 2 else num_classes)

    def forward(self, text: PackedSequence) -> torch.Tensor:
        padded, lengths = pad_packed_sequence(text, padding_value=-1)  # (time, batch)
        counts = torch.zeros(len(lengths), self.vocab_size)
        for row in range(len(lengths)):
            counts[row] = torch.bincount(padded[: lengths[row], row], minlength=self.vocab_size)
        logits: torch.Tensor = self.head(counts)
        return logits


def test_any_module_is_trained_opened_exported_and_no_more_is_asked_of_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("RECUR_TRUST", "")
    folder = tmp_path / "run"
    words = [word for word in EASY if not word.startswith("model.")]
    words += ["data.synthetic.train_size=80", "trainer.max_epochs=1", f"hydra.run.dir={folder}", "~model.net"]
    words += [f"+model.net={{_target_: {__name__}.Bag, _partial_: true}}"]
    package = __name__.partition(".")[0]
    with pytest.raises(UserError, match=rf'model\.net\._target_ is .*give trust="{package}"'):
        recur.fit(words)
    assert not folder.exists()
    run = recur.fit(words, trust=package)
    assert run.predict(["a great film"])[0].label in ("positive", "negative")
    with pytest.raises(UserError, match="its network Bag has no embed and classify"):
        run.explain("a great film")
    done = folders.export(run, "safetensors", tmp_path / "out")
    assert "(Bag)" in (done.folder / "README.md").read_text()
    with pytest.raises(UserError, match="find_lr"):
        recur.fit([*EASY, "find_lr=true"])


def test_a_run_trained_here_is_opened_and_the_signals_are_given_back(tmp_path) -> None:
    before = signal.getsignal(signal.SIGINT)
    run = recur.fit([*EASY, f"hydra.run.dir={tmp_path / 'run'}", "trainer.max_epochs=1"])
    assert signal.getsignal(signal.SIGINT) is before
    assert run.folder == tmp_path / "run" and len(run.history) == 1
    assert run.metrics["test"]["accuracy"] == pytest.approx(run.evaluate(split="test")["test"]["accuracy"], abs=1e-6)
    more = recur.fit([f"resume={run.folder}", "trainer.max_epochs=2"])
    assert more.folder == run.folder and len(more.history) == 2 and more.metrics["epochs"] == 2
    with pytest.raises(UserError, match="must describe one run"):
        recur.fit(["-m", "seed=0,1"])
