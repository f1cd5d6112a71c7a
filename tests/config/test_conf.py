"""Every config composes, names real classes, and knows only keys that those take."""

import inspect
import re
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf

CONF = Path(__file__).resolve().parents[2] / "conf"
OPTIONS = [
    (group.name, option.stem)
    for group in sorted(CONF.iterdir())
    # `claims` is read by recur.claims; of `family` each data file brings its own
    if group.is_dir() and group.name not in ("claims", "family")
    for option in sorted(group.glob("*.yaml"))
]


@cache
def _composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(overrides), return_hydra_config=True)


def composed(*overrides: str) -> DictConfig:
    """The config with these overrides, which nobody changes: composed once."""
    cfg = _composed(*overrides)
    HydraConfig.instance().set_config(cfg)
    return cfg


def targets(node, path=""):
    """Every node that names a class, with its path."""
    if isinstance(node, DictConfig):
        if "_target_" in node:
            yield path, node
        for key in node:
            if not OmegaConf.is_missing(node, key):
                yield from targets(node._get_node(key), f"{path}.{key}")
    elif isinstance(node, ListConfig):
        for index in range(len(node)):
            yield from targets(node._get_node(index), f"{path}[{index}]")


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_and_fits_the_signature_of_its_class(group, option):
    cfg = composed(f"{group}={option}")
    found = [(path, node) for path, node in targets(cfg) if not path.startswith(".hydra")]
    assert found
    for path, node in found:
        signature = inspect.signature(get_object(node["_target_"]))
        accepts_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
        unknown = {str(k) for k in node if not str(k).startswith("_")} - set(signature.parameters)
        assert accepts_any or not unknown, f"{path}: {node['_target_']} does not take {unknown}"


EXPERIMENTS = [path.stem for path in sorted((CONF / "experiment").glob("*.yaml"))]


QUICK = ("lm", "imdb_strong")  # one of each family; `make test-all` takes every experiment


@pytest.mark.parametrize(
    "experiment", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in EXPERIMENTS]
)
@pytest.mark.parametrize("group", ["optimizer", "scheduler"])
def test_a_group_can_be_exchanged_under_any_experiment(experiment, group):
    """The other option then stands with its own keys and values: none of the experiment's is left over."""
    for option in sorted(path.stem for path in (CONF / group).glob("*.yaml")):
        node = composed(f"experiment={experiment}", f"{group}={option}")[group]
        alone = composed(f"{group}={option}")[group]
        assert set(node) == set(alone)
        same = {key: alone[key] for key in alone if key not in ("monitor", "mode")}  # the family's, through ${monitor}
        assert {key: node[key] for key in same} == same


@pytest.mark.parametrize("model", ["language_model", "awd_lstm"])
def test_what_asgd_says_to_type_averages_the_weights(model):
    said = re.findall(r"\+?callbacks\.averaging\.[^\s)]+", (CONF / "optimizer" / "asgd.yaml").read_text())
    words = said[-1:] if model == "awd_lstm" else said[:-1]
    averaging = composed("experiment=lm", f"model={model}", "optimizer=asgd", *words).callbacks.averaging
    assert averaging._target_.endswith(".NonMonotonicAveraging") and averaging.interval == 0


def test_every_data_file_of_a_family_offers_the_same_keys():
    for base, module in (("files", "sentiment"), ("text_files", "language")):
        wanted = set(composed(f"data={base}").data)
        target = get_object(composed(f"data={base}").data._target_)
        assert wanted - {"_target_"} == set(inspect.signature(target).parameters)
        for option in (path.stem for path in (CONF / "data").glob("*.yaml")):
            data = composed(f"data={option}").data
            if f".{module}." in data._target_:
                assert set(data) == wanted, option


@pytest.mark.slow
@pytest.mark.parametrize("model", [path.stem for path in sorted((CONF / "model").glob("*.yaml"))])
def test_own_texts_bring_a_model_and_callbacks_until_others_are_chosen(model):
    own = composed("data=files")
    assert own.model == composed("model=own_texts").model and own.callbacks.early_stopping.patience is not None
    assert composed("data=files", f"model={model}").model == composed(f"model={model}").model
    assert composed("data=files", "callbacks=default").callbacks.early_stopping.patience is None
    assert composed("data=files", "experiment=imdb_fast").callbacks.ema.decay == 0.998
    for experiment in ("imdb_fast", "imdb_guide", "imdb_strong"):
        named = f"experiment={experiment}"
        assert composed(named, "data=files").callbacks == composed(named).callbacks
    for option in ("imdb", "synthetic_reviews"):
        assert composed(f"data={option}").model == composed().model
        assert composed(f"data={option}").callbacks == composed().callbacks


@pytest.mark.parametrize("words", [["data=files"], ["~callbacks.early_stopping"], ["trainer.max_epochs=4"]])
def test_nothing_stops_overfitting_early_and_any_set_of_callbacks_may_be_chosen(words):
    cfg = composed("debug=overfit", *words)
    assert cfg.callbacks.get("early_stopping") == composed(*words).callbacks.get("early_stopping")
    assert cfg.trainer.min_epochs == cfg.trainer.max_epochs == (4 if "trainer.max_epochs=4" in words else 30)


@pytest.mark.parametrize("model", [path.stem for path in sorted((CONF / "model").glob("*.yaml"))])
def test_the_data_and_not_the_model_decide_what_is_monitored(model):
    for data, expected in (("imdb", ("val/accuracy", "max")), ("wikitext2", ("val/loss", "min"))):
        cfg = composed(f"data={data}", f"model={model}")
        assert (cfg.monitor, cfg.mode) == expected
    assert composed(f"model={model}", "monitor=val/f1").monitor == "val/f1"


def test_an_experiment_says_how_it_is_run_and_what_to_expect():
    for path in sorted((CONF / "experiment").glob("*.yaml")):
        head = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
        for word in ("python -m recur.train", f"experiment={path.stem}", "Figure:", "Hardware:", "Time:"):
            assert word in head, f"{path.name} does not say {word!r} at its head"


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_run_that_tries_an_experiment_validates_it(experiment):
    """One that validates every 20 epochs would end before."""
    for debug in ("fdr", "limit", "profiler"):
        trainer = composed(f"experiment={experiment}", f"debug={debug}").trainer
        assert trainer.check_val_every_n_epoch <= trainer.max_epochs and trainer.val_check_interval == 1.0


def test_struct_mode_is_on():
    cfg = composed()
    assert OmegaConf.is_struct(cfg)
