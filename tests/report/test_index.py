"""What a second execution of a stage leaves of the first."""

import contextlib

import pandas as pd

from medkd.report.artifacts import Artifacts
from medkd.report.index import read_index, replaced


def write(folder, *names):
    out = Artifacts(folder, "03_distillation.own", simulated=False)
    for name in names:
        out.table(pd.DataFrame({"a": [1]}), name, "A table.")


def tables(folder):
    return sorted(path.name.removeprefix("03_distillation.own-") for path in (folder / "tables").iterdir())


def test_files_that_are_no_longer_made_are_taken_away_and_those_of_other_stages_stay(tmp_path):
    write(tmp_path, "old", "both")
    Artifacts(tmp_path, "03_distillation.own-small", simulated=False).table(pd.DataFrame({"a": [1]}), "old", "A table.")
    with replaced(tmp_path, ["03_distillation.own"]):
        assert [entry["stage"] for entry in read_index(tmp_path)] == ["03_distillation.own-small"]
        write(tmp_path, "both", "new")
    assert {"both.csv", "new.csv"} <= set(tables(tmp_path)) and "old.csv" not in tables(tmp_path)
    assert (tmp_path / "tables" / "03_distillation.own-small-old.csv").is_file()


def test_after_an_error_or_without_a_readable_index_nothing_is_taken_away(tmp_path):
    write(tmp_path, "old")
    with contextlib.suppress(ValueError), replaced(tmp_path, ["03_distillation.own"]):
        write(tmp_path, "new")
        raise ValueError
    (tmp_path / "index" / "03_distillation.own.json").write_text("{")
    with replaced(tmp_path, ["03_distillation.own", "04_moco_url.own"]):
        pass
    assert {"old.csv", "new.csv"} <= set(tables(tmp_path))
    assert read_index(tmp_path) == []
