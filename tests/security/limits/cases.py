"""Files that ask for more memory, time or depth than anything real does, and those that make a library panic."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from security.arena import Arena, Case
from security.bases import FILE, RUN, SWEEP, TINY, a_checkpoint, a_run, a_sweep, change_checkpoint, put

# --------------------------------------------------------------------------------------------------------- tokenizers


def _tokenizer(change: Callable[[dict[str, Any]], object], base: str = "sentiment") -> Callable[[Arena], None]:
    """The checkpoint with its tokenizer's JSON changed."""

    def edit(content: dict[str, Any]) -> None:
        state = json.loads(content["recur"]["tokenizer"])
        change(state)
        content["recur"]["tokenizer"] = json.dumps(state)

    return lambda arena: (a_checkpoint(arena, edit), None)[1]


def _raw(text: str) -> Callable[[Arena], None]:
    return lambda arena: (a_checkpoint(arena, lambda c: c["recur"].update(tokenizer=text)), None)[1]


def _inner(place: str, value: Any) -> Callable[[Arena], None]:
    return _tokenizer(lambda state: put(state["tokenizer"], place, value))


def _nested(kind: str, key: str, depth: int) -> Any:
    node: Any = {"type": kind, key: []}
    for _ in range(depth):
        node = {"type": kind, key: [node]}
    return node


REGEX = {"type": "Split", "pattern": {"Regex": "(a|a)*(a|aa)+$b"}, "behavior": "Removed", "invert": True}
TOKENIZERS: dict[str, Callable[[Arena], None]] = {
    "padding to a billion": _inner(
        "padding",
        {
            "strategy": {"Fixed": 1 << 30},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<unk>",
        },
    ),
    "padding to multiples of nothing": _inner(
        "padding",
        {
            "strategy": "BatchLongest",
            "direction": "Right",
            "pad_to_multiple_of": 0,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<unk>",
        },
    ),
    "truncation with a stride beyond it": _inner(
        "truncation", {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 5}
    ),
    "a regular expression without end": _inner("pre_tokenizer", REGEX),
    "a regular expression that is none": _inner("pre_tokenizer", {**REGEX, "pattern": {"Regex": "(((("}}),
    "normalizers a thousand deep": _inner("normalizer", _nested("Sequence", "normalizers", 100)),
    "a normalizer that multiplies": _inner(
        "normalizer",
        {
            "type": "Sequence",
            "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 40}] * 8,
        },
    ),
    "a precompiled map of rubbish": _inner(
        "normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA////AAAA"}
    ),
    "a template without its tokens": _inner(
        "post_processor",
        {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[X]", "type_id": 0}}],
            "pair": [],
            "special_tokens": {},
        },
    ),
    "ids beyond all": _inner("model.vocab", {"<unk>": 0, "a": 4294967295}),
    "ids that are negative": _inner("model.vocab", {"<unk>": 0, "a": -1}),
    "ids said twice": _inner("model.vocab", {"<unk>": 0, "a": 0}),
    "ids with a gap": _inner("model.vocab", {"<unk>": 0, "a": 2}),
    "ids that are text": _inner("model.vocab", {"<unk>": "0"}),
    "ids that are numbers with a point": _inner("model.vocab", {"<unk>": 0.0}),
    "no vocabulary": _inner("model.vocab", {}),
    "a vocabulary that is a list": _inner("model.vocab", [["<unk>", 0.0]]),
    "an unknown word that is unknown": _inner("model.unk_token", "[nobody]"),
    "another model": _inner("model", {"type": "Unigram", "unk_id": 5, "vocab": [["a", -1.0]], "byte_fallback": False}),
    "a model without a kind": _inner("model", {"vocab": {}}),
    "merges of what is not there": _inner(
        "model",
        {"type": "BPE", "vocab": {"<unk>": 0, "a": 1, "b": 2}, "merges": [["x", "y"]], "unk_token": "<unk>"},
    ),
    "merges without a result": _inner(
        "model",
        {"type": "BPE", "vocab": {"<unk>": 0, "a": 1, "b": 2}, "merges": [["a", "b"]], "unk_token": "<unk>"},
    ),
    "merges that are numbers": _inner("model", {"type": "BPE", "vocab": {"<unk>": 0}, "merges": [1, 2]}),
    "a hundred thousand added tokens": _inner(
        "added_tokens",
        [
            {
                "id": i,
                "content": f"<{i}>",
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for i in range(100_000)
        ],
    ),
    "an added token that is empty": _inner(
        "added_tokens",
        [
            {
                "id": 0,
                "content": "",
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
        ],
    ),
    "another kind": _tokenizer(lambda state: state.update(kind="bpe")),
    "a kind that is a list": _tokenizer(lambda state: state.update(kind=["bpe"])),
    "characters of a word model": _tokenizer(lambda state: state.update(kind="character")),
    "an eos that is none": _tokenizer(lambda state: state.update(eos=True)),
    "no tokenizer": _tokenizer(lambda state: state.update(tokenizer=None)),
    "nested JSON": _raw("[" * 200_000),
    "nested keys": _raw('{"a":' * 100_000),
    "a number without end": _raw('{"format": 1, "kind": "bpe", "eos": false, "tokenizer": ' + "9" * 10_000 + "}"),
    "lone surrogates": _raw('{"format": 1, "kind": "bpe", "eos": false, "tokenizer": {"\\ud800": 1}}'),
    "an empty text": _raw(""),
}
# The text is what such a regular expression takes for ever on.
_TEXT = "a" * 40
CASES = [
    Case(
        f"tokenizer with {name}",
        plant,
        (("predict", "a.ckpt", f"{_TEXT} \u00e9"), ("evaluate", "a.ckpt")),
        own=("a.ckpt",),
        codes=(2,),
        quick=name == "padding to multiples of nothing",
    )
    for name, plant in TOKENIZERS.items()
]

# -------------------------------------------------------------------------------------------------------- checkpoints


def _model(**net: Any) -> Callable[[Arena], None]:
    def change(content: dict[str, Any]) -> None:
        content["recur"]["config"]["model"]["net"].update(net)

    return lambda arena: (a_checkpoint(arena, change), None)[1]


def _data(**data: Any) -> Callable[[Arena], None]:
    return lambda arena: (a_checkpoint(arena, lambda c: c["recur"]["data"].update(data)), None)[1]


def _expanded(content: dict[str, Any]) -> None:
    """A tensor of a few bytes that claims to be a hundred gigabytes."""
    content["state_dict"]["net.embedding.weight"] = torch.zeros(1).expand(1 << 20, 1 << 15)


def _bomb(arena: Arena) -> None:
    """An archive whose members are compressed: a megabyte that unpacks to four gigabytes."""
    whole = a_checkpoint(arena, lambda content: None).read_bytes()
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as source, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as target:
        for info in source.infolist():
            if info.filename.endswith("data/0"):
                with target.open(info.filename, "w", force_zip64=True) as member:
                    for _ in range(4096):
                        member.write(bytes(1 << 20))
            else:
                target.writestr(info.filename, source.read(info))
    arena.path("a.ckpt").write_bytes(out.getvalue())


def _names(prefix: str) -> Callable[[Arena], None]:
    """An archive whose members would be unpacked above the folder."""

    def plant(arena: Arena) -> None:
        whole = a_checkpoint(arena, lambda content: None).read_bytes()
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(whole)) as source, zipfile.ZipFile(out, "w") as target:
            for info in source.infolist():
                name = info.filename.partition("/")[2]
                target.writestr(f"{prefix.format(victim=arena.victim)}/{name}", source.read(info))
        arena.path("a.ckpt").write_bytes(out.getvalue())

    return plant


def _deep(content: dict[str, Any]) -> None:
    node: dict[str, Any] = {}
    content["recur"]["config"]["data"]["deep"] = node
    for _ in range(250):
        node["x"] = {}
        node = node["x"]


CHECKPOINTS: dict[str, Callable[[Arena], None]] = {
    "a million layers": _model(num_layers=1_000_000),
    "a width of a billion": _model(hidden_size=1_000_000_000),
    "an embedding of a billion": _model(embedding_dim=1_000_000_000),
    "a width that is negative": _model(hidden_size=-1),
    "a width with a point": _model(hidden_size=4.5),
    "a width that is true": _model(hidden_size=True),
    "a vocabulary of a trillion": _data(vocab_size=10**12),
    "a million classes": _data(num_classes=10**9),
    "a million names": _data(class_names=["x"] * 1_000_000),
    "an expanded tensor": lambda arena: (a_checkpoint(arena, _expanded), None)[1],
    "a bomb": _bomb,
    "names above": _names("../../victim"),
    "names of somebody": _names("{victim}"),
    "a deep config": lambda arena: (a_checkpoint(arena, _deep), None)[1],
    "weights that are lists": lambda arena: (a_checkpoint(arena, lambda c: c.update(state_dict=[1, 2])), None)[1],
    "weights of other kinds": lambda arena: (
        a_checkpoint(arena, lambda c: c.update(state_dict={k: v.to(torch.int8) for k, v in c["state_dict"].items()})),
        None,
    )[1],
    "weights on no device": lambda arena: (
        a_checkpoint(arena, lambda c: c.update(state_dict={k: v.to("meta") for k, v in c["state_dict"].items()})),
        None,
    )[1],
}
CASES += [
    Case(f"checkpoint with {name}", plant, FILE, own=("a.ckpt",), quick=name == "a million layers")
    for name, plant in CHECKPOINTS.items()
]

# --------------------------------------------------------------------------------------------------------------- YAML

BOMB = "bomb:\n" + "".join(
    f"  a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10) if i else ', '.join(['x'] * 10)}]\n" for i in range(9)
)
NESTED = "deep: " + "[" * 5000 + "]" * 5000 + "\n"
NESTED_KEYS = "".join(f"{' ' * i}k:\n" for i in range(1500))
TEXTS = {
    "an alias bomb": BOMB,
    "nested lists": NESTED,
    "nested keys": NESTED_KEYS,
    "an alias of itself": "loop: &loop [*loop]\n",
    "a key of itself": "loop: &loop {a: *loop}\n",
    "a hundred megabytes": "long: " + "x" * 100_000_000 + "\n",
    "no UTF-8": "bad: \udcff\n",
    "a date": "when: 2020-01-01\n",
    "a number without end": f"many: {'9' * 10_000}\n",
    "a key that is a list": "? [a, b]\n: c\n",
}


def _yaml(name: str, text: str) -> Callable[[Arena], None]:
    def plant(arena: Arena) -> None:
        path = a_run(arena) / name
        path.write_bytes(path.read_bytes() + text.encode("utf-8", "surrogateescape"))

    return plant


CASES += [
    Case(
        f"{kind} in {name}", _yaml(name, text), RUN if name != "config.yaml" else RUN[:1], quick=kind == "an alias bomb"
    )
    for kind, text in TEXTS.items()
    for name in (".hydra/config.yaml", "config.yaml")
]


def _sweep_yaml(text: str) -> Callable[[Arena], None]:
    """Runs' configs, as a comparison reads them."""

    def plant(arena: Arena) -> None:
        a_sweep(arena, complete=2, start={"overrides": ["optimizer.lr=1"]}, name="t")
        sweep = a_sweep(arena, complete=2)
        for name in ("config.yaml", ".hydra/hydra.yaml"):
            path = sweep / "0" / name
            path.write_bytes(path.read_bytes() + text.encode("utf-8", "surrogateescape"))

    return plant


CASES += [
    Case(f"{kind} in a sweep's run", _sweep_yaml(text), (("results", "s", "t"),), own=("s", "t"))
    for kind, text in TEXTS.items()
]

# --------------------------------------------------------------------------------------------------------------- JSON

JSON = {
    "nested": "[" * 200_000 + "\n",
    "not a number": '{"val": {"accuracy": NaN, "loss": Infinity}, "seed": -Infinity}\n',
    "a number without end": '{"val": {"accuracy": ' + "9" * 5000 + "}}\n",
    "a hundred megabytes": '{"a": "' + "x" * 100_000_000 + '"}\n',
    "a list": "[1, 2, 3]\n",
}


def _json(name: str, text: str, after: bool) -> Callable[[Arena], None]:
    def plant(arena: Arena) -> None:
        path = a_sweep(arena, complete=2) / name
        path.write_text((path.read_text() if after else "") + text)

    return plant


CASES += [
    Case(
        f"{kind} in {name}",
        _json(name, text, after=name.endswith("jsonl")),
        SWEEP,
        own=("s",),
        codes=(0, 1, 2),  # a job without its metric has failed, and a sweep with such a job ends with 1
    )
    for kind, text in JSON.items()
    for name in ("sweep.jsonl", "0/metrics.json", "0/history.jsonl")
]

# ------------------------------------------------------------------------------------------------------------ vectors

VECTORS = {
    "a header beyond all": b"1000000000 1000000000\nfilm 1 2 3\n",
    "a header of binary beyond all": b"2 100000000\nfilm " + bytes(400),
    "a line without end": b"film " + b"1 " * 5_000_000,
    "a width of ten million": b"film" + b" 1" * 10_000_000 + b"\n",
    "words without end": b"1000000 3\n" + b"x" * 3_000_000,
    "no number": b"3 3\nfilm nan inf 1\n",
}


def _vectors(content: bytes) -> Callable[[Arena], None]:
    def plant(arena: Arena) -> None:
        arena.path("v.vec").write_bytes(content)
        arena.path("a.csv").write_text("text,label\n" + "a fine film,1\na dull film,0\n" * 20)

    return plant


CASES += [
    Case(
        f"vectors with {kind}",
        _vectors(content),
        (("train", "data=files", "data.train=a.csv", "data.vectors=v.vec", *TINY[4:], "hydra.run.dir=new"),),
        own=("new",),
    )
    for kind, content in VECTORS.items()
]


def _resumed(change: Callable[[dict[str, Any]], object]) -> Callable[[Arena], None]:
    """What a resumption reads of its checkpoint besides weights."""

    def plant(arena: Arena) -> None:
        for path in sorted((a_run(arena) / "checkpoints").glob("last*.ckpt")):
            change_checkpoint(path, change)

    return plant


CASES += [
    Case(f"resumed with {kind}", _resumed(change), RUN[:1], codes=(0, 2))
    for kind, change in {
        "no loops": lambda c: c.pop("loops"),
        "loops that are text": lambda c: c.update(loops="x"),
        "callbacks that are a list": lambda c: c.update(callbacks=[1]),
        "a step that is text": lambda c: c.update(global_step="x"),
        "optimizers that are none": lambda c: c.update(optimizer_states=[]),
        "an optimizer of other shapes": lambda c: c.update(
            optimizer_states=[{**c["optimizer_states"][0], "state": {0: {"exp_avg": torch.zeros(3)}}}]
        ),
        "curves elsewhere": lambda c: c["reached"].update(curves={"../../victim/letter.txt": 1}),
        "curves that are negative": lambda c: c["reached"].update(curves=dict.fromkeys(c["reached"]["curves"], -1)),
        "a best elsewhere": lambda c: [
            state.update(best_model_path="../../victim/letter.txt", dirpath="../../victim")
            for state in c["callbacks"].values()
            if isinstance(state, dict) and "best_model_path" in state
        ],
        "a best that is to be deleted": lambda c: [
            state.update(
                best_model_path=str(Path("../victim/letter.txt")),
                best_k_models={"../victim/letter.txt": torch.tensor(-1.0)},
                kth_best_model_path="../victim/letter.txt",
                kth_value=torch.tensor(-1.0),
                best_model_score=torch.tensor(-1.0),
                current_score=torch.tensor(-1.0),
            )
            for state in c["callbacks"].values()
            if isinstance(state, dict) and "best_model_path" in state
        ],
        "a last to be deleted": lambda c: [
            state.update(last_model_path="../victim/letter.txt")
            for state in c["callbacks"].values()
            if isinstance(state, dict) and "last_model_path" in state
        ],
    }.items()
]
