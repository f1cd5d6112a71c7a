"""Any sampler and pruner of Optuna's by `_target_`, and nothing else."""

import importlib.util

import pytest

optuna = pytest.importorskip("optuna")

from recur.errors import UserError  # noqa: E402
from recur.leaderboard.table import Leaderboard  # noqa: E402
from recur.runs import trust  # noqa: E402
from recur.sweeps.job import TRIAL, Job, SweepId  # noqa: E402
from recur.sweeps.runner import Outcome  # noqa: E402
from recur.sweeps.space import parse  # noqa: E402
from recur.sweeps.study import Pruner, SearchSettings, Trials, trial_of  # noqa: E402
from support.real_sweeps import TINY, sweep  # noqa: E402

SPACE = parse({}, ["lr=tag(log,interval(1e-4,1))", "size=range(8,65,8)", "model=a,b"])
NUMBERS = parse({}, ["lr=interval(0,1)", "size=int(interval(1,9))"])
ONE, TWO = {"val/accuracy": "max"}, {"val/accuracy": "max", "parameters": "min"}


def trials(folder, sampler, space=SPACE, n_trials=6, pruner=None, objectives=ONE):
    def make(number, overrides):
        return Job(number, overrides, folder / str(number), SweepId(folder, "0" * 32), monitor="val/accuracy")

    settings = SearchSettings(objectives, n_trials, sampler, 2, 5, Pruner.of(pruner or {}))
    settings.check(space)
    return Trials(folder, space, make, settings)


def searched(source, limit=20):
    """The overrides of all jobs, each ended with an accuracy that depends on them."""
    jobs = []
    while (job := source.take()) is not None and len(jobs) < limit:
        value = sum(map(ord, " ".join(job.overrides))) % 97 / 97
        record = {"val": {"accuracy": value}, "parameters": {"trainable": job.number}}
        source.put(job, Outcome("done", value, record))
        jobs.append(job.overrides)
    return jobs


def of(name, **arguments):
    return {"_target_": f"optuna.samplers.{name}", **arguments}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "space", "objectives"),
    [
        (of("RandomSampler"), SPACE, ONE),
        (of("TPESampler", n_startup_trials=2), SPACE, ONE),
        (of("NSGAIISampler", population_size=2), SPACE, TWO),
        (
            of("NSGAIISampler", population_size=2, crossover={"_target_": "optuna.samplers.nsgaii.UniformCrossover"}),
            SPACE,
            ONE,
        ),
        (of("NSGAIIISampler", population_size=2), SPACE, TWO),
        (of("QMCSampler"), NUMBERS, ONE),
        (of("GPSampler", n_startup_trials=2), NUMBERS, ONE),
        (of("PartialFixedSampler", fixed_params={"model": "b"}, base_sampler=of("RandomSampler")), SPACE, ONE),
    ],
    ids=lambda value: value["_target_"].rpartition(".")[2] if isinstance(value, dict) and "_target_" in value else "",
)
def test_each_sampler_searches_and_repeats_itself_by_its_seed(sampler, space, objectives, tmp_path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = searched(trials(tmp_path / "a", sampler, space, objectives=objectives))
    assert len(first) == 6 and len(set(first)) > 2
    assert first == searched(trials(tmp_path / "b", sampler, space, objectives=objectives))
    if "fixed_params" in sampler:
        assert all("model=b" in overrides for overrides in first)


@pytest.mark.parametrize(
    "sampler",
    [
        "random",
        "tpe",
        of("RandomSampler", seed=3),
        of("QMCSampler", scramble=True),
        of("CmaEsSampler", n_startup_trials=8),
    ],
    ids=str,
)
def test_a_search_that_is_resumed_draws_no_setting_again(sampler, tmp_path) -> None:
    if "CmaEs" in str(sampler):
        pytest.importorskip("cmaes")
    whole = []
    for n_trials in (2, 5, 8):  # two of them at random before TPE models anything
        source = trials(tmp_path, sampler, NUMBERS if "QMC" in str(sampler) else SPACE, n_trials)
        assert source.completed() == []
        whole += searched(source)
    assert len(whole) == len(set(whole)) == 8


@pytest.mark.parametrize("name", ["BruteForceSampler", "GridSampler"])
def test_a_grid_that_is_resumed_is_completed(name, tmp_path) -> None:
    space, more = parse({}, ["size=8,16", "model=a,b"]), {"search_space": {"size": ["8", "16"], "model": ["a", "b"]}}
    sampler = of(name, **(more if name == "GridSampler" else {}))
    jobs = [job for n_trials in (2, 9) for job in searched(trials(tmp_path, sampler, space, n_trials))]
    assert sorted(jobs) == sorted((f"size={s}", f"model={m}") for s in (8, 16) for m in "ab")


def test_a_sampler_that_has_tried_everything_ends_the_search(tmp_path) -> None:
    space = parse({}, ["size=8,16", "model=a,b"])
    grid = of("GridSampler", search_space={"size": ["8", "16"], "model": ["a", "b"]})
    for number, sampler in enumerate((of("BruteForceSampler"), grid)):
        folder = tmp_path / str(number)
        folder.mkdir()
        jobs = searched(trials(folder, sampler, space, n_trials=9))
        assert sorted(jobs) == sorted((f"size={s}", f"model={m}") for s in (8, 16) for m in "ab")


def test_a_point_of_a_grid_is_tried_once_also_while_the_last_ones_run(tmp_path) -> None:
    """Optuna's sampler would give one that has not ended, or any once all have, a second time."""
    space = parse({}, ["size=8,16", "model=a,b"])
    grid = of("GridSampler", search_space={"size": ["8", "16"], "model": ["a", "b"]})
    source = trials(tmp_path, grid, space, n_trials=9)
    jobs = [source.take() for _ in range(4)]
    assert sorted(job.overrides for job in jobs) == sorted((f"size={s}", f"model={m}") for s in (8, 16) for m in "ab")
    assert source.take() is None
    for job in jobs:
        source.put(job, Outcome("done", 0.5, {"val": {"accuracy": 0.5}}))
    assert source.take() is None
    assert trials(tmp_path, grid, space, n_trials=9).take() is None, "when the sweep is resumed"


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (of("NoSuchSampler"), r"sampler\._target_ must be a class of optuna\.samplers.* got .*there is no such class"),
        ({"_target_": "os.system"}, r"sampler\._target_ must be a class of optuna\.samplers, optuna\.pruners, or of a"),
        ({"_target_": "outsiders.Own"}, "give --trust outsiders"),
        ({"_target_": "optuna.create_study"}, "must be a class of"),
        ({"_target_": "optuna.pruners.NopPruner"}, "must be a sampler of Optuna's"),
        (of("PartialFixedSampler", fixed_params={}, base_sampler={"_target_": "os.getcwd"}), r"base_sampler\._target_"),
        (of("TPESampler", n_startup=3), "n_startup"),
        (of("GridSampler", search_space={"size": ["8"]}), r"hydra\.sweeper\.sampler cannot search these settings"),
        ({"population_size": 3}, "must be tpe or random"),
        ("cmaes", "must be tpe or random"),
    ],
    ids=str,
)
def test_what_is_no_sampler_is_refused(sampler, message, tmp_path) -> None:
    with pytest.raises(UserError, match=message):
        trials(tmp_path, sampler)
    assert not list(tmp_path.iterdir())


def test_a_sampler_that_lacks_its_package_names_it(tmp_path) -> None:
    if importlib.util.find_spec("cmaes"):
        assert len(searched(trials(tmp_path, of("CmaEsSampler"), NUMBERS))) == 6
        return
    with pytest.raises(UserError, match=r"needs cmaes, which is not installed.*: pip install cmaes"):
        trials(tmp_path, of("CmaEsSampler"), NUMBERS)


def test_a_pruner_by_name_reaches_the_jobs(tmp_path) -> None:
    given = {"kind": "median", "startup": 5, "warmup": 1, "reduction": 3}  # Hydra adds to the usual keys
    given |= {"_target_": "optuna.pruners.ThresholdPruner", "lower": 0.5}
    source = trials(tmp_path, of("RandomSampler"), pruner=given)
    for value, hopeless in ((0.9, False), (0.4, True)):
        reporter = trial_of(source.take().environment[TRIAL])
        reporter.report(value, 1)
        assert reporter.should_prune() is hopeless
    for wrong, message in (
        ({"_target_": "optuna.pruners.PercentilePruner"}, "percentile"),
        ({"_target_": "optuna.samplers.RandomSampler"}, "must be a pruner of Optuna's"),
        ({"_target_": "shutil.rmtree", "path": "/none"}, "must be a class of"),
    ):
        with pytest.raises(UserError, match=message):
            Pruner.of(wrong)


@pytest.mark.parametrize(
    ("word", "allowed"),
    [
        ("hydra.sweeper.sampler={_target_: optuna.samplers.NSGAIISampler, population_size: 4}", True),
        ("hydra.sweeper.sampler._target_=optuna.samplers.QMCSampler", True),
        ("hydra.sweeper.sampler.population_size=4", True),
        ("hydra.sweeper.pruner={_target_: optuna.pruners.PercentilePruner, percentile: 25.0}", True),
        ("hydra.sweeper.sampler={_target_: os.system, command: ls}", False),
        ("hydra.sweeper.sampler={_target_: optuna.samplers.X, a: {'_target_': 'os.system'}}", False),
        ("hydra.sweeper.sampler={a: {_target_ : optuna.create_study}}", False),
        ("hydra.sweeper._recursive_=true", False),
    ],
)
def test_a_recorded_sweep_may_name_samplers_and_nothing_else(word, allowed) -> None:
    if allowed:
        assert trust.check_arguments([word], "s", {}) == [word]
    else:
        with pytest.raises(UserError, match="was started with"):
            trust.check_arguments([word], "s", {})


@pytest.mark.slow
def test_a_genetic_search_through_the_command_is_resumed(tmp_path) -> None:
    typed = (*TINY, "test=false", "logger=none", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2")
    typed += ("optimizer.lr=tag(log,interval(1e-3,1e-1))", "model.net.hidden_size=4,8")
    typed += ("hydra.sweeper.sampler={_target_:optuna.samplers.NSGAIISampler,population_size:2}",)
    typed += ("hydra.sweeper.pruner.kind={_target_:optuna.pruners.PercentilePruner,percentile:25.0}",)
    sweep(tmp_path / "s", *typed)
    assert Leaderboard.of([tmp_path / "s"]).count("done") == 2
    assert "2 of 2 jobs were complete before" in sweep(tmp_path / "s", f"resume={tmp_path / 's'}").stdout
    done = sweep(tmp_path / "t", *typed, "hydra.sweeper.sampler._target_=os.system", code=2)
    assert "must be a class of optuna.samplers" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "t").exists()
