"""LightningModules: loss, metrics, carried state, optimizers.

    base                what both tasks share
    sentiment           text classification
    language_modeling   language modelling by truncated back-propagation with carried state; sampling
    dynamic_evaluation  evaluation that adapts: dynamic evaluation and the neural cache
    schedulers          schedules counted in optimizer steps

To add a metric: compute it in the task of its family and log it under the name that `recur.runs.metrics` lists. To add
a schedule: a function in `schedulers` and a file in `conf/scheduler/`.
"""
