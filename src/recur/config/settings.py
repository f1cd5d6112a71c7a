"""Which settings of a run may change when it is resumed.

| setting | when it changes |
| --- | --- |
| `trainer.*`, but for the two below | honoured: from the checkpoint on |
| `callbacks.*`, but for `ema` and `averaging` | honoured: patience, samples, how often to save, ... |
| `logger.*`, `test`, `name`, `tags`, `extras` | honoured |
| `data.eval_batch_size`, `data.eval_bptt`, `data.cache_dir`, `data.on_bad_row` | honoured |
| `data.path`, `data.train`, `data.val`, `data.test`, `data.unlabelled` | honoured: where the same data is now |
| `data.pseudo_labelled` | the same |
| everything else: `model`, `optimizer`, `scheduler`, `seed`, other `data`, `monitor`, `mode` | refused |

A setting that is refused decides what the steps so far were, or is kept in the checkpoint: the run would go on with the
former value whatever the config said.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from recur.errors import UserError

_HONOURED = (
    "trainer",
    "callbacks",
    "logger",
    "test",
    "baseline",
    "name",
    "tags",
    "extras",
    "resume",
    "overwrite",
    "accept_data_change",
    "data.eval_batch_size",
    "data.eval_bptt",
    "data.cache_dir",
    "data.on_bad_row",
    "data.allow_pickle",
    "data.path",
    "data.train",
    "data.val",
    "data.test",
    "data.unlabelled",
    "data.pseudo_labelled",
)
_REFUSED = (
    "trainer.accumulate_grad_batches",
    "trainer.limit_train_batches",
    "callbacks.ema",
    "callbacks.averaging",
    "callbacks.best.monitor",
    "callbacks.best.mode",
    "callbacks.early_stopping.monitor",
    "callbacks.early_stopping.mode",
)
_ABSENT = object()

# What Lightning's trainer takes and a run does not: the rule, and what to type in its place.
NOT_FOR_TRAINER = {
    "trainer.callbacks": ("is made of the config's own key", "set callbacks.NAME=... instead"),
    "trainer.reload_dataloaders_every_n_epochs": ("is not needed: each epoch is laid out anew", "leave it out"),
    "trainer.logger": ("is made of the config's own key", "set logger.NAME=... instead"),
}


def changes(before: Any, after: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two configs differ: the setting's path, its former and its present value, `...` for none."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in dict.fromkeys([*before, *after]):
            inner = f"{path}.{key}" if path else str(key)
            yield from changes(before.get(key, _ABSENT), after.get(key, _ABSENT), inner)
    elif before is not after and (type(before) is not type(after) or before != after):
        yield path, ... if before is _ABSENT else before, ... if after is _ABSENT else after


def honoured(path: str) -> bool:
    """Whether a resumed run does what a changed setting says."""
    return _below(path, _HONOURED) and not _below(path, _REFUSED)


def _below(path: str, roots: tuple[str, ...]) -> bool:
    return any(path == root or path.startswith((f"{root}.", f"{root}[")) for root in roots)


def check_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Refuse a resumed run's changed setting that would not be honoured.

    Raises:
        UserError: names the first.
    """
    for path, former, present in changes(before, after):
        if not honoured(path):
            if isinstance(former, Mapping) and not isinstance(present, Mapping):  # an option of a group, or nothing
                what = "be taken away" if present is ... or present is None else f"change to {present!r}"
                raise UserError(
                    path,
                    rule=f"was chosen when the run began and cannot {what}",
                    remedy="leave it out, or start another run with it",
                )
            was = "was not set" if former is ... else f"was {former!r}"
            raise UserError(
                path,
                rule=f"{was} when the run began and cannot change to {'nothing' if present is ... else repr(present)}",
                remedy="leave it out, or start another run with it",
            )
