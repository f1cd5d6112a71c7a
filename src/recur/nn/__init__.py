"""Ground floor: tensors in, tensors out. Imports torch alone."""

from recur.nn.recurrent import CELLS as CELLS
from recur.nn.recurrent import Recurrent as Recurrent
from recur.nn.recurrent import detach_state as detach_state
