"""A small language model and its data, for the tests of the tasks."""

from functools import partial

import lightning.pytorch as pl
import torch

from recur.data.language import LanguageData
from recur.data.synthetic import SyntheticText
from recur.nn.language_model import LanguageModel
from recur.tasks.language_modeling import LanguageModelingTask, TokenStatistics


def text_data(**settings) -> LanguageData:
    settings = {"batch_size": 4, "eval_batch_size": 2, "bptt": 10, "eval_bptt": 16, **settings}
    data = LanguageData(synthetic=SyntheticText(2000, 500, 500), tokenizer={"kind": "whitespace"}, **settings)
    data.prepare_data()
    data.setup()
    return data


def new_task(
    data: LanguageData, *, optimizer=None, scheduler=None, penalties=(0.0, 0.0), **net
) -> LanguageModelingTask:
    torch.manual_seed(0)
    return LanguageModelingTask(
        partial(LanguageModel, **{"embedding_dim": 12, "hidden_size": 12, "num_layers": 1, **net}),
        **data.model_arguments(),
        optimizer=optimizer or partial(torch.optim.SGD, lr=2.0),
        scheduler=scheduler,
        activation_penalty=penalties[0],
        temporal_penalty=penalties[1],
    )


def new_trainer(folder, **settings) -> pl.Trainer:
    settings = {"max_epochs": 1, "logger": False, "enable_checkpointing": False, "log_every_n_steps": 1, **settings}
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        gradient_clip_val=0.25,
        **settings,
    )


def weights(task) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in task.net.state_dict().items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def static(task, windows) -> float:
    """Loss in nats of a model that carries its state from window to window."""
    statistics, state = TokenStatistics(), None
    with torch.no_grad():
        for window in windows:
            hidden = task(window, None if window.first else state)
            state = hidden.state
            statistics.update(task.token_loss(hidden, window.targets).nll)
    return statistics.compute()["loss"].item()
