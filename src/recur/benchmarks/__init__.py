"""Measurements of speed, and what is published of them.

    harness.py   how things are timed: settings, rivals in alternation, bars, tables, the plot
    former_engine.py  the CPU engine before the compiled kernels, a rival
    kernels.py   the recurrent engine, equal lengths of many shapes, the output layer's loss
    bandwidth.py  generation and scans beside the rate of memory, one thread beside all
    training.py  the bucket plan, whole training steps, start-up
    inference.py  predictions of short texts beside the network alone
    language.py  an epoch of WikiText-2 beside torch's own example
    gpu.py       every GPU test and benchmark into one JSON (`make gpu`)
    clock.py     callbacks that time a training command from inside it
    figures.py   what is published of an experiment's runs, and the head of its file
    publish.py   the figures of runs and benches as Markdown (`make results`)

To add a section, write a function `section(settings, report)` that fills `report` with tables and bars, and name it
and its module in `SECTIONS` of `recur.bench`.
"""
