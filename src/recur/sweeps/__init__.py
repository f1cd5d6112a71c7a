"""Sweeps: many runs, each a process of its own, started by a command that anyone can type.

    launcher    checks a sweep whole, runs it, writes its leaderboard
    sweeper     grid, random, Optuna
    samplers    Optuna's samplers and pruners by their class
    snapshot    the code as it stood when a sweep began
    space       what is varied, read from Hydra's syntax
    study       Optuna's search as a source of jobs
    commands    what a job runs, and what completes a sweep
    checks      each job's config, before the first job starts
    locks       locks on files
    job         one run: its folder, mark, command
    runner      the loop; `Executor`, `Source`, `Display`
    signals     what ends a sweep
    local       slots of this machine
    remote      Ray, SLURM
    supervisor  the process above each job
    progress    what a sweep shows while it runs

To add a launcher: implement `runner.Executor`, subclass `launcher.FreshProcessLauncher` to make it, name that class in
`hydra_plugins/recur_sweeps/launcher.py`, and add a file to `conf/hydra/launcher/`. To add a sweeper: subclass
`sweeper.OwnSweeper`, name it in `hydra_plugins/recur_sweeps/sweeper.py`, and add a file to `conf/hydra/sweeper/`.
"""
