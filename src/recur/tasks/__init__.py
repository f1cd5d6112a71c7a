"""LightningModules: loss, metrics, carried state, optimizers.

    base.py                 what both tasks share: a step with a clipped gradient, sums that survive a resume
    sentiment.py            text classification
    adversarial.py          a classifier's loss under the worst change of its word vectors
    language_modeling.py    language modelling with carried state, and sampling
    scoring.py              a language model on a text, window by window, without a trainer
    dynamic_evaluation.py   a language model that goes on learning from the text it is scored on
    neural_cache.py         a language model with which its recent states vote
    temperature.py          a language model that is less sure of itself
    schedulers.py           learning-rate schedules

To add a metric, compute it in the task of its family and give it one line in `recur.runs.metrics.METRICS`. To add a
schedule, write a function `(optimizer, plan, *, ...)` in `schedulers.py` and a file in `conf/scheduler` whose keys are
its arguments.
"""
