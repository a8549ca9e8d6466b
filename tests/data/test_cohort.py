import dataclasses
import hashlib

import numpy as np
import pandas as pd
import pytest

from medkd.data.arrays import ArrayImages
from medkd.data.cohort import Cohort, VectorTable
from medkd.errors import DataError, ParameterError


@pytest.fixture
def vectors_only():
    """Three samples of two patients, one vector modality and no image."""
    table = pd.DataFrame({"id": ["x000", "x001", "x002"], "class": list("aba"), "patient": list("ppq")})
    table["label"], table["roi"] = [0, 1, 0], table["id"]
    omic = VectorTable(np.array([[0, 1], [2, np.nan], [4, 5]], np.float32), ("u", "v"))
    return Cohort("toy", "Toy", False, ("a", "b"), table, {}, {"omic": omic}, second="omic")


@pytest.fixture
def three_modalities(vectors_only):
    pixels = np.zeros((3, 4, 4, 3), np.uint8)
    images = {"photo": ArrayImages(pixels), "scope": ArrayImages(pixels + 1)}
    return dataclasses.replace(vectors_only, images=images, main="photo", second="scope")


def with_survival(cohort, months, event):
    return dataclasses.replace(cohort, table=cohort.table.assign(survival_months=months, event=event))


def test_a_cohort_may_have_vectors_and_no_images(vectors_only):
    assert (vectors_only.main, vectors_only.second, vectors_only.modalities) == ("", "omic", ("omic",))
    some = vectors_only.take(np.array([2, 0]))
    assert some.table["id"].tolist() == ["x002", "x000"]
    assert some.vectors["omic"].values.tolist() == [[4.0, 5.0], [0.0, 1.0]]


def test_modalities_are_the_images_and_then_the_vectors(three_modalities):
    assert three_modalities.modalities == ("photo", "scope", "omic")


def test_images_and_labels_that_do_not_fit_the_table_are_refused(three_modalities):
    table = three_modalities.table
    for change, told in (
        (
            {"images": {"photo": ArrayImages(np.zeros((4, 4, 4, 3), np.uint8))}},
            "photo of cohort toy has 4 images, .* 3 r",
        ),
        (
            {"table": table.assign(label=[0, 1, 2])},
            'x002 of cohort toy has the label 2 and the class "a"; label counts',
        ),
        ({"table": table.assign(label=[1, 1, 0])}, 'x000 of cohort toy has the label 1 and the class "a"'),
    ):
        with pytest.raises(DataError, match=told):
            dataclasses.replace(three_modalities, **change)


def test_slots_take_images_and_vectors_and_keep_what_is_not_named(three_modalities):
    def slots(**chosen):
        cohort = three_modalities.with_slots(**chosen)
        return cohort.main, cohort.second

    assert slots() == ("photo", "scope")
    assert slots(second="omic") == ("photo", "omic")
    assert slots(main="omic") == ("omic", "scope")
    assert slots(main="scope", second="photo") == ("scope", "photo")
    assert (three_modalities.main, three_modalities.second) == ("photo", "scope")


def test_a_cohort_without_slots_may_stay_so(vectors_only):
    none = dataclasses.replace(vectors_only, second="")
    assert (none.with_slots().main, none.with_slots().second) == ("", "")


def test_other_slots_make_another_fingerprint(three_modalities):
    assert three_modalities.fingerprint == three_modalities.with_slots(main="photo").fingerprint
    assert three_modalities.fingerprint != three_modalities.with_slots(second="omic").fingerprint


def test_a_common_class_that_becomes_rare_makes_another_fingerprint(vectors_only):
    """Features of a run that learned from its images as common ones must not serve it as a rare class."""
    classes = vectors_only.classes
    cuts = [(classes[:1], classes[1:]), (classes[:2], classes[2:])]
    split = [dataclasses.replace(vectors_only, base_classes=base, rare_classes=rare) for base, rare in cuts]
    assert split[0].fingerprint != split[1].fingerprint


def test_what_notebooks_show_counts_the_columns_that_no_training_reads(vectors_only):
    other = dataclasses.replace(vectors_only, table=vectors_only.table.assign(localization="back"))
    assert other.fingerprint == vectors_only.fingerprint and other.shown != vectors_only.shown


def test_images_in_memory_have_the_digest_of_all_at_once(monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (7, 4, 4, 3), dtype=np.uint8)
    source = ArrayImages(pixels, np.array([6, 1, 3, 0, 2]))
    chosen = pixels[[6, 1, 3, 0, 2]]
    monkeypatch.setattr("medkd.data.arrays.RESIZE_CHUNK", 2)
    assert source.fingerprint() == hashlib.sha256(repr(chosen.shape).encode() + chosen.tobytes()).hexdigest()


def test_an_unknown_slot_names_the_known_modalities(three_modalities):
    with pytest.raises(ParameterError, match='second = "omics" is no modality of toy; known are photo, scope, omic'):
        three_modalities.with_slots(second="omics")


def test_one_modality_in_both_slots_is_refused(three_modalities):
    with pytest.raises(ParameterError, match='would both be "scope"; name another one'):
        three_modalities.with_slots(main="scope")


def test_survival_needs_both_columns(vectors_only):
    assert not vectors_only.has_survival
    assert with_survival(vectors_only, [1.0, np.nan, 3.0], [1, 0, np.nan]).has_survival
    half = dataclasses.replace(vectors_only, table=vectors_only.table.assign(event=1))
    assert not half.has_survival


@pytest.mark.parametrize(
    "months, event, message",
    [
        (
            [1.0, 0.0, 3.0],
            [1, 0, 1],
            r"survival_months of cohort toy must be finite and above 0, .* 'x001' \(1",
        ),
        ([1.0, 2.0, np.inf], [1, 0, 1], "survival_months of cohort toy must be finite .* not for 'x002'"),
        ([1.0, "two", 3.0], [1, 0, 1], "survival_months of cohort toy must be finite .* not for 'x001'"),
        ([1.0, 2.0, 3.0], [1, 2, -1], r"event of cohort toy must be 1 \(observed\) or 0 .* 'x001' \(2 in all\)"),
    ],
)
def test_survival_that_cannot_be_is_refused(vectors_only, months, event, message):
    with pytest.raises(DataError, match=message):
        with_survival(vectors_only, months, event)


def test_fingerprint_without_survival_is_what_it_was_before_there_was_any(vectors_only):
    assert vectors_only.fingerprint == "df563201f29b37d0"  # recorded with the code of the time


def test_fingerprint_follows_times_and_events_but_not_how_events_are_stored(vectors_only):
    known = with_survival(vectors_only, [1.0, 2.0, 3.0], [1, 0, 1])
    others = [
        vectors_only,
        with_survival(vectors_only, [1.0, 2.0, 3.5], [1, 0, 1]),
        with_survival(vectors_only, [1.0, 2.0, 3.0], [1, 0, 0]),
        with_survival(vectors_only, [1.0, 2.0, np.nan], [1, 0, 1]),
    ]
    assert len({cohort.fingerprint for cohort in [known, *others]}) == 5
    assert with_survival(vectors_only, [1, 2, 3], [1.0, 0.0, 1.0]).fingerprint == known.fingerprint
