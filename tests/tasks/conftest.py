"""A trained language model, for the tests of what is done with one."""

import warnings
from functools import partial

import pytest
import torch

from support.language_models import new_task, new_trainer, text_data


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Data and a task in evaluation mode, whose weights a test gives back."""
    data = text_data(eval_batch_size=2, eval_bptt=6)
    task = new_task(data, optimizer=partial(torch.optim.Adam, lr=0.02))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's own
        new_trainer(tmp_path_factory.mktemp("trained"), max_epochs=3).fit(task, datamodule=data)
    return data, task.eval()
