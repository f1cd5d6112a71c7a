"""Weights, config and tokenizer as a folder of the hub, and back."""

import json
from pathlib import Path

import torch

from recur.nn.language_model import LanguageModel
from recur.runs import hub


def test_tied_tensors_are_stored_once_and_both_come_back(tmp_path: Path) -> None:
    net = LanguageModel(30, embedding_dim=8, hidden_size=8, tie_weights=True)
    own = {"format": 1, "config": {"x": 1}, "data": {"vocab_size": 30}}
    own["fingerprint"] = {"train": {"rows": 3, "texts": "00ff"}}
    own["tokenizer"] = json.dumps({"format": 1, "kind": "character", "eos": False, "tokenizer": {"model": {}}})
    content = {"state_dict": net.state_dict(), "recur": own}
    written = hub.files(content)
    assert len(written[hub.WEIGHTS]) < sum(p.numel() * 4 for p in net.parameters()) + 2000
    for name, data in written.items():
        (tmp_path / name).write_bytes(data)
    assert hub.is_hub_folder(tmp_path)
    again = hub.read(tmp_path)
    assert again["recur"] == {**own, "tokenizer": again["recur"]["tokenizer"]}
    assert json.loads(again["recur"]["tokenizer"]) == json.loads(own["tokenizer"])
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, again["state_dict"][name])
    assert again["state_dict"]["decoder.weight"].data_ptr() == again["state_dict"]["embedding.weight"].data_ptr()


def test_views_of_one_tensor_are_not_taken_for_the_same(tmp_path: Path) -> None:
    whole = torch.arange(6.0)
    own = {"format": 1, "config": {}, "data": {}, "tokenizer": json.dumps({"kind": "bpe", "tokenizer": {}})}
    content = {"state_dict": {"a": whole[:3], "b": whole[3:]}, "recur": own}
    for name, data in hub.files(content).items():
        (tmp_path / name).write_bytes(data)
    assert hub.read(tmp_path)["state_dict"]["b"].tolist() == [3, 4, 5]
