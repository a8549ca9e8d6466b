from pathlib import Path

import numba
import pytest

from medkd import compiled
from medkd.compiled import keep_compiled


@pytest.fixture
def read_only(monkeypatch):
    monkeypatch.setattr(compiled.os, "access", lambda *_: False)


def test_the_projects_cache_is_used_where_a_module_lies_in_a_read_only_folder(read_only, monkeypatch, tmp_path):
    monkeypatch.setenv("MEDKD_HOME", str(tmp_path))
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    keep_compiled(__file__)
    assert Path(numba.config.CACHE_DIR) == tmp_path / "data" / "cache" / "numba"
    assert numba.njit(cache=True)(_twice)(3) == 6
    assert list((tmp_path / "data" / "cache" / "numba").rglob("*.nbi"))


def test_a_folder_that_is_named_stays_and_so_does_numbas_own_choice(read_only, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", "named")
    keep_compiled(__file__)
    assert numba.config.CACHE_DIR == "named"
    monkeypatch.undo()
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    keep_compiled(__file__)
    assert numba.config.CACHE_DIR == ""


def _twice(x):
    return 2 * x
