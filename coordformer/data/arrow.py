"""Arrow arrays of Python values, and numpy arrays of Arrow's.

pyarrow has both, but imports pandas for them where that is installed: half a second in each process.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa


def to_arrow(values: Sequence[Any] | np.ndarray, kind: pa.DataType) -> pa.Array:
    """What `pa.array` makes of numbers, of strings, or of lists of either; None is null, but not inside of a list.

    Raises:
        OverflowError: they are too many letters or items for the offsets of `kind`.
    """
    known = np.array([value is not None for value in values], dtype=bool)
    validity = None if known.all() else pa.py_buffer(np.packbits(known, bitorder="little"))
    if pa.types.is_primitive(kind):
        whole = values if known.all() else [0 if value is None else value for value in values]
        data = np.ascontiguousarray(whole, dtype=kind.to_pandas_dtype())
        return pa.Array.from_buffers(kind, len(values), [validity, pa.py_buffer(data)])
    is_list = pa.types.is_nested(kind)
    items: list[Any] = [value if is_list else value.encode() for value in values if value is not None]
    ends = np.zeros(len(values) + 1, dtype=np.int64)
    ends[1:][known] = list(map(len, items))
    ends = ends.cumsum()
    width = np.int64 if pa.types.is_large_list(kind) or pa.types.is_large_string(kind) else np.int32
    if ends[-1] > np.iinfo(width).max:
        raise OverflowError(f"{ends[-1]} letters or items are too many for one array of {kind}")
    buffers = [validity, pa.py_buffer(ends.astype(width))]
    if not is_list:
        return pa.Array.from_buffers(kind, len(values), [*buffers, pa.py_buffer(b"".join(items))])
    if pa.types.is_primitive(kind.value_type):
        inner: Any = np.concatenate([np.zeros(0, kind.value_type.to_pandas_dtype()), *items])
    else:
        inner = list(chain.from_iterable(items))
    return pa.Array.from_buffers(kind, len(values), buffers, children=[to_arrow(inner, kind.value_type)])


def to_numpy(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Numbers, none of which is null."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    dtype = column.type.to_pandas_dtype()
    whole = [np.frombuffer(each.buffers()[1], dtype)[each.offset :][: len(each)] for each in chunks if len(each)]
    return np.concatenate([np.zeros(0, dtype), *whole])
