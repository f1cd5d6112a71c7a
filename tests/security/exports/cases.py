"""Folders of safetensors, as they come from the hub, in which something is not what a run writes."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from security.arena import SECRET, Arena, Case
from security.bases import EXPORT, Payload, an_export, pickled, put
from security.code.cases import PAYLOADS
from security.limits.cases import REGEX


def _weights(write: Callable[[Arena, Path], object]) -> Callable[[Arena], None]:
    def plant(arena: Arena) -> None:
        path = an_export(arena) / "model.safetensors"
        write(arena, path)

    return plant


def _header(change: Callable[[dict[str, Any]], object]) -> Callable[[Arena, Path], None]:
    """The weights with another header before the same numbers."""

    def write(arena: Arena, path: Path) -> None:
        raw = path.read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        header = json.loads(raw[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])

    return write


def _raw(length: int, text: bytes = b"", size: int | None = None) -> Callable[[Arena, Path], None]:
    def write(arena: Arena, path: Path) -> None:
        path.write_bytes(struct.pack("<Q", length) + text)
        if size is not None:
            os.truncate(path, size)  # takes no space

    return write


def _one(header: dict[str, Any], key: str, value: Any) -> None:
    name = next(name for name in header if name != "__metadata__")
    header[name][key] = value


def _link(target: Callable[[Arena], object]) -> Callable[[Arena, Path], None]:
    return lambda arena, path: (path.unlink(), os.symlink(str(target(arena)), path), None)[2]


def _pipe(arena: Arena, path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


_HUGE = json.dumps({"x": {"dtype": "F32", "shape": [1 << 38], "data_offsets": [0, 1 << 40]}}).encode()
WEIGHTS: dict[str, Callable[[Arena, Path], object]] = {
    "a pickle": lambda arena, path: path.write_bytes(pickled(arena)),
    "a pickle in an archive": lambda arena, path: torch.save(Payload(arena.shell), path),
    "nothing": lambda arena, path: path.write_bytes(b""),
    "cut off": lambda arena, path: path.write_bytes(path.read_bytes()[:-9]),
    "a letter": _link(lambda arena: arena.victim / "letter.txt"),
    "no end": _link(lambda arena: "/dev/zero"),
    "a pipe": _pipe,
    "a header of 8 EiB": _raw((1 << 63) - 1),
    "a header below nothing": _raw((1 << 64) - 1),
    "a header of a gigabyte": _raw(1 << 30, b"{", 1 << 31),
    "a header of 90 MB": _raw(90 << 20, b"{" + b" " * ((90 << 20) - 2) + b"}"),
    "a deep header": _raw(200_000, b'{"a":' * 30_000 + b" " * 50_000),
    "a terabyte": _raw(len(_HUGE), _HUGE, (1 << 40) + 8 + len(_HUGE)),
    "a shape that overflows": _header(lambda h: _one(h, "shape", [1 << 62, 1 << 62])),
    "a shape below nothing": _header(lambda h: _one(h, "shape", [-1, 4])),
    "another shape": _header(lambda h: _one(h, "shape", [1])),
    "an unheard-of type": _header(lambda h: _one(h, "dtype", "PICKLE")),
    "numbers of 8 bits": _header(lambda h: _one(h, "dtype", "F8_E4M3")),
    "offsets that overlap": _header(lambda h: _one(h, "data_offsets", [0, 4])),
    "offsets beyond the end": _header(lambda h: _one(h, "data_offsets", [1 << 50, 1 << 51])),
    "offsets that are texts": _header(lambda h: _one(h, "data_offsets", ["../../victim", "letter.txt"])),
    "metadata that is no dictionary": _header(lambda h: h.update(__metadata__=["x"])),
    "a name that is a path": _header(lambda h: h.update({"../../victim/letter.txt": h.pop(list(h)[-1])})),
    "a name of a million letters": _header(lambda h: h.update({"x" * 1_000_000: h.pop(list(h)[-1])})),
}
CASES = [
    Case(f"weights: {kind}", _weights(write), EXPORT[:3], own=("new",), quick=kind == "a pickle")
    for kind, write in WEIGHTS.items()
]

# ---------------------------------------------------------------------------------------------------- config, tokenizer


def _json(name: str, change: Callable[[Arena, dict[str, Any]], object]) -> Callable[[Arena], None]:
    def plant(arena: Arena) -> None:
        path = an_export(arena) / name
        (arena.work / "evil.pkl").write_bytes(pickled(arena))
        content = json.loads(path.read_text())
        change(arena, content)
        path.write_text(json.dumps(content))

    return plant


CASES += [
    Case(
        f"{kind} at {place}",
        _json("config.json", lambda arena, c, place=place, payload=payload: put(c, f"config.{place}", payload(arena))),
        EXPORT,
        own=("new", "out"),
    )
    for place in ("model", "model.net", "model.net.cell", "data", "data.synthetic", "optimizer", "callbacks.evil")
    for kind, payload in PAYLOADS.items()
    if kind in ("os.system", "pandas.read_pickle", "a module behind ours") or place == "model.net"
]
CONFIGS: dict[str, Callable[[Arena, dict[str, Any]], object]] = {
    "code of its own": lambda arena, c: c.update(auto_map={"AutoModel": "evil.Evil"}, trust_remote_code=True),
    "another library's": lambda arena, c: c.update(library_name="transformers"),
    "a later format": lambda arena, c: c.update(format=99),
    "a format that is a text": lambda arena, c: c.update(format="1; touch canary"),
    "a format that is none": lambda arena, c: c.update(checkpoint_format={"_target_": "os.system"}),
    "the environment": lambda arena, c: put(c, "config.name", f"${{oc.env:{SECRET}}}"),
    "the environment among the data": lambda arena, c: put(c, "data.class_names", [f"${{oc.env:{SECRET}}}", "b"]),
    "the environment for a cell": lambda arena, c: put(c, "config.model.net.cell", f"${{oc.env:{SECRET}}}"),
    "no config": lambda arena, c: c.pop("config"),
    "a config that is a list": lambda arena, c: c.update(config=[1]),
    "data that is a text": lambda arena, c: c.update(data="x"),
    "shared tensors that are a list": lambda arena, c: c.update(shared_tensors=[1]),
    "shared tensors that are paths": lambda arena, c: c.update(shared_tensors={"../x": "../../victim/letter.txt"}),
    "shared tensors of lists": lambda arena, c: c.update(shared_tensors={"x": ["y"]}),
    "a million shared tensors": lambda arena, c: c.update(
        shared_tensors={f"x{n}": "net.embedding.weight" for n in range(1_000_000)}
    ),
    "a cache elsewhere": lambda arena, c: put(c, "config.data.cache_dir", str(arena.victim / "cache")),
    "pickled data": lambda arena, c: (
        put(c, "config.data.synthetic", None),
        put(c, "config.data.train", str(arena.work / "evil.pkl")),
        put(c, "config.data.allow_pickle", True),
    ),
    "a billion layers": lambda arena, c: put(c, "config.model.net.num_layers", 1_000_000_000),
    "a huge layer": lambda arena, c: put(c, "config.model.net.hidden_size", 1 << 30),
    "a vocabulary of a trillion": lambda arena, c: put(c, "data.vocab_size", 10**12),
    "a kind of tokenizer that is a path": lambda arena, c: put(c, "tokenizer.kind", "../../victim/letter.txt"),
    "a dropout of 1e999": lambda arena, c: put(c, "config.model.net.dropout", 10**400),
}
CASES += [
    Case(f"a config with {kind}", _json("config.json", change), EXPORT, own=("new", "out"))
    for kind, change in CONFIGS.items()
]
TOKENIZERS: dict[str, Callable[[dict[str, Any]], object]] = {
    "a pattern that takes for ever": lambda t: t.update(pre_tokenizer=REGEX),
    "padding to a billion": lambda t: t.update(padding={"strategy": {"Fixed": 1 << 30}, "direction": "Right"}),
    "no model": lambda t: t.pop("model"),
    "a vocabulary that is a list": lambda t: t["model"].update(vocab=[1]),
    "ids beyond the end": lambda t: t["model"].update(vocab={"a": 1 << 40}),
    "a model of another kind": lambda t: t["model"].update(type="Unigram"),
}
CASES += [
    Case(
        f"a tokenizer with {kind}",
        _json("tokenizer.json", lambda arena, t, change=change: change(t)),
        EXPORT[:3],
        own=("new",),
    )
    for kind, change in TOKENIZERS.items()
]


def _instead(name: str, make: Callable[[Arena, Path], object]) -> Callable[[Arena], None]:
    return lambda arena: (make(arena, an_export(arena) / name), None)[1]


def _sparse(arena: Arena, path: Path) -> None:
    os.truncate(path, 1 << 40)


TEXTS: dict[str, Callable[[Arena, Path], object]] = {
    "a pipe": _pipe,
    "no end": _link(lambda arena: "/dev/zero"),
    "a terabyte": _sparse,
    "a folder": lambda arena, path: (path.unlink(), path.mkdir()),
    "a pickle": lambda arena, path: path.write_bytes(pickled(arena)),
    "deep": lambda arena, path: path.write_text("[" * 100_000),
    "a number of a million digits": lambda arena, path: path.write_text("9" * 1_000_000),
    "no UTF-8": lambda arena, path: path.write_bytes(b"\xff\xfe{\x00}\x00"),
    "somebody's letter": _link(lambda arena: arena.victim / "letter.txt"),
}
CASES += [
    Case(f"{name} is {kind}", _instead(name, make), EXPORT[:3], own=("new",))
    for name in ("config.json", "tokenizer.json")
    for kind, make in TEXTS.items()
]


def _index(arena: Arena) -> None:
    """What other libraries read where the weights lie in several files."""
    folder = an_export(arena)
    names = {"net.embedding.weight": "../../victim/photo.bin", "net.decoder.weight": "../evil.pkl"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    (arena.work / "evil.pkl").write_bytes(pickled(arena))


def _index_alone(arena: Arena) -> None:
    _index(arena)
    (arena.work / "h" / "model.safetensors").unlink()


def _other_files(arena: Arena) -> None:
    """What other libraries would run or unpickle."""
    folder = an_export(arena)
    code = f"import os\nos.system({arena.shell!r})\n"
    for name in ("modeling_recur.py", "__init__.py", "setup.py", "use.py", "sitecustomize.py", "torch.py", "recur.py"):
        (folder / name).write_text(code)
    for name in ("pytorch_model.bin", "model.pkl", "training_args.bin", "checkpoints"):
        (folder / name).write_bytes(pickled(arena))


def _both(arena: Arena) -> None:
    """A folder of the hub that is a run as well, whose checkpoint is a pickle."""
    folder = an_export(arena)
    (folder / "checkpoints").mkdir()
    for name in ("best.ckpt", "last.ckpt"):
        torch.save(Payload(arena.shell), folder / "checkpoints" / name)


CASES += [
    Case("an index of paths", _index, EXPORT[:3], own=("new",)),
    Case("an index of paths alone", _index_alone, EXPORT[:3], own=("new",), codes=(2,)),
    Case("files that others would run", _other_files, EXPORT, own=("new", "out")),
    Case("a pickled checkpoint beside", _both, EXPORT, own=("new", "out")),
    Case("what an export writes", lambda arena: an_export(arena), EXPORT, own=("new", "out"), codes=(0,)),
]
