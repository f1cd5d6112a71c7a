"""Every claim file composes, its runs take a step, and what a sweep left behind is read as it was."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from conftest import ROOT
from recur.course import checks, experiment
from recur.course import claim as claims
from recur.course.blocks import blocks
from recur.course.page import chart, write
from recur.course.record import arm_tables, entry, short_table, table, update, with_texts
from recur.course.verdict import Observation, confirm, judge
from recur.errors import UserError
from recur.sweeps.space import parse
from support.commands import run_command

FOLDER = ROOT / "conf" / "claims"
LOADED = [claims.load(FOLDER, name, quick=quick) for name in claims.names(FOLDER) for quick in (False, True)]
SWEEPS = [one for one in LOADED if one.sweep is not None]
GUIDES = ROOT.parent / "shared" / "guides"


def known(one: claims.Claim) -> str:
    return f"{one.name}{'-quick' if one.quick else ''}"


def composed(*overrides: str):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return cfg


def overrides_of(one: claims.Claim) -> list[list[str]]:
    assert one.sweep is not None
    last = {word.partition("=")[0]: word for word in one.sweep.base}
    extra = [one.needs] if one.needs else []
    x = [f"{one.sweep.vary}={one.sweep.values[-1]}"] if one.sweep.vary else []
    return [[*last.values(), *arm, *extra, *x] for arm in one.sweep.arms.values()]


@pytest.mark.slow
@pytest.mark.parametrize("one", SWEEPS, ids=known)
def test_every_arm_composes_against_the_classes_it_names(one):
    from recur.config import schema

    for words in overrides_of(one):
        cfg = composed(*words, "hydra.runtime.output_dir=nowhere")
        own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
        config = OmegaConf.to_container(own, resolve=True)
        assert isinstance(config, dict)
        config["trainer"].pop("precision")
        schema.check(config, "")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Lightning's own, of torch
@pytest.mark.parametrize("one", [s for s in SWEEPS if s.quick and not s.needs], ids=known)
def test_the_runs_of_a_claim_take_a_step(one, tmp_path):
    import lightning.pytorch as pl

    from recur.config.compose import build

    for words in overrides_of(one):
        keys = {word.partition("=")[0] for word in words}
        few = ["data.synthetic.train_size=600", "data.synthetic.val_size=600"]
        cfg = composed(*words, *(few if any(key.startswith("data.synthetic") for key in keys) else []))
        data = build(cfg.data)
        data.setup("fit")
        task = build(
            cfg.model, optimizer=build(cfg.optimizer), scheduler=build(cfg.scheduler), **data.model_arguments()
        )
        before = [p.clone() for p in task.parameters()]
        trainer = pl.Trainer(
            max_steps=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(task, datamodule=data)
        assert any(not torch.equal(a, b) for a, b in zip(before, task.parameters(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("one", SWEEPS, ids=known)
def test_the_command_of_a_claim_is_a_grid_of_its_arms(one):
    """What is typed is read back by the sweeper's own parser: as many jobs as arms, places and seeds."""
    words = experiment.command(one, Path("out"))
    assert words[:4] == ["python", "-m", "recur.train", "-m"]
    own = [word for word in words[4:] if not word.startswith("hydra.")]
    space = parse({}, own)
    cases = [word for word in words if word.startswith("hydra.sweeper.cases=")]
    if cases:
        read = OmegaConf.to_container(composed(cases[0]).hydra.sweeper.cases)
        space.cases = [tuple(case) for case in read]
        assert space.cases == list(one.sweep.arms.values())
    rows = space.grid()
    assert len(set(rows)) == len(rows) == len(one.sweep.arms) * max(1, len(one.sweep.values)) * len(one.sweep.seeds)
    places = {experiment._place(one.sweep, row) for row in rows}
    assert places == {
        (arm, x, seed) for arm in one.sweep.arms for x in one.sweep.values or [""] for seed in one.sweep.seeds
    }


def test_a_run_is_of_the_arm_whose_settings_are_in_force():
    arms = {"none": ("a.dropout=0",), "half": ("a.dropout=0.5",), "text": ("a.text=schöne neue welt",)}
    sweep = replace(claims.load(FOLDER, "carry_state").sweep, base=("a.dropout=0",), arms=arms)
    assert experiment._place(sweep, ["a.dropout=0", "a.dropout=0.5", "seed=1"]) == ("half", "", 1)
    assert experiment._place(sweep, ["a.dropout=0", "a.dropout=0", "seed=2"]) == ("none", "", 2)
    one = replace(claims.load(FOLDER, "carry_state"), sweep=sweep)
    (cases,) = [word for word in experiment.command(one, Path("out")) if word.startswith("hydra.sweeper.cases=")]
    assert OmegaConf.to_container(composed(cases).hydra.sweeper.cases)[2] == ["a.text=schöne neue welt"]
    with pytest.raises(UserError, match="fits no arm"):
        experiment._place(replace(sweep, arms={"half": arms["half"]}), ["a.dropout=0", "seed=1"])


def test_two_arms_that_are_the_same_are_refused():
    one = claims.load(FOLDER, "carry_state")
    arms = {**one.sweep.arms, "again": one.sweep.arms["carried"]}
    with pytest.raises(UserError, match=r"sweep\.arms\.\w+ is the same as"):
        checks.check(FOLDER / "carry_state.yaml", replace(one, sweep=replace(one.sweep, arms=arms)))


def test_the_budgets_of_the_short_claims_fit_into_75_minutes():
    assert sum(one.minutes for one in LOADED if not one.long and not one.quick) <= 75


@pytest.fixture
def finished(tmp_path):
    """A claim of two arms whose sweep has ended, and where it lies."""
    sweep = claims.Sweep((), {"a": ("x=1",), "b": ("x=2",)}, seeds=(0, 1))
    rule = (claims.Condition("b minus a", "b", "val/accuracy", minus="a", at_least=0.1),)
    one = claims.Claim("demo", "1", "T", "G", "S", "Q", "C", "val/accuracy", rule, sweep, None, {"kind": "arms"}, 1)
    folder = tmp_path / "demo" / one.key / "sweep"
    folder.mkdir(parents=True)
    events = [{"event": "sweep", "format": 1, "monitor": "val/accuracy", "mode": "max"}]
    for job, (arm, seed) in enumerate((a, s) for a in (1, 2) for s in (0, 1)):
        events += [
            {"event": "start", "job": job, "overrides": [f"x={arm}", f"seed={seed}"], "folder": str(job)},
            {"event": "end", "job": job, "state": "done", "seconds": 1.0, "reason": ""},
        ]
        (folder / str(job)).mkdir()
        record = {"val": {"accuracy": 0.4 * arm + 0.01 * seed}, "wall_seconds": 3.0}
        (folder / str(job) / "metrics.json").write_text(json.dumps(record))
    (folder / "sweep.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return one, tmp_path


def test_a_finished_sweep_is_read_and_not_run_again(finished):
    one, out = finished
    observations, seconds = experiment.observe(one, out)
    assert seconds == 12
    assert {(o.arm, o.seed): o.measures["val/accuracy"] for o in observations} == {
        ("a", 0): 0.4,
        ("a", 1): pytest.approx(0.41),
        ("b", 0): 0.8,
        ("b", 1): pytest.approx(0.81),
    }
    verdict, effects = judge(one.rule, observations)
    assert (verdict, effects[0].estimate) == ("holds", pytest.approx(0.4))
    assert not (out / "demo" / one.key / "sweep.log").exists()


def test_a_finished_sweep_is_not_given_out_for_other_data(finished, tmp_path, monkeypatch):
    """`data.path=another.txt` gave the figures of the text before without a word."""
    one, out = finished
    mine = tmp_path / "mine.txt"
    mine.touch()
    (journal_of(one, out).parent / "2" / "config.yaml").write_text(json.dumps({"data": {"path": str(mine)}}))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.txt").symlink_to(mine)
    for same in ([f"data.path={mine}"], ["data.path=mine.txt"], ["data.path='link.txt'"], ["data.cache_dir=x"], []):
        assert len(experiment.observe(one, out, same)[0]) == 4
    with pytest.raises(UserError, match=rf"data.path=other.txt is other data .* was {mine}: choose .* --out"):
        experiment.observe(one, out, ["data.path=other.txt"])
    mine.unlink()  # moved, perhaps: nobody can say that it is other data
    assert len(experiment.observe(one, out, ["data.path=other.txt"])[0]) == 4


def test_the_folder_of_a_claim_may_have_any_name():
    one = claims.load(FOLDER, "rnn_forgets", quick=True)
    for name in ("größe", "a(1)", "a, b", "a=b"):
        typed = experiment.command(one, Path(name))[4:]
        cases = [word for word in typed if word.startswith("hydra.sweeper.cases=")]
        assert composed(*cases, typed[-1]).hydra.sweep.dir == name


def journal_of(one, out):
    return out / "demo" / one.key / "sweep" / "sweep.jsonl"


def lose(one, out, job, *events):
    """Take a run's result away, and let the journal end with other events of it."""
    path = journal_of(one, out)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [line for line in lines if line.get("job") != job or line["event"] == "start"]
    path.write_text("".join(json.dumps(line) + "\n" for line in [*kept, *({"job": job, **e} for e in events)]))
    (path.parent / str(job) / "metrics.json").unlink()


def sweeps_end(monkeypatch, code, last="recur: the last line"):
    """Instead of a sweep, only how it ends."""

    def begun(_, stdout, **__):
        print(last, file=stdout, flush=True)
        return types.SimpleNamespace(wait=lambda: code)

    monkeypatch.setattr(experiment.subprocess, "Popen", begun)


STOPPED, FAILED = {"event": "end", "state": "stopped"}, {"event": "end", "state": "failed", "reason": "it exploded"}
BEGUN = {"event": "start", "overrides": ["x=2", "seed=1"], "folder": "3"}


@pytest.mark.parametrize("failures", [False, True])
@pytest.mark.parametrize("code", [0, 1, 2, -9])
@pytest.mark.parametrize("events", [[], [STOPPED], [FAILED, BEGUN], [FAILED, BEGUN, STOPPED]])
def test_runs_without_an_end_are_no_observations(finished, monkeypatch, failures, code, events):
    """Of a sweep that was refused or killed; its runs were taken for explosions."""
    one, out = finished
    key = one.key
    lose(one, out, 3, *events)
    one = replace(one, sweep=replace(one.sweep, failures=failures))
    (out / "demo" / key).rename(out / "demo" / one.key)
    sweeps_end(monkeypatch, code)
    with pytest.raises(
        UserError, match=rf"demo could not be run to its end \(exit code {code}\): recur: the last line"
    ):
        experiment.observe(one, out)
    (out / "demo" / one.key / "sweep" / "3").rmdir()
    with pytest.raises(UserError, match=r"demo: run 3 \(b\) has not ended"):
        experiment._read_sweep(one, journal_of(one, out).parent)


@pytest.mark.parametrize("code", [130, 143, -2, -15])
def test_a_claim_whose_sweep_was_stopped_is_stopped(finished, monkeypatch, code):
    one, out = finished
    lose(one, out, 3, STOPPED)
    sweeps_end(monkeypatch, code)
    with pytest.raises(KeyboardInterrupt):
        experiment.observe(one, out)


SWEEP = """
import signal, sys, time
def stop(*_):
    print("stopped", flush=True)
    time.sleep(1)
    sys.exit("saved")
for which in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(which, stop)
print("ready", flush=True)
time.sleep(60)
"""
CLAIM = """
import sys, types
from pathlib import Path
from recur import cli
from recur.course import experiment
experiment.command = lambda *_: ["python", "-c", sys.argv[1]]
claim = types.SimpleNamespace(sweep=1, name="demo")
cli.guard(lambda: experiment._run_sweep(claim, Path(sys.argv[2]), ()))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("send", "which"), [(os.killpg, signal.SIGINT), (os.killpg, signal.SIGHUP), (os.kill, signal.SIGTERM)]
)
def test_a_signal_goes_to_the_sweep_once_and_its_end_is_awaited(tmp_path, send, which):
    """Its jobs save then; the sweep was killed a quarter of a second after Ctrl-C, and outlived the other signals."""
    words, log = [sys.executable, "-c", CLAIM, SWEEP, str(tmp_path / "sweep")], tmp_path / "sweep.log"
    process = subprocess.Popen(words, start_new_session=True, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not log.is_file() or "\nready" not in log.read_text():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    send(process.pid, which)
    assert process.communicate(timeout=30)[1] == "recur: interrupted\n"
    assert process.returncode == 130
    assert log.read_text().partition("\nready\n")[2] == "stopped\nsaved\n"


def test_a_run_that_failed_is_named_or_an_observation(finished, monkeypatch):
    one, out = finished
    key = one.key
    lose(one, out, 3, STOPPED, BEGUN, FAILED)
    sweeps_end(monkeypatch, 1)
    with pytest.raises(UserError, match=r"demo: run 3 \(b\) failed: it exploded"):
        experiment.observe(one, out)
    one = replace(one, sweep=replace(one.sweep, failures=True))
    (out / "demo" / key).rename(out / "demo" / one.key)
    with pytest.raises(UserError, match=r"demo: run 3 \(b\) failed: it exploded"):  # as a full disk would be
        experiment.observe(one, out)
    (journal_of(one, out).parent / "3" / "not_finite.txt").write_text("loss nan")
    observations, _ = experiment.observe(one, out)
    assert [(o.arm, o.seed, o.reason) for o in observations if o.measures["failed"]] == [("b", 1, "it exploded")]


def test_the_record_says_where_and_when_it_was_measured_and_not_where_it_was_read(finished):
    one, out = finished
    folder = journal_of(one, out).parent
    lines = [json.loads(line) for line in journal_of(one, out).read_text().splitlines()]
    for line in lines:
        line["time"] = 1e9 + 86400 * line.get("job", 0)
    journal_of(one, out).write_text("".join(json.dumps(line) + "\n" for line in lines))
    for job in range(4):
        path = folder / str(job) / "metrics.json"
        own = {"commit": f"c{job // 2}", "python": "3.0", "versions": {"torch": "1.0"}, "device": "D", "threads": 77}
        path.write_text(json.dumps({**json.loads(path.read_text()), **own}))
    observations, seconds = experiment.observe(one, out)
    found = entry(one, observations, seconds, origins=experiment.origins(one, out))
    assert {key: found[key] for key in ("commit", "python", "versions", "device", "threads", "when")} == {
        "commit": "c0, c1", "python": "3.0", "versions": {"torch": "1.0"}, "device": "D", "threads": 77,
        "when": "2001-09-12",
    }  # fmt: skip


def test_a_function_s_record_says_when_it_was_called(tmp_path):
    one = claims.load(FOLDER, "quiz", quick=True)
    experiment.observe(one, tmp_path)
    first = experiment.origins(one, tmp_path)
    assert len(first) == len(one.seeds) and all(origin["versions"]["torch"] == torch.__version__ for origin in first)
    experiment.observe(one, tmp_path)
    assert experiment.origins(one, tmp_path) == first


def test_a_function_that_was_changed_since_is_called_again(tmp_path, monkeypatch):
    """`change` of some claims asks for that; the figures of the function as it was were shown."""
    path = tmp_path / "of_a_student.py"
    function = claims.Function("of_a_student.rows", seeds=(0, 1))
    one = claims.Claim("demo", "1", "T", "G", "S", "Q", "C", "m", (), None, function, {}, 1)
    measured = []
    for figure in (1.0, 1.0, 2.0):
        text = f"CALLS = []\ndef rows(seed):\n    CALLS.append(seed)\n    return [dict(arm='a', m={figure})]\n"
        path.write_text(text)
        module = types.ModuleType("of_a_student")
        module.__file__ = str(path)
        exec(compile(text, str(path), "exec"), vars(module))
        monkeypatch.setitem(sys.modules, "recur.course.of_a_student", module)
        observations, _ = experiment.observe(one, tmp_path)
        measured.append(([o.measures["m"] for o in observations], module.CALLS))
    assert measured == [([1.0, 1.0], [0, 1]), ([1.0, 1.0], []), ([2.0, 2.0], [0, 1])]


def test_a_probe_that_was_changed_since_measures_again(tmp_path, monkeypatch):
    measured = []
    for figure in (1.0, 1.0, 2.0):
        path = tmp_path / "probes.py"
        path.write_text(f"def mine(run):\n    return dict(m={figure}), []\n")
        probe = {}
        exec(compile(path.read_text(), str(path), "exec"), probe)
        measured.append(experiment._probed(probe["mine"], tmp_path, "mine")[0]["m"])
    assert measured == [1, 1, 2]


def test_what_is_published_is_judged_by_the_rule_of_today(finished, tmp_path, monkeypatch):
    """A claim that an earlier command had measured kept the verdict of a rule that its file no longer has."""
    from recur import claims as command

    one, out = finished
    observations, seconds = experiment.observe(one, out)
    more = [replace(o, seed=o.seed + 2) for o in observations]
    stricter = replace(one, rule=(replace(one.rule[0], text="b far above a", at_least=0.5),))
    monkeypatch.setattr(claims, "load", lambda *_: stricter)
    whole = entry(one, [*observations, *more], seconds, confirm(one.rule, observations, more))
    for measured in (entry(one, observations, seconds), whole):
        assert measured["verdict"] == "holds"
        content = json.loads(json.dumps({"format": 1, "claims": {"demo": measured}}))
        command._publish(content, tmp_path / "published")
        (found,) = json.loads((tmp_path / "published" / "claims.json").read_text())["claims"].values()
        assert (found["verdict"], found["effects"][0]["text"]) == ("fails", "b far above a")
        assert found["effects"][0]["bound"] == 0.5 and found["observations"] == []
    assert found["further"] == {**whole["further"], "first": "fails"}


def test_the_record_keeps_other_claims_and_the_page_escapes(finished):
    one, out = finished
    observations, seconds = experiment.observe(one, out)
    path = out / "claims.json"
    first = {**entry(one, observations, seconds), "chart": {"kind": "arms", "y": "val/accuracy"}}
    update(path, [{**first, "name": "other", "title": "<script>alert(1)</script>"}])
    content = update(path, [first])
    assert set(content["claims"]) == {"demo", "other"}
    write(content, out / "index.html")
    page = (out / "index.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "or the further seeds&#39; own mean lies on the other side of a bound." in page
    assert page.count("<svg viewBox") == 2 and "holds" in page
    bounds = [f"{100 * (1 - 0.025 ** (1 / runs)):.0f}" for runs in (3, 5, 10)]  # Clopper and Pearson's, all alike
    assert "up to {}, {} or {} % of all runs".format(*bounds) in page
    assert all(block.what in page.replace("&#39;", "'") for block in blocks())
    assert "| T | `python -m recur.claims demo` | holds |" in table(content)


def test_a_verdict_that_turned_on_further_seeds_says_so(finished):
    one, out = finished
    observations, seconds = experiment.observe(one, out)
    more = [replace(o, seed=o.seed + 2, measures={"val/accuracy": 0.5}) for o in observations]
    confirmed = confirm(one.rule, observations, more)
    measured = entry(one, [*observations, *more], seconds, confirmed)
    assert (measured["verdict"], measured["seeds"]) == ("depends", [0, 1, 2, 3])
    assert measured["command"] == "python -m recur.claims demo --further 2"
    assert measured["further"] == {"seeds": [2, 3], "first": "holds", "means": [0.0]}
    content = update(out / "claims.json", [{**measured, "chart": {"kind": "arms", "y": "val/accuracy"}}])
    write(content, out / "index.html")
    assert "the first 2 alone said: holds" in (out / "index.html").read_text()
    assert "| depends | `demo` (b minus a: 0.20 [" in short_table(content)
    assert [line for line in short_table(content).splitlines() if line.startswith("| holds")] == ["| holds |  |"]


def test_further_seeds_follow_and_are_an_experiment_of_their_own(finished):
    one, _ = finished
    more = one.further(3)
    assert more.seeds == (2, 3, 4) and more.key != one.key
    assert more.rule == one.rule and more.sweep.arms == one.sweep.arms


def test_places_that_are_words_stand_in_their_order_and_a_guide_s_own_curve_beside_ours():
    rows = [
        {"arm": arm, "x": x, "measures": {"m": y}, "curve": [{"epoch": 0, "m": y}, {"epoch": 1, "m": y + 1}]}
        for arm in ("a", "b")
        for x, y in (("none", 1.0), ("cosine", 2.0), ("a_very_long_name_of_a_schedule", 3.0))
    ]
    picture = chart(rows, {"kind": "x", "y": "m"})
    places = [picture.index(f">{x}</text>") for x in ("none", "cosine", "a_very_long_name_of_a_schedule")]
    assert places == sorted(places)
    assert picture.count("<polyline") == 2 and ">a</text>" in picture
    curve = {"kind": "curve", "x": "epoch", "y": "m"}
    assert chart(rows, curve).count("<polyline") == 2
    both = chart(rows, {**curve, "reference": {"theirs": [[0, 1.5], [1, 2.5]]}})
    assert both.count("<polyline") == 3 and ">theirs</text>" in both


def test_the_published_tables_are_those_of_the_record_and_every_claim_is_of_today():
    record = json.loads((ROOT / ".github" / "results" / "claims.json").read_text(encoding="utf-8"))
    assert short_table(record) in (ROOT / "README.md").read_text(encoding="utf-8")
    assert table(record) in (ROOT / ".github" / "results" / "README.md").read_text(encoding="utf-8")
    today = {one.name: one for one in LOADED if not one.quick}
    assert {name for name, one in today.items() if not one.long} <= set(record["claims"])
    for name, measured in record["claims"].items():
        assert measured["key"] == today[name].key, f"{name} was changed since it was measured"
        assert [effect["text"] for effect in measured["effects"]] == [one.text for one in today[name].rule]
    assert with_texts(record, today) == record, "run `make results`"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = readme.partition("Not measured yet:")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", missing)) == set(today) - set(record["claims"])


def test_published_texts_follow_their_file_where_the_file_asks_what_was_measured(finished):
    one, out = finished
    record = {"claims": {"demo": entry(one, *experiment.observe(one, out))}}
    other = replace(one, change="to be typed", because="it is so", long=True)
    new = with_texts(record, {"demo": other})["claims"]["demo"]
    assert (new["change"], new["because"], new["long"]) == ("to be typed", "it is so", True)
    assert new["effects"] == record["claims"]["demo"]["effects"]
    assert with_texts(record, {"demo": one.further(2)}) == with_texts(record, {}) == record


def test_settings_that_are_typed_make_another_experiment_and_places_do_not():
    """With other settings, the runs of the claim as it is were read again and given out as theirs."""
    one = claims.load(FOLDER, "cells_language")
    assert claims.changed(one, ["data.path=elsewhere"]).key == one.key
    other = claims.changed(one, ["data.path=elsewhere", "optimizer.lr=5e-3"])
    assert other.key != one.key and other.sweep is not None and one.sweep is not None
    assert other.sweep.base == (*one.sweep.base, "optimizer.lr=5e-3")
    assert experiment.shown_command(other).endswith("data.path=input.txt optimizer.lr=5e-3")
    with pytest.raises(UserError, match="has none"):
        claims.changed(claims.load(FOLDER, "quiz"), ["optimizer.lr=5e-3"])


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("carry_state", "data.bptt=2"),  # of all arms
        ("carry_state", "data.batch_size=2"),  # of one
        ("optimizers", "optimizer=adamw"),
        ("distance", "data.synthetic.gap=3"),  # the axis
        ("distance", "++data.synthetic.gap=3"),
        ("distance", "seed=7"),
    ],
)
def test_settings_that_the_arms_would_replace_unseen_are_refused(name, word):
    """All ran again under another key, with the settings that the file has."""
    with pytest.raises(UserError) as refused:
        claims.changed(claims.load(FOLDER, name), ["trainer.max_epochs=1", word])
    assert str(refused.value).startswith(f"{word} is set by the arms, the axis or the seeds of {name}: change it in ")


def test_the_arms_of_a_comparison_are_published_with_mean_and_deviation():
    one = claims.load(FOLDER, "cells_language")
    losses = {"lstm": (1.5, 1.6), "gru": (1.4, 1.8), "mingru": (2.0, 2.0), "mogrifier": (1.7, math.inf)}
    seen = [
        Observation(arm, seed, "", {"val/loss": own[seed], "parameters": 1000.0})
        for arm, own in losses.items()
        for seed in (0, 1)
    ]
    found = entry(one, seen, 1.0)
    text = arm_tables({"claims": {"cells_language": found}})
    assert "| lstm | 1.550 ± 0.071 | 1,000 |  |  | 2 |" in text
    assert "| mingru | 2 | 1,000 |  |  | 2 |" in text
    assert "| mogrifier | ∞ | 1,000 |  |  | 2 |" in text
    assert arm_tables({"claims": {"quiet": {**found, "chart": {"columns": []}}}}) == ""


def test_claims_have_numbers_of_their_own():
    numbers = [one.number for one in LOADED if not one.quick]
    assert len(set(numbers)) == len(numbers)


def code_blocks(path: Path) -> list[str]:
    """The fenced blocks of a guide, or the cells of one that is a notebook as text."""
    text = path.read_text(encoding="utf-8")
    if "```" in text:
        return text.split("```")[1::2]
    return text.split("In [")[1:]


def test_every_code_block_of_the_guides_has_a_command():
    if not GUIDES.is_dir():
        pytest.skip("the guides are not beside this checkout")
    found = [block for path in sorted(GUIDES.glob("*.txt")) for block in code_blocks(path)]
    assert len(found) > 15
    for block in found:
        assert any(own.line in block for own in blocks()), block[:200]
    for own in blocks():
        assert any(own.line in block for block in found), own.line


@pytest.mark.parametrize("command", sorted({command for block in blocks() for command in block.commands}))
def test_the_commands_of_the_blocks_are_right(command):
    import shlex

    python, dash, module, *words = shlex.split(command)
    assert (python, dash) == ("python", "-m")
    if module == "recur.claims":
        for name in words:
            claims.load(FOLDER, name)
    elif module == "recur.generate":
        from recur.generate import _parser

        _parser().parse_intermixed_args(words)
    else:
        assert module == "recur.train"
        assert composed(*words).model._target_


@pytest.mark.parametrize(
    ("value", "refused"),
    [
        ('[["model.net.cell=rnn","model.net.num_layers=1"],["model=bilstm"]]', False),
        ('[["hydra.run.dir=/elsewhere"]]', True),
        ('[["model=no_such_option"]]', True),
        ('[["callbacks.mine._target_=os.system"]]', True),
        ('[["data.allow_pickle=true"]]', True),
        ("[[no setting]]", True),
        ("7", True),
    ],
)
def test_the_cases_of_a_recorded_sweep_are_held_to_the_rules_of_its_other_words(value, refused):
    from recur.config.compose import group_options
    from recur.runs.trust import _objection

    assert (_objection(f"hydra.sweeper.cases={value}", group_options()) is not None) == refused


@pytest.mark.parametrize("content", ["{}", "[1]", "{", '{"claims": 3}'])
def test_a_file_of_someone_else_is_refused_before_anything_is_measured(content, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "claims.json").write_text(content)
    done = run_command("claims", "quiz", "--out", tmp_path / "out", "--publish", tmp_path / "site")
    assert done.returncode == 2 and "is no claims.json of recur.claims: move it away" in done.stderr
    assert (tmp_path / "site" / "claims.json").read_text() == content and not (tmp_path / "out").exists()
