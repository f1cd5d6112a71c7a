"""The batch types in which data and tasks meet: packed from the collate function to the loss.

A batch of variable-length text is a `torch.nn.utils.rnn.PackedSequence` of token ids. Its rows lie time-major: the
first tokens of all sequences, then the second tokens of those that have one, and so on; `batch_sizes[t]` says how many
sequences still run at step `t` and always lives on the CPU. There are no pad tokens, masks or length tensors.
"""

from typing import NamedTuple

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence


class TextBatch(NamedTuple):
    """Labelled texts, longest first.

    Attributes:
        text: token ids, `data` of shape `(tokens,)` int64. Built already sorted, so its `sorted_indices` is None.
        labels: class of each text, `(batch,)` int64, in the packed order (longest text first).
        rows: number of each text's row in its split, `(batch,)` int64, same order.
        scale: texts in this batch over the mean number of all ranks' in this step. Ranks have equally many tokens and
            so unequally many texts: a mean loss times `scale`, averaged over ranks, is the mean over the step's texts.
    """

    text: PackedSequence
    labels: Tensor
    rows: Tensor
    scale: float = 1.0


class TokenWindow(NamedTuple):
    """A window of parallel token streams for truncated back-propagation through time.

    Attributes:
        text: input ids, `data` of shape `(tokens,)` int64; every step has all streams, but the last step of the last
            window may lack those that are a token shorter.
        targets: the id that follows each input id, `(tokens,)` int64, in the same packed row order. Where only the last
            step of each sequence predicts, it has that step's rows alone, `(sequences,)`.
        first: True where the streams begin, so that the carried state must be dropped.
        lr_scale: factor for this step's learning rate (window length / nominal `bptt`, 1 where windows are fixed).
    """

    text: PackedSequence
    targets: Tensor
    first: bool
    lr_scale: float
