"""Forty kills at random moments, and nothing lost: `make torture`."""

import itertools
from pathlib import Path

import pytest

from support.torture import compare, finish, moments, torture
from test_resume import SENTIMENT, language

ROUNDS = [("sentiment", 1, 14), ("language", 1, 14), ("sentiment", 2, 8), ("language", 2, 8)]  # family, ranks, kills


@pytest.mark.slow
def test_forty_kills(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every run is killed up to seven times, resumed until it ends, and compared with one never killed."""
    kills, identical = 0, 0
    seen = set()
    for number, (family, ranks, wanted) in enumerate(ROUNDS):
        folder = tmp_path / f"{family}{ranks}"
        folder.mkdir()
        words = [*(SENTIMENT if family == "sentiment" else language(folder)), "trainer.max_epochs=3"]
        words += ["trainer=ddp_cpu"] * (ranks > 1)
        finish(folder / "whole", words, ranks)
        done = 0
        for turn in itertools.count():
            if done >= wanted:
                break
            parts = folder / f"parts{turn}"
            found = torture(parts, words, ranks, moments(100 * number + turn, min(7, wanted - done), ranks))
            wrong = compare(folder / "whole", parts)
            done, kills = done + len(found), kills + len(found)
            identical += 0 if wrong else len(found)
            seen |= {(ranks, kill["phase"].partition(" ")[0]) for kill in found}
            with capsys.disabled():
                for kill in found:
                    hand = f", rank {kill['rank']}" if ranks > 1 else ""
                    print(f"{family:<9}  {ranks} process(es){hand:<8}  step {kill['step']:>3}  {kill['phase']}")
                print("\n".join(["DIFFERENT:", *wrong[:10]]) if wrong else "resumed, and identical", flush=True)
    with capsys.disabled():
        print(f"{identical} of {kills} identical")
    assert kills >= 40
    assert identical == kills
    for ranks in (1, 2):
        assert {phase for some, phase in seen if some == ranks} >= {"training", "validation", "writing", "between"}
