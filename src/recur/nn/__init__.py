"""Tensors in, tensors out. Imports torch alone.

    packed          layouts of packed batches, pooling over packed rows, the batch types
    recurrent       the recurrent stack: layers, directions, dropout sites, carried state
    cells           every cell: its parameters, its state, its steps
    engine          exact recurrence over packed sequences on a CPU
    compiled        the same in compiled kernels, with `jit/`
    mogrifier       the Mogrifier LSTM in compiled kernels
    products        matrix products at the rate of the fastest library at hand
    drop_in         `LSTM`, `GRU` and `RNN` with the signature of `torch.nn`'s
    classifier      the text classifier
    ngrams          scores of hashed n-grams beside the recurrent classifier
    language_model  the language model
    stepping        the language model fed token by token, its weights laid out once
    losses          the output layer and its cross-entropy as one function
    compiled_loss   the same in compiled kernels
    sampled_softmax the same over a sample of the vocabulary
    regularization  what keeps a language model from learning its text by heart
    state_dropout   dropout on the state between two steps
    gradient_flow   norm of the gradient by the steps that it has come back
    costs           what a network's products cost, and the rate of a machine's
    differentiation backward passes written by hand, once differentiable
    arguments       the error of a constructor that refuses an argument

To add a cell: a class in `cells` with the methods of `Cell`, and a line in `_OWN`.
"""

from recur.nn.cells import CELLS as CELLS
from recur.nn.drop_in import GRU as GRU
from recur.nn.drop_in import LSTM as LSTM
from recur.nn.drop_in import RNN as RNN
from recur.nn.losses import linear_cross_entropy as linear_cross_entropy
from recur.nn.recurrent import Recurrent as Recurrent
from recur.nn.recurrent import detach_state as detach_state
