"""Kernels that numba compiles at run time. Importing these modules needs the extra `fast`.

- `primitives`: calls of the matrix micro-kernel, bfloat16, activations, panels.
- `cells`: one row of each cell, forward and backward, for the walks. A new cell that fits the walk of the LSTM is two
  functions there, a place in `FORWARD` and `BACKWARD`, and a line in `recur.nn.compiled.SHAPES`.
- `losses`: the output layer and its cross-entropy, for `recur.nn.compiled_loss`.
- `mogrifier`: the walk of the Mogrifier LSTM, whose input depends on the step before.
- `numba_internals`: where the machine code is kept on disk.
- `walks`: all steps of one direction of a layer, forward and backward.

Every function releases the GIL and works on flat contiguous arrays: torch tensors of float32, and of bfloat16 seen as
int16, which numba does not know.
"""
