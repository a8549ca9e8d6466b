import numpy as np
import pytest

from medkd.data.folds import Split, check_disjoint, split_rows
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
