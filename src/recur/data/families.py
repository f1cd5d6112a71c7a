"""What a data module offers in each family, besides the loaders that Lightning asks it for."""

from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from recur.data.buckets import Texts


@runtime_checkable
class LabelledTexts(Protocol):
    """Data of the sentiment family: a data module, set up."""

    def texts(self, split: str) -> Texts:
        """Token ids of each text of a split."""
        ...

    def labels(self, split: str) -> NDArray[np.int64]:
        """Class of each text of a split, `(rows,)`."""
        ...


@runtime_checkable
class TokenStream(Protocol):
    """Data of the language family: a data module, set up."""

    def tokens(self, split: str) -> NDArray[Any]:
        """Token ids of a split, `(tokens,)`."""
        ...
