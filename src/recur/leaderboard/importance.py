"""How much each setting matters for the metric, by Optuna's estimate."""

import warnings
from typing import Any

from recur.leaderboard.reading import numbers
from recur.leaderboard.table import Leaderboard

FEWEST_RUNS = 20  # with fewer, chance explains too much


def importance(leaderboard: Leaderboard) -> dict[str, float]:
    """Importance of each varied setting, largest first; together 1.

    Optuna's default estimate (PED-ANOVA): how far the best runs' settings differ from those of all runs.

    Returns:
        key to importance; empty for fewer than `FEWEST_RUNS` runs, for fewer than two settings, where all runs are
        alike, and where Optuna is not installed.
    """
    done = [(g.settings, r.value) for g in leaderboard.groups for r in g.done if r.value is not None]
    keys = leaderboard.varied
    if len(done) < FEWEST_RUNS or len(keys) < 2 or len({value for _, value in done}) == 1:
        return {}
    try:
        import optuna
    except ImportError:
        return {}
    columns = {key: [settings[key] for settings, _ in done] for key in keys}
    parsed = {key: numbers(texts) for key, texts in columns.items()}
    distributions = {key: _distribution(columns[key], parsed[key]) for key in keys}
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(direction="maximize" if leaderboard.mode == "max" else "minimize")
        for index, (_, value) in enumerate(done):
            params = {key: (parsed[key] or columns[key])[index] for key in keys}
            study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=value))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shares = optuna.importance.get_param_importances(study)
    except (ValueError, RuntimeError):  # the best runs are all alike: there is nothing to estimate
        return {}
    finally:
        optuna.logging.set_verbosity(level)
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _distribution(texts: list[str], values: list[float] | None) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if values is None:
        return CategoricalDistribution(sorted(set(texts)))
    low, high = min(values), max(values)
    return FloatDistribution(low, high, log=spans_decades(values))


def spans_decades(values: list[float]) -> bool:
    """Whether positive numbers lie so far apart that they are read on a logarithmic axis."""
    return min(values) > 0 and max(values) / min(values) >= 30
