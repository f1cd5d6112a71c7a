"""What an export writes is complete, is what the run says, and is read back."""

import copy
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import train
from recur.data.corpus import prompt_ids
from recur.data.text import Tokenizer
from recur.errors import UserError
from recur.exporting import agreement, folder
from recur.exporting.scripts import _TEXT, _cut
from recur.inference.classification import classify
from recur.runs.run import Run
from recur.tasks.sentiment import SentimentTask
from support.commands import run_command

pytestmark = pytest.mark.slow  # every format of both families is written first; CI runs it

TEXTS = ["the plot was clever and fresh", "terrible acting, not good at all", "fresh"]


@pytest.fixture(scope="module")
def exports(trained_run: Path, language_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every format of both families, through the command once and through its function otherwise."""
    base = tmp_path_factory.mktemp("exports")
    done = run_command("export", trained_run, "--out", base / "sentiment-onnx", "--int8")
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    assert done.stdout.count("differs from recur by at most") == done.stdout.count("  speed: ") == 2  # 8 bits, too
    for family, path in (("sentiment", trained_run), ("language", language_run)):
        for kind in folder.FORMATS:
            if not (base / f"{family}-{kind}").exists():
                folder.export(Run.open(path), kind, base / f"{family}-{kind}")
    return {path.name: path for path in base.iterdir()}


def alone(where: Path, *words: str) -> str:
    """What the script says in a process that cannot see this package."""
    block = "import sys; sys.modules['recur'] = sys.modules['torch'] = None; sys.argv = sys.argv[1:]; "
    code = block + "import runpy; runpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code, where / "use.py", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_script_labels_texts_as_the_run_does(exports: dict[str, Path], trained_run: Path) -> None:
    lines = [line.split("\t") for line in alone(exports["sentiment-onnx"], *TEXTS).splitlines()]
    for text, line, expected in zip(TEXTS, lines, classify(Run.open(trained_run), TEXTS), strict=True):
        assert line[0] == expected.label
        assert float(line[1]) == pytest.approx(expected.probabilities[expected.label], abs=2e-6)
        assert line[2] == text


def test_the_script_writes_on_as_the_run_does(exports: dict[str, Path], language_run: Path) -> None:
    done = run_command("generate", language_run, "--prompt", "the", "--tokens", 12, "--greedy")
    assert alone(exports["language-onnx"], "the", "12").rstrip("\n") == done.stdout.rstrip("\n")


def test_the_script_begins_without_a_prompt_as_the_run_does(exports: dict[str, Path], language_run: Path) -> None:
    """The start token is read for the first token alone."""
    done = run_command("generate", language_run, "--tokens", 30, "--greedy")
    assert alone(exports["language-onnx"], "", "30").rstrip("\n") == done.stdout.rstrip("\n")


@pytest.mark.parametrize("family", ["sentiment", "language"])
def test_the_script_reads_bytes_that_are_not_utf8_as_unknown_letters(
    exports: dict[str, Path], family: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `recur.data.text.utf8` does, with which the run itself reads."""
    said = []
    for text in (os.fsdecode(b"good caf\xe9"), "good caf\ufffd"):
        words = [text] if family == "sentiment" else [text, "4"]
        monkeypatch.setattr(sys, "argv", ["use.py", *words])
        runpy.run_path(str(exports[f"{family}-onnx"] / "use.py"), run_name="__main__")
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != ""


@pytest.mark.parametrize(
    ("words", "said"), [((";",), "';' has no tokens"), (("good", ""), "'' has no tokens"), ((), "no text")]
)
def test_the_script_refuses_texts_without_tokens(exports: dict[str, Path], words: tuple[str, ...], said: str) -> None:
    command = [sys.executable, exports["sentiment-onnx"] / "use.py", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1) and said in done.stderr


def test_the_smaller_model_is_smaller_and_close(trained_run: Path, exports: dict[str, Path]) -> None:
    where = exports["sentiment-onnx"]
    small, whole = where / "model.int8.onnx", where / "model.onnx"
    assert small.stat().st_size < whole.stat().st_size
    net = Run.open(trained_run).task.net
    texts = agreement.drawn_texts(net.embedding.num_embeddings)
    found = agreement.compare(agreement.onnx_answers(small.read_bytes(), net, "sentiment"), net, "sentiment", texts)
    assert 0 < found.difference < 0.2  # a few dozen weights, each of 8 bits
    assert found.same_answers > 0.98


@pytest.mark.parametrize("kind", ["sentiment-onnx", "sentiment-torch", "language-onnx", "language-torch"])
def test_both_speeds_are_measured_and_on_the_card(kind: str, exports: dict[str, Path]) -> None:
    config, text = json.loads((exports[kind] / "config.json").read_text()), (exports[kind] / "README.md").read_text()
    for found in [config["agreement"], *([config["int8"]] if "int8" in config else [])]:
        assert found["tokens_per_second"] > 0 and found["own_tokens_per_second"] > 0
        speeds = (
            f"Speed: {found['tokens_per_second']:,.0f} tokens/s, recur {found['own_tokens_per_second']:,.0f} (a CPU"
        )
        assert speeds in text
    assert ("int8" in config) == (kind == "sentiment-onnx") == ("With 8-bit weights they differ" in text)


@pytest.mark.parametrize("family", ["sentiment", "language"])
def test_safetensors_are_read_back_as_the_run(
    family: str, exports: dict[str, Path], trained_run: Path, language_run: Path
) -> None:
    original = Run.open(trained_run if family == "sentiment" else language_run)
    again = Run.open(exports[f"{family}-safetensors"])
    assert again.tokenizer.to_json() == original.tokenizer.to_json()
    assert again.config == original.config
    first, second = original.task.state_dict(), again.task.state_dict()
    assert list(first) == list(second)
    assert all(first[name].equal(second[name]) for name in first)


def test_the_hub_folder_has_what_a_hub_shows(exports: dict[str, Path]) -> None:
    where = exports["sentiment-safetensors"]
    assert {path.name for path in where.iterdir()} == {
        "README.md",
        "config.json",
        "metrics.json",
        "model.safetensors",
        "tokenizer.json",
    }
    import tokenizers
    import yaml

    assert tokenizers.Tokenizer.from_file(str(where / "tokenizer.json")).get_vocab_size() > 10
    front, _, text = (where / "README.md").read_text().removeprefix("---\n").partition("---\n")
    assert yaml.safe_load(front)["pipeline_tag"] == "text-classification"
    metrics = json.loads((where / "metrics.json").read_text())
    matrix = metrics["confusion"]["matrix"]
    assert metrics["confusion"]["split"] == "test"
    assert sum(map(sum, matrix)) == 150
    assert np.trace(matrix) / 150 == pytest.approx(metrics["test"]["accuracy"])
    assert f"| negative | {matrix[0][0]} | {matrix[0][1]} |" in text
    for heading in ("Data", "Metrics", "Confusion matrix (test split)", "Validations", "Limits", "How to cite"):
        assert f"## {heading}" in text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{", "is damaged"),
        ("config.json", "[" * 100_000, "is damaged"),
        ("config.json", "{}", "library_name is another"),
        ("config.json", '{"library_name": "recur", "format": 99}', "must be at most 1, got 99"),
        ("model.safetensors", "nothing", "cannot be read as safetensors"),
        ("tokenizer.json", "{}", "tokenizer has no model"),
    ],
)
def test_a_damaged_folder_is_refused(
    name: str, content: str, message: str, exports: dict[str, Path], tmp_path: Path
) -> None:
    for path in exports["language-safetensors"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        Run.open(tmp_path)


def test_a_folder_that_names_foreign_code_is_refused(exports: dict[str, Path], tmp_path: Path) -> None:
    for path in exports["language-safetensors"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["config"]["model"]["net"]["_target_"] = "os.system"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"os\.system"):
        Run.open(tmp_path)


def test_a_folder_is_replaced_only_when_asked(exports: dict[str, Path], trained_run: Path) -> None:
    where = exports["sentiment-onnx"]
    before = (where / "model.onnx").stat().st_mtime_ns
    done = run_command("export", trained_run, "--out", where)
    assert done.returncode == 2
    assert "is there already: give --force" in done.stderr
    assert (where / "model.onnx").stat().st_mtime_ns == before


def test_an_export_that_is_replaced_is_there_until_the_new_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was deleted first: what stopped the command then took the former export and the new one."""
    where, names = tmp_path / "out", {"config.json": b'{"library_name": "recur"}', "use.py": b"1"}
    folder._write(where, names, force=False)
    folder._write(where, {**names, "use.py": b"2"}, force=True)
    assert (where / "use.py").read_bytes() == b"2" and list(tmp_path.iterdir()) == [where]
    replace = Path.replace

    def stopped(self: Path, target: Path) -> Path:
        if self.suffix == ".part":
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        folder._write(where, {**names, "use.py": b"3"}, force=True)
    assert (where / "use.py").read_bytes() == b"2" and list(tmp_path.iterdir()) == [where]


def test_an_export_may_be_read_by_others_as_far_as_the_umask_lets_them(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        folder._write(tmp_path / "out", {"a": b""}, force=False)
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755


def test_what_answers_differently_is_not_written(trained_run: Path, tmp_path: Path) -> None:
    net = Run.open(trained_run).task.net
    texts = agreement.drawn_texts(net.embedding.num_embeddings)
    wrong = agreement.compare(
        lambda ids, lengths: agreement.own_answers(net, "sentiment", ids, lengths) + 1e-3, net, "sentiment", texts
    )
    with pytest.raises(UserError, match="would change the answers"):
        folder._require(wrong, "onnx")
    with pytest.raises(UserError, match="--format must be one of"):
        folder.export(Run.open(trained_run), "onxx", tmp_path / "new")
    with pytest.raises(UserError, match="--int8 goes with"):
        folder.export(Run.open(trained_run), "torch", tmp_path / "new", int8=True)
    with pytest.raises(UserError, match="--texts does nothing with --format safetensors"):
        folder.export(Run.open(trained_run), "safetensors", tmp_path / "new", texts=texts)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", folder.FORMATS)
def test_weights_that_are_not_finite_are_refused(kind: str, trained_run: Path, tmp_path: Path) -> None:
    content = torch.load(trained_run / "checkpoints" / "best.ckpt", weights_only=True)
    content["state_dict"]["net.embedding.weight"][5, 0] = float("nan")  # most texts have no such token
    torch.save(content, tmp_path / "best.ckpt")
    with pytest.raises(UserError, match="are not all finite"):
        folder.export(Run.open(tmp_path / "best.ckpt"), kind, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", ["sentiment", "language"])
def test_an_answer_of_ours_that_is_no_number_is_seen(family: str, request: pytest.FixtureRequest) -> None:
    run = Run.open(request.getfixturevalue({"sentiment": "trained_run", "language": "language_run"}[family]))
    net, texts = run.task.net, [np.array([3, 4, 3]), np.array([5, 4])]
    spoilt = copy.deepcopy(net)
    spoilt.embedding.weight.data[5] = float("nan")
    measured = agreement.compare(
        lambda ids, lengths: agreement.own_answers(net, family, ids, lengths), spoilt, family, texts
    )
    with pytest.raises(UserError, match="would change the answers by nan"):
        folder._require(measured, "onnx")
    same = agreement.compare(lambda ids, lengths: agreement.own_answers(net, family, ids, lengths), net, family, texts)
    assert same.difference == 0 and same.same_answers == 1


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_probabilities_of_ones_own_are_refused_where_logits_alone_are_kept(
    kind: str, trained_run: Path, tmp_path: Path
) -> None:
    class Sharper(SentimentTask):
        def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
            return super().probabilities(2 * logits)

    run = Run.open(trained_run)
    run.task.__class__ = Sharper
    with pytest.raises(UserError, match=f"--format {kind} cannot hold the probabilities of Sharper"):
        folder.export(run, kind, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    folder.export(run, "safetensors", tmp_path / "out")


def test_texts_that_are_not_utf8_are_refused(trained_run: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_bytes("a film\na caf\u00e9\n".encode("latin-1"))
    done = run_command("export", trained_run, "--texts", "texts.txt", "--out", "new", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "texts.txt line 2 is not UTF-8 (byte 0xe9)" in done.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("keep", ["head", "tail", "both"])
@pytest.mark.parametrize("most", [None, 1, 2, 5, 20])
def test_the_script_cuts_as_the_run_does(keep: str, most: int | None) -> None:
    from recur.data.buckets import Texts
    from recur.data.cache import Ragged

    for length in (1, 2, 5, 6, 21):
        ids = list(range(length))
        texts = Texts(Ragged(np.array(ids), np.array([0, length])), max_length=most, keep=keep)
        assert eval(_cut(most, keep), {"ids": ids, "len": len}) == texts[0].tolist()


@pytest.mark.parametrize("kind", ["character", "whitespace"])
def test_the_script_reads_the_ends_of_lines_as_the_run_does(kind: str) -> None:
    """Those of other systems, too: a `\\r` was an unknown letter, or no end at all."""
    tokenizer = Tokenizer.train(["the king\nsaw the queen"], kind, eos=kind == "whitespace")
    names = {"config": {"eos_id": tokenizer.eos_id}, "tokenizer": tokenizer._tokenizer, "words": ["the", "1"]}
    exec(_TEXT, names)
    for text in ("the\nking", "the\r\nking", "the\rking saw\r\n\r\nthe\r"):
        assert names["encode"](text) == prompt_ids(tokenizer, text)


def test_the_script_of_a_model_of_words_keeps_the_ends_of_lines(tmp_path: Path) -> None:
    """`<eos>` was printed as a word, and a newline of the prompt was lost."""
    small = ["model.net.hidden_size=16", "model.net.embedding_dim=16", "trainer.max_steps=3", "logger=none"]
    train(tmp_path / "run", "experiment=lm", *small, "test=false", "baseline=false", "trainer=cpu")
    folder.export(Run.open(tmp_path / "run"), "onnx", tmp_path / "onnx")
    for prompt in ("the king\nthe", "the"):
        done = run_command("generate", tmp_path / "run", "--prompt", prompt, "--tokens", 40, "--greedy")
        assert alone(tmp_path / "onnx", prompt, "40").rstrip("\n") == done.stdout.rstrip("\n")
    command = [sys.executable, tmp_path / "onnx" / "use.py", "the"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "a number of tokens" in done.stderr
