import dataclasses

import numpy as np
import pandas as pd
import pytest

from medkd.data import checks
from medkd.data.checks import check, imbalance, split_counts
from medkd.data.folds import Split
from medkd.data.images import FileImages
from medkd.data.registry import load_cohort

NAMES = ["a.jpg", "b.png", "sub/c.jpg", "d.png", "e.png"]


@pytest.fixture
def photos(image_folder, tmp_path):
    return FileImages(NAMES, root=image_folder, cache_dir=tmp_path / "cache")


def texts(findings, *, error):
    return [finding.text for finding in findings if finding.error is error]


def test_nothing_is_found_in_a_clean_cohort(make_cohort, photos):
    cohort = make_cohort(["a"] * 5, ["p", "q", "r", "s", "t"], images=photos)
    assert check(cohort, n_folds=2, val_fraction=0.5) == []


def test_one_file_under_two_lesions_is_an_error_but_not_twice_under_one(make_cohort, photos, image_folder):
    (image_folder / "d.png").write_bytes((image_folder / "b.png").read_bytes())
    apart = make_cohort(["a"] * 5, ["p", "q", "r", "s", "t"], images=photos)
    (error,) = texts(check(apart, n_folds=2, val_fraction=0.5), error=True)
    assert "one photo image file is filed under several lesions, q = s" in error
    together = make_cohort(["a"] * 5, ["p", "q", "r", "q", "t"], images=photos)
    assert check(together, n_folds=2, val_fraction=0.5) == []


def test_unreadable_images_are_named_with_the_reason_and_come_first(make_cohort, photos, image_folder):
    (image_folder / "b.png").write_bytes(b"")
    (image_folder / "sub" / "c.jpg").write_text("no image")
    cohort = dataclasses.replace(make_cohort(["a"] * 5, list("pqrst"), images=photos), group="image")
    findings = check(cohort, n_folds=2, val_fraction=0.5)
    (error,) = texts(findings, error=True)
    assert findings[0].kind == "unreadable"
    assert "2 photo image files cannot be read: b.png, sub/c.jpg (b.png: the file is empty)" in error


def test_folds_that_leak_are_errors(make_cohort, monkeypatch):
    """A division that ignores the lesions, planted in place of the real one."""
    planted = Split(train=np.array([0, 2]), val=np.array([4, 5]), test=np.array([1, 3]))
    monkeypatch.setattr(checks, "split_rows", lambda cohort, **settings: planted)
    found = texts(check(make_cohort(["a"] * 6, list("ppqqrr")), n_folds=2), error=True)
    assert [text[:33] for text in found] == [f"fold {i}: lesions p, q have samples" for i in range(2)]


def test_common_images_of_patients_with_rare_ones_are_counted(make_cohort):
    """Patients p and q have rare images, and three common ones between them."""
    cohort = make_cohort(["a", "b", "a", "b", "a", "r", "s", "r"], list("pqptuqpv"), rare=("r", "s"))
    cohort = dataclasses.replace(cohort, base_classes=("a", "b"), group="patient")
    assert cohort.base_rows().tolist() == [3, 4]
    found = texts(check(cohort, n_folds=2, val_fraction=0.5), error=False)
    assert "3 common images of toy are of patients who have rare images too; nothing is learned from these, since " in (
        "\n".join(found)
    )
    mixed = dataclasses.replace(cohort, table=cohort.table.assign(patient=list("pqpqpqpq")))
    assert any("so nothing is left to learn from" in text for text in texts(check(mixed, n_folds=2), error=True))


def test_classes_are_counted_in_published_splits_where_there_are_some(make_cohort):
    splits = pd.DataFrame({"official": ["train", "train", "val", "val", "test", ""]})
    cohort = dataclasses.replace(make_cohort(list("ababaa"), list("pqrstu")), splits=splits)
    (warning,) = texts(check(cohort, n_folds=5), error=False)
    assert warning == "toy has classes without samples in a part of its published splits: b (test of official)"
    whole = splits.assign(official=["train", "train", "val", "val", "test", "test"])
    assert check(make_cohort(list("ababab"), list("pqrstu"))) != []  # fewer lesions than the five folds
    assert check(dataclasses.replace(make_cohort(list("ababab"), list("pqrstu")), splits=whole)) == []


def test_published_splits_that_leak_are_errors(make_cohort):
    splits = pd.DataFrame({"official": ["train", "test", "train", "val", "test", "train"]})
    cohort = dataclasses.replace(make_cohort(["a"] * 6, list("ppqqrr")), splits=splits)
    (error,) = texts(check(cohort, n_folds=2), error=True)
    assert "puts p, q, r into several parts of split official" in error


def test_a_cohort_without_lesion_ids_is_warned_of(make_cohort):
    cohort = dataclasses.replace(make_cohort(["a"] * 8, list("pqrstuvw")), group="image")
    findings = check(cohort, n_folds=2, val_fraction=0.5)
    assert texts(findings, error=True) == []
    assert "no patient or lesion ids" in texts(findings, error=False)[0]


def test_classes_with_fewer_lesions_than_folds_are_warned_of(make_cohort):
    cohort = make_cohort(["a"] * 8 + ["b"] * 3, list("pqrstuvw") + list("xxy"))
    (warning,) = texts(check(cohort, n_folds=3, val_fraction=0.5), error=False)
    assert "classes with fewer lesions than the 3 folds" in warning and "b (2)" in warning


def test_counts_by_class_and_part_are_those_of_the_split(make_cohort):
    cohort = make_cohort(["a", "a", "b", "b", "b", "c"], list("ppqrrs"))
    counts = split_counts(cohort, Split(np.array([0, 1, 2]), np.array([3, 4]), np.array([5]))).set_index("class")
    assert counts.loc["a"].tolist() == [2, 1, 0, 0, 0, 0]
    assert counts.loc["b"].tolist() == [1, 1, 2, 1, 0, 0]
    assert counts.loc["c"].tolist() == [0, 0, 0, 0, 1, 1]
    assert imbalance(cohort) == 3.0


def test_a_cohort_that_is_too_small_for_the_folds_still_tells_its_unreadable_images(make_cohort, photos, image_folder):
    (image_folder / "b.png").write_bytes(b"")
    unreadable, small = texts(check(make_cohort(["a"] * 5, list("pqrst"), images=photos), n_folds=9), error=True)
    assert "1 photo image files cannot be read: b.png" in unreadable
    assert "n_folds = 9 does not fit toy, which has 5 lesions" in small


@pytest.mark.slow
@pytest.mark.parametrize("name, folder", [("isic2018", "isic2018_task3_128"), ("milk10k-5", "milk10k_128")])
def test_real_sets_file_no_image_under_two_lesions(name, folder, real_folder, tmp_path):
    cohort = load_cohort(name, str(real_folder(folder)), cache_dir=tmp_path)
    assert check(cohort, n_folds=2, val_fraction=0.5) == []
