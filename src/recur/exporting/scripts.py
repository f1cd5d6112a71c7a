"""The scripts that use an exported ONNX model with nothing but onnxruntime and tokenizers."""

from typing import Any

_HEAD = '''"""{what}

Needs onnxruntime and tokenizers, nothing else.
"""
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import tokenizers

here = Path(__file__).parent
config = json.loads((here / "config.json").read_text(encoding="utf-8"))
tokenizer = tokenizers.Tokenizer.from_file(str(here / "tokenizer.json"))
model = onnxruntime.InferenceSession(here / "model.onnx", providers=["CPUExecutionProvider"])
# Bytes that are not UTF-8 come as lone surrogates, which no tokenizer takes
words = [word.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for word in sys.argv[1:]]
'''

_CLASSIFIER = """
texts = [{cut} for ids in (one.ids for one in tokenizer.encode_batch(words))]
if not texts:
    sys.exit('use.py: no text is given: python use.py "a text"')
for text, ids in zip(words, texts):
    if not ids:
        sys.exit(f"use.py: {{text!r}} has no tokens: give at least one word")
lengths = np.array([len(text) for text in texts])
ids = np.zeros((len(texts), lengths.max()), np.int64)
for row, text in zip(ids, texts):
    row[: len(text)] = text
probabilities = model.run(["probabilities"], {{"ids": ids, "lengths": lengths}})[0]
for text, row in zip(words, probabilities):
    print(f"{{config['class_names'][row.argmax()]}}\\t{{row.max():.6f}}\\t{{text}}")
"""

_TEXT = """
eos = config["eos_id"]  # what a line's end is to a model of words


def encode(text):
    text = text.replace("\\r\\n", "\\n").replace("\\r", "\\n")
    if eos is None:
        return tokenizer.encode(text).ids
    lines = [tokenizer.encode(line).ids for line in text.split("\\n")]
    return [index for line in lines for index in (eos, *line)][1:]


def decode(ids):
    lines = [[]]
    for index in ids:
        if eos is not None and index == eos:
            lines.append([])
        else:
            lines[-1].append(index)
    return "\\n".join(tokenizer.decode(line, skip_special_tokens=False) for line in lines)


if len(words) != 2 or not words[1].isdecimal():
    sys.exit('use.py: give a text and a number of tokens: python use.py "the king" 50')
"""

_LANGUAGE = """
state = {name: np.zeros((1, 1, size), np.float32) for name, size in config["state"].items()}
written = encode(words[0])
ids = [config["start_id"], *written]
for _ in range(int(words[1])):
    logits, *following = model.run(None, {"ids": [ids], "lengths": [len(ids)], **state})
    state = dict(zip(state, following))
    ids = [int(logits[0, -1].argmax())]
    written += ids
print(decode(written))
"""

_WINDOW = """
state = {name: np.zeros((1, 1, size), np.float32) for name, size in config["state"].items()}
written = encode(words[0])
for _ in range(int(words[1])):
    ids = written[-config["window"] :] or [config["start_id"]]
    logits = model.run(["logits"], {"ids": [ids], "lengths": [len(ids)], **state})[0]
    written = [*written, int(logits[0, -1].argmax())]
print(decode(written))
"""


def script(config: dict[str, Any]) -> str:
    """The script beside an ONNX model.

    Args:
        config: what is written into `config.json`.
    """
    if config["family"] == "sentiment":
        what = 'Labels texts: python use.py "a text" "another text".'
        return _HEAD.format(what=what) + _CLASSIFIER.format(cut=_cut(config["max_length"], config["keep"]))
    what = 'Continues a text with the likeliest tokens: python use.py "the king" 50.'
    return _HEAD.format(what=what) + _TEXT + (_LANGUAGE if config["window"] is None else _WINDOW)


def _cut(most: int | None, keep: str) -> str:
    """The expression that cuts ids as the run cuts them."""
    if most is None:
        return "ids"
    if keep == "both":
        head = (most + 1) // 2
        tail = f" + ids[-{most - head}:]" if most > head else ""
        return f"(ids if len(ids) <= {most} else ids[:{head}]{tail})"
    return f"ids[-{most}:]" if keep == "tail" else f"ids[:{most}]"
