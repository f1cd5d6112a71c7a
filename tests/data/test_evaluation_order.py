"""The first batches of an evaluation are a fair sample of the split, whatever the order of its source."""

import logging

import lightning.pytorch as pl
import numpy as np
import pytest

from recur.data.buckets import plan_epoch
from recur.data.language import LanguageData
from recur.data.sentiment import SentimentData


def sorted_by_class(path, rows: int = 400, length: int = 6) -> str:
    """Texts of one length, all of the first class before all of the second, as IMDB is published."""
    texts = [("a dull film and a dull end", "neg"), ("a fine film and a fine end", "pos")]
    body = [f"{' '.join(text.split()[:length])},{label}" for text, label in texts for _ in range(rows // 2)]
    path.write_text("text,label\n" + "\n".join(body) + "\n")
    return str(path)


def opened(**settings) -> SentimentData:
    data = SentimentData(**settings)
    data.prepare_data()
    data.setup("fit")
    return data


def test_the_first_batches_hold_both_classes(tmp_path):
    file = sorted_by_class(tmp_path / "a.csv")
    data = opened(train=file, val=file, batch_size=20)
    shares = [batch.labels.float().mean().item() for batch in list(data.val_dataloader())[:4]]
    assert all(0.2 < share < 0.8 for share in shares), shares


def test_the_first_batches_are_not_the_longest():
    lengths = np.arange(1, 1001)
    plan = plan_epoch(lengths, 50, shuffle=False)
    first = np.concatenate([plan.batch(step) for step in range(4)])
    assert 200 < lengths[first].mean() < 800


def test_the_order_is_the_same_every_epoch_and_whatever_the_seed_of_training(tmp_path):
    file = sorted_by_class(tmp_path / "a.csv")

    def order(split_seed: int, seed: int, epoch: int) -> list[list[int]]:
        data = opened(train=file, val=file, batch_size=20, seed=seed, split_seed=split_seed)
        loader = data.val_dataloader()
        loader.set_epoch(epoch)
        return [batch.rows.tolist() for batch in loader]

    assert order(0, 0, 0) == order(0, 5, 3) != order(1, 0, 0)


def test_a_validation_split_of_one_class_is_warned_of(tmp_path, caplog):
    file = sorted_by_class(tmp_path / "a.csv")
    one = tmp_path / "b.csv"
    one.write_text("text,label\n" + "a fine film,pos\n" * 20)
    with caplog.at_level(logging.WARNING):
        opened(train=file, val=sorted_by_class(tmp_path / "c.csv"), batch_size=20)
        assert not caplog.records
        opened(train=file, val=str(one), batch_size=20)
    assert "all 20 texts of the validation split are 'pos'" in caplog.text


class Watcher(pl.LightningModule):
    """Keeps which batches it was trained on."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch.text.data.tolist())

    def configure_optimizers(self):
        return None


@pytest.mark.filterwarnings("ignore")  # Lightning's own
@pytest.mark.parametrize("family", ["texts", "windows", "streams"])
def test_overfitting_a_batch_trains_on_the_same_batch_each_epoch(tmp_path, family):
    data: pl.LightningDataModule
    if family == "texts":
        data = SentimentData(train=sorted_by_class(tmp_path / "a.csv"), batch_size=20)
    else:
        words = "\n".join(f"word{number}" for number in range(400))
        data = LanguageData(
            text=words, batch_size=4, bptt=7, random_bptt=True, window=5 if family == "windows" else None
        )
    watcher = Watcher()
    trainer = pl.Trainer(
        max_epochs=3,
        overfit_batches=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(watcher, datamodule=data)
    assert len(watcher.seen) == 3
    assert watcher.seen[0] == watcher.seen[1] == watcher.seen[2]
