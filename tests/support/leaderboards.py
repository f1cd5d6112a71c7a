"""Folders of sweeps and runs, without a run: what the launcher and `recur.train` leave behind."""

import json

from recur.runs import journal
from recur.runs.journal import Journal


def make_sweep(folder, jobs, monitor="val/accuracy", mode="max", total=None):
    """A sweep as the launcher leaves it; jobs are (overrides, value or state)."""
    book = Journal(folder)
    book.add(
        "sweep", format=1, search="grid", space={}, jobs=total or len(jobs), monitor=monitor, mode=mode, command="typed"
    )
    for number, (overrides, value) in enumerate(jobs):
        run = folder / str(number)
        run.mkdir()
        book.add("start", job=number, overrides=overrides, folder=str(number))
        if isinstance(value, str):
            if value != "unfinished":
                book.add("end", job=number, state=value, seconds=1.0, reason="exit code 1: <b>no</b> luck")
            continue
        record = {
            "val": {"accuracy": value, "loss": 1 - value},
            "test": {"accuracy": value - 0.01},
            "wall_seconds": 60.0,
        }
        record |= {"parameters": {"trainable": 1000 + number, "all": 2000}, "epochs": 3, "seed": 0}
        (run / "metrics.json").write_text(json.dumps(record))
        for epoch in (1, 2, 3):
            entry = {"step": 10 * epoch, "epoch": epoch, "done": epoch / 3, "seconds": epoch}
            journal.append_validation(run, entry | {"metrics": {"val/accuracy": value * epoch / 3}})
        book.add("end", job=number, state="done", seconds=61.0, value=value)
    book.close()
    return folder


JOBS = [([f"lr={lr}", f"size={size}", f"seed={seed}", "fixed=1"], 0.5 + 10 * lr + 0.001 * size + 0.01 * seed)
        for lr in (0.01, 0.02) for size in (1, 2) for seed in (0, 1, 2)]  # fmt: skip


def make_run(folder, value, *overrides, monitor="val/accuracy"):
    """A run of its own, as `recur.train` leaves it."""
    (folder / ".hydra").mkdir(parents=True)
    config = {"monitor": monitor, "mode": "max" if monitor == "val/accuracy" else "min", "optimizer": {"lr": 0.5}}
    (folder / "config.yaml").write_text(json.dumps(config))
    (folder / ".hydra" / "overrides.yaml").write_text(json.dumps([*overrides, f"hydra.run.dir={folder}"]))
    split, name = monitor.split("/")
    (folder / "metrics.json").write_text(json.dumps({split: {name: value}, "seed": 0, "wall_seconds": 2.0}))
    return folder
