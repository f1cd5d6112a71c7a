"""The private name of torch that is used: its scan over time, which `torch.export` writes for any number of steps.

`nn.LSTM` itself it would write for the one number of steps it saw. A test holds that the name is there.
"""

from torch._higher_order_ops.scan import scan

__all__ = ["scan"]
