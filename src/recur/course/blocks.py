"""Each code block of the five guides, and the command or configuration that does the same here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Block:
    """A code block of a guide.

    Attributes:
        guide: its title, in short.
        what: what the block does, in our words.
        line: a line by which the block can be recognised.
        commands: what to type instead; a word in capitals stands for a path of one's own.
    """

    guide: str
    what: str
    line: str
    commands: tuple[str, ...]


_ADVANCED, _NOTEBOOK, _GATES = "Day 12.2, advanced LSTM training", "BiLSTM notebook", "Day 8.2, LSTM and GRU"
_OPTIMIZE, _SESSION = "Day 13.4, optimization", "Session 4, RNN and LSTM"
_IMDB = "python -m recur.train experiment=imdb_guide data.path=FOLDER"
_PICKLES = "python -m recur.train data=files data.train=TRAIN.pkl data.val=VAL.pkl data.test=TEST.pkl"
_SHAPES = "python -m recur.claims shapes"
_BLOCKS = (
    Block(_ADVANCED, "stacked and bidirectional layers, and their shapes", "stacked_lstm = nn.LSTM(", (_SHAPES,)),
    Block(_ADVANCED, "dropout differs between train and eval", "lstm_with_dropout.train()", (_SHAPES,)),
    Block(_ADVANCED, "IMDB: tokens, vocabulary, batches", "def collate_batch(batch):", (_IMDB,)),
    Block(_ADVANCED, "the AdvancedLSTM model", "class AdvancedLSTM(nn.Module):", (f"{_IMDB} model=advanced_lstm",)),
    Block(
        _NOTEBOOK,
        "three pickled frames with labels 0 and 4",
        'with open("train.pkl", "rb") as f:',
        (f"{_PICKLES} data.allow_pickle=true 'data.class_names={{0: negative, 4: positive}}'",),
    ),
    Block(
        _NOTEBOOK,
        "the BiLSTM_Classifier model",
        "class BiLSTM_Classifier(nn.Module):",
        ("python -m recur.train model=bilstm_classifier",),
    ),
    Block(_NOTEBOOK, "one forward pass, and its shapes", "lstm = BiLSTM_Classifier(", (_SHAPES,)),
    Block(_GATES, "nn.LSTM: output, h_n and c_n", "output, (h_n, c_n) = lstm_layer(input_sequence)", (_SHAPES,)),
    Block(_GATES, "nn.GRU: output and h_n", "output_gru, h_n_gru = gru_layer(input_sequence)", (_SHAPES,)),
    Block(
        _GATES,
        "a sentence as windows of ten characters and the next",
        "seq_length = 10",
        ("python -m recur.train data=sentence model=language_model data.window=10",),
    ),
    Block(
        _GATES,
        "the CharModel, 200 epochs, then text",
        "class CharModel(nn.Module):",
        (
            "python -m recur.train experiment=char_sentence",
            "python -m recur.generate RUN --prompt 'hello pyto' --tokens 100 --greedy",
        ),
    ),
    Block(
        _OPTIMIZE,
        "clip gradients between backward and step",
        "# torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)",
        ("python -m recur.train trainer.gradient_clip_val=1.0", "python -m recur.claims clipping"),
    ),
    Block(
        _OPTIMIZE,
        "pack, run, unpack",
        "packed_input = nn.utils.rnn.pack_padded_sequence(padded_batch_sorted, lengths_sorted, batch_first=True)",
        ("python -m recur.claims packing pads",),
    ),
    Block(
        _OPTIMIZE,
        "truncated back-propagation in chunks of 100",
        "k = 100 # Truncation length",
        ("python -m recur.train model=language_model data=synthetic_text data.bptt=100",),
    ),
    Block(
        _OPTIMIZE,
        "decoder weights tied to the embedding",
        "class LanguageModelWithTying(nn.Module):",
        (
            "python -m recur.train model=language_model data=synthetic_text model.net.tie_weights=true "
            "model.net.num_layers=1 model.net.embedding_dim=128 model.net.hidden_size=128 model.net.dropout=0",
            "python -m recur.claims tying",
        ),
    ),
    Block(_SESSION, "the LSTM model", "class LSTM(nn.Module):", (f"{_IMDB} model=advanced_lstm",)),
    Block(_SESSION, "its sizes", "INPUT_DIM = len(TEXT.vocab)", (f"{_IMDB} data.tokenizer.max_size=25000",)),
    Block(_SESSION, "thirty epochs of training", "Epoch: 27 | Epoch Time: 0m 34s", (_IMDB,)),
)


def blocks() -> tuple[Block, ...]:
    """The blocks, in the order of the guides."""
    return _BLOCKS
