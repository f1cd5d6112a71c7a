"""Nothing that lies in a run, a checkpoint, a sweep or a data file is ever run, whoever put it there."""

import html
import json
import pickle
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import EASY, ROOT, train
from recur import render as view
from recur.config.compose import group_options
from recur.leaderboard.page import write
from recur.leaderboard.table import Leaderboard
from recur.runs import trust
from recur.runs.journal import Journal
from recur.runs.run import load_checkpoint
from recur.runs.trust import to_say_again
from recur.sweeps.job import Job, SweepId
from support.commands import run_command

CANARY = "canary"  # a file that only planted code would make, in the folder where a command is called


class Payload:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        import os

        return os.system, (f"touch {CANARY}",)


PICKLE = pickle.dumps(Payload())
SYSTEM = {"_target_": "os.system", "command": f"touch {CANARY}"}
# What makes a config out of a text where it is resolved.
RESOLVED = "${oc.create:'{_target_: os.system, command: touch canary}'}"


def refused(done: Any, folder: Path, *said: str) -> None:
    """One line with exit code 2, no canary."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("recur: "), done.stderr
    assert not [word for word in said if word not in done.stderr], done.stderr
    assert not list(folder.rglob(CANARY))


def test_a_payload_would_run_if_it_were_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(PICKLE)
    assert (tmp_path / CANARY).exists()


# --------------------------------------------------------------------------------------------------- what may be built


def targets(node: Any) -> set[str]:
    if isinstance(node, dict):
        return {str(node["_target_"])} if "_target_" in node else set().union(*map(targets, node.values()), set())
    return set()


def all_targets(node: Any) -> set[str]:
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return targets(node).union(*map(all_targets, inner), set())


def test_every_class_of_our_own_configs_may_be_built():
    found = set()
    for path in (ROOT / "conf").rglob("*.yaml"):
        if "hydra" not in path.parts:
            found |= all_targets(yaml.safe_load(path.read_text()))
    assert len(found) > 20
    assert [target for target in sorted(found) if not trust.may_build(target, trust.RUN)] == []


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "subprocess.Popen",
        "posix.system",
        "torch.load",
        "torch.hub.load",
        "recur.tasks",
        "recur.tasks.sentiment",
        "recur.tasks.sentiment.torch.load",
        "recur.tasks.sentiment.pl.Trainer",
        "recur.tasks.language_modeling.math.exp",
        "recur.nn.engine.os.system",
        "recur.nn.classifier.Classifier.__init__",
        "recur.nn.classifier.Classifier.forward",
        "recur.nn.packed._SumOverTime",
        "recur.nn.classifier.Sequence",
        "torch.optim.adam.torch.load",
        "torch.optim.optimizer.functools.partial",
        "torch.optim.optimizer.warnings.sys.exit",
        "torch.optim.lr_scheduler.EPOCH_DEPRECATION_WARNING",
        "recur.data.readers.read_file",
        "recur.data.readers._read_pickle",
        "recur.data.sentiment.SentimentDataModule",
        "recur.runs.run.write_atomic",
        "recur.sweeps.job.perform",
        "recur.training.callbacks.torch.load",
        "recur.training.callbacks.Path",
        "recur.training.checkpointing.rewind",
        "recur.training.tensorboard.write_projector",
        "lightning.pytorch.Trainer.fit",
        "lightning.pytorch.trainer.Trainer",
        "recur.tasks. sentiment",
        "",
        "..",
        "${oc.env:HOME}",
    ],
)
def test_nothing_else_may(target):
    assert not trust.may_build(target, trust.RUN)


def test_what_the_user_types_is_the_users_own():
    config = {"callbacks": {"mine": {"_target_": "mine.Callback"}}, "data": {"allow_pickle": True}}
    with pytest.raises(ValueError, match=r"callbacks\.mine\._target_ is 'mine\.Callback'.* give --trust mine"):
        trust.check_config(config, [])
    with pytest.raises(ValueError, match=r"data\.allow_pickle=true"):
        trust.check_config(config, ["+callbacks.mine._target_=mine.Callback"])
    trust.check_config(config, ["+callbacks.mine._target_=mine.Callback", "data.allow_pickle=true"])


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("--config-dir=/tmp", "is a flag"),
        ("-cd", "is a flag"),
        ("hydra.searchpath=[file:///tmp]", "Hydra's own"),
        ("+hydra.callbacks.x._target_=os.system", "Hydra's own"),
        ("hydra.job_logging.handlers.x.class=os.system", "Hydra's own"),
        ("hydra.launcher.parameters.slurm_setup=[rm]", "Hydra's own"),
        ("hydra.launcher.address=example.org", "Hydra's own"),
        ("hydra.launcher={setup:[rm]}", "Hydra's own"),
        ("hydra.run.dir=x", "Hydra's own"),
        ("hydra.sweep.dir=x", "Hydra's own"),
        ("hydra.sweeper.params={model._target_:os.system}", "Hydra's own"),
        ("hydra/job_logging=x", "Hydra's own"),
        ("hydra.sweep.subdir=../x", "leads out"),
        ("hydra.sweep.subdir='/x'", "leads out"),
        ("experiment=../../../evil/pwn", "no option of this package"),
        ("model=bilstm,/evil/pwn", "no option of this package"),
        ("+model=choice(bilstm,evil)", "no option of this package"),
        ("data={allow_pickle:true}", "no option of this package"),
        ("hydra/launcher=evil", "no option of this package"),
        ("hydra.sweeper.params.logger=evil", "no option of this package"),
        ("~callbacks", "no plain setting"),
        ("~hydra.sweep.subdir", "Hydra's own"),
        ("evil@callbacks=x", "no plain setting"),
        ("model._target_=os.system", "not this package's"),
        ("+callbacks.x={_target_:os.system}", "not this package's"),
        ("+callbacks.x._target_=recur.training.checkpointing.rewind", "not this package's"),
        ("name=${oc.create:x}", "no run writes"),
        ("name=${ oc.decode:x}", "no run writes"),
        ("name=${oc.env:HOME}", "no run writes"),
        ("name=${oc.env:${seed}}", "no run writes"),
        ("data.allow_pickle=true", "any code"),
        ("hydra.launcher.parameters.slurm_partition='a --wrap=x'", "more than a word"),
        (3, "no text"),
    ],
)
def test_a_recorded_command_may_only_choose_and_set(word, reason):
    with pytest.raises(ValueError, match=f"was started with .*{re.escape(reason)}"):
        trust.check_arguments(["-m", word], "s", group_options())


def test_a_recorded_command_is_repeated():
    words = ["-m", "optimizer.lr=1e-3,1e-2", "model=bilstm,advanced_lstm", "trainer=cpu", "hydra.launcher.cpu_slots=2"]
    words += ["hydra/sweeper=random", "hydra.sweeper.n_trials=3", "name=${hydra:job.num}", "+model.net.x=1"]
    words += ["optimizer._target_=torch.optim.NAdam,torch.optim.SGD", "hydra.sweep.subdir=${hydra.job.num}"]
    words += [
        "~callbacks.pages",
        "experiment=null",
        "model=choice(bilstm, advanced_lstm)",
        "hydra.sweeper.params.optimizer.lr=1,2",
        "hydra.launcher.parameters.slurm_partition=gpu,cpu",
        "hydra.launcher.parameters.timeout_min=600",
    ]
    assert trust.check_arguments(words, "s", group_options()) == words


def test_a_job_that_goes_on_says_again_what_only_a_user_may_say(tmp_path):
    for name in (".hydra/config.yaml", "checkpoints/last.ckpt"):
        (tmp_path / name).parent.mkdir()
        torch.save({}, tmp_path / name)
    words = ("optimizer.lr=1", "+callbacks.mine._target_=mine.Callback", "data.allow_pickle=true")
    job = Job(0, words, tmp_path, SweepId(tmp_path.parent, "0" * 32))
    again = job.command()[3:]
    assert again == [f"resume={tmp_path}", "++callbacks.mine._target_=mine.Callback", "++data.allow_pickle=true"]
    config = {"callbacks": {"mine": {"_target_": "mine.Callback"}}, "data": {"allow_pickle": True}}
    trust.check_config(config, again)


# --------------------------------------------------------------------------------------------------------- checkpoints


def planted(change: Callable[[dict[str, Any]], object]) -> Callable[[Path, Path], None]:
    def make(run: Path, file: Path) -> None:
        content = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
        change(content)
        torch.save(content, file)

    return make


def model_of(content: dict[str, Any]) -> dict[str, Any]:
    return content["recur"]["config"]["model"]


CHECKPOINTS = {
    "a pickle": (lambda run, file: file.write_bytes(PICKLE), "checkpoint"),
    "a pickle in an archive": (lambda run, file: torch.save(Payload(), file), "unsafe"),
    "a pickle of the old kind": (
        lambda run, file: torch.save(Payload(), file, _use_new_zipfile_serialization=False),
        "unsafe",
    ),
    "a pickle among the weights": (planted(lambda c: c["state_dict"].update(x=Payload())), "unsafe"),
    "a pickle as the tokenizer": (planted(lambda c: c["recur"].update(tokenizer=Payload())), "unsafe"),
    "a class of the model": (planted(lambda c: model_of(c)["net"].update(SYSTEM)), "os.system"),
    "an argument of the model": (planted(lambda c: model_of(c)["net"].update(vectors=SYSTEM)), "os.system"),
    "the model itself": (planted(lambda c: c["recur"]["config"].update(model=SYSTEM | {"net": {}})), "os.system"),
    "a module behind ours": (
        planted(lambda c: model_of(c)["net"].update(_target_="recur.tasks.sentiment.torch.load", f="x")),
        "recur.tasks.sentiment.torch.load",
    ),
    "an interpolation": (planted(lambda c: model_of(c)["net"].update(vectors=RESOLVED)), "interpolation"),
    "a list": (planted(lambda c: model_of(c).update(class_weights=[SYSTEM, 1.0])), "os.system"),
    "positional arguments": (planted(lambda c: model_of(c)["net"].update(_args_=[SYSTEM])), "os.system"),
    "a tuple": (planted(lambda c: model_of(c)["net"].update(_args_=(SYSTEM,))), "os.system"),
    "a tuple in a list": (planted(lambda c: model_of(c).update(class_weights=[(SYSTEM,), 1.0])), "os.system"),
    "a tokenizer that is none": (
        planted(lambda c: c["recur"].update(tokenizer=json.dumps({"format": 1, "kind": "bpe", "tokenizer": SYSTEM}))),
        "tokenizer",
    ),
}


@pytest.mark.parametrize(("make", "said"), CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_a_checkpoint_runs_nothing(make, said, trained_run, tmp_path):
    make(trained_run, tmp_path / "a.ckpt")
    refused(run_command("predict", "a.ckpt", "a film", cwd=tmp_path), tmp_path, "a.ckpt", said)


DATA = {
    "a class": (lambda data: data.update(SYSTEM), "os.system"),
    "a class inside": (lambda data: data.update(synthetic=SYSTEM), "os.system"),
    "an interpolation": (lambda data: data.update(synthetic=RESOLVED), "interpolation"),
    "a pickled frame": (
        lambda data: data.update(allow_pickle=True, synthetic=None, train="a.pkl"),
        "a.pkl is a pickle",
    ),
    "pickled vectors": (lambda data: data.update(vectors="a.pt"), "a.pt looks like a pickle"),
}


@pytest.mark.parametrize(("change", "said"), DATA.values(), ids=DATA)
def test_the_data_settings_of_a_checkpoint_run_nothing(change, said, trained_run, tmp_path):
    planted(lambda content: change(content["recur"]["config"]["data"]))(trained_run, tmp_path / "a.ckpt")
    for name in ("a.pkl", "a.pt"):
        (tmp_path / name).write_bytes(PICKLE)
    refused(
        run_command("evaluate", "a.ckpt", cwd=tmp_path), tmp_path, said
    ) if said != "a.pt looks like a pickle" else None
    assert not list(tmp_path.rglob(CANARY))


@pytest.fixture(scope="module")
def checkpoint(trained_run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("damage")
    return Path(shutil.copy(trained_run / "checkpoints" / "best.ckpt", folder / "a.ckpt"))


@given(data=st.data())
@settings(deadline=None, max_examples=100)
def test_damaged_bytes_are_never_loaded_silently(checkpoint, data):
    """Bytes changed, cut out, put in or exchanged anywhere: the sha256 at the end of the file does not fit."""
    whole = checkpoint.read_bytes()
    damaged = bytearray(whole)
    place = st.integers(0, len(whole) - 1)
    kind = data.draw(st.sampled_from(["change", "cut", "put in", "exchange", "end", "zero"]))
    if kind == "change":
        for at in data.draw(st.lists(place, min_size=1, max_size=8, unique=True)):
            damaged[at] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        at = data.draw(place)
        del damaged[at : at + data.draw(st.integers(1, 5000))]
    elif kind == "put in":
        at = data.draw(place)
        damaged[at:at] = data.draw(st.binary(min_size=1, max_size=50))
    elif kind == "exchange":
        one, other = data.draw(place), data.draw(place)
        damaged[one], damaged[other] = damaged[other], damaged[one]
    elif kind == "zero":  # what a file system may leave of a block after a power cut
        at = data.draw(place) // 512 * 512
        damaged[at : at + 512] = bytes(len(damaged[at : at + 512]))
    else:
        del damaged[data.draw(place) :]
    if damaged == whole:
        return
    file = checkpoint.with_name("damaged.ckpt")
    file.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"damaged\.ckpt cannot be read as a checkpoint"):
        load_checkpoint(file)


# -------------------------------------------------------------------------------------------------------- run folders


def in_config(**keys: Any) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        path = run / ".hydra" / "config.yaml"
        config = yaml.safe_load(path.read_text())
        for key, value in keys.items():
            node = config
            *above, last = key.split("__")
            for part in above:
                node = node[part]
            node[last] = value
        path.write_text(yaml.safe_dump(config))

    return change


def config_text(edit: Callable[[str], str]) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        path = run / ".hydra" / "config.yaml"
        path.write_text(edit(path.read_text()))

    return change


def last_checkpoint(run: Path) -> None:
    for name in ("last.ckpt", "last.previous.ckpt"):
        torch.save(Payload(), run / "checkpoints" / name)


FOLDERS = {
    "a callback": (in_config(callbacks__evil=SYSTEM), "callbacks.evil._target_ is 'os.system'"),
    "the data": (in_config(data=SYSTEM), "data._target_ is 'os.system'"),
    "the optimizer": (in_config(optimizer___target_="os.system"), "optimizer._target_ is 'os.system'"),
    "the trainer's strategy": (in_config(trainer__strategy=SYSTEM), "trainer.strategy._target_ is 'os.system'"),
    "a new key": (in_config(evil={"deep": [{"er": SYSTEM}]}), "evil.deep[0].er._target_ is 'os.system'"),
    "a module behind ours": (
        in_config(scheduler={"_target_": "recur.training.callbacks.torch.load", "f": "x"}),
        "scheduler._target_ is 'recur.training.callbacks.torch.load'",
    ),
    "a name put together": (
        in_config(evil="os.system", callbacks__evil={"_target_": "${evil}", "command": "touch canary"}),
        "callbacks.evil._target_ is '${evil}'",
    ),
    "a config put together": (in_config(callbacks__evil=RESOLVED), "callbacks.evil is"),
    "Hydra's callbacks": (in_config(hydra={"callbacks": {"evil": SYSTEM}}), "'hydra'"),
    "Hydra's logging": (
        in_config(hydra={"job_logging": {"handlers": {"x": {"()": "os.system", "command": "touch canary"}}}}),
        "'hydra'",
    ),
    "defaults": (in_config(defaults=["evil"]), "'defaults'"),
    "a package": (config_text(lambda text: f"# @package hydra.callbacks\n{text}"), "@package"),
    "a tag": (
        config_text(lambda text: f"{text}\nevil: !!python/object/apply:os.system ['touch canary']\n"),
        "python/object/apply:os.system",
    ),
    "a config beside it": (
        lambda run: (run / ".hydra" / "evil.yaml").write_text("a: 1"),
        "evil.yaml was not written by a run",
    ),
    "pickled data": (in_config(data__allow_pickle=True), "data.allow_pickle=true"),
    "the checkpoint": (last_checkpoint, "last.ckpt"),
}


@pytest.mark.parametrize(("change", "said"), FOLDERS.values(), ids=FOLDERS)
def test_a_run_folder_that_goes_on_runs_nothing(change, said, trained_run, tmp_path):
    shutil.copytree(trained_run, tmp_path / "r")
    change(tmp_path / "r")
    refused(run_command("train", "resume=r", "trainer.max_epochs=4", cwd=tmp_path), tmp_path, said)


# ---------------------------------------------------------------------------------------------------------- data files


def archive_of_arrays(path: Path) -> None:
    np.save(path, np.array([Payload()], dtype=object), allow_pickle=True)


VECTORS = {
    "v.pt": lambda path: torch.save(Payload(), path),
    "v.npy": archive_of_arrays,
    "v.pkl": lambda path: path.write_bytes(PICKLE),
    "v.model": lambda path: path.write_bytes(PICKLE),
    "v.bin": lambda path: path.write_bytes(PICKLE),
    "v.vec": lambda path: archive_of_arrays(path.with_suffix(".npy")) or path.with_suffix(".npy").replace(path),
    "w.bin": lambda path: torch.save(Payload(), path) or None,
}


@pytest.mark.parametrize("name", VECTORS)
def test_word_vectors_run_nothing(name, tmp_path):
    VECTORS[name](tmp_path / name)
    (tmp_path / "a.csv").write_text("text,label\n" + "a fine film,1\na dull film,0\n" * 20)
    words = ("data=files", "data.train=a.csv", f"data.vectors={name}", "trainer=cpu", "hydra.run.dir=new")
    refused(run_command("train", *words, cwd=tmp_path), tmp_path, name)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json", "parquet", "pkl", "pickle", "txt"])
@pytest.mark.parametrize("family", ["sentiment", "language"])
def test_a_pickle_for_data_runs_nothing(suffix, family, tmp_path, monkeypatch):
    from recur.data.language import LanguageData
    from recur.data.sentiment import SentimentData

    monkeypatch.chdir(tmp_path)
    (tmp_path / f"a.{suffix}").write_bytes(PICKLE)
    module = {"sentiment": SentimentData, "language": LanguageData}[family](train=f"a.{suffix}", cache_dir="cache")
    with pytest.raises(ValueError, match=rf"a\.{suffix}"):
        module.setup()
    assert not (tmp_path / CANARY).exists()


# -------------------------------------------------------------------------------------------------------------- sweeps


def sweep_of(folder: Path, argv: list[Any], **job: Any) -> Path:
    book = Journal(folder)
    book.add("sweep", format=1, search="grid", space={}, jobs=1, monitor="val/accuracy", mode="max", argv=argv)
    book.add("start", **{"job": 0, "overrides": ["lr=1"], "folder": "0"} | job)
    book.close()
    return folder


@pytest.mark.parametrize(
    "argv",
    [
        ["-m", "+callbacks.evil._target_=os.system", "+callbacks.evil.command=touch canary"],
        ["-m", "+hydra.callbacks.evil={_target_:os.system,command:touch canary}"],
        ["-m", "--config-dir", "evil"],
    ],
)
def test_a_sweep_that_goes_on_runs_nothing(argv, tmp_path):
    sweep_of(tmp_path / "s", argv)
    refused(run_command("train", "-m", "resume=s", cwd=tmp_path), tmp_path, "s was started with", argv[1])


PARTS = ["sweep.jsonl", "0/metrics.json", "0/config.yaml", "0/.hydra/hydra.yaml", "0/history.jsonl"]


@pytest.mark.parametrize("name", PARTS)
def test_a_pickle_in_a_sweep_runs_nothing(name, tmp_path):
    for sweep in ("s", "t"):
        sweep_of(tmp_path / sweep, [], overrides=[f"{sweep}=1"])
        (tmp_path / sweep / "0" / ".hydra").mkdir(parents=True)
        (tmp_path / sweep / "0" / ".hydra" / "hydra.yaml").write_text("hydra: {runtime: {choices: {}}}\n")
        (tmp_path / sweep / "0" / "config.yaml").write_text("s: 1\nt: 1\n")
    (tmp_path / "s" / name).write_bytes(PICKLE)
    done = run_command("results", "s", "t", cwd=tmp_path)
    assert done.returncode in (0, 2) and "Traceback" not in done.stderr
    assert not list(tmp_path.rglob(CANARY))
    (tmp_path / "s" / name).write_text("a: !!python/object/apply:os.system ['touch canary']\n")
    done = run_command("results", "s", "t", cwd=tmp_path)
    assert done.returncode in (0, 2) and "Traceback" not in done.stderr
    assert not list(tmp_path.rglob(CANARY))


def test_a_pickle_for_a_study_runs_nothing(tmp_path, monkeypatch):
    optuna = pytest.importorskip("optuna")
    from recur.sweeps import study

    monkeypatch.chdir(tmp_path)
    begun = b'{"op_code": 0, "worker_id": "x", "study_name": "recur"}\n'
    for content in (PICKLE, PICKLE + b"\n", begun + PICKLE + b"\n{}\n"):
        (tmp_path / study.JOURNAL).write_bytes(content)
        with pytest.raises(Exception, match=r".") as told:
            optuna.load_study(study_name=study.NAME, storage=study.storage(tmp_path / study.JOURNAL))
        assert not isinstance(told.value, pickle.UnpicklingError)
        assert not (tmp_path / CANARY).exists()


# --------------------------------------------------------------------------------------------------------------- pages

EVIL = [
    '<script>alert("x")</script>',
    '"><img src=x onerror="alert(1)">',
    "'><svg/onload=alert(1)>",
    "</title><b>",
    "$x^$ \\$ \u202e 😀 映画",
]


class Tags(HTMLParser):
    """What a browser would see in a page besides its text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self._inside = tag
        self.attributes |= {name for name, _ in attrs}
        self.links += [value for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts.append(data)


def sweep_with(folder: Path, texts: list[str]) -> str:
    """The page of a sweep that has these texts wherever a text can stand."""
    book = Journal(folder)
    header = {"format": 1, "search": "grid", "space": {}, "jobs": 6, "mode": "max"}
    book.add("sweep", **header, monitor="val/accuracy", command=f"python -m recur.train {texts[0]}")
    for number in range(6):
        text = texts[number % len(texts)]
        run = folder / f"{number}{text[:3].replace('/', '_')}"
        run.mkdir()
        overrides = [f"name={text}", f"{text}={number % 2}", f"lr={number}", f"seed={text}"]
        book.add("start", job=number, overrides=overrides, folder=run.name, place=text)
        if number in (3, 4):
            book.add("end", job=number, state="failed" if number == 3 else text, seconds=1.0, reason=text)
            continue
        record = {"val": {"accuracy": 0.1 * number, text: 0.5}, "wall_seconds": 60.0, "epochs": text, "seed": text}
        (run / "metrics.json").write_text(json.dumps(record))
        book.add("end", job=number, state="done", seconds=61.0)
    book.close()
    return write(Leaderboard.of([folder]), folder / "results").read_text(encoding="utf-8")


def test_the_page_of_a_sweep_has_no_tag_from_its_settings(tmp_path):
    tame = Tags(sweep_with(tmp_path / "tame", ["one", "two", "three", "four", "five"]))
    source = sweep_with(tmp_path / "evil", EVIL)
    page = Tags(source)
    assert page.tags == tame.tags
    assert page.attributes == tame.attributes
    assert page.scripts == tame.scripts and "alert" not in "".join(page.scripts)
    assert all(re.match(r"(\.\./)*[\w%./-]+$|#", link) for link in page.links), page.links
    policy = html.unescape(source)
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy
    assert "alert(" in source  # there, as text


def test_the_pages_of_a_run_have_no_tag_from_its_data(tmp_path):
    rows = [(f"{text} fine film {i}", label) for i in range(12) for text, label in zip(EVIL, EVIL, strict=True)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t, "label": c}) + "\n" for t, c in rows))
    small = [word for word in EASY if not word.startswith(("data.", "trainer.max_epochs"))]
    data = ("data=files", f"data.train={tmp_path}/a.jsonl", "data.batch_size=8", "model=bilstm")
    done = train(tmp_path / "run", *data, *small, "trainer.max_epochs=1", "name=evil")
    assert not view._UNSAFE.search(done.stdout.replace("\n", "")) and done.stderr == ""
    told = run_command("predict", tmp_path / "run", *[text for text, _ in rows[:5]], "--html", tmp_path / "page.html")
    assert told.returncode == 0, told.stderr
    page = Tags((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert not page.tags & {"script", "img", "svg", "b"} and not {a for a in page.attributes if a.startswith("on")}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run")).Reload()
    for tag in events.Tags()["tensors"]:
        if tag.startswith("val/mistakes"):
            shown = events.Tensors(tag)[-1].tensor_proto.string_val[0].decode()
            assert "<" not in shown.replace("&lt;", "") and "alert" in shown
            break
    else:
        pytest.fail("no page of mistakes")


@pytest.mark.parametrize("key", ["save_dir", "name", "version", "sub_dir"])
@pytest.mark.parametrize("value", ["..", "../x", "..//x", "a/../../x", "/x", "~/x"])
def test_no_part_of_a_loggers_path_leads_out_of_the_runs_folder(key, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    node = {"logger": {"tensorboard": {"save_dir": str(tmp_path), "name": "", "version": "", key: value}}}
    with pytest.raises(ValueError, match=rf"logger\.tensorboard\.{key} is .*, out of "):
        trust.check_paths(node, "", tmp_path)
    trust.check_paths(node, "", tmp_path, [f"logger.tensorboard.{key}={value}"])
    trust.check_paths({"logger": {"csv": {"save_dir": str(tmp_path), key: "a/b"}}}, "", tmp_path)


def test_what_is_said_by_another_key_is_said_again_by_it(tmp_path):
    """A null in its place would count as typed and take the class away."""
    raw = {"callbacks": {"a": {"_target_": "my.cb.Cls", "x": 1}, "b": "${callbacks.a}"}}
    resolved = {"callbacks": {"a": {"_target_": "my.cb.Cls", "x": 1}, "b": {"_target_": "my.cb.Cls", "x": 1}}}
    again = to_say_again(raw, resolved, tmp_path)
    assert again == {"callbacks.a._target_": "my.cb.Cls", "callbacks.b": "${callbacks.a}"}
