"""Tables from Python, pandas frames and data sets of the library `datasets`, as parquet files.

A table is written once, into the cache, under a name made of its content. From there on it is a file like any other:
its rows are read and checked in the same way, and a run that was trained on it names the file, so it can be resumed,
evaluated and swept over. The index of a frame is left out.
"""

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recur.data.cache import TokenCache
from recur.errors import UserError

if TYPE_CHECKING:
    import datasets
    import pandas as pd  # type: ignore[import-untyped]

    Files = str | Sequence[str] | pd.DataFrame | datasets.Dataset
else:  # what a config can say: a signature is its schema
    Files = str | Sequence[str]


_SETS = ("Dataset", "DatasetDict", "IterableDataset", "IterableDatasetDict")


def is_table(value: object) -> bool:
    """Whether a value is a pandas frame or of the library `datasets`; neither is imported to tell."""
    libraries = sys.modules.get("pandas"), sys.modules.get("datasets")
    frame = getattr(libraries[0], "DataFrame", ())
    sets = tuple(getattr(libraries[1], name) for name in _SETS if hasattr(libraries[1], name))
    return isinstance(value, (frame, sets))


def as_file(table: Any, key: str = "data.train", cache: TokenCache | None = None) -> str:
    """The parquet file with the rows of a table.

    Args:
        table: a pandas frame or a `datasets.Dataset`.
        key: the setting that it is given for.
        cache: where the file is kept; None for the usual folder.

    Raises:
        UserError: a table that no parquet file can hold, or several in one.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = type(table).__name__
    if kind in _SETS[1:]:
        remedy = 'give one of its splits, such as data["train"]' if "Dict" in kind else "load it whole"
        raise UserError(key, kind, "must be a table whose rows are all there", remedy)
    try:
        rows = _of_frame(table) if kind == "DataFrame" else _of_dataset(table)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(key, kind, "must hold one kind of plain values in each column", reason) from None
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink)
    content = sink.getvalue().to_pybytes()
    name = f"{key.rpartition('.')[2]}.parquet"
    digest = {"table": name, "content": hashlib.blake2b(content, digest_size=16).hexdigest()}

    def write(draft: Path) -> None:
        (draft / name).write_bytes(content)

    folder = (cache or TokenCache()).entry(digest, write)
    return str(folder.resolve() / name)


def _of_frame(frame: Any) -> Any:
    import pyarrow as pa

    named = frame.rename(columns=str)
    double = next((name for name, twice in zip(named.columns, named.columns.duplicated(), strict=True) if twice), None)
    if double is not None:
        raise ValueError(f"column {double!r} is there more than once")
    return pa.Table.from_pandas(named, preserve_index=False).replace_schema_metadata(None)


def _of_dataset(dataset: Any) -> Any:
    """Its rows, and the names of its labels where `recur.data.readers` looks for them in a file of the hub."""
    features = {"info": {"features": dataset.features.to_dict()}}
    rows = dataset.with_format("arrow")[:]
    return rows.replace_schema_metadata({b"huggingface": json.dumps(features).encode()})
