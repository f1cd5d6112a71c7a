"""Plans lose, double and repeat nothing; batches are packed right; a resumed run trains on what was left."""

import itertools
import warnings

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn.utils.rnn import pack_sequence

from recur.data.buckets import TextLoader, Texts, count_steps, plan_epoch
from recur.data.cache import Ragged
from recur.errors import UserError

lengths_lists = st.lists(st.integers(1, 300), min_size=1, max_size=200)


def batches_of(plan):
    return [plan.batch(step, rank).tolist() for step in range(plan.steps) for rank in range(plan.world_size)]


def ragged(lengths):
    lengths = np.asarray(lengths)
    return Ragged(np.arange(lengths.sum(), dtype=np.int32), np.concatenate([[0], np.cumsum(lengths)]))


def review_lengths(count=25_000, seed=0):
    """Lengths spread like IMDB's: log-normal, median 200, a long tail cut at 2,750."""
    return np.clip(np.random.default_rng(seed).lognormal(5.3, 0.62, count), 10, 2750).astype(np.int64)


@given(
    lengths=lengths_lists,
    batch_size=st.integers(1, 20),
    world_size=st.integers(1, 9),
    epoch=st.integers(0, 3),
    shuffle=st.booleans(),
    max_tokens=st.none() | st.integers(1, 2000),
)
@settings(deadline=None, max_examples=200)
def test_every_row_is_in_one_batch_and_every_rank_has_one_a_step(
    lengths, batch_size, world_size, epoch, shuffle, max_tokens
):
    lengths = np.array(lengths)
    arguments = {"world_size": world_size, "max_tokens": max_tokens}
    if len(lengths) < world_size:
        with pytest.raises(ValueError, match="needs a text for each process"):
            plan_epoch(lengths, batch_size, epoch=epoch, shuffle=shuffle, **arguments)
        return
    try:
        plan = plan_epoch(lengths, batch_size, epoch=epoch, shuffle=shuffle, **arguments)
    except ValueError:  # too few rows left to halve: single rows, nearly, and no multiple of the ranks
        assert max_tokens is not None
        fewest, used = 0, np.inf
        for length in sorted(lengths, reverse=True):
            if used + length > max_tokens * 0.99 / 1.01:
                fewest, used = fewest + 1, 0
            used += length
        assert -(-fewest // world_size) * world_size > len(lengths)
        return
    batches = batches_of(plan)
    assert sorted(itertools.chain(*batches)) == list(range(len(lengths)))
    assert all(batches)
    assert plan.steps == count_steps(lengths, batch_size, world_size, max_tokens)
    if max_tokens is not None:
        assert all(lengths[batch].sum() <= max_tokens or len(batch) == 1 for batch in batches)
    else:
        sizes = np.array([len(batch) for batch in batches]).reshape(-1, world_size).sum(1)
        assert sizes.max() - sizes.min() <= 1
        assert sizes.max() <= batch_size * world_size or plan.steps == len(lengths) // world_size
    weights = [plan.scale(0, rank) for rank in range(world_size)]
    assert np.isclose(np.mean(weights), 1)


def test_an_epoch_is_a_function_of_seed_and_number():
    lengths = review_lengths(2000)
    first = plan_epoch(lengths, 16, seed=3, epoch=2, world_size=4)
    again = plan_epoch(lengths, 16, seed=3, epoch=2, world_size=4)
    assert np.array_equal(first.order, again.order) and np.array_equal(first.bounds, again.bounds)
    for other in ({"seed": 4, "epoch": 2}, {"seed": 3, "epoch": 1}):
        assert not np.array_equal(first.order, plan_epoch(lengths, 16, world_size=4, **other).order)


@pytest.mark.parametrize("world_size", [1, 8, 64, 1024])
def test_the_plan_meets_its_bars(world_size):
    """At most 3 % pads in a dense layout, ranks within 5 % of each other, two epochs sharing under 5 % of batches."""
    lengths = review_lengths()
    first, second = (plan_epoch(lengths, 64, epoch=epoch, world_size=world_size) for epoch in (0, 1))
    assert first.waste(lengths) <= 0.03
    if world_size <= 64:
        tokens = first.tokens(lengths)  # a step takes as long as its fullest rank
        assert 1 - tokens.mean(axis=1).sum() / tokens.max(axis=1).sum() <= 0.05
    ours, theirs = ({tuple(sorted(batch)) for batch in batches_of(plan)} for plan in (first, second))
    assert len(ours & theirs) < 0.05 * len(ours)


@pytest.mark.parametrize("max_tokens", [None, 8000])
def test_the_largest_batch_comes_first(max_tokens):
    lengths = review_lengths(3000)
    tokens = plan_epoch(lengths, 16, max_tokens=max_tokens, world_size=2).tokens(lengths)
    assert tokens[0].max() == tokens.max()
    sorted_plan = plan_epoch(lengths, 16, shuffle=False)
    assert np.array_equal(lengths[sorted_plan.order], np.sort(lengths)[::-1])


def test_steps_of_an_epoch_are_not_in_order_of_length():
    lengths = review_lengths(6400)
    tokens = plan_epoch(lengths, 64, epoch=1).tokens(lengths)[:, 0]
    assert abs(np.corrcoef(np.arange(len(tokens)), tokens)[0, 1]) < 0.4


@given(lengths=lengths_lists, data=st.data())
@settings(deadline=None)
def test_packing_is_torchs(lengths, data):
    rows = np.array(data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, unique=True)))
    tokens = ragged(lengths)
    text, order = Texts(tokens).pack(rows)
    expected = pack_sequence([torch.from_numpy(tokens[row].astype(np.int64)) for row in order])
    assert torch.equal(text.data, expected.data)
    assert torch.equal(text.batch_sizes, expected.batch_sizes)
    assert text.sorted_indices is None
    assert sorted(order) == sorted(rows)


@pytest.mark.parametrize("max_length", [1, 2, 5, 6, 7, 100])
@pytest.mark.parametrize(
    ("keep", "part"),
    [
        ("head", lambda ids, n: ids[:n]),
        ("tail", lambda ids, n: ids[-n:]),
        ("both", lambda ids, n: ids if len(ids) <= n else [*ids[: (n + 1) // 2], *ids[len(ids) - n // 2 :]]),
    ],
)
def test_long_texts_are_cut_where_asked(max_length, keep, part):
    tokens = ragged([1, 5, 6, 12, 7])
    texts = Texts(tokens, np.array([4, 3, 0, 1]), max_length=max_length, keep=keep)
    for place, row in enumerate([4, 3, 0, 1]):
        assert texts[place].tolist() == list(part(tokens[row].tolist(), max_length))
        assert texts.lengths[place] == len(texts[place])
    text, order = texts.pack(np.arange(4))
    alone = pack_sequence([torch.from_numpy(texts[row].astype(np.int64)) for row in order])
    assert torch.equal(text.data, alone.data)


@pytest.mark.parametrize(("keep", "copied"), [("head", 15 + 11), ("tail", 15 + 11), ("both", 24 + 11)])
def test_texts_of_a_large_corpus_bring_no_others_along_where_they_are_joined(keep, copied):
    """All of its ids were copied for a few of its texts; where both ends are kept, what lies between them is."""
    few = Texts(ragged([1, 5, 6, 12, 7, 9, 60]), max_length=5, keep=keep).chosen(np.array([4, 1, 3]))
    other = Texts(ragged([3, 8]), max_length=5, keep=keep)
    whole = Texts.joined([few, other])
    assert len(whole._values) == copied
    first = 0
    for part in (few, other):
        rows = np.arange(len(part))
        (mine, placed), (theirs, order) = whole.pack(first + rows), part.pack(rows)
        assert torch.equal(mine.data, theirs.data) and torch.equal(mine.batch_sizes, theirs.batch_sizes)
        assert placed.tolist() == (first + order).tolist()
        assert [whole[first + row].tolist() for row in rows] == [part[row].tolist() for row in rows]
        first += len(part)
    assert first == len(whole)


def test_bad_cuts_are_refused():
    with pytest.raises(ValueError, match="keep must be head, tail or both, got 'middle'"):
        Texts(ragged([3]), keep="middle")
    with pytest.raises(ValueError, match="max_length must be a whole number of at least 1, got 0"):
        Texts(ragged([3]), max_length=0)


# ---- the loader


def loader(rows=50, **settings):
    lengths = np.random.default_rng(1).integers(1, 40, rows)
    return TextLoader(Texts(ragged(lengths)), np.arange(rows) % 3, **{"batch_size": 4, "shuffle": True, **settings})


def rows_of(batches):
    return [batch.rows.tolist() for batch in batches]


def test_a_loader_gives_every_row_with_its_label_and_each_epoch_in_another_order():
    epochs = []
    ours = loader()
    for epoch in range(3):
        ours.sampler.set_epoch(epoch)
        batches = list(ours)
        assert len(batches) == len(ours) == 13
        for batch in batches:
            assert torch.equal(batch.labels, batch.rows % 3)
            assert batch.scale == 1
        epochs.append(rows_of(batches))
        assert sorted(itertools.chain(*epochs[-1])) == list(range(50))
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("shuffle", [True, False])
def test_ranks_share_an_epoch(shuffle):
    shards = [rows_of(loader(shuffle=shuffle, rank=rank, world_size=3)) for rank in range(3)]
    assert len({len(shard) for shard in shards}) == 1
    assert sorted(itertools.chain(*itertools.chain(*shards))) == list(range(50))


def test_iterating_again_starts_again():
    ours = loader()
    first = next(iter(ours)).rows
    assert torch.equal(next(iter(ours)).rows, first)
    assert len(list(ours)) == len(ours)
    assert len(list(ours)) == len(ours)


@pytest.mark.parametrize("given_", [0, 1, 7, 13])
def test_a_state_is_a_place_to_go_on_from(given_):
    whole = loader()
    whole.set_epoch(2)
    expected = rows_of(whole)
    stopped = loader()
    stopped.set_epoch(2)
    iterator = iter(stopped)
    for _ in range(given_):
        next(iterator)
    resumed = loader()
    resumed.load_state_dict(stopped.state_dict())
    assert resumed.state_dict() == stopped.state_dict()
    resumed.set_epoch(2)
    assert rows_of(resumed) == expected[given_:]
    resumed.set_epoch(3)
    whole.set_epoch(3)
    assert rows_of(resumed) == rows_of(whole)


def test_another_plan_cannot_be_gone_on_with_in_mid_epoch():
    stopped = loader()
    iterator = iter(stopped)
    next(iterator)
    for other, name in (({"batch_size": 5}, "batch_size"), ({"seed": 1}, "seed"), ({"rows": 51}, "rows")):
        with pytest.raises(ValueError, match=f"in the middle of epoch 0: {name} was .* resume with the same data"):
            loader(**other).load_state_dict(stopped.state_dict())
    state = stopped.state_dict()
    with pytest.raises(ValueError, match="in the middle of epoch 0: later was 1 and is None"):
        loader().load_state_dict({**state, "plan": {**state["plan"], "later": 1}})
    whole = loader()
    list(whole)
    loader(batch_size=5).load_state_dict(whole.state_dict())  # between epochs nothing is lost


class Recorder(pl.LightningModule):
    """Notes which rows it was trained on; falls over at a given step."""

    def __init__(self, fall_at=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []
        self.fall_at = fall_at

    def training_step(self, batch, batch_idx):
        if self.fall_at is not None and len(self.seen) == self.fall_at:
            raise ConnectionError("the machine died")
        self.seen.append((self.current_epoch, tuple(batch.rows.tolist())))
        return (self.weight - batch.rows.float().mean()) ** 2

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.weight, batch_size=len(batch.rows))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class TwoLoaders(pl.LightningDataModule):
    def train_dataloader(self):
        return loader(rows=41)

    def val_dataloader(self):
        return loader(rows=9, shuffle=False)


def fit(folder, model, ckpt_path=None, **settings):
    saver = ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's own
        trainer = pl.Trainer(
            max_epochs=3,
            accelerator="cpu",
            logger=False,
            callbacks=[saver],
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            **settings,
        )
        trainer.fit(model, TwoLoaders(), ckpt_path=ckpt_path, weights_only=True)


@pytest.mark.parametrize("settings", [{}, {"accumulate_grad_batches": 3}, {"val_check_interval": 4}])
@pytest.mark.parametrize("fall_at", [5, 11, 12, 25])
def test_a_run_that_died_is_resumed_with_exactly_the_batches_it_had_left(tmp_path, settings, fall_at):
    """11 batches an epoch: in mid-epoch, before and after an epoch's end, and in the third epoch."""
    whole = Recorder()
    fit(tmp_path / "whole", whole, **settings)
    assert len(whole.seen) == 33
    died = Recorder(fall_at)
    with pytest.raises(ConnectionError):
        fit(tmp_path / "died", died, **settings)
    last = max((tmp_path / "died").glob("*.ckpt"), key=lambda path: int(path.stem.split("=")[1]))
    every = settings.get("accumulate_grad_batches", 1)
    steps = int(last.stem.split("=")[1])
    resumed = Recorder()
    fit(tmp_path / "resumed", resumed, ckpt_path=last, **settings)
    a_epoch = -(-11 // every)
    done = steps // a_epoch * 11 + steps % a_epoch * every
    assert fall_at - every < done <= fall_at
    assert resumed.seen == whole.seen[done:]
    assert torch.equal(resumed.weight, whole.weight)


def test_a_split_with_fewer_texts_than_processes_is_refused_and_not_passed_over():
    with pytest.raises(UserError, match="needs a text for each process, there are 3, got 4: use fewer devices"):
        loader(3, batch_size=2, world_size=4)
