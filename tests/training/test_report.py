"""What a run says of itself at its end."""

import logging
import os

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from recur.training import report


class _Task(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, number):
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("settings", "epochs"),
    [({"max_steps": 4}, 1.4), ({"max_steps": 3}, 1), ({"max_epochs": 2}, 2), ({"max_epochs": 2, "max_steps": 6}, 2)],
)
def test_epochs_are_counted_in_batches(settings, epochs) -> None:
    """Five an epoch, the last of which is a step of its own."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = pl.Trainer(accelerator="cpu", logger=False, accumulate_grad_batches=2, **quiet, **settings)
    trainer.fit(_Task(), DataLoader(torch.ones(5, 1)))
    assert report._epochs(trainer) == epochs


def test_what_has_no_reader_any_more_is_no_error(capfd) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as output, report.logging_as_before():
        handler = logging.StreamHandler(output)
        logging.getLogger().addHandler(handler)
        report.quiet()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.stdout", output)
            logging.getLogger("recur").warning("epoch 1")
            logging.getLogger("recur").warning("epoch 2")
    assert capfd.readouterr().err == ""
