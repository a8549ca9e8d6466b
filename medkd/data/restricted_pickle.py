"""Published data sets that are pickles, read without running anything that they bring along.

A pickle names functions and classes to call, with arguments and inner states that it chooses; NumPy and pandas trust
those, so that even their own functions can be led to write anywhere in memory. Here none of them is called: each name
that rebuilds an array or a frame finds a stand-in that keeps what it is given, and every other name ends the reading.
Afterwards arrays and frames are made of what was kept, by the checked, public functions.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medkd.errors import DataError

ATOMS = (type(None), bool, int, float, complex, str, bytes, bytearray, np.generic)
KINDS = "biufcSUO"
"""Kinds of values that arrays may have: numbers, texts and Python objects, but no records and no dates."""

Convert = Callable[[Any], Any]
"""What the pickle holds -> what it stands for."""


class _Kept:
    """A call in a pickle: its arguments, and the state that the result is given; neither is used yet."""

    args: tuple
    state: Any

    def __new__(cls, *args: Any) -> Any:
        kept = super().__new__(cls)
        kept.args, kept.state = args, None
        return kept

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def real(self, convert: Convert) -> Any:
        """What it stands for."""
        raise ValueError("a part of an array or frame stands alone")


class _Part(_Kept):
    """A name that only means something inside of another call: numpy.ndarray, a block, a class of index, ..."""


class _Bytes(_Kept):
    """`_codecs.encode`, and where there are none `bytes`, by which protocol 2 writes bytes."""

    def __new__(cls, text: str = "", encoding: str = "latin1") -> Any:
        return str.encode(text, "latin1")


class _Type(_Kept):
    """`numpy.dtype`."""

    def real(self, convert: Convert) -> np.dtype:
        found = np.dtype(str(self.args[0]))
        if found.kind not in KINDS:
            raise ValueError(f"values of type {found} are neither numbers nor texts")
        return found if self.state is None else found.newbyteorder(self.state[1])


class _Scalar(_Kept):
    """`numpy.core.multiarray.scalar`; made at once, as it may be the key of a dict."""

    def __new__(cls, dtype: _Type, data: bytes = b"") -> Any:
        return _filled(dtype.real(lambda thing: thing), (), data, "C")[()]


class _Array(_Kept):
    """`numpy.core.multiarray._reconstruct`."""

    def real(self, convert: Convert) -> np.ndarray:
        _, shape, dtype, columns_first, content = self.state
        dtype, order = convert(dtype), "F" if columns_first else "C"
        if dtype.hasobject:
            values = np.empty(len(content), object)
            for place, item in enumerate(content):
                values[place] = convert(item)
            return values.reshape(shape, order=order)
        return _filled(dtype, shape, content, order)


class _Buffer(_Kept):
    """`numpy.core.numeric._frombuffer`, which protocol 5 uses."""

    def real(self, convert: Convert) -> np.ndarray:
        content, dtype, shape, order, *axes = self.args
        values = _filled(convert(dtype), shape, content, "F" if order == "F" else "C")
        return values.transpose(*axes) if order == "K" else values


def _filled(dtype: np.dtype, shape: tuple[int, ...], content: bytes, order: str) -> np.ndarray:
    """An array that owns a copy of `content`; NumPy refuses fewer bytes than the shape needs, but not objects."""
    if dtype.hasobject:
        raise ValueError("bytes are no objects")
    return np.ndarray(shape, dtype, memoryview(content), order=order).copy(order)


class _Strings(_Kept):
    """`pandas.arrays.StringArray`, which holds the texts of pandas 3."""

    def real(self, convert: Convert) -> Any:
        return pd.array(convert(self.state[1]), dtype=pd.Series([""]).dtype)  # that of the installed release


class _Index(_Kept):
    """`pandas.core.indexes.base._new_Index`."""

    def real(self, convert: Convert) -> pd.Index:
        content = convert(self.args[1])
        if "start" in content:
            return pd.RangeIndex(content["start"], content["stop"], content["step"], name=content["name"])
        return pd.Index(content["data"], dtype=content["data"].dtype, name=content["name"])


class _Columns(_Kept):
    """A pandas block manager: the axes, and blocks of columns of one type with their positions among all columns."""

    def axes_and_columns(self, convert: Convert) -> tuple[list[pd.Index], list[Any]]:
        """Both axes of a frame (the one of a series), and an array per column (of a series: one)."""
        if self.state is None:
            blocks, axes = self.args if isinstance(self.args[1], list) else ([self.args[0]], [self.args[1]])
            parts = [block.args[:2] for block in blocks]
        else:
            content = self.state[3]["0.14.1"]
            axes, parts = content["axes"], [(block["values"], block["mgr_locs"]) for block in content["blocks"]]
        axes = [convert(axis) for axis in axes]
        if len(axes) == 1:
            return axes, [convert(values) for values, _ in parts]
        columns: dict[int, Any] = {}
        for values, places in parts:
            values, places = convert(values), convert(places)
            rows = values if values.ndim == 2 else [values]
            at = range(len(axes[0]))[places] if isinstance(places, slice) else places.tolist()
            columns.update(zip(at, rows, strict=True))
        return axes, [columns[number] for number in range(len(axes[0]))]


class _Frame(_Kept):
    """`pandas.DataFrame`."""

    def real(self, convert: Convert) -> pd.DataFrame:
        (names, index), columns = _manager(self.state).axes_and_columns(convert)
        series = {number: pd.Series(values, index, values.dtype) for number, values in enumerate(columns)}
        return pd.DataFrame(series, index=index).set_axis(names, axis="columns")


class _Series(_Kept):
    """`pandas.Series`."""

    def real(self, convert: Convert) -> pd.Series:
        (index,), (values,) = _manager(self.state).axes_and_columns(convert)
        return pd.Series(values, index, values.dtype, name=convert(self.state.get("_name", self.state.get("name"))))


def _manager(state: dict) -> _Columns:
    return state["_mgr"] if "_mgr" in state else state["_data"]  # pandas 0 and 1.0 called it _data


_ARRAYS = {
    f"{package}.{name}": stand_in
    for package in ("numpy.core", "numpy._core")  # NumPy 1, NumPy 2
    for name, stand_in in {
        "multiarray._reconstruct": _Array,
        "multiarray.scalar": _Scalar,
        "numeric._frombuffer": _Buffer,
    }.items()
} | {"numpy.ndarray": _Part, "numpy.dtype": _Type, "_codecs.encode": _Bytes, "__builtin__.bytes": _Bytes}

_FRAMES = {
    "pandas.DataFrame": _Frame,
    "pandas.core.frame.DataFrame": _Frame,
    "pandas.Series": _Series,
    "pandas.core.series.Series": _Series,
    "pandas.core.internals.managers.BlockManager": _Columns,
    "pandas.core.internals.managers.SingleBlockManager": _Columns,
    "pandas.core.internals.BlockManager": _Columns,
    "pandas.core.internals.SingleBlockManager": _Columns,
    "pandas._libs.internals._unpickle_block": _Part,
    "pandas._libs.arrays.__pyx_unpickle_NDArrayBacked": _Strings,
    "pandas.arrays.StringArray": _Part,
    "pandas.core.arrays.string_.StringArray": _Part,
    "pandas.StringDtype": _Part,
    "pandas.core.arrays.string_.StringDtype": _Part,
    "pandas.core.indexes.base._new_Index": _Index,
    "pandas.indexes.base._new_Index": _Index,
} | {
    f"{module}.{name}": _Part
    for module, names in {
        "pandas": ("Index", "RangeIndex"),
        "pandas.indexes.base": ("Index",),
        "pandas.core.indexes.base": ("Index",),
        "pandas.core.indexes.range": ("RangeIndex",),
        "pandas.core.indexes.numeric": ("Int64Index", "UInt64Index", "Float64Index"),
    }.items()
    for name in names
}

_CONTAINERS = {
    f"{module}.{kind.__name__}": kind
    for module in ("builtins", "__builtin__")  # __builtin__ in protocol 2
    for kind in (slice, set, frozenset)
} | {"collections.OrderedDict": dict}

STAND_INS = _ARRAYS | _FRAMES | _CONTAINERS
"""Every name that a pickle may ask for, of all releases of NumPy and pandas -> what it gets."""


class _Forbidden(Exception):
    """Dotted name that the pickle asked for."""


class _ArraysAndFrames(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in STAND_INS:
            raise _Forbidden(f"{module}.{name}")
        return STAND_INS[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> Any:
        raise _Forbidden(f"a persistent id ({pid!r})")


def read_pickle(path: Path) -> Any:
    """The arrays, frames and plain containers in a pickle file.

    Args:
        path: of the file, any protocol from 2 on, written with any release of NumPy and pandas.

    Returns:
        Its content; an ordered dict is a plain one, and what users attached to frames (`attrs`) is left out.

    Raises:
        DataError: the file is missing or damaged, or asks for anything else; that was not run.
    """
    try:
        with Path(path).open("rb") as file:
            return _real(_ArraysAndFrames(file).load(), {})
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; set root to the publisher's folder, which holds it") from error
    except _Forbidden as error:
        raise DataError(
            f"{path} asks for {error}, which no table of numbers needs; nothing was run, "
            "get the file from its publisher"
        ) from error
    except Exception as error:  # damaged pickles raise whatever the objects in them raise
        raise DataError(f"{path} cannot be read as a pickle of arrays and tables ({error}); copy it again") from error


def _real(thing: Any, done: dict[int, tuple[Any, Any]]) -> Any:
    """`thing` with arrays and frames in the place of the calls; an object that comes twice is made once, see `done`.

    Raises:
        ValueError: it is, or holds, something else than plain values, containers, arrays and frames.
    """
    if isinstance(thing, ATOMS):
        return thing
    if id(thing) in done:
        return done[id(thing)][1]

    def convert(part: Any) -> Any:
        return _real(part, done)

    if isinstance(thing, _Kept):
        found = thing.real(convert)
    elif isinstance(thing, dict):
        found = {convert(key): convert(value) for key, value in thing.items()}
    elif isinstance(thing, list | tuple | set | frozenset):
        found = type(thing)(map(convert, thing))
    elif isinstance(thing, slice):
        found = slice(*map(convert, (thing.start, thing.stop, thing.step)))
    else:
        raise ValueError(f"{thing!r} is no value")
    done[id(thing)] = thing, found  # the object is kept, so that its id stays its own
    return found
