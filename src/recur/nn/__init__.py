"""Ground floor: tensors in, tensors out. Imports torch alone."""

from recur.nn.cells import CELLS as CELLS
from recur.nn.drop_in import GRU as GRU
from recur.nn.drop_in import LSTM as LSTM
from recur.nn.drop_in import RNN as RNN
from recur.nn.recurrent import Recurrent as Recurrent
from recur.nn.recurrent import detach_state as detach_state
