import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from medkd.data.episodes import draw_task
from medkd.widgets.playground import CLOSED, COLOURS, Playground, bars, playground

SIZES = {"a": 60, "b": 50, "<i>r</i>": 16, "s": 24}


@pytest.fixture
def cohort(lesion_cohort):
    """Two images per lesion; the smallest class has eight lesions."""
    return lesion_cohort(SIZES)


@pytest.fixture
def features(cohort):
    return (2 * np.eye(8)[cohort.labels] + np.random.default_rng(0).normal(size=(len(cohort), 8))).astype(np.float32)


def texts(figure):
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


def test_each_slider_redraws_what_it_acts_on_and_nothing_else(interactive, cohort, features):
    view = playground(features, cohort, n_episodes=4)
    assert isinstance(view, Playground) and view.k_shot.max == 7 and view.k_shot.value == 5
    for move, changed in (
        (("temperature", 4.0), ["soft labels", "adaptive target"]),
        (("mix", 0.1), ["adaptive target"]),
        (("gamma", 0.5), ["student with DIC"]),
    ):
        before, line, picture = view.numbers.copy(), view.line.value, view.picture.value
        getattr(view, move[0]).value = move[1]
        moved = (view.numbers["confidence"] - before["confidence"]).abs() > 1e-6
        assert moved.index[moved].tolist() == changed
        assert view.line.value != line and view.picture.value != picture
    assert view.tau.min() < 1 and f"{view.tau.min():.3f}" in view.line.value
    view.gamma.value = 0
    assert view.tau.tolist() == [1, 1]


def test_k_task_and_classifier_label_anew_and_the_curve_keeps_each_k_that_was_tried(interactive, cohort, features):
    view = playground(features, cohort, n_episodes=4)
    assert view.shots["K"].tolist() == [1, 3, 5, 5, 5]
    five = view.shots.iloc[2]
    view.k_shot.value = 2
    assert view.shots["K"].tolist() == [1, 2, 2, 2, 3, 5] and "K = 2, task 0" in view.line.value
    pd.testing.assert_series_equal(view.shots.iloc[-1], five, check_names=False)
    hard = view.numbers.loc["hard labels"].copy()
    view.task.value = 1
    assert not np.allclose(view.numbers.loc["hard labels"].tolist(), hard.tolist()) and "task 1" in view.line.value
    soft = view.numbers.loc["soft labels", "confidence"]
    view.classifier.value = "ridge"
    assert view.shots["K"].tolist() == [2, 2, 2]  # K tried with another classifier belong to that one
    assert view.numbers.loc["soft labels", "confidence"] != pytest.approx(soft, abs=0.01)
    assert view.task.max == 1


def test_the_line_says_what_is_drawn_and_that_query_sets_stay_closed(interactive, cohort, features):
    view = playground(features, cohort, n_episodes=4)
    own = view.shots[view.shots["K"] == 5].iloc[0]
    assert f"soft labels {own.accuracy:.3f} [{own.low:.3f}, {own.high:.3f}]" in view.line.value
    assert f"{view.numbers.at['hard labels', 's']:.0%}" in view.line.value
    assert "&lt;i&gt;r&lt;/i&gt;" in view.line.value and "<i>" not in view.line.value
    about = view.children[0].value
    assert CLOSED in about and "Toy (simulated)" in about
    assert bytes(view.picture.value).startswith(b"\x89PNG")


def test_many_classes_with_long_names_fit_below_the_bars():
    names = [f"dermatofibroma {number}" for number in range(21)]
    numbers = pd.DataFrame(1 / 21, index=list(COLOURS), columns=names)
    ax = bars(numbers, np.ones(21), names, plt.subplots()[1])
    assert [text.get_text() for text in ax.get_xticklabels()] == ["d...\nτ 1.000"] * 21
    ax = bars(numbers[names[:5]], np.ones(5), names[:5], plt.subplots()[1])
    assert ax.get_xticklabels()[0].get_text() == "dermatofi...\nτ 1.000"
    plt.close("all")


def test_a_task_that_cannot_be_labelled_is_one_sentence_and_the_next_one_goes_on(interactive, cohort, features):
    supports = [set(draw_task(cohort, k_shot=5, task=task).support_ids) for task in (0, 1)]
    features[cohort.table["id"].isin(supports[0] - supports[1])] = np.nan
    view = playground(features, cohort, n_episodes=4)
    assert "hold nan" in view.line.value and view.picture.layout.display == "none"
    view.task.value = 1
    assert "K = 5, task 1" in view.line.value and view.picture.layout.display is None
    assert view.shots["K"].tolist() == [1, 3, 5, 5, 5]


def test_headless_runs_get_a_figure_with_the_same_content_for_three_k(monkeypatch, interactive, cohort, features):
    view = playground(features, cohort, n_episodes=4)
    monkeypatch.setenv("MEDKD_HEADLESS", "1")
    figure = playground(features, cohort, n_episodes=4)
    assert isinstance(figure, Figure)
    five, last = figure.axes[2], figure.axes[-1]
    heights = [bar.get_height() for bar in five.patches]
    assert heights == pytest.approx(view.numbers[["<i>r</i>", "s"]].to_numpy().ravel().tolist())
    for drawn, (_, row) in zip(last.containers, view.shots[view.shots["K"] == 5].iterrows(), strict=True):
        assert drawn[0].get_ydata()[-1] == pytest.approx(row["accuracy"])
    words = " ".join(texts(figure))
    assert CLOSED in words and "Toy (simulated)" in words and all(f"K = {k}" in words for k in (1, 3, 5))
    few = np.r_[0:118, 126:150]  # four lesions of the smallest class
    words = " ".join(texts(playground(features[few], cohort.take(few), n_episodes=2)))
    assert "K = 3" in words and "K = 5" not in words
