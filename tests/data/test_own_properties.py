"""What holds for every table and every division, on random ones."""

import csv
import dataclasses
import io

import numpy as np
import pandas as pd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medkd.data import own
from medkd.data.cohort import Cohort
from medkd.data.folds import check_disjoint, split_rows
from medkd.data.own_schema import infer, read_schema, write_schema
from medkd.data.own_table import read_own_table
from medkd.errors import DataError, ParameterError

some = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
words = st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=8).map(str.strip).filter(bool)


@st.composite
def tables(draw):
    """A table with a label column and random others: cells hold separators, quotes and any letters."""
    n_rows = draw(st.integers(4, 12))
    names = draw(st.lists(words, min_size=1, max_size=4, unique=True).filter(lambda names: "label" not in names))
    cells = st.one_of(st.just(""), words, st.integers(-99, 99).map(str))
    columns = {name: draw(st.lists(cells, min_size=n_rows, max_size=n_rows)) for name in names}
    columns["label"] = [("a", "b")[row % 2] for row in range(n_rows)]
    return pd.DataFrame(columns)


def written(table, separator, quoting, ends, mark):
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=separator, quoting=quoting, lineterminator=ends)
    writer.writerow(table.columns)
    writer.writerows(table.to_numpy())
    return ("\ufeff" if mark else "").encode() + buffer.getvalue().encode()


@some
@given(tables(), st.sampled_from(",;\t"), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_every_cell_is_read_whatever_separates_and_quotes_it(tmp_path, table, separator, ends, mark):
    path = tmp_path / "table.csv"
    path.write_bytes(written(table, separator, csv.QUOTE_ALL, ends, mark))
    read = read_own_table(path)
    assert read.columns.tolist() == table.columns.tolist()
    assert read.to_numpy().tolist() == table.to_numpy().tolist()


@some
@given(tables())
def test_inference_accounts_for_every_column_once_and_survives_its_file(tmp_path, table):
    (tmp_path / "table.csv").write_bytes(written(table, ",", csv.QUOTE_ALL, "\n", False))
    schema = infer(tmp_path)
    roles = [schema.id, schema.label, schema.patient, schema.split, schema.image, schema.second_image]
    roles += [*schema.numbers, *schema.flags, *schema.categories, schema.survival_months, schema.event]
    used = [name for name in roles if name]
    assert len(used) == len(set(used)) and set(used) <= set(table.columns)
    assert sorted(schema.classes) == sorted(set(table[schema.label]) - {""})
    write_schema(tmp_path, schema)
    assert read_schema(tmp_path) == schema


@some
@given(tables(), st.permutations(range(12)))
def test_a_cohort_has_every_row_of_its_table_in_its_order(tmp_path, table, order):
    """One more column tells the rows apart; nothing of the others may move or drop one."""
    table["number of row"] = [str(number + 0.5) for number in order if number < len(table)]
    (tmp_path / "table.csv").write_bytes(written(table, ",", csv.QUOTE_ALL, "\n", False))
    schema = infer(tmp_path).model_copy(update={"confirmed": True, "chain": "vector", "patient": "", "id": ""})
    write_schema(tmp_path, schema)
    cohort = own.read(tmp_path)
    assert cohort.table["class"].tolist() == table[schema.label].tolist()
    vector = cohort.vectors["metadata"]
    numbers = vector.values[:, vector.names.index("number of row")]
    assert numbers.tolist() == table["number of row"].astype(float).tolist()


@st.composite
def cohorts(draw):
    """A cohort without images: up to 60 samples of up to 20 patients, two or three classes."""
    n = draw(st.integers(6, 60))
    groups = draw(st.lists(st.integers(0, 19), min_size=n, max_size=n))
    labels = draw(st.lists(st.integers(0, draw(st.integers(1, 2))), min_size=n, max_size=n))
    classes = ("a", "b", "c")
    table = pd.DataFrame({"id": [f"x{i}" for i in range(n)], "label": labels})
    table["class"], table["patient"] = [classes[label] for label in labels], [f"p{group}" for group in groups]
    table["roi"] = table["id"]
    return Cohort("toy", "Toy", False, classes, table, {})


@some
@given(cohorts(), st.integers(2, 6), st.integers(0, 5), st.sampled_from([0.2, 0.34, 0.5]))
def test_own_folds_hold_every_row_once_and_no_patient_twice(cohort, n_folds, seed, val_fraction):
    tested = []
    for fold in range(n_folds):
        try:
            split = split_rows(cohort, fold=fold, n_folds=n_folds, seed=seed, val_fraction=val_fraction)
        except ParameterError:  # too few patients for these settings: refused, not split badly
            return
        check_disjoint(cohort, split)
        rows = np.concatenate([split.train, split.val, split.test])
        assert sorted(rows) == list(range(len(cohort)))
        assert min(len(split.train), len(split.val), len(split.test)) > 0
        tested.append(split.test)
    assert sorted(np.concatenate(tested)) == list(range(len(cohort)))


@some
@given(cohorts(), st.data())
def test_published_splits_put_each_row_where_they_say_or_are_refused(cohort, data):
    parts = st.sampled_from(["train", "val", "test", ""])
    words = data.draw(st.lists(parts, min_size=len(cohort), max_size=len(cohort)))
    if data.draw(st.booleans()):  # a word per patient: rows drawn one by one nearly always leak
        word_of = dict(zip(cohort.groups, words, strict=True))
        words = [word_of[patient] for patient in cohort.groups]
    leaks = any(
        len(set(part) - {""}) > 1 for _, part in pd.Series(words).groupby(cohort.groups.astype(str), sort=False)
    )
    published = dataclasses.replace(cohort, splits=pd.DataFrame({"official": words}))
    try:
        split = split_rows(published, fold=0)
    except (DataError, ParameterError):
        assert leaks or not {"train", "val", "test"} <= set(words)  # the validation part may be too small to cut
        return
    assert not leaks
    if "test" not in words:
        words = ["test" if word == "val" else word for word in words]
    for part in ("val", "test") if "val" in words else ("test",):
        assert getattr(split, part).tolist() == [row for row, word in enumerate(words) if word == part]
    rest = sorted(np.concatenate([split.train, split.val]))
    assert rest == [row for row, word in enumerate(words) if word in ("train", "val")]
    check_disjoint(published, split)
