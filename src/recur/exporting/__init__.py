"""Trained models in the formats of other programs.

    graph.py        a small writer of ONNX graphs
    layers.py       one recurrent layer of every cell as ONNX nodes
    models.py       the classifier and the language model as ONNX models
    agreement.py    an exported model against our own answers, and its speed beside ours
    dense.py        the same two models on padded tensors in plain torch, for `torch.export`
    folder.py       what is written: a folder for each format
    card.py         the model card
    scripts.py      the scripts that use an exported model without this package

To make a new cell exportable, add its step to `SCANNED` in `layers.py` and its row to the tests of that file; the
agreement is measured at every export, so a wrong step is refused and never written.
"""
