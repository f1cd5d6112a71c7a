"""A claim's experiment that goes on."""

import json

import pytest

from recur.course import experiment


@pytest.mark.parametrize(
    ("begun", "typed", "said"),
    [
        (["data.path={}/imdb"], ["data.path=imdb", "data.cache_dir=new"], ["data.path={}/imdb"]),
        (["data.path=imdb", "data.cache_dir=old"], ["data.path='{}/link'"], ["data.path=imdb", "data.cache_dir=old"]),
        (["data.path={}/imdb"], ["data.path=other"], ["data.path=other"]),
        (["data.path={}/imdb"], [], []),
        ([], ["data.path=imdb"], ["data.path=imdb"]),
    ],
)
def test_a_sweep_that_goes_on_has_its_data_where_it_began(tmp_path, monkeypatch, begun, typed, said):
    """Spelled otherwise it was another sweep, and refused as one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "imdb").mkdir()
    (tmp_path / "link").symlink_to("imdb")
    begun, typed, said = ([word.format(tmp_path) for word in words] for words in (begun, typed, said))
    header = {"event": "sweep", "format": 1, "monitor": "val/accuracy", "mode": "max"}
    fixed = {word.partition("=")[0]: word for word in ["x=1", *begun]}
    (tmp_path / "sweep.jsonl").write_text(json.dumps({**header, "space": {"fixed": fixed}}) + "\n")
    assert experiment._as_begun(tmp_path, ["data.limit_train=9", *typed]) == ["data.limit_train=9", *said]
