import copyreg
import os
import pickle

import numpy as np
import pandas as pd
import pytest

from medkd.data.restricted_pickle import read_pickle
from medkd.errors import DataError

CONTENT = {
    "frame": pd.DataFrame({"x": [1, 2], "y": [0.5, np.nan], "name": ["a", "ü"]}, index=["p", "q"]),
    "series": pd.Series([1.5, 2.5], name="s"),
    "objects": np.array(["all_st/a.png", None], object),
    "numbers": np.arange(6.0).reshape(2, 3),
    "nested": {1: {"train": ["TCGA-1"], "test": (np.float64(2.0), True, None)}},
}


class Attack:
    """Calls a function with arguments when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.fixture
def path(tmp_path):
    return tmp_path / "splits.pkl"


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_frames_and_containers_come_back(path, protocol):
    path.write_bytes(pickle.dumps(CONTENT, protocol))
    found = read_pickle(path)
    pd.testing.assert_frame_equal(found["frame"], CONTENT["frame"])
    pd.testing.assert_series_equal(found["series"], CONTENT["series"])
    np.testing.assert_array_equal(found["numbers"], CONTENT["numbers"])
    assert found["objects"].tolist() == CONTENT["objects"].tolist()
    assert found["nested"] == CONTENT["nested"]


def test_names_of_older_releases_are_found(path):
    """Protocol 2 spells module and name in text lines; these are as NumPy 1 and pandas 1 wrote them."""
    written = pickle.dumps({"a": np.arange(3.0), "i": pd.Index([1, 2])}, 2)
    old = written.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    old = old.replace(b"cpandas\nIndex\n", b"cpandas.core.indexes.numeric\nInt64Index\n")
    assert b"numpy.core.multiarray" in old and b"Int64Index" in old
    path.write_bytes(old)
    found = read_pickle(path)
    np.testing.assert_array_equal(found["a"], np.arange(3.0))
    assert found["i"].tolist() == [1, 2]


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
        pickle.loads: (pickle.dumps(Attack(os.system, f"touch {canary}")),),
        getattr: (os, "system"),
    }[function]
    attack = Attack(function, *arguments) if function is not getattr else Attack(getattr, "text", "upper")
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
