"""A claim's experiment that goes on."""

import json

from recur.course import experiment


def test_a_sweep_that_goes_on_has_its_data_where_it_began(tmp_path):
    """Typed otherwise it was another sweep, and refused as one."""
    typed = ["data.path=imdb", "data.cache_dir=elsewhere", "data.limit_train=9"]
    begun = {"x": "x=1", "data.path": "data.path=/data/imdb"}
    header = {"event": "sweep", "format": 1, "monitor": "val/accuracy", "mode": "max"}
    for more, places in (({"space": {"fixed": begun}}, ["data.path=/data/imdb"]), ({}, [])):
        (tmp_path / "sweep.jsonl").write_text(json.dumps({**header, **more}) + "\n")
        assert experiment._as_begun(tmp_path, typed) == ["data.limit_train=9", *places]
