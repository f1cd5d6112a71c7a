"""What of a foreign run would leave this machine: refused unless it is typed."""

import pytest

from recur.runs import trust


@pytest.mark.parametrize(
    ("logger", "typed"),
    [
        ({"_target_": "recur.training.loggers.wandb"}, "logger.x.offline=false"),
        ({"_target_": "recur.training.loggers.wandb", "offline": False}, "logger.x.offline=true"),
        ({"_target_": "recur.training.loggers.wandb", "offline": "no"}, "logger=null"),
        ({"_target_": "recur.training.loggers.mlflow", "tracking_uri": "http://evil"}, "logger.x.tracking_uri=y"),
        ({"_target_": "recur.training.loggers.mlflow", "tracking_uri": "sqlite:////x"}, "logger.x.tracking_uri=y"),
        ({"_target_": "recur.training.loggers.aim", "repo": "aim://evil:53800"}, "logger.x.repo=y"),
    ],
)
def test_a_run_is_sent_to_a_service_only_where_that_is_typed(logger, typed):
    config = {"logger": {"x": logger}}
    with pytest.raises(ValueError, match="would be sent to a service"):
        trust.check_config(config, [])
    trust.check_config(config, [typed])


def test_what_stays_in_the_folder_goes_on_by_itself():
    offline = {"_target_": "recur.training.loggers.wandb", "offline": True}
    local = {"_target_": "recur.training.loggers.mlflow", "tracking_uri": None}
    aim = {"_target_": "recur.training.loggers.aim", "repo": None}
    trust.check_config({"logger": {"a": offline, "b": local, "c": aim}}, [])
    assert trust.services({"logger": {"a": offline, "b": local, "c": aim}}) == {}
