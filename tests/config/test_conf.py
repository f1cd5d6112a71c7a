"""Every config composes, names real classes, and knows only keys that those take."""

import inspect
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
    if group.is_dir() and group.name != "claims"  # read by recur.claims
    for option in sorted(group.glob("*.yaml"))
]


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", list(overrides), return_hydra_config=True)
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


def test_an_experiment_says_how_it_is_run_and_what_to_expect():
    for path in sorted((CONF / "experiment").glob("*.yaml")):
        head = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
        for word in ("python -m recur.train", f"experiment={path.stem}", "Figure:", "Hardware:", "Time:"):
            assert word in head, f"{path.name} does not say {word!r} at its head"


def test_struct_mode_is_on():
    cfg = composed()
    assert OmegaConf.is_struct(cfg)
