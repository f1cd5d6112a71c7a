"""Word vectors: three formats read alike, none unpickled, and word2vec that never sees the test split."""

import struct

import numpy as np
import pandas as pd
import pytest

from recur.data.cache import TokenCache
from recur.data.sentiment import SentimentData
from recur.data.text import Tokenizer
from recur.data.vectors import load_vectors

VECTORS = {"good": [0.5, -1.0, 2.0], "film": [1.5, 0.25, -0.125], "zebra": [9.0, 9.0, 9.0], "été": [1.0, 2.0, 3.0]}


def write(path, kind):
    lines = [f"{word} {' '.join(map(str, row))}" for word, row in VECTORS.items()]
    if kind == "glove":
        path.write_text("\n".join(lines) + "\n")
    elif kind == "word2vec":
        path.write_text("\n".join([f"{len(VECTORS)} 3", *lines]) + "\n")
    else:
        newline = b"\n" if kind == "binary" else b""  # the first tools wrote one after each vector, later ones none
        packed = [word.encode() + b" " + struct.pack("<3f", *row) + newline for word, row in VECTORS.items()]
        path.write_bytes(f"{len(VECTORS)} 3\n".encode() + b"".join(packed))
    return path


@pytest.fixture
def tokenizer():
    return Tokenizer.train(["good good film été bad"])


@pytest.fixture
def cache(tmp_path):
    return TokenCache(tmp_path / "cache")


@pytest.mark.parametrize("kind", ["glove", "word2vec", "binary", "binary without newlines"])
def test_every_format_gives_the_same_vectors(tmp_path, tokenizer, cache, kind):
    for _ in range(2):  # the second time from the cache
        vectors = load_vectors(write(tmp_path / "vectors", kind), tokenizer, cache)
        assert vectors.matrix.shape == (tokenizer.vocab_size, 3)
        for index, word in enumerate(tokenizer.vocabulary):
            assert vectors.known[index] == (word in VECTORS)
            if word in VECTORS:
                assert vectors.matrix[index].tolist() == VECTORS[word]
        assert vectors.matrix.isfinite().all()
        said = vectors.coverage(np.array([1, 2, 1, 1, 1]))  # <unk> good bad film été
        assert said == "3 numbers a word from vectors: 3 of 5 words found (60.0%), 66.7% of the training text"


def test_gensims_own_files_are_read_back(tmp_path, tokenizer, cache):
    gensim = pytest.importorskip("gensim.models")
    model = gensim.KeyedVectors(vector_size=3)
    model.add_vectors(list(VECTORS), np.array(list(VECTORS.values()), dtype=np.float32))
    for binary in (False, True):
        model.save_word2vec_format(str(tmp_path / "g.bin"), binary=binary)
        vectors = load_vectors(tmp_path / "g.bin", tokenizer, cache)
        assert vectors.known.sum() == 3
        assert vectors.matrix[tokenizer.vocabulary.index("film")].tolist() == VECTORS["film"]


def test_words_not_found_are_random_by_seed(tmp_path, tokenizer, cache):
    path = write(tmp_path / "v.txt", "glove")
    one, again, other = (load_vectors(path, tokenizer, cache, seed).matrix[0].tolist() for seed in (0, 0, 1))
    assert one == again != other


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("v.pkl", b"x", "looks like a pickle"),
        ("v.model", b"x", "looks like a pickle"),
        ("v.txt", b"\x80\x04\x95rest", "is a pickle"),
        ("v.bin", b"\xba\x16\x4f\x2frest", "is fastText's own binary"),
        ("v.txt", b"\x1f\x8brest", "is compressed"),
        ("v.txt", b"", "holds no word vectors"),
        ("v.txt", b"good 1 2 3\nfilm 1 2\n", "line 2 has 2 numbers where the first line has 3"),
        (
            "v.txt",
            b"good 1 2 3\nfilm 1 x 3\n",
            "line 2 must hold a word and 3 numbers: could not convert string to float",
        ),
        ("v.txt", b"good 1 2 nan\n", "line 1 must hold numbers, not nan"),
        ("v.txt", b"zebra 1 2 3\n", "has a vector for none of the 5 words"),
        ("v.bin", b"4 3\ngood " + b"\x00" * 12 + b"film \x00", "ends or goes astray at word 2 of 4"),
    ],
)
def test_what_is_no_file_of_vectors_is_refused(tmp_path, tokenizer, cache, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_vectors(tmp_path / name, tokenizer, cache)
    with pytest.raises(ValueError, match=r"must be a file of word vectors or .*no such file"):
        load_vectors(tmp_path / "nowhere.txt", tokenizer, cache)


class Bomb:
    """Runs code when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("name", ["bomb.pkl", "bomb.bin", "bomb.txt"])
def test_a_pickle_among_word_vectors_is_never_loaded(tmp_path, tokenizer, cache, name):
    pd.to_pickle(Bomb(str(tmp_path / "owned")), tmp_path / name, compression=None)
    with pytest.raises(ValueError, match="pickle"):
        load_vectors(tmp_path / name, tokenizer, cache)
    assert not (tmp_path / "owned").exists()


def reviews(path, count, extra=""):
    texts = [
        f"good film {extra} number{row % 7}" if row % 2 else f"bad plot {extra} number{row % 7}" for row in range(count)
    ]
    pd.DataFrame({"text": texts, "label": [row % 2 for row in range(count)]}).to_csv(path, index=False)
    return str(path)


def test_word2vec_is_trained_on_training_and_unlabelled_text_alone(tmp_path):
    pytest.importorskip("gensim")
    settings = {
        "train": reviews(tmp_path / "train.csv", 60),
        "test": reviews(tmp_path / "test.csv", 20, "exam"),
        "batch_size": 8,
        "cache_dir": str(tmp_path / "cache"),
        "vectors": "train",
        "word2vec": {"dim": 6, "epochs": 1, "min_count": 1},
    }
    data = SentimentData(**settings)
    data.setup()
    first = data.model_arguments()["vectors"]
    assert first.shape == (data.vocab_size, 6)
    assert "of the training text" in data.describe()["vectors"]
    again = SentimentData(**settings)
    again.setup()
    assert again.model_arguments()["vectors"].equal(first)

    reviews(tmp_path / "test.csv", 20, "another")
    changed = SentimentData(**settings)
    changed.setup()
    assert changed.model_arguments()["vectors"].equal(first)

    more = SentimentData(**settings, unlabelled=reviews(tmp_path / "more.csv", 200, "good plot"))
    more.setup()
    assert not more.model_arguments()["vectors"].equal(first)


def test_a_models_own_run_does_not_ask_for_its_vectors_again(tmp_path):
    data = SentimentData(reviews(tmp_path / "a.csv", 20), cache_dir=str(tmp_path / "c"), vectors="gone.txt")
    data.use(Tokenizer.train(["good film"]), ["0", "1"])
    data.setup()
    assert data.model_arguments()["vectors"] is None


@pytest.mark.parametrize(("key", "value"), [("dim", 0), ("epochs", 0), ("window", -1), ("min_count", 1.5)])
def test_word2vec_settings_out_of_range_are_refused(tmp_path, key, value):
    data = SentimentData(
        train=reviews(tmp_path / "a.csv", 40),
        batch_size=4,
        cache_dir=str(tmp_path / "c"),
        vectors="train",
        word2vec={key: value},
    )
    data.setup()
    with pytest.raises(ValueError, match=rf"data.word2vec.{key} must be a whole number of at least 1"):
        data.model_arguments()


def test_a_first_line_longer_than_a_block_is_read_whole(tmp_path, tokenizer, cache):
    numbers = " ".join(["0.123456789"] * 600)
    (tmp_path / "v.vec").write_text(f"film {numbers}\ngood {numbers}\n")
    assert load_vectors(tmp_path / "v.vec", tokenizer, cache).matrix.shape[1] == 600
