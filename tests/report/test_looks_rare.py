"""What the rare-disease notebooks look at: neighbours, labels by K, the comparison table."""

import numpy as np
import pandas as pd
import pytest

from medkd.files import write_table
from medkd.report.figures_rare import by_shots
from medkd.report.looks_rare import (
    JOURNAL,
    effect_of_shots,
    is_journal_setting,
    labels_by_shots,
    methods_table,
    neighbours_of_rare,
)
from medkd.stages.store import Run


def run_in(folder, stage="05"):
    folder.mkdir(exist_ok=True)
    return Run(folder, stage, folder.name, {}, {}, (), cohort="c", seconds=0.0)


def labelling(folder, cohort, hard):
    """A run that labels common image i surely with class hard[i] (confidence .8)."""
    run = run_in(folder)
    frame = cohort.table[["id", "class"]].iloc[:40].iloc[::-1]
    surely = np.where(np.asarray(hard)[::-1] == 0, 0.8, 0.2)
    write_table(folder / "pseudo_labels.csv", frame.assign(p_d=surely, p_v=1 - surely))
    return run


def test_neighbours_are_common_images_by_falling_cosine(cohort):
    angle = np.linspace(0, 1.5, 48)
    features = np.column_stack([np.cos(angle), np.sin(angle)]) * np.arange(1, 49)[:, None]  # lengths do not matter
    images, titles, table = neighbours_of_rare(cohort, features, "photo", 8, n_examples=1, n_neighbours=3)
    grid = images[:, 0, 0, 0].reshape(2, 4)
    assert (grid[:, 1:] == [[39, 38, 37]]).all()  # the common images of largest angle
    assert titles[:4] == ["d", "m", "m", "m"] and titles[4] == "v"
    assert (table.groupby("id")["cosine"].diff().dropna() <= 0).all()
    first = table.iloc[0]
    rows = [int(first["id"][1:]), int(first["neighbour"][1:])]
    assert first["cosine"] == pytest.approx(np.cos(angle[rows[0]] - angle[rows[1]]))


def test_labels_by_shots_give_confidence_and_agreement_with_intervals_around_them(cohort, tmp_path):
    flat, other = np.zeros(40, int), np.array([0] * 30 + [1] * 10)
    runs = {(5, 0): labelling(tmp_path / "a", cohort, flat), (5, 1): labelling(tmp_path / "b", cohort, other)}
    runs[1, 0] = labelling(tmp_path / "c", cohort, flat)
    table = labels_by_shots(cohort, runs, n_resamples=500).set_index(["K", "method"])
    assert table.loc[(5, "agreement of tasks"), "value"] == pytest.approx(0.75)
    low, high = table.loc[(5, "agreement of tasks"), ["low", "high"]]
    assert 0.4 < low < 0.75 < high < 1
    assert table.loc[(1, "confidence"), ["value", "low", "high"]].tolist() == pytest.approx([0.8, 0.8, 0.8])
    assert (1, "agreement of tasks") not in table.index


def tables():
    """Two methods at K = 1 and 5 over two tasks: metric values .5 and .6."""
    metrics = ["accuracy", "recall_0", "recall_1", "balanced_accuracy", "f1_macro", "auc_macro"]
    rows = [
        {"setting": setting, "method": method, "level": "image", "metric": metric}
        | {"value": value, "low": value - 0.1, "high": value + 0.1}
        | {"mean_over_parts": value, "sd_over_parts": 0.02, "n_parts": 2, "n": 9}
        for setting in ("K=1", "K=5")
        for method, value in (("MoCo + LR", 0.5), ("Hbr.Dst.", 0.6))
        for metric in metrics
    ]
    gains = [
        {"setting": setting, "method": "Hbr.Dst.", "minus": "MoCo + LR", "level": "image"}
        | {"metric": "balanced_accuracy", "difference": 0.1, "low": -0.05, "high": 0.25}
        for setting in ("K=1", "K=5")
    ]
    return pd.DataFrame(rows), pd.DataFrame(gains)


def test_comparison_prints_mean_sd_and_the_paired_interval(cohort):
    table = methods_table(*tables(), cohort.rare_classes)
    ours = table[(table["setting"] == "K=5") & (table["method"] == "Hbr.Dst.")].iloc[0]
    assert ours["accuracy"] == ours["d"] == ours["Avg"] == ours["macro AUC"] == "60.0 (2.0)"
    assert ours["Avg minus MoCo + LR"] == "+10.0 (-5.0 to +25.0)"
    assert table.iloc[0]["Avg minus MoCo + LR"] == ""
    assert "journal, Table 1" not in table


def test_the_journals_numbers_stand_beside_ours_at_its_own_setting_only(cohort):
    table = methods_table(*tables(), cohort.rare_classes, journal=True)
    assert table["journal, Table 1"].tolist() == [JOURNAL[m][i] for i in (0, 2) for m in ("MoCo + LR", "Hbr.Dst.")]
    assert is_journal_setting("isic2018", 224)
    assert not is_journal_setting("isic2018", 48) and not is_journal_setting("phantom-rare-skin", 224)


def test_the_journals_means_are_means_of_its_class_accuracies():
    """A typing error would show: URL and student rows of Table 1 are consistent to 0.03 (specification 8.12)."""
    for method in ("MoCo + LR", "Hbr.Dst.", "Hbr.Dst.-DDL", "Hbr.Dst.-DIC", "SRL-simple", "SRL-distill"):
        for cell in JOURNAL[method]:
            _, classes, mean = cell.split("; ")
            assert np.mean([float(value) for value in classes.split("/")]) == pytest.approx(float(mean), abs=0.03)


def test_effect_of_shots_is_drawn_with_its_intervals_one_line_a_method(ax):
    table = effect_of_shots(tables()[0])
    assert table["K"].tolist() == [1, 1, 5, 5]
    by_shots(table, ax)
    assert [line.get_label() for line in ax.lines] == ["MoCo + LR", "Hbr.Dst."]
    np.testing.assert_allclose(ax.lines[1].get_ydata(), [0.6, 0.6])
    (first, _) = ax.collections[1].get_segments()
    np.testing.assert_allclose(first[:, 1], [0.5, 0.7])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1", "5"]
