"""Real sweeps, as small as they can be, through the real door."""

import os
import subprocess
import sys

from recur.leaderboard.table import Leaderboard

# As small as a run can be and still learn something in its second epoch.
TINY = (
    *(f"data.synthetic.{key}=0" for key in ("contrast", "negation", "gap", "distractors", "noise")),
    "data.synthetic.train=240",
    "data.synthetic.val=100",
    "data.synthetic.test=100",
    "data.batch_size=20",
    "model.net.embedding_dim=8",
    "model.net.hidden_size=8",
    "trainer.max_epochs=2",
    "trainer=cpu",
)


def environment(**more):
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **more}


def sweep(folder, *overrides, env=None, code=0):
    """A sweep through the real door; returns what it printed."""
    command = [sys.executable, "-m", "recur.train", "-m", *overrides]
    command += [] if any(text.startswith("resume=") for text in overrides) else [f"hydra.sweep.dir={folder}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=env or environment(), check=False)
    assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def figures(folder):
    """What the runs of a sweep found, to the last bit, by their settings."""
    return {
        tuple(sorted(r.settings.items())): {part: r.record[part] for part in ("val", "test", "steps", "epochs")}
        for r in Leaderboard.of([folder]).results
    }
