import html
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from medkd.data.arrays import ArrayImages
from medkd.data.cohort import Cohort
from medkd.errors import DataError, ParameterError
from medkd.report.figures_errors import OPACITY, TARGETS, error_pages, overlay
from medkd.widgets.inspector import ErrorInspector, inspect_errors

CLASSES = ("a", "<b>", "c")
N = 30


@pytest.fixture
def cohort():
    labels = np.arange(N) % 3
    table = pd.DataFrame({"id": [f"x{i:02d}" for i in range(N)], "label": labels})
    table["class"], table["roi"] = np.array(CLASSES)[labels], table["id"]
    table["patient"] = [f"P{i // 2}" for i in range(N)]
    images = {name: ArrayImages(np.full((N, 8, 8, 3), grey, np.uint8)) for name, grey in (("one", 9), ("two", 99))}
    return Cohort("toy", "Toy", True, CLASSES, table, images, attribution="by <somebody>")


def said_by(cohort, method, answers, *, setting="", part=0, rows=None):
    """Predictions of one method: each row says `answers`, the later ones more confidently."""
    rows = np.arange(N) if rows is None else rows
    own = cohort.table.iloc[rows].reset_index(drop=True)[["id", "roi", "patient", "label"]]
    high = np.linspace(0.4, 0.99, len(rows))
    scores = np.where(np.eye(3, dtype=bool)[answers], high[:, None], (1 - high[:, None]) / 2)
    named = pd.DataFrame(scores, columns=["p_0", "p_1", "p_2"])
    return pd.concat([own, named], axis=1).assign(method=method, setting=setting, part=part)


@pytest.fixture
def predictions(cohort):
    """The teacher errs on x00 to x05 (always to the next class), the student on x00 to x14 too."""
    truth, wrong = cohort.labels, (cohort.labels + 1) % 3
    tables = [
        said_by(cohort, method, np.where(np.arange(N) < n_wrong, wrong, truth))
        for method, n_wrong in (("teacher", 6), ("student", 15))
    ]
    return pd.concat(tables, ignore_index=True)


class Maps:
    """Maps that are right in the upper half for the teacher and everywhere for the student, on the first modality."""

    def __init__(self):
        self.calls, self.left_out = [], {}

    def __call__(self, samples, method, classes):
        self.calls.append((method, samples["id"].tolist(), list(classes)))
        maps = np.ones((len(samples), 4, 4), np.float32)
        maps[:, 2:] = method != "teacher"
        return {"one": maps}


@pytest.fixture
def inspector(interactive, predictions, cohort):
    return inspect_errors(predictions, cohort, maps=Maps(), size=8)


def ids(inspector):
    """Ids on the page, in their order."""
    return re.findall(r"(x\d\d), patient", inspector.pictures.value)


def test_every_cell_shows_its_count_and_tells_it_in_words(inspector):
    counts = [[int(inspector.cells[label, predicted].description) for predicted in range(3)] for label in range(3)]
    assert counts == [[5, 5, 0], [0, 5, 5], [5, 0, 5]]
    assert inspector.cells[0, 1].tooltip == "a as <b>: 5"
    assert inspector.cells[0, 1].style.button_color != inspector.cells[0, 2].style.button_color
    inspector.method.value = "teacher"
    assert [inspector.cells[0, predicted].description for predicted in range(3)] == ["8", "2", "0"]


def test_a_cell_opens_its_images_the_most_confident_first(inspector):
    assert inspector.pictures.value == "" and inspector.page.disabled
    inspector.cells[0, 1].click()
    assert inspector.chosen == (0, 1) and not inspector.page.disabled
    assert ids(inspector) == ["x12", "x09", "x06", "x03", "x00"]
    assert "x12, patient P6, confidence 0.64" in inspector.pictures.value
    assert html.unescape(inspector.count.value) == "<b>a as <b>: 5 of 10 images</b> (50%), student"
    inspector.method.value = "teacher"
    assert ids(inspector) == ["x03", "x00"]


def test_each_image_stands_plain_and_under_the_maps_of_both_methods(inspector):
    inspector.cells[0, 1].click()
    first = inspector.pictures.value.split("x12, patient")[0]
    captions = re.findall(r"<figcaption[^>]*>([^<]+)</figcaption>", first)
    assert [html.unescape(text) for text in captions] == ["one", "teacher: a 0.64", "student: <b> 0.64", "two"]
    assert html.unescape(re.findall(r'alt="([^"]+)"', first)[2]) == "student: <b> 0.64 of x12"
    assert "score of &lt;b&gt;" in inspector.status.value and "<b> 0.64" not in inspector.pictures.value
    inspector.beside.value = "student"
    assert inspector.pictures.value.count("<img") == 5 * 3


def test_maps_are_made_for_the_page_that_is_shown_and_of_the_class_asked_for(interactive, predictions, cohort):
    maps = Maps()
    judged = inspect_errors(predictions, cohort, size=8)._judged
    inspector = ErrorInspector(judged, method="student", beside="teacher", setting="", maps=maps, size=8, n_shown=2)
    assert maps.calls == []
    inspector.cells[0, 1].click()
    assert maps.calls == [("teacher", ["x12", "x09"], [1, 1]), ("student", ["x12", "x09"], [1, 1])]
    assert inspector.page.max == 3 and inspector.count.value.endswith("3 pages")
    inspector.page.value = 3
    assert maps.calls[2:] == [("teacher", ["x00"], [1]), ("student", ["x00"], [1])]
    del maps.calls[:]
    inspector.target.value = TARGETS[1]
    inspector.target.value = TARGETS[2]
    assert [classes for _, _, classes in maps.calls] == [[0], [0], [1], [1]]
    inspector.page.value, maps.calls = 1, []
    inspector.target.value = TARGETS[0]
    inspector.target.value = TARGETS[2]
    assert maps.calls[2:] == [("teacher", ["x12", "x09"], [0, 0]), ("student", ["x12", "x09"], [1, 1])]
    inspector.cells[1, 1].click()
    assert inspector.page.value == 1


def test_a_method_without_maps_and_maps_that_fail_leave_the_images_and_a_sentence(inspector):
    inspector._maps.left_out = {"teacher": "teacher has none <at all>"}
    inspector.cells[0, 1].click()
    assert "teacher has none &lt;at all&gt;." in inspector.status.value

    def fail(samples, method, classes):
        raise DataError("no <run> is here")

    inspector._maps = fail
    inspector.cells[1, 2].click()
    assert inspector.status.value == "no &lt;run&gt; is here" and ids(inspector)[0] == "x13"


def test_a_map_of_nothing_says_so_and_an_overlay_is_a_blend(interactive, predictions, cohort):
    inspector = inspect_errors(
        predictions, cohort, size=8, maps=lambda samples, method, classes: {"one": np.zeros((len(samples), 2, 2))}
    )
    inspector.cells[0, 1].click()
    assert "teacher: a 0.64 (map is 0)" in inspector.pictures.value
    grey = np.full((8, 8, 3), 100, np.uint8)
    low, high = overlay(grey, np.zeros((2, 2))), overlay(grey, np.ones((5, 5)))
    np.testing.assert_allclose(low[0, 0], (1 - OPACITY) * 100 + OPACITY * np.array([68, 1, 84]), atol=1)
    np.testing.assert_allclose(high[7, 7], (1 - OPACITY) * 100 + OPACITY * np.array([253, 231, 37]), atol=1)


def test_settings_are_chosen_and_an_image_of_two_parts_is_there_twice(interactive, cohort):
    rare = Cohort(**vars(cohort) | {"rare_classes": CLASSES[:2], "base_classes": CLASSES[2:]})
    rows = np.array([0, 3, 6])
    tables = [
        said_by(cohort, "one method", [answer] * 3, setting=setting, part=part, rows=rows)
        for setting, part, answer in (("K=1", 0, 1), ("K=5", 0, 1), ("K=5", 1, 1), ("K=5", 2, 0))
    ]
    table = pd.concat(tables, ignore_index=True).drop(columns="p_2")
    inspector = inspect_errors(table, rare, setting="K=1", size=8)
    assert inspector.setting in inspector.children[1].children and len(inspector.cells) == 4
    inspector.cells[0, 1].click()
    assert ids(inspector) == ["x06", "x03", "x00"] and "part" not in inspector.pictures.value
    inspector.setting.value = "K=5"
    assert ids(inspector) == ["x06", "x06", "x03", "x03", "x00", "x00"]
    assert re.findall(r"part \d", inspector.pictures.value) == ["part 0", "part 1"] * 3


def test_simulated_data_and_the_credit_line_are_told_as_text(inspector):
    assert "Toy (simulated)" in inspector.children[0].value
    assert inspector.children[-1].value == "by &lt;somebody&gt;"
    one_setting = [child.description for child in inspector.children[1].children]
    assert one_setting == ["method", "beside", "maps of"]


def test_headless_runs_get_a_figure_of_the_most_frequent_errors(predictions, cohort, monkeypatch):
    monkeypatch.setenv("MEDKD_HEADLESS", "1")
    fewer = predictions[predictions["id"] != "x12"]  # one less of a as <b>
    fig = inspect_errors(fewer, cohort, maps=Maps(), size=8)
    assert isinstance(fig, Figure) and "Toy (simulated): errors of student" in fig.get_suptitle().replace("\n", " ")
    titles = [ax.get_title() for ax in fig.axes if ax.get_title()]
    assert titles[:4] == ["<b> -> c, 0.66\none of x13", "teacher: <b>\n0.66", "student: c 0.66", "two"]
    assert [title.split(",")[0] for title in titles[::4]] == ["<b> -> c"] * 2 + ["c -> a"] * 2 + ["a -> <b>"] * 2
    fig.canvas.draw()
    box = fig._suptitle.get_window_extent()
    assert 0 <= box.x0 and box.x1 <= fig.bbox.x1 and box.y1 <= fig.bbox.y1
    plain, under = (ax.get_images()[0].get_array() for ax in fig.axes[:2])
    assert (plain == 9).all() and under[:2].mean() != under[-2:].mean()
    one = error_pages(fewer, cohort, method="teacher", n_cells=1, n_examples=1, size=8)
    assert [ax.get_title() for ax in one.axes if ax.get_title()] == ["a -> <b>, 0.46\none of x03", "two"]
    right = said_by(cohort, "perfect", cohort.labels)
    assert error_pages(right, cohort).axes[0].texts[0].get_text() == "no errors"


def test_tables_that_do_not_fit_are_refused_in_a_sentence(predictions, cohort):
    survival = predictions[["id", "patient"]].assign(time=1.0, event=1, risk=0.2)
    with pytest.raises(DataError, match="survival task, which has no confusion matrix"):
        inspect_errors(survival, cohort)
    with pytest.raises(DataError, match="lack the column.s. patient"):
        inspect_errors(predictions.drop(columns="patient"), cohort)
    with pytest.raises(DataError, match="3 classes, but toy has 2"):
        inspect_errors(predictions, Cohort(**vars(cohort) | {"rare_classes": CLASSES[:2]}))
    with pytest.raises(DataError, match="does not have: x28, x29"):
        inspect_errors(predictions, cohort.take(np.arange(28)))
    with pytest.raises(DataError, match="repeat x00"):
        inspect_errors(pd.concat([predictions, predictions[:1]]), cohort)
    for name in ("method", "beside", "setting"):
        with pytest.raises(ParameterError, match=f'{name} = "KD" is not in the predictions'):
            inspect_errors(predictions, cohort, **{name: "KD"})
