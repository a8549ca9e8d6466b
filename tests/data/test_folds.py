import dataclasses

import numpy as np
import pandas as pd
import pytest

from medkd.data import tcga_gbmlgg
from medkd.data.folds import Split, check_disjoint, n_folds_of, split_rows
from medkd.errors import DataError, ParameterError


@pytest.fixture
def cohort(make_cohort):
    """40 lesions with 1 to 3 images each, two thirds of them of class a."""
    groups = [f"L{lesion:02d}" for lesion in range(40) for _ in range(1 + lesion % 3)]
    return make_cohort(["ab"[int(group[1:]) % 5 >= 3] for group in groups], groups)


@pytest.mark.parametrize("fold", range(4))
def test_every_row_comes_once_and_no_lesion_twice(cohort, fold):
    split = split_rows(cohort, fold=fold, n_folds=4, seed=3)
    rows = np.concatenate([split.train, split.val, split.test])
    assert sorted(rows) == list(range(len(cohort)))
    lesions = [set(cohort.groups[part]) for part in (split.train, split.val, split.test)]
    assert sum(map(len, lesions)) == len(set().union(*lesions)) == 40
    check_disjoint(cohort, split)


def test_test_parts_of_all_folds_divide_the_cohort(cohort):
    tested = np.concatenate([split_rows(cohort, fold=fold, seed=1).test for fold in range(5)])
    assert sorted(tested) == list(range(len(cohort)))


def test_class_shares_and_part_sizes_are_near_those_asked_for(cohort):
    share = cohort.labels.mean()
    for fold in range(5):
        split = split_rows(cohort, fold=fold)
        for part, size in ((split.train, 0.64), (split.val, 0.16), (split.test, 0.2)):
            assert len(part) / len(cohort) == pytest.approx(size, abs=0.04)
            assert cohort.labels[part].mean() == pytest.approx(share, abs=0.12)


def test_val_fraction_sets_the_share_of_the_rest(cohort):
    split = split_rows(cohort, fold=0, val_fraction=0.5)
    assert len(split.val) / (len(split.val) + len(split.train)) == pytest.approx(0.5, abs=0.06)


def test_seed_alone_decides_and_global_state_does_not(cohort):
    first = split_rows(cohort, fold=0, seed=7)
    np.random.seed(99)  # noqa: NPY002  the global state is what must not matter
    again, other = split_rows(cohort, fold=0, seed=7), split_rows(cohort, fold=0, seed=8)
    for part in ("train", "val", "test"):
        np.testing.assert_array_equal(getattr(first, part), getattr(again, part))
        assert getattr(first, part).dtype == np.int64
        assert (np.diff(getattr(first, part)) > 0).all()
    assert first.test.tolist() != other.test.tolist()


def test_classes_smaller_than_the_number_of_folds_are_split_without_a_warning(make_cohort, recwarn):
    cohort = make_cohort(["a"] * 20 + ["b"] * 2, [str(i) for i in range(22)])
    tested = np.concatenate([split_rows(cohort, fold=fold).test for fold in range(5)])
    assert sorted(tested) == list(range(22))
    assert [str(warning.message) for warning in recwarn if "least populated" in str(warning.message)] == []


@pytest.mark.parametrize("fold", [-1, 5])
def test_fold_out_of_range_names_the_range(cohort, fold):
    with pytest.raises(ParameterError, match=rf"fold = {fold} is outside 0 \.\. 4"):
        split_rows(cohort, fold=fold)


def test_more_folds_than_lesions_are_refused(cohort):
    with pytest.raises(ParameterError, match="n_folds = 41 does not fit toy, which has 40 lesions"):
        split_rows(cohort, fold=0, n_folds=41)
    with pytest.raises(ParameterError, match="n_folds = 1 does not fit"):
        split_rows(cohort, fold=0, n_folds=1)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 0.6])
def test_val_fraction_out_of_range_is_refused(cohort, fraction):
    with pytest.raises(ParameterError, match="val_fraction"):
        split_rows(cohort, fold=0, val_fraction=fraction)


def test_too_few_lesions_for_validation_are_refused(make_cohort):
    cohort = make_cohort(["a"] * 12, ["1", "2", "3"] * 4)
    with pytest.raises(
        ParameterError, match="one of 5 parts, but outside the test part of fold 0 there are only 2 lesions"
    ):
        split_rows(cohort, fold=0, n_folds=3)


def test_classes_that_are_all_smaller_than_the_folds_are_refused(make_cohort):
    cohort = make_cohort(list("aabbcc"), list("123456"))
    with pytest.raises(ParameterError, match="cannot be divided into 5 parts: every class has fewer samples"):
        split_rows(cohort, fold=0)


def test_check_disjoint_names_parts_and_lesions_that_leak(make_cohort):
    cohort = make_cohort(["a"] * 6, ["p", "p", "q", "q", "r", "r"])
    check_disjoint(cohort, Split(np.array([0, 1]), np.array([2, 3]), np.array([4, 5])))
    with pytest.raises(DataError, match="lesions r have samples in both val and test"):
        check_disjoint(cohort, Split(np.array([0, 1]), np.array([2, 3, 4]), np.array([5])))
    with pytest.raises(DataError, match="lesions p, q have samples in both train and test"):
        check_disjoint(cohort, Split(np.array([0, 2]), np.array([4, 5]), np.array([1, 3])))


# ---- published splits


@pytest.fixture
def write_splits(tmp_path, cohort):
    """A function: words of the 40 lesions for each split (a string of letters or a list) -> path of the file.

    In a string t is train, v val, x test and a dot no word.
    """

    def write(column="patient_id", patients=None, **splits):
        words = {"t": "train", "v": "val", "x": "test", ".": ""}
        table = {column: patients or [f"L{lesion:02d}" for lesion in range(40)]}
        table |= {name: [words.get(word, word) for word in split] for name, split in splits.items()}
        pd.DataFrame(table).to_csv(tmp_path / "splits.csv", index=False)
        return str(tmp_path / "splits.csv")

    return write


def lesions_of(cohort, rows):
    return sorted({int(group[1:]) for group in cohort.groups[rows]})


def test_published_test_lesions_are_tested_and_validation_is_cut_out_of_the_others(cohort, write_splits):
    path = write_splits(one="t" * 30 + "x" * 10, two="x" * 10 + "t" * 30)
    assert n_folds_of(cohort, 5, path) == 2
    for fold, tested in ((0, range(30, 40)), (1, range(10))):
        split = split_rows(cohort, fold=fold, split_file=path, n_folds=99)  # n_folds says nothing here
        assert lesions_of(cohort, split.test) == list(tested)
        check_disjoint(cohort, split)
        assert sorted(np.concatenate([split.train, split.val, split.test])) == list(range(len(cohort)))
        assert len(split.val) / (len(split.val) + len(split.train)) == pytest.approx(0.2, abs=0.06)
        for part in (split.train, split.val, split.test):
            assert part.dtype == np.int64 and (np.diff(part) > 0).all()
            assert set(cohort.labels[part]) == {0, 1}


def test_val_is_the_test_part_of_a_split_that_never_says_test(cohort, write_splits):
    path = write_splits(fold_0="v" * 8 + "t" * 32)
    assert lesions_of(cohort, split_rows(cohort, fold=0, split_file=path).test) == list(range(8))


def test_a_split_that_says_all_three_keeps_its_own_validation_part(cohort, write_splits):
    path = write_splits(only_two="t" * 20 + "v" * 20, all_three="t" * 20 + "v" * 12 + "x" * 8)
    split = split_rows(cohort, fold=1, split_file=path, val_fraction=0.5)
    parts = [lesions_of(cohort, part) for part in (split.train, split.val, split.test)]
    assert parts == [list(range(20)), list(range(20, 32)), list(range(32, 40))]


def test_case_and_spelling_of_the_words_do_not_matter(cohort, write_splits):
    words = ["Train"] * 20 + ["VALIDATION "] * 12 + ["TEST"] * 8
    split = split_rows(cohort, fold=0, split_file=write_splits(one=words))
    assert lesions_of(cohort, split.val) == list(range(20, 32))
    assert lesions_of(cohort, split.test) == list(range(32, 40))


@pytest.mark.parametrize("column", ["patient_id", "patient", "lesion_id", "case"])
def test_rows_of_lesions_that_are_not_named_or_left_empty_are_in_no_part(cohort, write_splits, column):
    named = [f"L{lesion:02d}" for lesion in range(30)] + ["L99"]
    split = split_rows(cohort, fold=0, split_file=write_splits(column, named, one="." * 5 + "x" * 5 + "t" * 21))
    used = np.concatenate([split.train, split.val, split.test])
    assert lesions_of(cohort, used) == list(range(5, 30))
    assert lesions_of(cohort, split.test) == list(range(5, 10))


def test_a_file_may_have_several_lines_of_a_lesion_if_they_agree(cohort, write_splits):
    lesions = [f"L{lesion:02d}" for lesion in range(40)]
    path = write_splits(patients=lesions + lesions[:2], one="t" * 30 + "x" * 10 + "tt")
    assert lesions_of(cohort, split_rows(cohort, fold=0, split_file=path).test) == list(range(30, 40))
    path = write_splits(patients=lesions + lesions[:2], one="t" * 30 + "x" * 10 + "tx")
    with pytest.raises(DataError, match="puts L01 into several parts of split one, so metrics would leak"):
        split_rows(cohort, fold=0, split_file=path)


def test_seed_decides_the_validation_part_of_a_published_split(cohort, write_splits):
    path = write_splits(one="t" * 30 + "x" * 10)
    first, again, other = (split_rows(cohort, fold=0, split_file=path, seed=seed) for seed in (1, 1, 2))
    assert first.val.tolist() == again.val.tolist() != other.val.tolist()
    assert first.test.tolist() == other.test.tolist()


@pytest.mark.parametrize(
    "splits, message",
    [
        ({"one": ["train"] * 39 + ["holdout"]}, 'has the word "holdout" in column one, known are train, test, val'),
        ({"column": "name", "one": "t" * 30 + "x" * 10}, "no column of patients: expected one of .* name, one"),
        ({"patients": [f"P{i}" for i in range(40)], "one": "t" * 40}, "puts no lesion of toy into split one"),
        ({"one": "." * 40}, "puts no lesion of toy into split one"),
        ({"one": "t" * 40}, "split one of .* leaves no rows of toy for test;"),
        ({"one": "v" * 20 + "x" * 20}, "split one of .* leaves no rows of toy for train;"),
        ({}, "has no rows, or no column of a split beside patient_id"),
    ],
)  # fmt: skip
def test_files_that_are_not_in_order_are_refused_in_a_sentence(cohort, write_splits, splits, message):
    with pytest.raises(DataError, match=message):
        split_rows(cohort, fold=0, split_file=write_splits(**splits))


def test_a_missing_file_is_named(cohort, tmp_path):
    for function in (
        lambda path: n_folds_of(cohort, 5, path),
        lambda path: split_rows(cohort, fold=0, split_file=path),
    ):
        with pytest.raises(DataError, match=r"nowhere\.csv is missing; set split_file to a CSV"):
            function(str(tmp_path / "nowhere.csv"))


def test_settings_are_checked_with_a_file_too(cohort, write_splits):
    path = write_splits(one="t" * 30 + "x" * 10)
    with pytest.raises(ParameterError, match=r"fold = 1 is outside 0 \.\. 0, the splits that .* holds"):
        split_rows(cohort, fold=1, split_file=path)
    with pytest.raises(ParameterError, match="val_fraction"):
        split_rows(cohort, fold=0, split_file=path, val_fraction=0.7)
    with pytest.raises(ParameterError, match="seed"):
        split_rows(cohort, fold=0, split_file=path, seed=-1)


def with_splits(cohort, **splits):
    """The cohort with published splits: a word's first letter for each lesion (t train, v val, x test, . none)."""
    words = {"t": "train", "v": "val", "x": "test", ".": ""}
    lesion = [int(group[1:]) for group in cohort.groups]
    parts = {name: [words[split[number]] for number in lesion] for name, split in splits.items()}
    return dataclasses.replace(cohort, splits=pd.DataFrame(parts))


def test_a_cohorts_own_splits_are_used_unless_others_are_asked_for(cohort, write_splits):
    official = with_splits(cohort, official="t" * 20 + "v" * 10 + "x" * 9 + ".", second="x" * 10 + "t" * 30)
    assert n_folds_of(official, 5) == 2
    split = split_rows(official, fold=0)
    parts = [lesions_of(cohort, part) for part in (split.train, split.val, split.test)]
    assert parts == [list(range(20)), list(range(20, 30)), list(range(30, 39))]
    second = split_rows(official, fold=1)
    assert lesions_of(cohort, second.test) == list(range(10))
    assert len(second.val) and not set(second.val) & set(second.train)
    assert n_folds_of(official, 5, "none") == 5
    ours, plain = split_rows(official, fold=0, split_file="none"), split_rows(cohort, fold=0)
    np.testing.assert_array_equal(ours.test, plain.test)
    other = write_splits(one="t" * 35 + "x" * 5)
    assert lesions_of(cohort, split_rows(official, fold=0, split_file=other).test) == list(range(35, 40))


def test_own_splits_follow_the_rows_that_are_taken_and_count_in_the_fingerprint(cohort):
    official = with_splits(cohort, official="t" * 20 + "v" * 10 + "x" * 10)
    assert official.fingerprint != cohort.fingerprint
    rows = np.flatnonzero(np.arange(len(cohort)) % 3 > 0)[::-1]
    taken = official.take(rows)
    for part in ("train", "val", "test"):
        expected = {row for row in getattr(split_rows(official, fold=0), part) if row in rows}
        assert set(rows[getattr(split_rows(taken, fold=0), part)]) == expected


def test_own_splits_that_leak_or_do_not_fit_are_refused(cohort):
    rows = pd.DataFrame({"official": ["train"] * 5 + ["test"] * (len(cohort) - 5)})
    with pytest.raises(DataError, match=r"publisher of toy puts .* several parts of split official"):
        split_rows(dataclasses.replace(cohort, splits=rows), fold=0)
    with pytest.raises(DataError, match=r"splits of cohort toy have 3 rows"):
        dataclasses.replace(cohort, splits=rows[:3])


@pytest.mark.parametrize(
    "file, n, held_out",
    [("splits_5fold.csv", 5, "val"), ("splits_15fold_pathomicfusion.csv", 15, "test")],
)
def test_published_splits_of_tcga_are_followed(real_folder, file, n, held_out):
    root = real_folder("tcga_gbmlgg")
    cohort, path = tcga_gbmlgg.read(root), root / file
    published = pd.read_csv(path).set_index("patient_id")
    assert n_folds_of(cohort, 5, str(path)) == n == published.shape[1]
    for fold, column in enumerate(published):
        split = split_rows(cohort, fold=fold, split_file=str(path))
        check_disjoint(cohort, split)
        known = published[column].reindex(cohort.groups)
        assert set(cohort.groups[split.test]) == set(known.index[known == held_out])
        assert set(cohort.groups[np.union1d(split.train, split.val)]) == set(known.index[known == "train"])
        assert len(split.val) / (len(split.train) + len(split.val)) == pytest.approx(0.2, abs=0.01)
