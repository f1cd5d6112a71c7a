"""Optuna as a source of jobs: asked late, told at once, picked up again."""

import io
import json
import time

import pytest

optuna = pytest.importorskip("optuna")

from recur.sweeps.job import (  # noqa: E402
    TRIAL,
    Job,
)
from recur.sweeps.runner import Outcome  # noqa: E402
from recur.sweeps.space import parse  # noqa: E402
from recur.sweeps.study import (  # noqa: E402
    JOURNAL,
    NAME,
    Trials,
    storage,
    trial_of,
)

SPACE = parse({}, ["lr=tag(log,interval(1e-4,1))", "size=range(8,65,8)", "model=a,b", "epochs=3"])
ONE = {"val/accuracy": "max"}


def trials(folder, objectives=ONE, n_trials=6, pruning=None):
    def make(number, overrides):
        return Job(number, overrides, folder / str(number), folder / "lock", monitor="val/accuracy")

    return Trials(folder, SPACE, make, objectives, n_trials, "tpe", 2, 0, pruning or {"kind": None})


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
    (tmp_path / f"{JOURNAL}.lock").symlink_to(journal)  # its holder was killed too
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
