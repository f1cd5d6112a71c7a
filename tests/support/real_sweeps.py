"""Real sweeps, as small as they can be, through the real command."""

import os

from recur.leaderboard.table import Leaderboard
from support.commands import run_command

# As small as a run can be and still learn something in its second epoch.
TINY = (
    *(f"data.synthetic.{key}=0" for key in ("contrast", "negation", "gap", "distractors", "noise")),
    "data.synthetic.train_size=240",
    "data.synthetic.val_size=100",
    "data.synthetic.test_size=100",
    "data.batch_size=20",
    "model.net.embedding_dim=8",
    "model.net.hidden_size=8",
    "trainer.max_epochs=2",
    "trainer=cpu",
    "baseline=false",
)


def environment(**more):
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **more}


def sweep(folder, *overrides, env=None, code=0, timeout=900):
    """A sweep through the real command; returns what it printed."""
    words = ["-m", *overrides]
    named = any(text.startswith(("resume=", "hydra.sweep.dir=")) for text in overrides)
    words += [] if named else [f"hydra.sweep.dir={folder}"]
    done = run_command("train", *words, environment=env or environment(), timeout=timeout)
    assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def figures(folder):
    """What the runs of a sweep found, to the last bit, by their settings."""
    return {
        tuple(sorted(r.settings.items())): {part: r.record[part] for part in ("val", "test", "steps", "epochs")}
        for r in Leaderboard.of([folder]).results
    }
