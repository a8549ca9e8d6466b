import numpy as np
import pandas as pd
import pytest
from scipy.stats import chi2

from medkd.errors import DataError, ParameterError
from medkd.evaluation.bootstrap import intervals, paired_intervals, resample_weights
from medkd.evaluation.survival import (
    aggregate_risks,
    c_index,
    kaplan_meier_table,
    logrank_p,
    risk_groups,
    survival_scorers,
)


def bootstrapped(times, events, risks, groups, **how):
    (scorer,) = survival_scorers(times, events, {"": risks}).values()
    return intervals(scorer, len(times), groups, **how).loc["c_index"].to_dict()


def difference(times, events, a, b, groups, **how):
    """The one row of A minus B."""
    scorers = survival_scorers(times, events, {"a": a, "b": b})
    table = paired_intervals(scorers, len(times), groups, [("a", "b")], **how)
    return table.loc[0, ["difference", "low", "high", "p_value"]].to_dict()


@pytest.fixture
def cohort():
    """90 samples of 30 patients; whole months and risks in steps of 1/4, so that many are tied."""
    rng = np.random.default_rng(4)
    groups = rng.integers(30, size=90)
    times = np.round(rng.exponential(12, size=90)) + 1
    events = (rng.random(90) < 0.6).astype(int)
    risks = np.round(4 * (rng.standard_normal(90) - times / 20)) / 4
    return times, events, risks, groups


def slow_c_index(times, events, risks):
    right = n_pairs = 0
    for i in range(len(times)):
        for j in range(len(times)):
            if events[i] and (times[i] < times[j] or (times[i] == times[j] and not events[j])):
                n_pairs += 1
                right += 1 if risks[i] > risks[j] else 0.5 if risks[i] == risks[j] else 0
    return right / n_pairs


def test_c_index_equals_lifelines_and_a_double_loop(cohort):
    from lifelines.utils import concordance_index

    times, events, risks, _ = cohort
    found = c_index(times, events, risks)
    assert found == pytest.approx(concordance_index(times, -risks, events), abs=1e-12)
    assert found == pytest.approx(slow_c_index(times, events, risks), abs=1e-12)


def test_c_index_of_four_patients_worked_by_hand():
    """Deaths at 1 and 3, censored at 2 and 3: pairs (1,2) (1,3) (1,3c) (3,3c); right, right, tied, wrong: 2.5 / 4."""
    times, events = np.array([1, 2, 3, 3]), np.array([1, 0, 1, 0])
    assert c_index(times, events, np.array([0.5, 0.2, 0.1, 0.5])) == pytest.approx(2.5 / 4)


def test_perfect_reversed_and_constant_risks_have_c_index_one_zero_and_a_half(cohort):
    _, events, _, _ = cohort
    times = np.arange(90.0)
    assert c_index(times, events, -times) == 1
    assert c_index(times, events, times) == 0
    assert c_index(times, events, np.zeros(90)) == 0.5


def test_c_index_without_a_pair_of_known_order_is_nan():
    assert np.isnan(c_index(np.array([1.0, 2.0]), np.array([0, 1]), np.array([0.0, 1.0])))
    assert np.isnan(c_index(np.array([]), np.array([]), np.array([])))


def test_c_index_leaves_out_samples_without_follow_up(cohort):
    times, events, risks, _ = cohort
    lost = np.arange(90) % 7 == 0
    expected = c_index(times[~lost], events[~lost], risks[~lost])
    assert c_index(np.where(lost, np.nan, times), events, risks) == expected
    assert c_index(times, np.where(lost, np.nan, events), risks) == expected


def test_every_resample_equals_the_c_index_of_repeated_rows(cohort):
    times, events, risks, groups = cohort
    (weights,) = resample_weights(groups, 12, seed=5)
    found = survival_scorers(times, events, {"": risks})[""](weights)["c_index"]
    rows = [np.repeat(np.arange(90), column.astype(int)) for column in weights.T]
    slow = [slow_c_index(times[r], events[r], risks[r]) for r in rows]
    np.testing.assert_allclose(found, slow, rtol=0, atol=1e-12)


def test_only_pairs_within_a_part_count(cohort):
    """A shift of all risks of one fold changes nothing then; pairs are those of both folds added up."""
    times, events, risks, _ = cohort
    parts = np.arange(90) % 2
    shifted = np.where(parts == 1, risks + 100, risks)
    scorers = survival_scorers(times, events, {"risks": risks, "shifted": shifted}, parts)
    found = [scorer(np.ones((90, 1)))["c_index"][0] for scorer in scorers.values()]
    assert found[0] == found[1] != pytest.approx(c_index(times, events, risks), abs=1e-6)

    def right_and_all(part):
        rows = parts == part
        first = np.flatnonzero(rows & (events == 1))
        n_pairs = sum(((times > times[i]) | ((times == times[i]) & (events == 0)))[rows].sum() for i in first)
        return c_index(times[rows], events[rows], risks[rows]) * n_pairs, n_pairs

    right, n_pairs = np.sum([right_and_all(0), right_and_all(1)], axis=0)
    assert found[0] == pytest.approx(right / n_pairs, abs=1e-12)


def test_interval_holds_the_value_and_patients_are_drawn_whole(cohort):
    times, events, risks, groups = cohort
    once = bootstrapped(times, events, risks, groups, n_resamples=200)
    assert once["value"] == c_index(times, events, risks)
    assert once["low"] < once["value"] < once["high"]
    twice = bootstrapped(np.tile(times, 2), np.tile(events, 2), np.tile(risks, 2), np.tile(groups, 2), n_resamples=200)
    assert twice == pytest.approx(once, abs=1e-12)


def test_one_patient_gives_a_value_without_an_interval():
    found = bootstrapped(np.array([1, 2]), np.array([1, 1]), np.array([1, 0]), np.array(["p", "p"]))
    assert found["value"] == 1 and np.isnan([found["low"], found["high"]]).all()


def test_paired_difference_is_that_of_the_two_values_and_zero_for_the_same_risks(cohort):
    times, events, risks, groups = cohort
    perfect = -(times + 0.5 * (events == 0))  # of equal times, those who died fail first
    found = difference(times, events, perfect, risks, groups, n_resamples=99)
    assert found["difference"] == pytest.approx(1 - c_index(times, events, risks), abs=1e-12)
    assert 0 < found["low"] < found["difference"] < found["high"]
    assert found["p_value"] == pytest.approx(2 / 100)
    same = difference(times, events, risks, 2 * risks, groups, n_resamples=20)
    assert same == {"difference": 0, "low": 0, "high": 0, "p_value": 1}


def test_names_what_the_c_index_cannot_score(cohort):
    times, events, risks, groups = cohort
    with pytest.raises(DataError, match=r"one shape \(n,\); got \(90,\), \(90,\) and \(89,\)"):
        c_index(times, events, risks[1:])
    with pytest.raises(DataError, match="look at the training loss"):
        c_index(times, events, risks * np.nan)
    with pytest.raises(DataError, match=r"event \(1 observed, 0 censored\)"):
        c_index(times, events + 1, risks)
    with pytest.raises(DataError, match="leave out samples without follow-up"):
        survival_scorers(times * np.nan, events, {"KD": risks})
    with pytest.raises(DataError, match="needs its group"):
        bootstrapped(times, events, risks, groups[1:])


@pytest.fixture
def patches():
    """Patient a: ROI 1 of three patches, ROI 2 of one; patient b: ROI 1 (same name) of one patch, patient c lost."""
    return pd.DataFrame(
        {
            "id": ["a11", "a12", "a13", "b11", "a21", "c11"],
            "roi": ["1", "1", "1", "1", "2", "1"],
            "patient": ["a", "a", "a", "b", "a", "c"],
            "time": [10.0, 10.0, 10.0, 20.0, 10.0, np.nan],
            "event": [1.0, 1.0, 1.0, 0.0, 1.0, np.nan],
            "risk": [3.0, 0.0, 0.0, -1.0, 2.0, 0.5],
        }
    )


def test_patient_risk_is_the_mean_over_rois_of_the_mean_over_patches(patches):
    patients = aggregate_risks(patches, "patient")
    assert patients.to_dict("list") == {
        "patient": ["a", "b"],
        "time": [10, 20],
        "event": [1, 0],
        "risk": [pytest.approx((1 + 2) / 2), -1],
    }
    assert aggregate_risks(patches, "roi")["risk"].tolist() == pytest.approx([1, -1, 2])
    assert len(aggregate_risks(patches, "image")) == 5


def test_names_follow_up_that_does_not_fit(patches):
    with pytest.raises(DataError, match=r"lack the column\(s\) time"):
        aggregate_risks(patches.drop(columns="time"), "image")
    with pytest.raises(DataError, match="no sample of the predictions has both"):
        aggregate_risks(patches.assign(event=np.nan), "image")
    patches.loc[4, "time"] = 11
    with pytest.raises(DataError, match="patient 'a' has samples with different times"):
        aggregate_risks(patches, "patient")


def test_risk_groups_are_cut_at_quantiles_and_keep_equal_risks_together():
    assert risk_groups(np.array([5.0, 1, 3, 6, 2, 4])).tolist() == [2, 0, 1, 2, 0, 1]
    assert risk_groups(np.array([1.0, 1, 1, 1, 9, 9]), 2).tolist() == [0, 0, 0, 0, 1, 1]
    assert np.bincount(risk_groups(np.random.default_rng(0).standard_normal(400), 4)).tolist() == [100] * 4


def test_risk_groups_of_parts_are_cut_within_each_part():
    risks, parts = np.array([1.0, 2, 101, 102]), np.array(["a", "a", "b", "b"])
    assert risk_groups(risks, 2, parts=parts).tolist() == [0, 1, 0, 1]
    assert risk_groups(risks, 2).tolist() == [0, 0, 1, 1]


def test_risk_groups_refuse_one_group_and_nan():
    with pytest.raises(ParameterError, match="n_groups must be at least 2; got 1"):
        risk_groups(np.arange(3.0), 1)
    with pytest.raises(DataError, match="nan"):
        risk_groups(np.array([0.0, np.nan]))


def test_logrank_of_two_groups_worked_by_hand():
    """Two deaths in a (1, 2), two in b (3, 4): expected in a 1/2 + 1/3, variance 1/4 + 2/9; z^2 is chi-squared."""
    z_squared = (2 - 1 / 2 - 1 / 3) ** 2 / (1 / 4 + 2 / 9)
    found = logrank_p(np.array([1, 2, 3, 4]), np.ones(4), np.array(["a", "a", "b", "b"]))
    assert found == pytest.approx(chi2.sf(z_squared, df=1))
    assert np.isnan(logrank_p(np.array([1, 2]), np.ones(2), np.array(["a", "a"])))


def test_kaplan_meier_table_is_the_product_of_survival_at_each_death():
    """Group 0: five patients, death at 2, censored at 3, deaths at 5 and 5, censored at 8; group 1 nobody dies."""
    times, events = np.array([2, 3, 5, 5, 8, 4, 6]), np.array([1, 0, 1, 1, 0, 0, 0])
    table = kaplan_meier_table(times, events, np.array([0, 0, 0, 0, 0, 1, 1]))
    assert list(table.columns) == ["group", "months", "survival", "low", "high", "at_risk"]
    first, second = (rows for _, rows in table.groupby("group"))
    assert first["months"].tolist() == [0, 2, 3, 5, 8]
    assert first["survival"].tolist() == pytest.approx([1, 0.8, 0.8, 0.8 / 3, 0.8 / 3])
    assert first["at_risk"].tolist() == [5, 5, 4, 3, 1]
    assert second["survival"].tolist() == [1, 1, 1] and second["at_risk"].iloc[0] == 2
    # at month 2: Greenwood's standard error of log(-log S) is sqrt(1 / (5 * 4)) / |log 0.8|
    half = 1.96 * np.sqrt(1 / 20) / -np.log(0.8)
    assert first["low"].iloc[1] == pytest.approx(0.8 ** np.exp(half), abs=1e-4)
    assert first["high"].iloc[1] == pytest.approx(0.8 ** np.exp(-half), abs=1e-4)
