"""The same arrays as pyarrow's own conversion makes."""

import numpy as np
import pyarrow as pa
import pytest

from coordformer.data.arrow import to_arrow, to_numpy


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, None, -3], pa.int32()),
        ([1.1, 2, None, float("nan")], pa.float32()),
        (np.arange(4), pa.int64()),
        (["a", None, "éß", ""], pa.string()),
        (["x"] * 9, pa.large_string()),
        (np.array(["a", None], dtype=object), pa.string()),
        ([("a", "b"), None, (), ("", "ü")], pa.list_(pa.string())),
        ([None] * 9, pa.list_(pa.string())),
        ([np.arange(3, dtype=np.float32), None, np.zeros(0, np.float32)], pa.list_(pa.float32())),
        ([[1, 2], [3]], pa.list_(pa.int32())),
        ([np.arange(20.0)] * 3, pa.large_list(pa.float32())),
        *(([], kind) for kind in (pa.int32(), pa.string(), pa.list_(pa.float32()), pa.list_(pa.string()))),
    ],
)
def test_arrays_are_those_of_pyarrow(values, kind):
    ours, expected = to_arrow(values, kind), pa.array(values, kind)
    ours.validate(full=True)
    assert (ours.type, ours.null_count, str(ours)) == (kind, expected.null_count, str(expected))


def test_offsets_do_not_wrap():
    class Long(bytes):
        def __len__(self):
            return 2**31

    class Text(str):
        def encode(self):
            return Long()

    with pytest.raises(OverflowError, match="2147483648 letters or items are too many for one array of string"):
        to_arrow([Text()], pa.string())


def test_numbers_of_sliced_chunks():
    column = pa.chunked_array([pa.array([1, 2, 3]).slice(1, 1), pa.array([], pa.int64()), pa.array([7])])
    assert to_numpy(column).tolist() == [2, 7] and to_numpy(column).dtype == np.int64
    assert to_numpy(pa.array([0.5, 1.5], pa.float32())[1:]).tolist() == [1.5]
    assert to_numpy(pa.chunked_array([], pa.int32())).tolist() == []
