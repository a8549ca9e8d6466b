import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_1samp
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score

from medkd.errors import DataError, ParameterError
from medkd.evaluation.bootstrap import intervals, paired_intervals
from medkd.evaluation.comparison import arrays, by_part, differences, levels, single_modality_pairs, summarise
from medkd.evaluation.metrics import aggregate, classification_metrics
from medkd.evaluation.scorers import SCALARS, classification_scorer
from medkd.evaluation.survival import aggregate_risks, c_index, survival_scorers


def test_images_of_one_patient_are_one_cluster_of_a_paired_difference():
    """Every image three times over, as more images of its patient: the same intervals."""
    rng = np.random.default_rng(0)
    n = 60
    table = pd.DataFrame({"patient": [f"p{i // 2}" for i in range(n)], "label": np.arange(n) % 2, "part": 0})
    table["id"] = table["roi"] = [f"x{i}" for i in range(n)]
    one = pd.concat(
        [table.assign(method=m, setting="", p_1=(q := rng.random(n)), p_0=1 - q) for m in ("CE only", "KD")]
    )
    three = pd.concat([one.assign(id=one["id"] + copy, roi=one["id"] + copy) for copy in "abc"])
    columns = ["difference", "low", "high", "p_value"]
    expected, found = (differences(t, "CE only", level="image", n_resamples=200)[columns] for t in (one, three))
    np.testing.assert_allclose(found, expected, atol=1e-12)


METHODS = ("teacher", "image only", "genes only", "CE only", "KD")


def patches(n_patients=18):
    """Three folds in which every patient is tested once, two ROIs of three patches per patient."""
    rows = [
        (f"p{patient}-{roi}-{patch}", f"p{patient}-{roi}", f"p{patient}", patient % 3, patient % 9 // 3)
        for patient in range(n_patients)
        for roi in range(2)
        for patch in range(3)
    ]
    return pd.DataFrame(rows, columns=["id", "roi", "patient", "label", "part"])


def one_against_rest(labels, probabilities):
    """AUC and average precision of each class that is there, by scikit-learn: "auc_macro 2" and so on."""
    found = {}
    for c in np.unique(labels):
        found[f"ap_macro {c}"] = average_precision_score(labels == c, probabilities[:, c])
        if (labels != c).any():
            found[f"auc_macro {c}"] = roc_auc_score(labels == c, probabilities[:, c])
    return found


@pytest.fixture
def predictions():
    """Classification by five methods; later ones err more."""
    rng, tables = np.random.default_rng(0), []
    for number, method in enumerate(METHODS):
        table = patches()
        raised = rng.dirichlet(np.ones(3), size=len(table)) + (0.5 - 0.1 * number) * np.eye(3)[table["label"]]
        scores = pd.DataFrame(raised / raised.sum(axis=1, keepdims=True), columns=["p_0", "p_1", "p_2"])
        tables.append(pd.concat([table, scores], axis=1).assign(method=method, setting=""))
    return pd.concat(tables, ignore_index=True)


@pytest.fixture
def survival():
    """Risks by the same methods; follow-up belongs to the patient, one patient has none."""
    rng, tables = np.random.default_rng(1), []
    n_patients = 18
    times, events = rng.integers(1, 60, size=n_patients).astype(float), (np.arange(n_patients) % 4 > 0).astype(float)
    times[5] = np.nan
    for number, method in enumerate(METHODS):
        table = patches(n_patients).drop(columns="label")
        patient = table["patient"].str[1:].astype(int)
        risks = -times[patient] / 30 + (0.5 + number / 4) * rng.standard_normal(len(table))
        follow_up = {"time": times[patient], "event": events[patient], "risk": np.nan_to_num(risks)}
        tables.append(table.assign(**follow_up, method=method, setting=""))
    return pd.concat(tables, ignore_index=True)


def row_of(table, **wanted):
    (index,) = np.flatnonzero(np.all([table[column] == value for column, value in wanted.items()], axis=0))
    return table.iloc[index]


def test_summary_has_every_metric_at_every_level(predictions):
    summary = summarise(predictions, n_resamples=20)
    names = {*SCALARS, *(f"{kind}_{c}" for kind in ("f1", "recall") for c in range(3))}
    assert list(summary["level"].unique()) == ["image", "roi", "patient"]
    for _, group in summary.groupby(["method", "level"]):
        assert set(group["metric"]) == names and not group["metric"].duplicated().any()
    assert summary.groupby("level")["n"].unique().to_dict() == {"image": [108], "roi": [36], "patient": [18]}
    assert (summary["n_parts"] == 3).all() and list(summary.columns[:5]) == [
        "setting",
        "method",
        "level",
        "metric",
        "value",
    ]


@pytest.mark.parametrize("level", ["image", "roi", "patient"])
def test_summary_pools_the_parts_but_for_ranks_and_spreads_over_them(level, predictions):
    """Ranks (AUC, average precision) are means over parts (of a class over those that have it, and then over classes),
    decisions and calibration those of all samples."""
    summary = summarise(predictions, n_resamples=8, seed=3)
    ours = predictions[predictions["method"] == "KD"]
    parts = [aggregate(rows, level) for _, rows in ours.groupby("part")]
    pooled = pd.concat(parts)
    patients = pooled["patient"].to_numpy()
    table = intervals(classification_scorer(*arrays(pooled)), len(pooled), patients, n_resamples=8, seed=3)
    ranks = [name for name in SCALARS if name.startswith(("auc", "ap"))]

    def within_parts(weights):
        """Every sample as often as it weighs, each part by scikit-learn."""
        values = []
        for column in weights.T.astype(int):
            cut = np.split(column, np.cumsum([len(part) for part in parts])[:-1])
            drawn = [part.loc[part.index.repeat(n)] for part, n in zip(parts, cut, strict=True)]
            micro = pd.DataFrame([classification_metrics(*arrays(part)) for part in drawn if len(part)])
            macro = pd.DataFrame([one_against_rest(*arrays(part)) for part in drawn if len(part)]).mean()
            of_kind = macro.groupby(macro.index.str.split(" ").str[0]).mean()
            values.append({**micro[ranks].mean(), **of_kind})
        return {name: np.array([value[name] for value in values]) for name in ranks}

    table.loc[ranks] = intervals(within_parts, len(pooled), patients, n_resamples=8, seed=3).loc[ranks]
    points = [classification_metrics(*arrays(part)) for part in parts]
    for metric, each in [
        *((name, [point[name] for point in points]) for name in SCALARS),
        ("f1_2", [point["f1_per_class"][2] for point in points]),
    ]:
        row = row_of(summary, method="KD", level=level, metric=metric)
        assert row[["value", "low", "high"]].tolist() == pytest.approx(table.loc[metric].tolist(), abs=1e-12)
        assert row["mean_over_parts"] == pytest.approx(np.mean(each), abs=1e-12)
        assert row["sd_over_parts"] == pytest.approx(np.std(each, ddof=1), abs=1e-12)


@pytest.fixture
def uneven():
    """Two methods in three parts of 30 samples of 30 patients; class 2 is one patient's, and in the last part alone."""
    rng = np.random.default_rng(0)
    labels = np.concatenate([np.arange(60) % 2, np.arange(28) % 2, [2, 2]])
    table = pd.DataFrame({"label": labels, "part": np.arange(90) // 30, "patient": [f"p{i % 30}" for i in range(90)]})
    table.loc[88:, "patient"] = "alone"
    table = table.assign(id=[f"i{i}" for i in range(90)], roi=lambda rows: rows["id"], setting="")
    tables = []
    for method, lift in (("CE only", 0.2), ("KD", 0.4)):
        scores = rng.dirichlet(np.ones(3), size=90) + lift * np.eye(3)[labels]
        scores /= scores.sum(axis=1, keepdims=True)
        tables.append(table.assign(method=method, **{f"p_{i}": scores[:, i] for i in range(3)}))
    return pd.concat(tables, ignore_index=True)


def test_a_class_that_few_parts_have_weighs_as_much_as_the_others(uneven):
    value = row_of(summarise(uneven, n_resamples=20), method="KD", metric="auc_macro")
    each = [one_against_rest(*arrays(rows)) for _, rows in uneven[uneven["method"] == "KD"].groupby("part")]
    by_class = pd.DataFrame(each)[["auc_macro 0", "auc_macro 1", "auc_macro 2"]].mean()
    assert value["value"] == pytest.approx(by_class.mean()) != pytest.approx(value["mean_over_parts"])


def test_parts_without_a_value_do_not_count_and_a_class_of_one_patient_has_no_interval(uneven):
    summary = summarise(uneven, n_resamples=20)
    alone = row_of(summary, method="KD", metric="recall_2")
    assert alone["n_parts"] == 1 and np.isfinite(alone["value"]) and np.isnan([alone["low"], alone["high"]]).all()
    assert np.isfinite(row_of(summary, method="KD", metric="recall_1")[["low", "high"]].astype(float)).all()
    row = row_of(differences(uneven, "CE only", metrics=["recall_2"], n_resamples=20), metric="recall_2")
    assert row["n_parts"] == 1 and row["wins"] + row["losses"] <= 1


def test_a_smaller_calibration_error_wins_and_lies_in_its_interval(uneven):
    rows = uneven.assign(p_0=lambda t: np.where(t["method"] == "KD", t["p_0"], 0.98))  # "CE only" is sure, and wrong
    rows.loc[rows["method"] == "CE only", ["p_1", "p_2"]] = 0.01
    row = row_of(differences(rows, "CE only", metrics=["ece"], n_resamples=50), metric="ece")
    assert row["difference"] < 0 and (row["wins"], row["losses"]) == (3, 0)
    errors = summarise(rows, n_resamples=200)
    errors = errors[errors["metric"] == "ece"]
    assert (errors["low"] <= errors["value"]).all() and (errors["value"] <= errors["high"]).all()
    assert (errors["low"] >= 0).all()


def calibrated(n, seed, sharper=1.0):
    """Predictions of two classes that are right as often as they say, or say so too surely."""
    rng = np.random.default_rng(seed)
    logit = 1.5 * rng.standard_normal(n)
    label = (rng.random(n) < 1 / (1 + np.exp(-logit))).astype(int)
    p_1 = 1 / (1 + np.exp(-sharper * logit))
    table = pd.DataFrame({"id": range(n), "patient": range(n), "roi": range(n), "label": label, "setting": ""})
    return table.assign(part=0, method="CE only" if sharper == 1 else "KD", p_0=1 - p_1, p_1=p_1)


def test_the_calibration_error_of_a_calibrated_method_lies_in_its_interval():
    """Its bias is larger than its spread, so that an interval that is turned around could end below it."""
    for seed in range(12):
        rows = summarise(calibrated(300, seed), n_resamples=200)
        row = row_of(rows, metric="ece")
        assert row["low"] <= row["value"] <= row["high"]


def test_intervals_of_differences_of_calibration_errors_are_turned_around_like_those_of_the_errors():
    """Of 20 intervals 15 hold the difference that 30,000 samples tell; of plain percentiles it were eight."""
    true = [row_of(summarise(calibrated(30_000, 0, s), n_resamples=1), metric="ece")["value"] for s in (1.0, 1.8)]
    held = 0
    for seed in range(20):
        both = pd.concat([calibrated(600, seed), calibrated(600, seed, 1.8)], ignore_index=True)
        row = row_of(differences(both, "CE only", metrics=["ece"], n_resamples=300), metric="ece")
        held += row["low"] <= true[1] - true[0] <= row["high"]
        assert (row["p_value"] < 0.05) == (not row["low"] <= 0 <= row["high"])
    assert held >= 13


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [("p_1", np.nan, "that are no numbers"), ("part", None, "without part"), ("label", 1.7, "no whole numbers")],
)
def test_what_would_be_left_out_in_silence_is_refused(uneven, column, value, told):
    broken = uneven.astype({"part": object, "label": float})
    broken.loc[broken["id"] == "i3", column] = value
    with pytest.raises(DataError, match=told):
        summarise(broken, n_resamples=5)


def test_scores_of_networks_that_were_trained_apart_are_not_ranked_against_each_other():
    """A network that ranks each task's samples as another does has its AUC, wherever its scores of a task lie."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"id": range(300), "patient": range(300), "roi": range(300), "part": np.arange(300) % 3})
    table = table.assign(label=rng.integers(0, 2, 300), setting="")
    logits = table["label"] + rng.standard_normal(300)
    tables = [
        table.assign(method=method, p_1=1 / (1 + np.exp(-(logits + offset)))).assign(p_0=lambda rows: 1 - rows["p_1"])
        for method, offset in [("CE only", 0.0), ("KD", 2.0 * (table["part"] - 1))]
    ]
    row = row_of(differences(pd.concat(tables, ignore_index=True), "CE only", n_resamples=50), metric="auc_macro")
    assert row[["difference", "low", "high", "over_parts"]].tolist() == pytest.approx([0] * 4, abs=1e-12)
    assert (row["wins"], row["losses"]) == (0, 0)


def test_equal_values_are_neither_won_nor_lost_whatever_the_order_of_their_sums():
    """Recalls of .1, .2, .3 and of .3, .2, .1 have the same mean, but not to the last bit."""
    labels = np.repeat(np.arange(3), 10)
    rows = []
    for method, right in [("CE only", (1, 2, 3)), ("KD", (3, 2, 1))]:
        hits = np.concatenate([np.arange(10) < n for n in right])
        predicted = np.where(hits, labels, (labels + 1) % 3)
        scores = pd.DataFrame(np.eye(3)[predicted], columns=["p_0", "p_1", "p_2"])
        rows += [scores.assign(label=labels, part=part, id=range(30), method=method) for part in range(5)]
    table = pd.concat(rows, ignore_index=True).assign(setting="", roi=lambda t: t["id"], patient=lambda t: t["id"])
    row = row_of(differences(table, "CE only", n_resamples=20), metric="balanced_accuracy")
    assert (row["difference"], row["wins"], row["losses"]) == (0, 0, 0)
    assert not np.signbit(row["difference"])


def test_one_part_has_a_mean_without_a_spread(predictions):
    summary = summarise(predictions[predictions["part"] == 1], n_resamples=5)
    assert summary["sd_over_parts"].isna().all()
    row = row_of(summary, method="KD", level="roi", metric="accuracy")
    assert row["mean_over_parts"] == row["value"]


def test_settings_may_differ_in_their_number_of_classes(predictions):
    three = predictions.assign(setting="K=5")
    two = predictions[predictions["label"] < 2].assign(setting="K=1", p_2=np.nan)
    two["p_1"] = 1 - two["p_0"]
    summary = summarise(pd.concat([two, three], ignore_index=True), n_resamples=5)
    found = summary.groupby("setting")["metric"].agg(set)
    assert found["K=5"] - found["K=1"] == {"f1_2", "recall_2"}


def test_differences_are_those_of_aggregated_samples_at_each_level(predictions):
    table = differences(predictions, "teacher", n_resamples=20, seed=2)
    assert set(table["minus"]) == {"CE only"}
    assert list(table["level"].unique()) == ["image", "roi", "patient"]
    assert len(table) == 4 * 3 * 2
    for level in ("image", "patient"):
        a, b = (
            pd.concat(
                [aggregate(rows, level) for _, rows in predictions[predictions["method"] == name].groupby("part")]
            )
            for name in ("KD", "CE only")
        )
        values = [classification_metrics(*arrays(each))["balanced_accuracy"] for each in (a, b)]
        row = row_of(table, method="KD", level=level, metric="balanced_accuracy")
        assert row["difference"] == pytest.approx(values[0] - values[1], abs=1e-12)
        assert row["n"] == len(a)


def test_order_of_the_rows_of_a_method_does_not_matter(predictions):
    shuffled = pd.concat(
        [rows.sample(frac=1, random_state=number) for number, (_, rows) in enumerate(predictions.groupby("method"))]
    )
    key = ["method", "level", "metric"]
    first, second = (
        differences(frame, "teacher", n_resamples=20).sort_values(key, ignore_index=True)
        for frame in (predictions, shuffled)
    )
    pd.testing.assert_frame_equal(first, second)


def test_wins_and_losses_count_the_parts_in_which_a_method_is_ahead_or_behind(predictions):
    table = differences(predictions, "teacher", metrics=["balanced_accuracy"], level="image", n_resamples=5)
    ahead = []
    for _, part in predictions.groupby("part"):
        kd, ce = (
            balanced_accuracy_score(rows["label"], rows[["p_0", "p_1", "p_2"]].to_numpy().argmax(axis=1))
            for rows in (part[part["method"] == "KD"], part[part["method"] == "CE only"])
        )
        ahead.append(round(kd - ce, 12))
    row = row_of(table, method="KD")
    wins, losses = (np.array(ahead) > 0).sum(), (np.array(ahead) < 0).sum()
    assert (row["wins"], row["losses"], row["n_parts"]) == (wins, losses, 3)
    low, high = ttest_1samp(ahead, 0).confidence_interval(0.95)
    found = row[["over_parts", "over_parts_low", "over_parts_high"]].tolist()
    assert found == pytest.approx([np.mean(ahead), low, high])
    same = predictions[predictions["method"] == "CE only"]
    tied = differences(pd.concat([same, same.assign(method="KD")]), "teacher", level="roi", n_resamples=5)
    assert (tied["wins"] == 0).all() and (tied["losses"] == 0).all() and (tied["difference"] == 0).all()


def test_values_of_the_parts_have_the_mean_and_sd_of_the_summary(predictions):
    table = by_part(predictions, "auc_macro", "roi").set_index("method")
    summary = summarise(predictions, n_resamples=5)
    assert list(table.columns) == ["setting", 0, 1, 2] and list(table.index) == list(pd.unique(predictions["method"]))
    for method, row in table.drop(columns="setting").iterrows():
        known = row_of(summary, method=method, metric="auc_macro", level="roi")
        assert [row.mean(), row.std()] == pytest.approx(known[["mean_over_parts", "sd_over_parts"]].tolist())


def test_teacher_is_compared_with_both_modalities_where_asked(predictions):
    pairs = single_modality_pairs(predictions)
    assert pairs == [("teacher", "image only"), ("teacher", "genes only")]
    table = differences(
        predictions, "teacher", level="roi", extra_pairs=[*pairs, ("teacher", "CE only")], n_resamples=5
    )
    teacher = table[table["method"] == "teacher"]
    assert teacher["minus"].unique().tolist() == ["CE only", "image only", "genes only"]
    assert not table.duplicated(["method", "minus", "metric"]).any()
    assert single_modality_pairs(predictions[predictions["method"] != "teacher"]) == []


def test_reference_is_the_base_where_there_is_no_student_without_distillation(predictions):
    without = predictions[predictions["method"] != "CE only"]
    assert set(differences(without, "teacher", level="image", n_resamples=5)["minus"]) == {"teacher"}
    with pytest.raises(ParameterError, match='neither "CE only" nor the reference "MoCo"'):
        differences(without, "MoCo")


def test_a_setting_without_the_reference_is_left_out(predictions):
    """As of a study whose cells have other numbers of shots: each has a reference of its own."""
    other = predictions[predictions["method"] == "KD"].assign(setting="K=5")
    both = pd.concat([predictions.assign(setting="K=1"), other], ignore_index=True)
    assert set(differences(both, "CE only", level="image", n_resamples=5)["setting"]) == {"K=1"}
    assert len(differences(both[both["method"].isin(["CE only"]) | (both["setting"] == "K=5")], "CE only")) == 0


def test_names_methods_that_cannot_be_compared(predictions):
    with pytest.raises(ParameterError, match='names "slide only", which is not among'):
        differences(predictions, "teacher", extra_pairs=[("teacher", "slide only")])
    lost = predictions[(predictions["method"] != "KD") | (predictions["part"] > 0)]
    with pytest.raises(DataError, match=r'"teacher" and "KD" were not scored on the same samples \(108 and 72'):
        differences(lost, "teacher", n_resamples=5)


def test_patient_tested_in_several_folds_is_one_cluster(predictions):
    """All folds test the same patients: one fold copied three times is no more evidence than the fold itself."""
    once = predictions[predictions["method"] == "KD"].assign(part=0)
    copies = pd.concat([once.assign(part=part) for part in range(3)])
    columns = ["value", "low", "high"]
    expected, found = (summarise(frame, n_resamples=50)[columns] for frame in (once, copies))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_levels_of_images_without_regions_and_of_survival(predictions, survival):
    whole = predictions.assign(roi=predictions["id"])
    assert levels(whole) == ["image"]
    mixed = predictions.assign(label=(predictions["roi"].str[-1] == "0").astype(int))
    assert levels(mixed) == ["image", "roi"]
    assert levels(survival) == ["image", "roi", "patient"]
    assert levels(survival.assign(roi=survival["id"])) == ["image", "patient"]
    assert levels(survival.assign(roi=survival["id"], patient=survival["id"])) == ["image"]


def test_summary_of_survival_is_the_c_index_within_parts(survival):
    summary = summarise(survival, n_resamples=20)
    assert set(summary["metric"]) == {"c_index"} and len(summary) == 5 * 3
    parts = [aggregate_risks(rows, "patient") for _, rows in survival[survival["method"] == "KD"].groupby("part")]
    each = [c_index(part["time"], part["event"], part["risk"]) for part in parts]
    pooled = pd.concat([part.assign(part=number) for number, part in enumerate(parts)])
    (scorer,) = survival_scorers(pooled["time"], pooled["event"], {"": pooled["risk"]}, pooled["part"]).values()
    expected = intervals(scorer, len(pooled), pooled["patient"].to_numpy(), n_resamples=20).loc["c_index"]
    row = row_of(summary, method="KD", level="patient")
    assert row[["value", "low", "high"]].to_dict() == pytest.approx(expected.to_dict())
    assert row["mean_over_parts"] == pytest.approx(np.mean(each))
    assert row["sd_over_parts"] == pytest.approx(np.std(each, ddof=1))
    assert row["n"] == 17  # the patient without follow-up is left out


def test_differences_of_survival(survival):
    table = differences(survival, "teacher", extra_pairs=single_modality_pairs(survival), n_resamples=20)
    assert set(table["metric"]) == {"c_index"} and len(table) == (4 + 2) * 3
    frames = {
        method: pd.concat(
            [aggregate_risks(part, "patient").assign(part=number) for number, part in rows.groupby("part")]
        ).sort_values(["part", "patient"])
        for method, rows in survival.groupby("method")
    }
    a, b = frames["teacher"], frames["genes only"]
    scorers = survival_scorers(a["time"], a["event"], {"a": a["risk"], "b": b["risk"]}, a["part"])
    (expected,) = paired_intervals(scorers, len(a), a["patient"], [("a", "b")], n_resamples=20).to_dict("records")
    expected = {name: expected[name] for name in ("difference", "low", "high", "p_value")}
    row = row_of(table, method="teacher", minus="genes only", level="patient")
    assert {name: row[name] for name in expected} == pytest.approx(expected)
    with pytest.raises(ParameterError, match='no metric "auc_macro" of survival predictions'):
        differences(survival, "teacher", metrics=["auc_macro"])
