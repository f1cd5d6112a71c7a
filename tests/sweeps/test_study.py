"""Optuna as a source of jobs: asked late, told at once, picked up again."""

import io
import json
import time
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from omegaconf import OmegaConf

optuna = pytest.importorskip("optuna")

from recur.errors import UserError  # noqa: E402
from recur.runs import marks  # noqa: E402
from recur.runs.journal import read_validations  # noqa: E402
from recur.sweeps.job import TRIAL, Job, SweepId  # noqa: E402
from recur.sweeps.launcher import Plan  # noqa: E402
from recur.sweeps.runner import Outcome, judge  # noqa: E402
from recur.sweeps.space import parse  # noqa: E402
from recur.sweeps.study import (  # noqa: E402
    JOURNAL,
    NAME,
    Pruner,
    Pruning,
    SearchSettings,
    Trials,
    _may_stop,
    storage,
    trial_of,
)
from recur.sweeps.sweeper import Optuna  # noqa: E402
from recur.training.callbacks import ValidationLog  # noqa: E402

SPACE = parse({}, ["lr=tag(log,interval(1e-4,1))", "size=range(8,65,8)", "model=a,b", "epochs=3"])
ONE = {"val/accuracy": "max"}


def trials(folder, objectives=ONE, n_trials=6, pruning=None, known=None, space=SPACE):
    def make(number, overrides):
        return Job(number, overrides, folder / str(number), SweepId(folder, "0" * 32), monitor="val/accuracy")

    settings = SearchSettings(objectives, n_trials, "tpe", 2, 0, Pruner.of(pruning or {}))
    return Trials(folder, space, make, settings, known)


def done(value, **more):
    return Outcome("done", value, {"val": {"accuracy": value}, **more})


def study(folder):
    return optuna.load_study(study_name=NAME, storage=storage(folder / JOURNAL))


def test_job_n_is_trial_n_with_its_own_setting(tmp_path):
    source = trials(tmp_path)
    for number in range(6):
        job = source.take()
        assert job.number == number
        set_to = dict(text.split("=") for text in job.overrides)
        assert set_to["epochs"] == "3"
        assert list(set_to) == ["epochs", "lr", "size", "model"]
        source.put(job, done(0.1 * number))
        params = study(tmp_path).trials[number].params
        assert float(set_to["lr"]) == params["lr"]
        assert int(set_to["size"]) == params["size"]
        assert set_to["model"] == params["model"]
    assert source.take() is None
    assert study(tmp_path).best_trial.number == 5


def test_a_setting_is_asked_for_late_and_running_trials_are_known(tmp_path):
    source = trials(tmp_path)
    running = [source.take(), source.take()]
    states = [trial.state.name for trial in study(tmp_path).trials]
    assert states == ["RUNNING", "RUNNING"], "asked for no more than was taken"
    source.put(running[1], done(0.5))
    assert source.take().number == 2
    assert [trial.state.name for trial in study(tmp_path).trials] == ["RUNNING", "COMPLETE", "RUNNING"]


def test_what_was_cut_is_gone_on_with_and_the_budget_counts_what_ended(tmp_path):
    source = trials(tmp_path, n_trials=4)
    cut, ended, failed = source.take(), source.take(), source.take()
    source.put(ended, done(0.5))
    source.put(failed, Outcome("failed"))
    source.put(cut, Outcome("stopped"))
    again = trials(tmp_path, n_trials=4)
    first = again.take()
    assert (first.number, first.overrides) == (cut.number, cut.overrides)
    rest = []
    while (job := again.take()) is not None:
        rest.append(job)
    assert len(rest) == 2, "one of four had ended, one is gone on with, the failed one is made up for"
    for job in [first, *rest]:
        again.put(job, done(0.1))
    assert [t.state.name for t in study(tmp_path).trials] == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]


def test_a_journal_is_read_again_after_a_kill_in_the_middle_of_a_line(tmp_path):
    source = trials(tmp_path)
    cut = source.take()
    journal = tmp_path / JOURNAL
    with journal.open("ab") as file:
        file.write(b'{"op_code": 6, "wor')
    (tmp_path / f"{JOURNAL}.lock").touch()  # its holder was killed too
    began = time.monotonic()
    again = trials(tmp_path)
    assert again.take().overrides == cut.overrides
    again.put(again.take(), done(0.5))
    assert time.monotonic() - began < 10, "waited for a lock that nobody holds"
    assert [trial.state.name for trial in study(tmp_path).trials] == ["RUNNING", "COMPLETE"]


def test_a_job_reports_and_hears_that_it_is_hopeless(tmp_path):
    source = trials(tmp_path, pruning={"kind": "median", "startup": 2, "warmup": 0}, n_trials=4)
    for value in (0.8, 0.9):
        job = source.take()
        reporter = trial_of(job.environment[TRIAL])
        for step in (1, 2):
            reporter.report(value, step)
            assert not reporter.should_prune()
        source.put(job, done(value))
    job = source.take()
    reporter = trial_of(job.environment[TRIAL])
    reporter.report(0.1, 1)
    assert reporter.should_prune()
    source.put(job, Outcome("pruned", 0.1, {"pruned": True, "val": {"accuracy": 0.1}}))
    found = study(tmp_path).trials[2]
    assert (found.state.name, found.value) == ("PRUNED", 0.1)
    good = trial_of(source.take().environment[TRIAL])
    good.report(0.95, 1)
    assert not good.should_prune()


def test_hyperband_prunes_too(tmp_path):
    source = trials(tmp_path, pruning={"kind": "hyperband", "warmup": 1, "reduction": 3}, n_trials=40)
    pruned = 0
    for number in range(30):
        job = source.take()
        reporter, value = trial_of(job.environment[TRIAL]), 0.5 - 0.01 * number
        for step in range(1, 10):
            reporter.report(value, step)
            if reporter.should_prune():
                pruned += 1
                source.put(job, Outcome("pruned", value, {"pruned": True}))
                break
        else:
            source.put(job, done(value))
    assert pruned > 5, "ever worse trials"


def test_several_objectives_make_a_front(tmp_path):
    source = trials(tmp_path, {"val/accuracy": "max", "parameters": "min"})
    for accuracy, size in ((0.9, 100), (0.8, 10), (0.7, 50)):
        source.put(source.take(), done(accuracy, parameters={"trainable": size}))
    source.put(source.take(), done(0.9))  # without the second metric
    assert sorted(trial.number for trial in study(tmp_path).best_trials) == [0, 1]
    assert study(tmp_path).trials[3].state.name == "FAIL"


@pytest.mark.parametrize(
    ("written", "reason"),
    [({}, "it wrote no val/bpc into metrics.json"), ({"bpc": None}, "the metric is not finite")],
)
def test_a_job_that_lacks_any_objective_has_failed(tmp_path, written, reason):
    """The sweep said `done` of every job, the study FAIL, and each `resume=` tried others in their place."""
    source = trials(tmp_path, {"val/accuracy": "max", "val/bpc": "min"})
    job = source.take()
    run_trial(job)
    (job.folder / "metrics.json").write_text(json.dumps({"val": {"accuracy": 0.9, **written}}))
    outcome = judge(job, 0, 1.0)
    assert (outcome.state, outcome.value, outcome.reason) == ("failed", None, reason)
    source.put(job, outcome)
    (job.folder / "metrics.json").write_text(json.dumps({"val": {"accuracy": 0.9, **written}, "pruned": True}))
    assert (judge(job, 0).state, judge(job, 0).value) == ("pruned", 0.9)
    (job.folder / "metrics.json").write_text(json.dumps({"val": {"accuracy": 0.9, "bpc": 2.0}}))
    assert (judge(job, 0).state, judge(job, 0).value) == ("done", 0.9)


def test_a_job_is_judged_by_the_first_objective_whatever_its_run_monitors(tmp_path):
    source = trials(tmp_path, {"val/loss": "min", "tokens_per_second": "max"})
    for record, expected in (
        ({"val": {"accuracy": 0.9, "loss": 0.2}, "tokens_per_second": 5.0}, ("done", 0.2, "")),
        ({"val": {"accuracy": 0.9}}, ("failed", None, "it wrote no val/loss into metrics.json")),
    ):
        job = source.take()
        run_trial(job)
        (job.folder / "metrics.json").write_text(json.dumps(record))
        outcome = judge(job, 0, 1.0)
        assert (outcome.state, outcome.value, outcome.reason) == expected
        source.put(job, outcome)
    assert [job.monitor for job in trials(tmp_path, {"val/loss": "min", "tokens_per_second": "max"}).completed()] == [
        "val/loss"
    ]


def test_an_objective_of_a_split_that_is_not_scored_is_refused():
    model = {"_target_": "recur.tasks.sentiment.SentimentTask"}
    search = Optuna({}, 3, {"test/accuracy": "max"}, "tpe", 2, 0, {"kind": None})
    checked = Plan("optuna", {}, 3, "val/accuracy", "max")
    assert search._with_objectives(checked, OmegaConf.create({"test": True, "model": model})).objectives
    with pytest.raises(UserError, match=r"objectives wants test/accuracy, and with test=false no run writes it"):
        search._with_objectives(checked, OmegaConf.create({"test": False, "model": model}))


@pytest.mark.parametrize("name", ["val/bpc", "test/bpc"])
def test_bits_a_character_are_no_objective_where_a_token_is_something_else(name):
    """Every trial was trained to its end, and had failed."""
    search = Optuna({}, 3, {name: "min"}, "tpe", 2, 0, {"kind": None})
    checked = Plan("optuna", {}, 3, "val/loss", "min")
    model = {"_target_": "recur.tasks.language_modeling.LanguageModelingTask"}
    kinds = {kind: {"model": model, "data": {"tokenizer": {"kind": kind}}} for kind in ("character", "whitespace")}
    assert search._with_objectives(checked, OmegaConf.create(kinds["character"])).objectives == {name: "min"}
    with pytest.raises(UserError, match=rf"objectives wants {name}, which is written only where a token is a char"):
        search._with_objectives(checked, OmegaConf.create(kinds["whitespace"]))


@pytest.mark.filterwarnings("ignore")
def test_the_study_opens_in_optuna_dashboard(tmp_path):
    dashboard = pytest.importorskip("optuna_dashboard")
    source = trials(tmp_path)
    source.put(source.take(), done(0.25))
    app = dashboard.wsgi(storage(tmp_path / JOURNAL))

    def get(path):
        status = []
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": path, "SERVER_NAME": "x", "SERVER_PORT": "80"}
        environ |= {"wsgi.url_scheme": "http", "wsgi.input": io.BytesIO(), "QUERY_STRING": "after=0"}
        body = b"".join(app(environ, lambda line, *_: status.append(line)))
        assert status[0].startswith("200"), (status, body)
        return json.loads(body)

    summaries = get("/api/studies")["study_summaries"]
    assert [summary["study_name"] for summary in summaries] == [NAME]
    (trial,) = get(f"/api/studies/{summaries[0]['study_id']}")["trials"]
    assert trial["values"] == [0.25]


def run_trial(job, value=None):
    """What a job leaves: its folder, marked, and with a value its result."""
    job.prepare()
    if value is not None:
        (job.folder / "metrics.json").write_text(json.dumps({"val": {"accuracy": value}}))


def test_an_emptied_study_is_restored_from_what_the_jobs_ran(tmp_path):
    source, known = trials(tmp_path, n_trials=4), {}
    for number in range(3):
        job = source.take()
        known[number] = job.overrides
        run_trial(job, 0.1 * number if number != 1 else None)
        if number != 1:
            source.put(job, done(0.1 * number))
    before = study(tmp_path).trials
    (tmp_path / JOURNAL).write_bytes(b"")
    again = trials(tmp_path, n_trials=4, known=known)
    assert [job.number for job in again.completed()] == [0, 2]
    after = study(tmp_path).trials
    assert [t.state.name for t in after] == ["COMPLETE", "RUNNING", "COMPLETE"]
    assert [(t.params, t.values) for t in after] == [(t.params, t.values) for t in before]
    first, second = again.take(), again.take()
    assert (first.number, first.overrides) == (1, known[1])
    assert second.number == 3
    assert again.take() is None


@pytest.mark.parametrize(
    "text", ["range(0.2,0.6,0.1)", "range(0.3,-0.1,-0.1)", "range(100000,100000.5,0.1)", "range(0.1,0.4,0.1)"]
)
def test_every_number_of_a_range_is_tried_and_known_again(tmp_path, text):
    """`range(0.2,0.6,0.1)`: its first step is 0.10000000000000003 in floating point, four of which pass its end."""
    space, every = parse({}, [f"lr={text}"]), {}

    def make(number, overrides):
        return Job(number, overrides, tmp_path / str(number), SweepId(tmp_path, "0" * 32), monitor="val/accuracy")

    source = Trials(tmp_path, space, make, SearchSettings(ONE, 60, "random"))
    for _ in range(60):
        job = source.take()
        every[job.number] = job.overrides
        source.put(job, done(0.5))
    assert {words[0] for words in every.values()} == {f"lr={number}" for number in space.dimensions[0].texts}
    Trials(tmp_path, space, make, SearchSettings(ONE, 60, "random"), every).completed()  # refuses other settings
    params = source._params
    assert all(params((f"lr={number}",)) for number in space.dimensions[0].texts)


def test_a_trial_goes_on_with_the_recorded_words_of_its_job(tmp_path):
    """A sweep that is resumed with its settings in another order."""
    source, known = trials(tmp_path, n_trials=3), {}
    for value in (0.5, None):
        job = source.take()
        job.overrides = known[job.number] = tuple(reversed(job.overrides))
        run_trial(job, value)
        if value is not None:
            source.put(job, done(value))
    again = trials(tmp_path, n_trials=3, known=known)
    assert [(job.number, job.overrides) for job in again.completed()] == [(0, known[0])]
    cut = again.take()
    assert (cut.number, cut.overrides) == (1, known[1])
    cut.check_folder()


def test_a_study_goes_on_with_its_choices_in_another_order(tmp_path):
    """Optuna said that its categorical distribution does not support a dynamic value space."""
    first = trials(tmp_path, space=parse({}, ["cell=lstm,gru", "lr=interval(0,1)"]))
    known = {}
    for value in (0.1, 0.2, 0.3):
        job = first.take()
        known[job.number] = job.overrides
        first.put(job, done(value))
    again = trials(tmp_path, known=known, space=parse({}, ["lr=interval(0,1)", "cell=gru,lstm"]))
    for _ in range(3):
        again.put(again.take(), done(0.5))
    assert {trial.params["cell"] for trial in study(tmp_path).trials} == {"lstm", "gru"}
    assert again.take() is None


def test_a_study_of_other_settings_is_refused(tmp_path):
    source = trials(tmp_path)
    job = source.take()
    source.put(job, done(0.5))
    other = tuple("lr=0.5" if text.startswith("lr=") else text for text in job.overrides)
    with pytest.raises(UserError, match="other settings for trial 0"):
        trials(tmp_path, known={0: other}).completed()


def test_a_folder_of_other_settings_gives_no_trial_its_value(tmp_path):
    job = trials(tmp_path).take()
    run_trial(job, 0.5)
    assert job.record() is not None
    marks.write_mark(job.folder, marks.Mark("0" * 32, 0, ("lr=7",)))
    assert job.record() is None


@pytest.mark.parametrize("line", ['{"op_code": 77, "worker_id": "x"}', "{}", "[1]", "not JSON"])
def test_a_damaged_study_is_one_line_and_can_be_restored(tmp_path, line):
    source = trials(tmp_path)
    source.put(source.take(), done(0.5))
    with (tmp_path / JOURNAL).open("a") as file:
        file.write(line + "\n{}\n")
    with pytest.raises(UserError, match="move it away"):
        trials(tmp_path).completed()


def test_a_trial_with_several_objectives_reports_nothing(tmp_path):
    """Optuna takes no reports then: `Trial.report is not supported for multi-objective`."""
    assert TRIAL not in trials(tmp_path, {"val/accuracy": "max", "parameters": "min"}).take().environment
    (tmp_path / "one").mkdir()
    assert TRIAL in trials(tmp_path / "one").take().environment


@pytest.mark.parametrize(
    ("pruner", "settings", "words"),
    [
        ({"reduction": 0}, {}, "hydra.sweeper.pruner.reduction must be a whole number of at least 2, got 0"),
        ({"warmup": -1}, {}, "hydra.sweeper.pruner.warmup"),
        ({"startup": "x"}, {}, "hydra.sweeper.pruner.startup"),
        ({"kind": "mean"}, {}, "must be median, hyperband or null, got 'mean'"),
        ({"reducton": 2}, {}, "hydra.sweeper.pruner.reducton is no key"),
        ({}, {"sampler": "tpee"}, "hydra.sweeper.sampler must be tpe or random, got 'tpee'"),
        ({}, {"n_trials": True}, "hydra.sweeper.n_trials"),
        ({}, {"seed": 2**32}, "hydra.sweeper.seed must be at most 4294967295, got 4294967296"),
        ({}, {"startup_trials": -1}, "hydra.sweeper.startup_trials"),
        ({}, {"objectives": {"val/accuracy": "maximum"}}, "hydra.sweeper.objectives.val/accuracy must be max or min"),
    ],
)
def test_what_optuna_would_refuse_is_refused_before_any_job(pruner, settings, words):
    with pytest.raises(UserError, match=words.replace(".", r"\.")):
        SearchSettings(**{"objectives": ONE, "n_trials": 3, **settings}, pruner=Pruner.of(pruner))


class Constant(pl.LightningModule):
    """Validates to the same value each epoch."""

    def __init__(self, value):
        super().__init__()
        self.value, self.weight = value, torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch):
        return self.weight * batch.sum()

    def validation_step(self, batch):
        self.log("val/accuracy", self.value)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore")
def test_the_callback_reports_to_the_study_and_stops_a_hopeless_run(tmp_path):
    source = trials(tmp_path, pruning={"kind": "median", "startup": 1, "warmup": 0})
    for value, epochs in ((0.9, 3), (0.1, 1)):
        job = source.take()
        job.prepare()
        pruning = Pruning(job.folder, "val/accuracy", job.environment[TRIAL])
        loader = torch.utils.data.DataLoader(torch.ones(4))
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=3, callbacks=[ValidationLog(job.folder), pruning], logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(Constant(value), loader, loader)
        assert len(read_validations(job.folder)) == epochs
        assert pruning.pruned == (epochs < 3)
        restored = Pruning(job.folder, "val/accuracy", job.environment[TRIAL])
        restored.load_state_dict(pruning.state_dict())
        assert restored.pruned == pruning.pruned
        assert list(study(tmp_path).trials[job.number].intermediate_values.values()) == pytest.approx([value] * epochs)
        source.put(job, done(value))


def test_a_run_is_pruned_only_when_it_may_end():
    """Lightning trains on to `min_epochs`, and the run was then called pruned at its own end, and not scored."""
    for bounds, last, may in (
        ({}, False, True),
        ({"min_epochs": 3}, True, True),
        ({"min_epochs": 3}, False, False),  # in mid-epoch
        ({"min_epochs": 4}, True, False),
        ({"min_steps": 31}, True, False),
    ):
        loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(is_last_batch=last)))
        settings = {"current_epoch": 2, "global_step": 30, "min_epochs": None, "min_steps": None, "fit_loop": loop}
        assert _may_stop(SimpleNamespace(**{**settings, **bounds})) == may


def test_half_a_line_that_a_full_disk_left_costs_itself_alone(tmp_path):
    source = trials(tmp_path)
    source.take()
    with open(tmp_path / JOURNAL, "a") as file:
        file.write('{"op_code": 8, "wor')
    source.take()
    lines = (tmp_path / JOURNAL).read_text().splitlines()
    assert all(json.loads(line) for line in lines) and len(study(tmp_path).trials) == 2
