import copyreg
import os
import pickle

import numpy as np
import pandas as pd
import pytest
from numpy._core.multiarray import _reconstruct, scalar
from numpy._core.numeric import _frombuffer
from pandas._libs.internals import _unpickle_block
from pandas.core.internals.managers import BlockManager, SingleBlockManager

from medkd.data.restricted_pickle import read_pickle
from medkd.errors import DataError

OLD = ("mode.string_storage", "python")
"""How pandas keeps texts without pyarrow: published pickles are older than its arrays."""
with pd.option_context(*OLD):
    CONTENT = {
        "frame": pd.DataFrame({"x": [1, 2], "y": [0.5, np.nan], "name": ["a", "ü"]}, index=["p", "q"]),
        "series": pd.Series([1.5, 2.5], name="s"),
        "objects": np.array(["all_st/a.png", None], object),
        "numbers": np.arange(6.0).reshape(2, 3),
        "lists": np.array([[1, 2], [3]], object),
        "columns first": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "axes moved": np.arange(24.0).reshape(2, 3, 4).transpose(1, 2, 0),
        "big endian": np.array([1.5, 2.5], ">f4"),
        "words": np.array(["ü", "abc"]),
        "nothing": np.zeros((0, 3)),
        "number": np.array(3.0),
        "index": pd.Index([0.5, 1.5], name="i"),
        "nested": {1: {"train": ["TCGA-1"], "test": (np.float64(2.0), True, None)}},
    }


@pytest.fixture(autouse=True)
def texts_as_of_old():
    with pd.option_context(*OLD):
        yield


class Call:
    """A function, its arguments and the state of its result, for the one who unpickles it."""

    def __init__(self, function, *arguments, state=None):
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.call


def frame_call(blocks, columns):
    """A frame of two rows as pandas 2 writes it; blocks of values and their columns."""
    parts = tuple(Call(_unpickle_block, values, places, 2) for values, places in blocks)
    manager = Call(BlockManager, parts, [pd.Index(columns, dtype=object), pd.RangeIndex(2)])
    return Call(pd.DataFrame, state={"_mgr": manager, "_typ": "dataframe", "_metadata": []})


def array_call(dtype, content):
    return Call(_reconstruct, np.ndarray, (0,), b"b", state=(1, (2,), dtype, False, content))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "splits.pkl"


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_frames_and_containers_come_back(path, protocol):
    path.write_bytes(pickle.dumps(CONTENT, protocol))
    found = read_pickle(path)
    pd.testing.assert_frame_equal(found["frame"], CONTENT["frame"])
    pd.testing.assert_series_equal(found["series"], CONTENT["series"])
    pd.testing.assert_index_equal(found["index"], CONTENT["index"])
    for name, value in CONTENT.items():
        if isinstance(value, np.ndarray):
            assert (found[name].dtype, found[name].tolist()) == (value.dtype, value.tolist())
    assert found["nested"] == CONTENT["nested"]


def test_columns_of_several_types_repeated_names_and_rows_come_back(path):
    frame = pd.DataFrame(
        {"a": [1, 2, 3], "b": [0.5, 1, 2], "c": [True, False, True], "d": [4, 5, 6]}, index=list("ppq")
    )
    frame = frame.assign(e=["x", None, "z"]).set_axis(["a", "a", "c", "d", 5], axis="columns")
    for part in (frame, frame.iloc[::2], frame.iloc[:, [3, 0]], frame[[]], frame[:0]):
        path.write_bytes(pickle.dumps(part))
        pd.testing.assert_frame_equal(read_pickle(path), part)


def test_an_object_that_comes_twice_is_made_once(path):
    values = np.arange(3.0)
    path.write_bytes(pickle.dumps([values, {"x": values}]))
    first, second = read_pickle(path)
    assert first is second["x"]


def test_names_of_older_releases_are_found(path):
    """Protocol 2 spells module and name in text lines; these are as NumPy 1 and pandas 1 wrote them."""
    values = [np.array([[1.5, 2.5]]), np.array([["a", "b"]], object)]
    axes = [pd.Index(["x", "name"], dtype=object), pd.Index([7, 8])]
    blocks = [{"values": value, "mgr_locs": place} for value, place in zip(values, (slice(1), [1]), strict=True)]
    blocks[1]["mgr_locs"] = np.array([1])
    manager = Call(BlockManager, state=(axes, values, axes[:1], {"0.14.1": {"axes": axes, "blocks": blocks}}))
    frame = Call(pd.DataFrame, state={"_data": manager, "_typ": "dataframe", "_metadata": []})
    block = Call(_unpickle_block, np.array([1, 2]), slice(0, 2, 1), 1)  # pandas 1.3 to 2 wrote series like this
    series = Call(pd.Series, state={"_mgr": Call(SingleBlockManager, block, axes[1]), "_typ": "series", "name": "s"})
    old = pickle.dumps({"frame": frame, "series": series}, 2)
    for new_name, old_name in {
        b"cnumpy._core.multiarray\n": b"cnumpy.core.multiarray\n",
        b"cpandas\nIndex\n": b"cpandas.core.indexes.numeric\nInt64Index\n",
        b"cpandas\nDataFrame\n": b"cpandas.core.frame\nDataFrame\n",
        b"cpandas.core.internals.managers\nB": b"cpandas.core.internals\nB",
    }.items():
        assert new_name in old
        old = old.replace(new_name, old_name)
    path.write_bytes(old)
    found = read_pickle(path)
    expected = pd.DataFrame({"x": [1.5, 2.5], "name": pd.Series(["a", "b"], dtype=object)}).set_axis([7, 8])
    pd.testing.assert_frame_equal(found["frame"], expected, check_column_type=False)
    pd.testing.assert_series_equal(found["series"], pd.Series([1, 2], index=[7, 8], name="s"))


@pytest.mark.parametrize("wrap", ["plain", "list", "array", "frame"])
@pytest.mark.parametrize("function", [os.system, eval, pd.read_pickle, pd.eval, np.load, pickle.loads, getattr])
def test_everything_else_is_refused_by_name_and_not_run(path, tmp_path, wrap, function):
    canary = tmp_path / "canary"
    arguments = {
        os.system: (f"touch {canary}",),
        eval: (f"open({str(canary)!r}, 'w')",),
        pd.read_pickle: (str(canary),),
        pd.eval: ("1",),
        np.load: (str(canary),),
        pickle.loads: (pickle.dumps(Call(os.system, f"touch {canary}")),),
        getattr: (os, "system"),
    }[function]
    attack = Call(function, *arguments) if function is not getattr else Call(getattr, "text", "upper")
    content = {
        "plain": attack,
        "list": [1, {"a": attack}],
        "array": np.array([attack, 1], object),
        "frame": pd.DataFrame({"x": np.array([attack, 1], object)}),
    }[wrap]
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=rf"asks for \S*{function.__name__.split('.')[-1]}, which no table of numbers"):
        read_pickle(path)
    assert not canary.exists()


POINTERS = b"A" * 16
"""What NumPy would take for two addresses of objects if it were told so."""
RECORD = Call(np.dtype, "V8", False, True, state=(3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0))
OBJECTS = Call(np.dtype, "O", False, True, state=(3, "|", None, None, None, -1, -1, 0))


@pytest.mark.parametrize(
    "content",
    [
        array_call(RECORD, POINTERS),
        array_call(OBJECTS, POINTERS),
        Call(_frombuffer, POINTERS, RECORD, (2,), "C"),
        Call(_frombuffer, POINTERS, OBJECTS, (2,), "C"),
        Call(_frombuffer, None, np.dtype("f8"), (2,), "C"),
        Call(scalar, OBJECTS, POINTERS[:8]),
        Call(np.ndarray, (2,), RECORD, POINTERS),
        array_call(np.dtype("f8"), POINTERS[:8]),
        frame_call([(np.zeros((1, 2)), slice(10**9, 10**9 + 1, 1))], ["x"]),
        frame_call([(np.zeros((1, 2)), np.array([10**9]))], ["x"]),
        frame_call([(np.zeros((1, 3)), slice(0, 1, 1))], ["x"]),
        frame_call([(np.zeros((1, 2)), slice(0, 1, 1))], ["x", "y"]),
        np.ndarray,
        np.dtype("datetime64[D]"),
    ],
)
def test_forged_states_of_arrays_and_frames_are_refused(path, content):
    """NumPy and pandas believe what a pickle says of types and positions, and would read or write outside of arrays."""
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=r"splits\.pkl cannot be read as a pickle of arrays and tables"):
        read_pickle(path)


def test_a_pickle_cannot_change_the_stand_ins_for_later_ones(path):
    path.write_bytes(b"\x80\x02c_codecs\nencode\nN}X\x01\x00\x00\x00aK\x07s\x86b.")  # a class as target of BUILD
    with pytest.raises(DataError, match="cannot be read as a pickle"):
        read_pickle(path)
    path.write_bytes(pickle.dumps(CONTENT["numbers"], 2))
    np.testing.assert_array_equal(read_pickle(path), CONTENT["numbers"])


def test_persistent_ids_and_extensions_are_refused(path):
    path.write_bytes(b"Pfile\n.")
    with pytest.raises(DataError, match="asks for a persistent id"):
        read_pickle(path)
    copyreg.add_extension("os", "system", 240)
    try:
        path.write_bytes(b"\x80\x02\x82\xf0.")
        with pytest.raises(DataError, match=r"asks for os\.system"):
            read_pickle(path)
    finally:
        copyreg.remove_extension("os", "system", 240)


def test_damaged_and_missing_files_are_named(path):
    whole = pickle.dumps(CONTENT)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"splits\.pkl cannot be read as a pickle of arrays and tables"):
        read_pickle(path)
    path.unlink()
    with pytest.raises(DataError, match=r"splits\.pkl is missing"):
        read_pickle(path)
