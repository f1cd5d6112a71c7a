"""A run on disk, and what may be done with one of unknown origin.

    run          what a run's folder holds, and how a run is opened with nothing but its path
    folder       what lies in a folder before a run writes into it
    checkpoint   checkpoint files that are whole or not there
    journal      `sweep.jsonl` and `history.jsonl`, a line for each event and each validation
    metrics      the one list of metrics, and `metrics.json`
    fingerprint  what a run was trained on, in a few numbers
    build        building what a config names, and whose mistake it is when that fails
    trust        what a foreign run, checkpoint or sweep may make this program do
    precision    what a run computes in, and what its `auto` means on a machine
    limits       how much a foreign file may ask for
    files        files written inside a run's folder and nowhere else
    requeue      where a SLURM job's run is, once SLURM starts the job again
    marks        which sweep made a folder
    hub          a run laid out as a repository of the Hugging Face hub
    extras       optional dependencies, and how to install them

To add a metric: one line in `METRICS` of `metrics`, and its computation in the task of its family.
"""
