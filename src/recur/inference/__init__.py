"""Using a trained model, from Python and from the commands.

    run.py             `load` and `Run`: a trained model with its methods; what the commands call too
    classification.py  labels and probabilities; each token's contribution by integrated gradients
    batches.py         texts in batches of about equally many tokens
    language.py        negative log-likelihood and rank of each token; sampling and beam search
    ensemble.py        several classifiers as one
    curves.py          a run's training curves as a figure
    summary.py         a run as a notebook shows it
    evaluation.py      metrics of a run's own data or of other data; dynamic evaluation and the neural cache
    probes.py          what goes on inside: the gates of an LSTM over a text
    io.py              texts from the command line, files and pipes; answers as JSON lines, CSV and TSV
    display.py         answers on a terminal and as a page

Nothing here knows a command. To offer a new answer, write it as a function of a `Run` in the family's module, give
`Run` a method that calls it, and show it in `display.py`.
"""
