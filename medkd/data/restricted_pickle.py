"""Published data sets that are pickles, read without running anything that they bring along.

A pickle names functions and classes to call. Here only those are found that rebuild NumPy arrays and pandas frames;
every other name ends the reading before it is called.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from medkd.errors import DataError

_ARRAYS = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
    ("_codecs", "encode"),  # how protocol 2 writes bytes
    ("builtins", "slice"),
    ("builtins", "bytearray"),
    ("collections", "OrderedDict"),
}
_FRAMES = {
    ("pandas", "DataFrame"),
    ("pandas", "Series"),
    ("pandas", "Index"),
    ("pandas", "RangeIndex"),
    ("pandas", "StringDtype"),
    ("pandas.arrays", "StringArray"),
    ("pandas.core.frame", "DataFrame"),
    ("pandas.core.series", "Series"),
    ("pandas.core.indexes.base", "Index"),
    ("pandas.core.indexes.base", "_new_Index"),
    ("pandas.core.indexes.range", "RangeIndex"),
    ("pandas.core.internals.managers", "BlockManager"),
    ("pandas.core.internals.managers", "SingleBlockManager"),
    ("pandas._libs.internals", "_unpickle_block"),
    ("pandas._libs.arrays", "__pyx_unpickle_NDArrayBacked"),
    ("pandas.core.arrays.string_", "StringArray"),
    ("pandas.core.arrays.string_", "StringDtype"),
}
ALLOWED = _ARRAYS | _FRAMES
OLD_NAMES = {
    ("numpy.core.multiarray", "_reconstruct"): ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"): ("numpy._core.multiarray", "scalar"),
    ("numpy.core.numeric", "_frombuffer"): ("numpy._core.numeric", "_frombuffer"),
    ("pandas.core.indexes.numeric", "Int64Index"): ("pandas", "Index"),
    ("pandas.core.indexes.numeric", "UInt64Index"): ("pandas", "Index"),
    ("pandas.core.indexes.numeric", "Float64Index"): ("pandas", "Index"),
    ("pandas.indexes.base", "Index"): ("pandas", "Index"),
    ("__builtin__", "slice"): ("builtins", "slice"),
}
"""What releases of NumPy 1 and pandas 0 and 1 called them -> what they are called now."""


class _Forbidden(Exception):
    """Dotted name that the pickle asked for."""


class _ArraysAndFrames(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module, name = OLD_NAMES.get((module, name), (module, name))
        if (module, name) not in ALLOWED:
            raise _Forbidden(f"{module}.{name}")
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Any:
        raise _Forbidden(f"a persistent id ({pid!r})")


def read_pickle(path: Path) -> Any:
    """The arrays, frames and plain containers in a pickle file.

    Args:
        path: of the file, any protocol.

    Raises:
        DataError: the file is missing or damaged, or asks for anything else; that was not run.
    """
    try:
        with Path(path).open("rb") as file:
            return _ArraysAndFrames(file).load()
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; set root to the publisher's folder, which holds it") from error
    except _Forbidden as error:
        raise DataError(
            f"{path} asks for {error}, which no table of numbers needs; nothing was run, "
            "get the file from its publisher"
        ) from error
    except Exception as error:  # damaged pickles raise whatever the objects in them raise
        raise DataError(f"{path} cannot be read as a pickle of arrays and tables ({error}); copy it again") from error
