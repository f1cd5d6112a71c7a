"""The classifier and its pooling: nothing depends on a sequence's neighbours, and it is the guides' model."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_sequence

from recur.nn.classifier import Classifier
from recur.nn.packed import Layout, max_over_time, mean_over_time

VOCABULARY = 50


def texts(count: int = 9, longest: int = 17) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
    return [torch.randint(0, VOCABULARY, (n,), generator=generator) for n in lengths]


def rows(width: int = 5) -> tuple[list[torch.Tensor], PackedSequence]:
    generator = torch.Generator().manual_seed(1)
    each = [torch.randn(n, width, generator=generator, dtype=torch.float64) for n in (7, 7, 4, 2, 1)]
    return each, pack_sequence(each)


def test_rows_know_their_sequence_and_sequences_their_length():
    each, packed = rows()
    layout = Layout(packed.batch_sizes)
    assert layout.lengths.tolist() == [len(x) for x in each]
    owner = layout.places
    for number, sequence in enumerate(each):
        assert torch.equal(packed.data[owner == number], sequence)


def test_pooling_equals_pooling_one_by_one():
    each, packed = rows()
    torch.testing.assert_close(max_over_time(packed), torch.stack([x.max(0).values for x in each]))
    torch.testing.assert_close(mean_over_time(packed), torch.stack([x.mean(0) for x in each]))


@pytest.mark.parametrize("pool", [max_over_time, mean_over_time])
def test_pooling_has_the_right_gradient(pool):
    _, packed = rows(2)
    data = packed.data.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: pool(PackedSequence(x, packed.batch_sizes)), (data,))


@pytest.mark.parametrize("pooling", ["last", "max", "mean", "concat"])
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_logits_do_not_depend_on_the_neighbours(pooling, cell, dtype, tolerance):
    torch.manual_seed(0)
    net = Classifier(VOCABULARY, 3, embedding_dim=8, hidden_size=6, num_layers=2, cell=cell, pooling=pooling)
    net = net.to(dtype).eval()
    batch = texts()
    alone = torch.cat([net(pack_sequence([text])) for text in batch])
    for order in (list(range(len(batch))), list(reversed(range(len(batch)))), [4, 1, 7]):
        together = net(pack_sequence([batch[i] for i in order], enforce_sorted=False))
        assert (together - alone[order]).abs().max() <= tolerance


def test_gradients_do_not_depend_on_the_neighbours():
    torch.manual_seed(0)
    net = Classifier(VOCABULARY, 2, embedding_dim=8, hidden_size=6, num_layers=2, pooling="concat").double()
    batch = texts(5)

    def gradients(loss: torch.Tensor) -> list[torch.Tensor]:
        return torch.autograd.grad(loss, list(net.parameters()))

    together = gradients(net(pack_sequence(batch, enforce_sorted=False)).sum())
    alone = [gradients(net(pack_sequence([text])).sum()) for text in batch]
    for got, *parts in zip(together, *alone, strict=True):
        torch.testing.assert_close(got, torch.stack(parts).sum(0), rtol=0, atol=1e-12)


def test_it_is_the_guides_model():
    """Same weights, same texts, same logits as the guides' padded and packed `AdvancedLSTM`."""

    class AdvancedLSTM(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(VOCABULARY + 1, 100, padding_idx=VOCABULARY)
            self.lstm = nn.LSTM(100, 32, num_layers=2, bidirectional=True, dropout=0.5, batch_first=True)
            self.fc = nn.Linear(64, 1)

        def forward(self, text, lengths):
            embedded = self.embedding(text)
            packed = nn.utils.rnn.pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
            hidden = self.lstm(packed)[1][0]
            return self.fc(torch.cat((hidden[-2], hidden[-1]), dim=1))

    torch.manual_seed(0)
    theirs = AdvancedLSTM().eval()
    ours = Classifier(VOCABULARY, 2, embedding_dim=100, hidden_size=32, num_layers=2, pooling="last").eval()
    ours.embedding.weight.data.copy_(theirs.embedding.weight[:VOCABULARY])
    ours.recurrent.load_state_dict(theirs.lstm.state_dict())
    ours.head.load_state_dict(theirs.fc.state_dict())
    batch = texts()
    padded = pad_sequence(batch, batch_first=True, padding_value=VOCABULARY)
    expected = theirs(padded, torch.tensor([len(t) for t in batch]))
    got = ours(pack_sequence(batch, enforce_sorted=False))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("locked", [False, True])
def test_dropout_drops_in_training_only(locked):
    torch.manual_seed(0)
    net = Classifier(VOCABULARY, 2, embedding_dim=64, hidden_size=4, embedding_dropout=0.5, locked_dropout=locked)
    text = pack_sequence([torch.full((12,), 3), torch.full((5,), 3)])
    dropped = net.embed(text)
    assert 0.3 < (dropped == 0).float().mean() < 0.7
    first = [dropped[Layout(text.batch_sizes).places == i] for i in (0, 1)]
    for steps in first:  # locked: the same features vanish at every step of a text
        assert locked == bool(((steps == 0) == (steps[0] == 0)).all())
    net.eval()
    assert torch.equal(net.embed(text), net.embedding(text.data))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"pooling": "mx"}, "pooling is one of last, max, mean, concat, got 'mx'"),
        ({"embedding_dropout": 1.0}, r"embedding_dropout must lie in \[0, 1\), got 1.0"),
        ({"embedding_dim": 0}, "embedding_dim must be at least 1, got 0"),
        ({"num_classes": 1}, "num_classes must be at least 2, got 1"),
        ({"vectors": torch.zeros(3, 4)}, "word vectors have shape"),
        ({"freeze_vectors": True}, "freeze_vectors would freeze random vectors"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_value(setting, message):
    with pytest.raises(ValueError, match=message):
        Classifier(**{"vocab_size": 10, "num_classes": 2, **setting})


def test_scores_in_mixed_precision_keep_their_digits():
    """The head of few products is in float32: in bfloat16 a third of a set of reviews would share its scores."""
    torch.manual_seed(0)
    net = Classifier(40, 2, embedding_dim=8, hidden_size=8).eval()
    text = pack_sequence([torch.randint(40, (5,)) for _ in range(200)])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = net(text)
    assert logits.dtype == torch.float32
    assert len(logits.unique()) > 190 > len(logits.bfloat16().unique())


def test_a_mean_of_bfloat16_rows_is_summed_in_float32():
    rows = torch.full((2000, 3), 0.1, dtype=torch.bfloat16, requires_grad=True)
    mean = mean_over_time(pack_sequence([rows[:1500], rows[1500:]]))
    torch.testing.assert_close(mean, torch.full((2, 3), float(torch.tensor(0.1).bfloat16())))
    mean.sum().backward()
    assert rows.grad.dtype == torch.bfloat16
    torch.testing.assert_close(
        rows.grad.float(),
        torch.tensor([1 / 1500, 1 / 500]).repeat_interleave(torch.tensor([1500, 500]))[:, None].expand(-1, 3),
        rtol=1e-2,
        atol=0,
    )


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_last_step_of_a_qrnn_is_its_output_not_what_it_carries(bidirectional, window):
    net = Classifier(
        20,
        num_classes=3,
        embedding_dim=4,
        hidden_size=5,
        cell="qrnn",
        bidirectional=bidirectional,
        pooling="last",
        cell_options={"window": window},
    )
    texts = [torch.randint(20, (length,)) for length in (3, 9, 1)]
    logits = net(pack_sequence(texts, enforce_sorted=False))
    for text, own in zip(texts, logits, strict=True):
        states, _ = net.recurrent(PackedSequence(net.embedding(text), torch.ones(len(text), dtype=torch.int64)))
        last = torch.cat([states.data[-1, :5], states.data[0, 5:]])
        torch.testing.assert_close(own, net.head(last))
    logits.sum().backward()
    assert net.recurrent.weight_ih_l0.grad[10:].abs().min() > 0  # the rows of the output gate
