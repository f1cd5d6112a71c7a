"""A run's folder in any order of events: after every refusal as before, after every kill as if it had never been."""

import json
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from security.arena import _content
from security.bases import TINY
from security.refusals.cases import SETTINGS
from support.commands import run_command
from support.torture import Moment, compare, start

WORDS = (*TINY, "callbacks.last.every_steps=1", "~callbacks.pages", "trainer.num_sanity_val_steps=0")
MOST_EPOCHS = 5
# Where a process may die; how often the phase comes before it does.
MOMENTS = st.one_of(
    st.builds(Moment, st.sampled_from(["training", "between", "validation", "renaming"]), st.integers(1, 4)),
    st.builds(Moment, st.just("writing"), st.integers(1, 150)),
)


def content(folder: Path) -> dict[str, str]:
    """Every file of a folder but the lock, which says who held it last."""
    paths = (path for path in sorted(folder.rglob("*")) if path.name != ".lock")
    return {str(path.relative_to(folder)): _content(path) for path in paths}


class RunStates(RuleBasedStateMachine):
    """Two runs of the same history: one is killed, moved and refused things on the way, the other is left alone."""

    def __init__(self) -> None:
        super().__init__()
        self.scratch = Path(tempfile.mkdtemp())
        self.whole, self.parts = self.scratch / "whole", self.scratch / "parts"
        self.epochs, self.moves = 1, 0
        self.unfinished = False  # whether `parts` was killed and has still to end

    def teardown(self) -> None:
        shutil.rmtree(self.scratch)

    def _same(self) -> None:
        self.unfinished = False
        assert compare(self.whole, self.parts) == []

    @initialize(seed=st.integers(0, 3), moment=st.none() | MOMENTS)
    def train(self, seed: int, moment: Moment | None) -> None:
        words = [*WORDS, f"seed={seed}"]
        assert run_command("train", *words, f"hydra.run.dir={self.whole}").returncode == 0
        ended = start(self.parts, words, moment=moment)
        if ended.hit is not None and not (self.parts / "checkpoints" / "last.ckpt").is_file():
            ended = start(self.parts, words)  # killed before there was anything to go on from
        self.unfinished = ended.hit is not None
        assert ended.hit or ended.codes == [0], ended.said
        if not self.unfinished:
            self._same()

    @precondition(lambda self: not self.unfinished and self.epochs < MOST_EPOCHS)
    @rule(moment=st.none() | MOMENTS, clip=st.sampled_from([None, "0.5", "2.0"]))
    def extend(self, moment: Moment | None, clip: str | None) -> None:
        """More epochs, with another setting perhaps."""
        self.epochs += 1
        more = [f"trainer.max_epochs={self.epochs}", *([f"trainer.gradient_clip_val={clip}"] if clip else [])]
        done = run_command("train", f"resume={self.whole}", *more)
        assert done.returncode == 0, done.stderr
        ended = start(self.parts, [], moment=moment, more=more)
        assert ended.hit or ended.codes == [0], ended.said
        self.unfinished = ended.hit is not None
        if not self.unfinished:
            self._same()

    @precondition(lambda self: self.unfinished)
    @rule(moment=st.none() | MOMENTS)
    def resume(self, moment: Moment | None) -> None:
        """Nothing is typed but the folder; the process may be killed once more."""
        ended = start(self.parts, [], moment=moment)
        if ended.hit is None:
            assert ended.codes == [0], ended.said
            self._same()

    @rule(words=st.sampled_from(SETTINGS))
    def refuse(self, words: tuple[str, ...]) -> None:
        before = content(self.parts)
        done = run_command("train", f"resume={self.parts}", f"trainer.max_epochs={MOST_EPOCHS + 1}", *words)
        assert done.returncode == 2, (words, done.stdout, done.stderr)
        assert content(self.parts) == before, words

    @rule(words=st.sampled_from([(), ("optimizer.lr=-1",), ("model.net.hidden_size=8",)]))
    def train_into_it(self, words: tuple[str, ...]) -> None:
        """A run's folder is no place for another run."""
        before = content(self.parts)
        done = run_command("train", *WORDS, f"hydra.run.dir={self.parts}", *words)
        assert done.returncode == 2, (words, done.stdout, done.stderr)
        assert content(self.parts) == before, words

    @rule()
    def move(self) -> None:
        self.moves += 1
        self.parts = self.parts.rename(self.scratch / f"parts{self.moves}")

    @precondition(lambda self: not self.unfinished)
    @rule()
    def evaluate(self) -> None:
        before = content(self.parts)
        answers = []
        for folder in (self.whole, self.parts):
            done = run_command("evaluate", folder)
            assert done.returncode == 0, done.stderr
            answers.append({key: value for key, value in json.loads(done.stdout).items() if key in ("val", "test")})
        assert answers[0] == answers[1]
        assert content(self.parts) == before


@pytest.mark.slow
def test_a_run_folder_keeps_its_promises_in_any_order_of_events():
    run_state_machine_as_test(
        RunStates,
        settings=settings(
            max_examples=8,
            stateful_step_count=8,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],  # each step takes seconds, and shrinking hundreds of them
            database=None,
        ),
    )
