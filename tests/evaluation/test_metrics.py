import math

import numpy as np
import pandas as pd
import pytest

from medkd.errors import DataError, ParameterError
from medkd.evaluation.metrics import aggregate, calibration_table, classification_metrics
from medkd.evaluation.words import metric_words


def one_hot(predicted, n_classes):
    return np.eye(n_classes)[predicted]


def test_equals_three_classes_worked_by_hand():
    """Confusion matrix, rows true: [[2, 1, 0], [0, 1, 1], [0, 0, 1]]."""
    found = classification_metrics(np.array([0, 0, 0, 1, 1, 2]), one_hot([0, 0, 1, 1, 2, 2], 3))
    assert found["accuracy"] == found["f1_micro"] == pytest.approx(4 / 6)
    assert found["recall_per_class"] == pytest.approx([2 / 3, 1 / 2, 1])
    assert found["balanced_accuracy"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert found["f1_per_class"] == pytest.approx([4 / 5, 1 / 2, 2 / 3])
    assert found["f1_macro"] == pytest.approx((4 / 5 + 1 / 2 + 2 / 3) / 3)
    by_chance = (3 * 2 + 2 * 2 + 1 * 2) / 36
    assert found["kappa"] == pytest.approx((4 / 6 - by_chance) / (1 - by_chance))
    # with hard scores the AUC of a class is (sensitivity + specificity) / 2
    assert found["auc_macro"] == pytest.approx(np.mean([(2 / 3 + 1) / 2, (1 / 2 + 3 / 4) / 2, (1 + 4 / 5) / 2]))
    assert found["ece"] == pytest.approx(2 / 6)


def test_class_without_samples_is_nan_and_left_out_of_means():
    labels = np.array([0, 0, 2, 2])
    found = classification_metrics(labels, one_hot([0, 1, 2, 2], 3))
    assert math.isnan(found["recall_per_class"][1]) and math.isnan(found["f1_per_class"][1])
    assert found["balanced_accuracy"] == pytest.approx((1 / 2 + 1) / 2)
    assert found["f1_macro"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["auc_macro"] == pytest.approx((3 / 4 + 1) / 2)


def test_class_that_is_never_predicted_has_f1_zero():
    found = classification_metrics(np.array([0, 1]), one_hot([0, 0], 2))
    assert found["f1_per_class"] == pytest.approx([2 / 3, 0])


def test_one_class_alone_has_accuracy_but_no_auc_or_kappa():
    found = classification_metrics(np.array([1, 1]), one_hot([1, 1], 3))
    assert found["accuracy"] == 1
    assert math.isnan(found["auc_macro"]) and math.isnan(found["kappa"])


def test_calibration_error_is_the_weighted_gap_between_confidence_and_accuracy():
    """Three predictions at .9 (two right) and one at .6 (right): (3 |.9 - 2/3| + |.6 - 1|) / 4."""
    labels = np.array([0, 0, 1, 0])
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.6, 0.4]])
    expected = (3 * abs(0.9 - 2 / 3) + abs(0.6 - 1)) / 4
    assert classification_metrics(labels, probabilities)["ece"] == pytest.approx(expected)
    assert calibration_table(labels, probabilities)["n_samples"].tolist() == [1, 3]


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        ([0, 1], [[0.5, 0.5]], r"got \(2,\) and \(1, 2\)"),
        ([], np.zeros((0, 2)), r"n >= 1"),
        ([0, 1], [[0.5, 0.5], [np.nan, 0.5]], "training loss"),
        ([0, 1], [[-1.0, -2.0], [-3.0, -0.1]], r"0\.\.1"),
        ([0, 2], [[0.5, 0.5], [0.5, 0.5]], r"0\.\.1 .* got 0 to 2"),
    ],
)
def test_names_what_does_not_fit(labels, probabilities, message):
    with pytest.raises(DataError, match=message):
        classification_metrics(np.array(labels, dtype=int), np.array(probabilities))


@pytest.fixture
def patches():
    """Patient a: ROI 1 of three patches, ROI 2 of one; patient b: ROI 1 (same name) of one patch."""
    return pd.DataFrame(
        {
            "id": ["a11", "a12", "a13", "b11", "a21"],
            "roi": ["1", "1", "1", "1", "2"],
            "patient": ["a", "a", "a", "b", "a"],
            "label": [0, 0, 0, 1, 0],
            "p_0": [0.9, 0.6, 0.3, 0.2, 0.2],
            "p_1": [0.1, 0.4, 0.7, 0.8, 0.8],
            "method": "KD",
        }
    )


def test_patient_score_is_the_mean_over_rois_of_the_mean_over_patches(patches):
    patients = aggregate(patches, "patient")
    assert patients["patient"].tolist() == ["a", "b"]
    assert patients["p_0"].tolist() == pytest.approx([(0.6 + 0.2) / 2, 0.2])
    assert patients["label"].tolist() == [0, 1]


def test_rois_of_two_patients_stay_apart_when_their_names_agree(patches):
    rois = aggregate(patches, "roi")
    assert list(zip(rois["patient"], rois["roi"], strict=True)) == [("a", "1"), ("b", "1"), ("a", "2")]
    assert rois["p_1"].tolist() == pytest.approx([0.4, 0.8, 0.8])


def test_image_level_averages_repeated_views_and_keeps_order(patches):
    twice = pd.concat([patches, patches.assign(p_0=patches["p_0"] - 0.1, p_1=patches["p_1"] + 0.1)])
    images = aggregate(twice, "image")
    assert images["id"].tolist() == patches["id"].tolist()
    assert images["p_0"].tolist() == pytest.approx((patches["p_0"] - 0.05).tolist())


def test_refuses_to_average_samples_of_different_labels(patches):
    patches.loc[4, "label"] = 1
    assert len(aggregate(patches, "roi")) == 3
    with pytest.raises(DataError, match="patient 'a' has samples with different labels"):
        aggregate(patches, "patient")


def test_names_a_missing_column_a_missing_patient_and_an_unknown_level(patches):
    with pytest.raises(DataError, match="lack the column.* roi"):
        aggregate(patches.drop(columns="roi"), "image")
    with pytest.raises(DataError, match="p_0"):
        aggregate(patches.drop(columns=["p_0", "p_1"]), "image")
    with pytest.raises(DataError, match="without id, roi or patient"):
        aggregate(patches.assign(patient=[None, "a", "a", "b", "a"]), "patient")
    with pytest.raises(ParameterError, match="'slide'"):
        aggregate(patches, "slide")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("balanced_accuracy", "balanced accuracy"),
        ("auc_macro", "macro AUC"),
        ("val_auc_macro", "val macro AUC"),
        ("val_c_index", "val C-index"),
        ("recall_0", "recall 0"),
        ("loss", "loss"),
    ],
)
def test_metrics_are_called_as_papers_write_them(name, words):
    assert metric_words(name) == words
