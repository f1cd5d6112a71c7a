"""How much each setting matters for the metric, by Optuna's estimate."""

import bisect
import math
import statistics
import warnings
from collections import Counter
from collections.abc import Sequence

from recur.leaderboard.reading import numbers
from recur.leaderboard.table import Leaderboard

FEWEST_GROUPS = 50  # the estimate looks at the best tenth: with fewer than five there, chance explains too much
_BINS = 4  # for numbers of more values than that
_REST = "rest"  # of words that are rare: in one of a few groups alone, each would explain as much as a good setting


def importance(leaderboard: Leaderboard) -> dict[str, float]:
    """Importance of each varied setting, largest first; together 1.

    Optuna's estimate (PED-ANOVA): how far the best tenth's settings differ from those of all. Seeds of one setting
    count once, by their mean. Every setting is read as a few categories, so that all are measured on one scale.

    Returns:
        key to importance; empty for fewer than `FEWEST_GROUPS` settings that were run to the end, for fewer than two
        keys, where all are alike, and where Optuna is not installed.
    """
    done = [(group.settings, group.mean) for group in leaderboard.groups if group.mean is not None]
    keys = leaderboard.varied
    if len(done) < FEWEST_GROUPS or len(keys) < 2 or len({value for _, value in done}) == 1:
        return {}
    try:
        import optuna
    except ImportError:
        return {}
    columns = {key: _categories([settings[key] for settings, _ in done]) for key in keys}
    distributions: dict[str, optuna.distributions.BaseDistribution] = {
        key: optuna.distributions.CategoricalDistribution(sorted(set(column))) for key, column in columns.items()
    }
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(direction="maximize" if leaderboard.mode == "max" else "minimize")
        for index, (_, value) in enumerate(done):
            params = {key: columns[key][index] for key in keys}
            study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=value))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parts = optuna.importance.get_param_importances(study, normalize=False)
    except (ValueError, RuntimeError):
        return {}
    finally:
        optuna.logging.set_verbosity(level)
    whole = sum(parts.values())
    if not 0 < whole < math.inf:  # the best tenth is like the rest: there is nothing to estimate
        return {}
    return {key: part / whole for key, part in sorted(parts.items(), key=lambda item: -item[1])}


def _categories(texts: Sequence[str]) -> list[str]:
    """A setting's values as a few categories: a number by its quarter, or itself where there are few; a rare word last.

    Each value is a number or a word by itself: `null` among learning rates leaves the others numbers.
    """
    known = [None if (parsed := numbers([text])) is None else parsed[0] for text in texts]
    values = [value for value in known if value is not None]
    words = Counter(text for text, value in zip(texts, known, strict=True) if value is None)
    edges = sorted(set(values))[1:]
    if len(edges) >= _BINS:
        edges = statistics.quantiles(values, n=_BINS, method="inclusive")

    def category(text: str, value: float | None) -> str:
        if value is None:
            return f"word {text}" if 10 * words[text] >= len(texts) else _REST
        return f"number {bisect.bisect_right(edges, value)}"

    return [category(text, value) for text, value in zip(texts, known, strict=True)]
