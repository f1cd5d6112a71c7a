"""Every cell, in both families, one layer and several, against our own answers on texts of unequal length."""

import numpy as np
import pytest
import torch

from recur.errors import UserError
from recur.exporting import agreement, dense, models
from recur.nn.cells import CELLS
from recur.nn.classifier import POOLINGS, Classifier
from recur.nn.language_model import LanguageModel

VOCABULARY = 40
TEXTS = [np.random.default_rng(n).integers(0, VOCABULARY, length) for n, length in enumerate([9, 1, 30, 2, 17, 30])]
NO_ID = -77  # stands behind the ends: reading it would be an error


def classifier(**settings: object) -> Classifier:
    torch.manual_seed(0)
    return Classifier(VOCABULARY, **{"num_classes": 3, "embedding_dim": 5, "hidden_size": 6, **settings}).eval()  # type: ignore[arg-type]


def language_model(cell: str, **settings: object) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(VOCABULARY, **{"embedding_dim": 6, "hidden_size": 6, "cell": cell, **settings}).eval()  # type: ignore[arg-type]


def exported(net: Classifier | LanguageModel) -> agreement.Agreement:
    sentiment = isinstance(net, Classifier)
    model = models.classifier(net) if sentiment else models.language_model(net)
    family = "sentiment" if sentiment else "language"
    answers = agreement.onnx_answers(model.SerializeToString(), net, family)
    return agreement.compare(answers, net, family, TEXTS, pad=NO_ID)


@pytest.mark.slow
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_a_classifier_answers_the_same(cell: str, layers: int) -> None:
    net = classifier(cell=cell, num_layers=layers, bidirectional=layers == 2, pooling="concat")
    found = exported(net)
    assert found.difference <= found.allowed
    assert found.allowed == agreement.TOLERANCE or cell == "lnlstm"
    assert (found.shortest, found.longest) == (1, 30)


@pytest.mark.parametrize("cell", CELLS)
def test_a_language_model_answers_the_same(cell: str) -> None:
    found = exported(language_model(cell, num_layers=2))
    assert found.difference <= found.allowed


@pytest.mark.parametrize("family", ["sentiment", "language"])
@pytest.mark.parametrize("fits", [1, 2, 4])
def test_texts_are_compared_in_chunks_that_fit_into_memory(
    family: str, fits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = classifier() if family == "sentiment" else language_model("lstm")
    sizes: list[int] = []

    def wrong(ids: agreement.Ids, lengths: agreement.Ids) -> agreement.Answers:
        sizes.append(len(ids))
        noise = np.random.default_rng(0).normal(size=(VOCABULARY, 40))  # the same for a token wherever it stands
        answers = agreement.own_answers(net, family, np.maximum(ids, 0), lengths)
        last = ids[np.arange(len(ids)), lengths - 1] if family == "sentiment" else np.maximum(ids, 0)
        return answers + noise[last][..., : answers.shape[-1]] * 0.1

    def measured() -> tuple[float, ...]:
        found = agreement.compare(wrong, net, family, TEXTS, pad=NO_ID)
        return found.difference, found.logits, found.rounding, found.same_answers, found.shortest, found.longest

    whole = measured()
    assert set(sizes) == {len(TEXTS)} and 0 < whole[3] <= 1
    sizes.clear()
    monkeypatch.setattr(agreement, "_NUMBERS", fits * 30 * (5 if family == "sentiment" else VOCABULARY) + 1)
    assert measured() == pytest.approx(whole, rel=1e-5, abs=1e-7)
    assert max(sizes) == fits and len(set(sizes)) == 1 + bool(len(TEXTS) % fits)


def test_an_answer_that_is_no_number_is_not_lost_among_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    net = classifier()
    monkeypatch.setattr(agreement, "_NUMBERS", 1)
    found = agreement.compare(
        lambda ids, lengths: (
            agreement.own_answers(net, "sentiment", np.maximum(ids, 0), lengths)
            * np.where(lengths == 17, np.nan, 1)[:, None]
        ),
        net,
        "sentiment",
        TEXTS,
    )
    assert np.isnan(found.difference) and np.isnan(found.logits)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("classes", [2, 5])
def test_every_pooling_and_number_of_classes(pooling: str, classes: int) -> None:
    assert exported(classifier(pooling=pooling, num_classes=classes)).difference <= agreement.TOLERANCE


@pytest.mark.parametrize(
    "settings",
    [
        {"cell": "qrnn", "cell_options": {"window": 2}},
        {"cell": "mogrifier", "cell_options": {"rounds": 2}},
        {"cell": "lstm", "output_size": 4, "num_layers": 2, "project": True},
        {"cell": "gru", "tie_weights": False, "hidden_size": 7},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_a_language_model_of_another_shape(settings: dict[str, object]) -> None:
    assert exported(language_model(**settings)).difference <= agreement.TOLERANCE  # type: ignore[arg-type]


@pytest.mark.parametrize("cell", ["lstm", "gru", "qrnn"])
def test_a_carried_state_goes_on_where_it_was(cell: str) -> None:
    import onnxruntime

    net = language_model(cell, num_layers=2)
    session = onnxruntime.InferenceSession(models.language_model(net).SerializeToString())
    names = [one.name for one in session.get_inputs()][2:]
    zeros = {one.name: np.zeros((1, 1, one.shape[2]), np.float32) for one in session.get_inputs()[2:]}
    ids = np.arange(12, dtype=np.int64)[None]
    whole = session.run(None, {"ids": ids, "lengths": np.array([12]), **zeros})[0]
    state, pieces = zeros, []
    for piece in (ids[:, :5], ids[:, 5:6], ids[:, 6:]):
        logits, *following = session.run(None, {"ids": piece, "lengths": np.array([piece.shape[1]]), **state})
        state = dict(zip(names, following, strict=True))
        pieces.append(logits)
    assert np.abs(np.concatenate(pieces, 1) - whole).max() < 1e-6


def test_a_text_does_not_depend_on_its_neighbours() -> None:
    net = classifier(cell="lstm", pooling="concat", num_layers=2)
    answers = agreement.onnx_answers(models.classifier(net).SerializeToString(), net, "sentiment")
    together = answers(*agreement.padded(TEXTS, NO_ID))
    alone = np.concatenate([answers(*agreement.padded([text], NO_ID)) for text in TEXTS])
    assert np.abs(together - alone).max() < 1e-6


def test_tied_weights_are_stored_once() -> None:
    tied, untied = (
        len(models.language_model(language_model("lstm", tie_weights=tie)).SerializeToString()) for tie in (True, False)
    )
    assert untied - tied >= VOCABULARY * 6 * 4


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn", "rnn_relu"])
def test_torch_export_answers_the_same(cell: str) -> None:
    nets: list[Classifier | LanguageModel] = [classifier(cell=cell, pooling="concat"), language_model(cell)]
    for net, family in zip(nets, ("sentiment", "language"), strict=True):
        found = agreement.compare(dense.answers(dense.export(net), net), net, family, TEXTS, pad=NO_ID)
        assert found.difference <= agreement.TOLERANCE


def test_torch_export_says_which_cells_it_has() -> None:
    with pytest.raises(UserError, match="must be one of lstm, gru, rnn, rnn_relu"):
        dense.export(classifier(cell="mingru"))


def test_torch_has_the_private_name_that_is_used() -> None:
    from recur.exporting import torch_internals

    assert callable(torch_internals.scan)


@pytest.mark.slow
def test_two_hundred_reviews_in_one_batch(shared_data) -> None:  # type: ignore[no-untyped-def]
    import pyarrow.parquet as parquet

    from recur.data.text import Tokenizer

    file = next((shared_data / "imdb" / "plain_text").glob("test*.parquet"))
    reviews = parquet.read_table(file, columns=["text"])["text"].to_pylist()[:200]
    tokenizer = Tokenizer.train(reviews)
    texts = [ids.astype(np.int64) for ids in tokenizer.encode_batch(reviews)]
    torch.manual_seed(0)
    net = Classifier(tokenizer.vocab_size, 2, embedding_dim=64, hidden_size=64, num_layers=2, pooling="max").eval()
    answers = agreement.onnx_answers(models.classifier(net).SerializeToString(), net, "sentiment")
    found = agreement.compare(answers, net, "sentiment", texts, pad=NO_ID)
    print(found)
    assert found.texts == 200
    assert found.longest > 5 * found.shortest
    assert found.difference <= agreement.TOLERANCE
    assert found.logits <= agreement.TOLERANCE
