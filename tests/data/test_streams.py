"""Streams rebuild the corpus, predict every token once, and know their place."""

from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recur.data.streams import StreamLoader, WindowLoader, random_lengths

START = 1


def loaders(tokens, ranks=1, **settings):
    common = {"batch_size": 4, "bptt": 7, "start_id": START, **settings}
    return [StreamLoader(tokens, rank=rank, world_size=ranks, **common) for rank in range(ranks)]


def columns(loader):
    """Inputs and targets of each of a rank's streams, put together from its windows."""
    inputs, targets = ([[] for _ in range(loader._plan["batch_size"])] for _ in range(2))
    for number, window in enumerate(loader):
        assert window.first == (number == 0)
        assert len(window.text.data) == len(window.targets) == int(window.text.batch_sizes.sum())
        row = 0
        for size in window.text.batch_sizes.tolist():
            for stream in range(size):
                inputs[stream].append(int(window.text.data[row]))
                targets[stream].append(int(window.targets[row]))
                row += 1
    return inputs, targets


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(1, 300),
    batch_size=st.integers(1, 7),
    ranks=st.integers(1, 3),
    bptt=st.integers(1, 60),
    random_length=st.booleans(),
    epoch=st.integers(0, 5),
)
def test_streams_rebuild_the_corpus(count, batch_size, ranks, bptt, random_length, epoch):
    if count < batch_size * ranks:
        count += batch_size * ranks
    tokens = np.arange(2, 2 + count)  # each token is one more than the one before
    found = []
    of_ranks = loaders(tokens, ranks, batch_size=batch_size, bptt=bptt, random_length=random_length)
    for loader in of_ranks:
        loader.set_epoch(epoch)
        inputs, targets = columns(loader)
        for before, after in zip(inputs, targets, strict=True):
            assert [token + 1 for token in before] == after  # even where the streams were cut; START is 2 - 1
            found += after
    assert found == tokens.tolist()
    assert len({len(loader) for loader in of_ranks}) == 1


def test_random_lengths_are_about_bptt_and_reproducible():
    lengths = random_lengths(26107, 70, np.random.default_rng(0))
    assert lengths.sum() == 26107 and lengths.min() >= 4 and abs(np.median(lengths) - 70) <= 2
    assert (lengths < 55).mean() == pytest.approx(0.05, abs=0.03)  # one in twenty is half as long
    a, b = (StreamLoader(np.arange(9000), batch_size=4, bptt=70, random_length=True, seed=s) for s in (1, 2))
    first = a.lengths().tolist()
    assert first == a.lengths().tolist() != b.lengths().tolist()
    scales = [window.lr_scale for window in a]
    assert scales == pytest.approx([n / 70 for n in first])
    a.set_epoch(1)
    assert a.lengths().tolist() != first and len(a) == len(first)


def test_fixed_windows_use_the_last_short_one_and_leave_the_learning_rate():
    windows = list(StreamLoader(np.arange(100), batch_size=4, bptt=7))
    assert [len(w.text.batch_sizes) for w in windows] == [7, 7, 7, 4]
    assert {w.lr_scale for w in windows} == {1.0}


@pytest.mark.parametrize("random_length", [False, True])
def test_a_resumed_epoch_continues_with_the_next_window(random_length):
    tokens = np.arange(3000)

    def fresh():
        return StreamLoader(tokens, batch_size=4, bptt=30, random_length=random_length)

    loader = fresh()
    loader.set_epoch(3)
    whole = [w.targets.tolist() for w in loader]
    iterator = iter(loader)
    taken = [next(iterator).targets.tolist() for _ in range(9)]
    other = fresh()
    other.load_state_dict(loader.state_dict())
    iterator = iter(other)  # Lightning makes the iterator first and names the epoch after
    other.set_epoch(3)
    assert taken + [w.targets.tolist() for w in iterator] == whole
    other.set_epoch(4)
    assert len(list(other)) == len(other)


def test_a_finished_epoch_resumes_at_the_next():
    loader = StreamLoader(np.arange(300), batch_size=4, bptt=30)
    whole = list(loader)
    other = StreamLoader(np.arange(300), batch_size=4, bptt=30)
    other.load_state_dict(loader.state_dict())
    other.set_epoch(1)
    assert len(list(other)) == len(whole)


def test_other_settings_cannot_resume_in_mid_epoch():
    loader = StreamLoader(np.arange(300), batch_size=4, bptt=30)
    next(iter(loader))
    other = StreamLoader(np.arange(300), batch_size=5, bptt=30)
    with pytest.raises(ValueError, match="batch_size was 4 and is 5: resume with the same"):
        other.load_state_dict(loader.state_dict())


@pytest.mark.parametrize("batch_size", [2, 10])
def test_the_middle_of_an_epoch_is_that_of_the_epoch_as_it_was_planned(batch_size):
    """With larger batches as many were over as the new epoch has, with smaller ones a whole epoch was half of one."""
    loader = StreamLoader(np.arange(300), batch_size=5, bptt=10)
    batches = iter(loader)
    other = StreamLoader(np.arange(300), batch_size=batch_size, bptt=10)
    for _ in range(3):
        next(batches)
    assert len(loader) == 6 and len(other) in (3, 15)
    with pytest.raises(ValueError, match=f"batch_size was 5 and is {batch_size}: resume with the same"):
        other.load_state_dict(loader.state_dict())
    list(batches)
    other.load_state_dict(loader.state_dict())
    assert len(list(other)) == len(other)
    with pytest.raises(ValueError, match="does not say which batches"):
        other.load_state_dict({**loader.state_dict(), "steps": "6"})


def test_a_place_kept_by_an_earlier_version_is_read():
    loader = StreamLoader(np.arange(300), batch_size=5, bptt=10)
    next(iter(loader))
    former = {key: value for key, value in loader.state_dict().items() if key != "steps"}
    other = StreamLoader(np.arange(300), batch_size=5, bptt=10)
    other.load_state_dict(former)
    assert len(list(other)) == len(other) - 1


def test_too_short_a_text_is_named():
    with pytest.raises(ValueError, match="batch_size must be at most 3 for 11 tokens and 3 process"):
        StreamLoader(np.arange(11), batch_size=4, bptt=5, world_size=3)
    with pytest.raises(ValueError, match="bptt must be a whole number of at least 1, got 0"):
        StreamLoader(np.arange(11), batch_size=4, bptt=0)
    with pytest.raises(ValueError, match="window must leave a next token"):
        WindowLoader(np.arange(10), window=10, batch_size=2)


@settings(deadline=None, max_examples=30)
@given(count=st.integers(8, 60), window=st.integers(1, 5), batch_size=st.integers(1, 9), ranks=st.integers(1, 3))
def test_every_window_is_given_once(count, window, batch_size, ranks):
    tokens = np.arange(count)
    found = []
    of_ranks = [
        WindowLoader(tokens, window=window, batch_size=batch_size, shuffle=True, rank=r, world_size=ranks)
        for r in range(ranks)
    ]
    for loader in of_ranks:
        assert len(list(loader)) == len(loader) == len(of_ranks[0])
        for one in loader:
            assert one.first
            ids = one.text.data.view(window, -1)
            for column, target in zip(ids.T, one.targets, strict=True):
                assert (column.diff() == 1).all() and int(column[-1]) + 1 == int(target)
            found += one.targets.tolist()
    assert sorted(found) == list(range(window, count))


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("kind", ["streams", "windows"])
def test_each_token_of_a_step_counts_the_same_whatever_rank_has_it(kind, ranks):
    """A rank's mean times its scale, averaged over ranks, is the mean over the step's targets."""
    tokens = np.arange(31)
    loaders = [
        StreamLoader(tokens, batch_size=2, bptt=4, start_id=0, rank=rank, world_size=ranks)
        if kind == "streams"
        else WindowLoader(tokens, window=2, batch_size=2, rank=rank, world_size=ranks)
        for rank in range(ranks)
    ]
    uneven = False
    for step in zip(*loaders, strict=True):
        targets = [window.targets.double() for window in step]
        averaged = sum(window.scale * own.mean() for window, own in zip(step, targets, strict=True)) / ranks
        torch.testing.assert_close(averaged, torch.cat(targets).mean())
        uneven |= len({len(own) for own in targets}) > 1
    assert uneven == (ranks > 1)


def test_memory_mapped_tokens_are_read_in_place_and_given_back(monkeypatch, tmp_path):
    monkeypatch.setattr("recur.data.streams._FORGET", 100)
    np.arange(5000, dtype=np.uint16).tofile(tmp_path / "ids")
    tokens = np.memmap(tmp_path / "ids", dtype=np.uint16, mode="r")
    loader = StreamLoader(tokens, batch_size=2, bptt=3, start_id=0)
    assert loader._map is not None
    _, targets = columns(loader)
    assert list(chain(*targets)) == list(range(5000))
