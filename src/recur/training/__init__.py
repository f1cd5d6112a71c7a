"""What happens around the training steps.

    start                a run from its composed config to its results
    fit                  `train(data, task, trainer)`, which takes built objects
    by_hand              what a run of objects built by hand leaves, so that it can be opened
    run_files            what a run reads in its folder before it begins, and writes when it does
    callbacks            callbacks, and the factories that `conf/callbacks` names
    checkpointing        when to save, what, and how it is taken up
    failures             numbers that are not finite, lack of memory, signals
    report               what a run prints, and `metrics.json`
    tensorboard          what TensorBoard shows besides curves
    loggers              loggers by name, with the settings and figures that each of them gets
    weights              weights to begin with, from another run
    lr_finder            Lightning's search for a learning rate
    baselines            what a model without a network reaches on the same rows
    allocator            memory that is freed stays for the next step
    lightning_internals  every private name of Lightning that is used
    logging_internals    every private name of Python's `logging` that is used

To add a callback: a class in `callbacks` and its node in `conf/callbacks/default.yaml`, null where it is off.
"""
