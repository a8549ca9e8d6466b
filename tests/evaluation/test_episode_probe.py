import dataclasses

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student_t

from medkd.data.episodes import draw_task
from medkd.errors import DataError, ParameterError
from medkd.evaluation.adaptation import STEPS, Adaptation, Labelled, label_numbers, soften, student_logits
from medkd.evaluation.episode_probe import EpisodeProbe
from medkd.evaluation.pseudo_labels import label_tasks

COMMON, RARE = ("a", "b", "c"), ("r", "s")
SIZES = {"a": 60, "b": 50, "c": 40, "r": 16, "s": 24}


@pytest.fixture
def cohort(lesion_cohort):
    """Two images per lesion; the smallest class has eight lesions."""
    return lesion_cohort(SIZES)


def features_of(cohort, distance):
    rng = np.random.default_rng(0)
    centres = distance * np.eye(8)[: len(cohort.classes)]
    return (centres[cohort.labels] + rng.normal(size=(len(cohort), 8))).astype(np.float32)


def test_temperature_sharpens_and_flattens_and_leaves_zeros_and_the_winner():
    soft = np.array([[0.8, 0.2, 0.0], [1e-200, 0.5, 0.5]])
    np.testing.assert_allclose(soften(soft, 1.0), soft)
    np.testing.assert_allclose(soften(soft, 2.0)[0], [2 / 3, 1 / 3, 0])
    np.testing.assert_allclose(soften(soft, 0.5)[0], [16 / 17, 1 / 17, 0])
    assert soften(soft, 0.01)[0, 0] == pytest.approx(1) and np.isfinite(soften(soft, 0.01)).all()
    with pytest.raises(ParameterError, match="temperature .* above 0, got 0"):
        soften(soft, 0)


def test_the_stand_in_student_is_as_sure_as_its_labels_let_it_be():
    """Maximum likelihood of the sharpness: mean confidence is close to the share of labels that it gets right."""
    rng, truth = np.random.default_rng(0), np.arange(900) % 3
    features = 50 * (np.eye(20)[truth] * 4 + rng.normal(size=(900, 20)))
    labels = np.where(rng.random(900) < 0.3, rng.integers(0, 3, 900), truth)
    logits = student_logits(features, labels, 3)
    np.testing.assert_allclose(logits.sum(axis=1), 0, atol=1e-9)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    right = (logits.argmax(axis=1) == labels).mean()
    assert 0.7 < right < 0.9
    assert probabilities.max(axis=1).mean() == pytest.approx(right, abs=0.05)


def test_the_stand_in_student_never_predicts_a_class_that_no_label_names():
    features = np.random.default_rng(0).normal(size=(30, 4))
    logits = student_logits(features, np.arange(30) % 2 * 2, 3)
    assert set(logits.argmax(axis=1)) == {0, 2} and (logits[:, 1] < -10).all()
    assert (student_logits(features, np.ones(30, int), 3).argmax(axis=1) == 1).all()


def test_each_setting_acts_on_its_own_step():
    rng = np.random.default_rng(0)
    found = Labelled.of(rng.normal(size=(40, 6)), rng.dirichlet(np.ones(3), 40))
    plain = found.steps(Adaptation(mix=0, gamma=0))
    np.testing.assert_allclose(plain["adaptive target"], plain["soft labels"])
    assert found.temperatures(0).tolist() == [1, 1, 1]
    whole = found.steps(Adaptation(mix=1, gamma=0))
    np.testing.assert_allclose(whole["adaptive target"], plain["student with DIC"])
    tau = found.temperatures(0.5)
    assert tau.max() == 1 and 0.5 <= tau.min() < 1
    moved = found.steps(Adaptation(mix=0, gamma=0.5))
    assert not np.allclose(moved["student with DIC"], plain["student with DIC"])
    np.testing.assert_allclose(moved["soft labels"], plain["soft labels"])
    for wrong in ({"mix": 1.2}, {"gamma": -0.1}, {"temperature": 0}):
        with pytest.raises(ParameterError):
            found.steps(Adaptation(**wrong))


def test_numbers_of_labels_worked_by_hand():
    steps = {"even": np.array([[1.0, 0.0], [0.0, 1.0]]), "one": np.array([[1.0, 0.0], [0.5, 0.5]])}
    table = label_numbers(steps, ("p", "q"))
    assert table.loc["even"].tolist() == pytest.approx([0.5, 0.5, 1, 0, 2])
    share = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert table.loc["one"].tolist() == pytest.approx([0.75, 0.25, 0.75, np.log(2) / 2, np.exp(share)])


def test_pseudo_labels_are_those_of_the_stage_and_no_query_image_is_read(cohort):
    features = features_of(cohort, 2.0)
    drawn = draw_task(cohort, k_shot=3, task=1, seed=5)
    support = pd.Index(cohort.table["id"]).get_indexer(drawn.support_ids)
    common = cohort.rows_of(COMMON)
    soft = label_tasks({0: (features[support], drawn.support_labels)}, features[common], n_way=2)[0]
    closed = np.setdiff1d(cohort.rows_of(RARE), support)
    features[closed] = np.nan
    probe = EpisodeProbe(features, cohort, seed=5, n_episodes=2)
    table, tau = probe.pseudo_labels(3, 1, "lr", Adaptation())
    assert table.loc["hard labels", "r"] == pytest.approx((soft.argmax(axis=1) == 0).mean())
    np.testing.assert_allclose(table.loc["soft labels", ["r", "s"]].tolist(), soft.mean(axis=0), atol=1e-6)
    assert list(table.index) == list(STEPS) and tau.shape == (2,)
    assert probe.accuracy(3, "lr", Adaptation())["accuracy"].notna().all()


def test_common_images_of_a_patient_who_also_has_a_rare_one_are_left_out_as_in_the_stage(cohort):
    table = cohort.table.copy()
    both = table.index[table["class"] == "a"][:20]
    table.loc[both, "patient"] = table.loc[table["class"] == "r", "patient"].iloc[0]
    mixed = dataclasses.replace(cohort, table=table)
    features = features_of(mixed, 2.0)
    features[both] = np.nan
    assert len(mixed.base_rows()) == len(mixed.rows_of(COMMON)) - len(both)
    probe = EpisodeProbe(features, mixed, seed=5, n_episodes=2)
    assert probe.pseudo_labels(3, 1, "lr", Adaptation())[0].notna().all(axis=None)
    assert probe.accuracy(3, "lr", Adaptation())["accuracy"].notna().all()


def test_accuracy_is_that_of_tasks_of_common_classes_with_an_interval_over_them(cohort):
    features, two = features_of(cohort, 1.5), dataclasses.replace(cohort, base_classes=("a", "b"))
    found = EpisodeProbe(features, two, seed=3, n_episodes=4).accuracy(2, "ridge", Adaptation()).iloc[0]
    swapped, ids, accuracies = dataclasses.replace(cohort, rare_classes=("a", "b")), pd.Index(cohort.table["id"]), []
    for task in range(4):
        drawn = draw_task(swapped, k_shot=2, task=task, seed=3)
        support, query = ids.get_indexer(drawn.support_ids), ids.get_indexer(drawn.query_ids)
        soft = label_tasks(
            {0: (features[support], drawn.support_labels)}, features[query], n_way=2, classifier="ridge"
        )[0]
        right, label = soft.argmax(axis=1) == cohort.labels[query], cohort.labels[query]
        accuracies.append(np.mean([right[label == name].mean() for name in (0, 1)]))
    half = student_t.ppf(0.975, 3) * np.std(accuracies, ddof=1) / 2
    assert (found["step"], found["K"]) == ("soft labels", 2)
    assert found[["accuracy", "low", "high"]].tolist() == pytest.approx(
        [np.mean(accuracies), np.mean(accuracies) - half, np.mean(accuracies) + half]
    )


def test_accuracy_grows_from_chance_with_the_distance_of_the_classes_and_with_k(cohort):
    far = EpisodeProbe(features_of(cohort, 12.0), cohort, n_episodes=6)
    assert (far.accuracy(3, "centroid", Adaptation())["accuracy"] > 0.99).all()
    nothing = EpisodeProbe(features_of(cohort, 0.0), cohort, n_episodes=12).accuracy(5, "centroid", Adaptation())
    assert nothing["accuracy"].tolist() == pytest.approx([0.5] * 3, abs=0.06)
    assert nothing["overconfidence"].iloc[0] > 0.3
    near = EpisodeProbe(features_of(cohort, 2.5), cohort, n_episodes=12)
    one, seven = (near.accuracy(k_shot, "centroid", Adaptation())["accuracy"].iloc[0] for k_shot in (1, 7))
    assert seven > one + 0.05


def test_k_is_limited_by_the_lesions_of_the_smallest_class(cohort):
    features = features_of(cohort, 2.0)
    probe = EpisodeProbe(features, cohort)
    assert probe.max_shots == 7 and probe.n_way == 2 and probe.episode_classes == COMMON
    assert EpisodeProbe(features, cohort, by_lesion=False).max_shots == 15
    probe.pseudo_labels(7, 0, "ridge", Adaptation())
    assert EpisodeProbe(features, cohort, n_pool=4).max_shots < 4


def test_patients_with_several_diseases_leave_something_to_classify_at_the_largest_k(cohort):
    shared = cohort.table.copy()
    kind = np.where(shared["class"].isin(RARE), "rare", "common")  # who has both is learned from by nobody
    shared["patient"] = [f"{which}{i % 16}" for i, which in enumerate(kind)]
    probe = EpisodeProbe(features_of(cohort, 2.0), dataclasses.replace(cohort, table=shared), n_episodes=10)
    assert probe.max_shots == 5  # 16 patients, support images of up to three common classes
    assert len(probe.accuracy(5, "ridge", Adaptation())) == 3
    for task in range(10):
        probe.pseudo_labels(5, task, "ridge", Adaptation())


def test_refuses_what_has_no_episodes(cohort):
    features = features_of(cohort, 2.0)
    with pytest.raises(DataError, match=r"shape \(190, d\).*got \(3, 8\)"):
        EpisodeProbe(features[:3], cohort)
    with pytest.raises(DataError, match="1 common classes"):
        EpisodeProbe(features, dataclasses.replace(cohort, base_classes=("a",)))
    with pytest.raises(ParameterError, match="n_episodes = 1"):
        EpisodeProbe(features, cohort, n_episodes=1)
    single = cohort.table.assign(patient=cohort.table["patient"].where(cohort.table["class"] != "s", "L0s"))
    with pytest.raises(DataError, match='class "s" of toy needs two lesions'):
        EpisodeProbe(features, dataclasses.replace(cohort, table=single))
