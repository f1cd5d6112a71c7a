"""Precision and recall of each class, from the confusion matrix."""

from recur.inference.evaluation import by_class


def test_precision_and_recall_of_each_class() -> None:
    figures = by_class([[8, 2, 0], [1, 4, 0], [0, 0, 0]], ["bad", "good", 3])
    assert figures["bad"] == {"precision": 8 / 9, "recall": 0.8, "f1": 16 / 19, "texts": 10}
    assert figures["good"] == {"precision": 4 / 6, "recall": 0.8, "f1": 8 / 11, "texts": 5}
    assert figures["3"] == {"precision": None, "recall": None, "f1": None, "texts": 0}
