import html
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from medkd.data.arrays import ArrayImages
from medkd.data.cohort import Cohort
from medkd.errors import DataError, ParameterError
from medkd.evaluation.points import points_table
from medkd.report.style import PALETTE
from medkd.widgets.explorer import GREY, explore

METHODS = ("teacher", "GMCD", "CE only")


@pytest.fixture
def cohort():
    labels = np.arange(40) % 4
    table = pd.DataFrame({"id": [f"x{i:02d}" for i in range(40)], "label": labels})
    table["class"], table["roi"] = np.array(["a", "b", "<c>", "d"])[labels], table["id"]
    table["patient"] = [f"P{i // 2}" for i in range(40)]
    images = {name: ArrayImages(np.full((40, 8, 8, 3), grey, np.uint8)) for name, grey in (("one", 9), ("two", 99))}
    return Cohort("toy", "Toy", True, ("a", "b", "<c>", "d"), table, images, attribution="by <somebody>")


@pytest.fixture
def points(cohort):
    """Images 10 to 39 of three methods; each method is right on another half of them."""
    own = cohort.table.iloc[10:].reset_index(drop=True)
    rng, tables = np.random.default_rng(0), []
    for number, method in enumerate(METHODS):
        said = np.where(np.arange(30) % 3 == number, own["label"], (own["label"] + 1) % 4)
        scores = np.full((30, 4), 0.1) + 0.6 * np.eye(4)[said] + rng.uniform(0, 0.01, (30, 4))
        table = own.assign(method=method, setting="", part=0, **{f"p_{i}": scores[:, i] for i in range(4)})
        tables.append(table.assign(x=rng.normal(size=30), y=rng.normal(size=30)))
    table = pd.concat(tables, ignore_index=True)
    return points_table(table, table, cohort.classes, pd.DataFrame({"age": np.arange(40.0)}, index=cohort.table["id"]))


@pytest.fixture
def explorer(interactive, points, cohort, tmp_path):
    return explore(points, cohort, size=8, n_shown=4, folder=tmp_path / "made")


def lasso(explorer, method, rows):
    """What a lasso in the view of a method does: its front end sets the rows."""
    explorer.scatters[method].widget.selection = np.asarray(rows, np.uint32)


def colours_on_screen(explorer, method):
    """The colour of each point of a view, as its front end looks it up."""
    widget = explorer.scatters[method].widget
    assert widget.color_by == "valueA"
    return [to_hex(widget.color[int(code)]).upper() for code in widget.points[:, 2]]


def test_a_lasso_in_one_view_selects_the_same_images_in_all_and_shows_them(explorer):
    lasso(explorer, "GMCD", [6, 1, 29])
    assert explorer.ids[explorer.selected].tolist() == ["x11", "x16", "x39"]
    assert [list(explorer.scatters[method].widget.selection) for method in ("teacher", "CE only")] == [[1, 6, 29]] * 2
    assert html.unescape(explorer.count.value) == "3 of 30 images selected, 3 patients: d 2, a 1"
    assert re.findall(r'alt="(\w+ of \w+)"', explorer.thumbnails.value) == [
        f"{name} of {sample}" for sample in ("x11", "x16", "x39") for name in ("one", "two")
    ]
    rows = [re.findall("<td>(.*?)</td>", row) for row in explorer.table.value.split("<tr>")[1:]]
    assert [row[:3] for row in rows] == [["x11", "d", "P5"], ["x16", "a", "P8"], ["x39", "d", "P19"]]
    assert [row[-2].split(", ")[2] for row in rows] == ["right", "wrong", "wrong"]  # GMCD


def test_an_empty_lasso_and_the_button_clear_every_view(explorer):
    for clear in (lambda: lasso(explorer, "teacher", []), explorer.clear_button.click):
        lasso(explorer, "teacher", [3, 4])
        assert len(explorer.scatters["CE only"].widget.selection) == 2
        clear()
        assert len(explorer.selected) == 0 and explorer.thumbnails.value == explorer.table.value == ""
        assert len(explorer.scatters["CE only"].widget.selection) == 0 and explorer.export_button.disabled


def test_images_that_cannot_be_read_leave_nothing_of_the_selection_before(explorer, monkeypatch):
    explorer.select([0, 1])
    assert explorer.thumbnails.value and explorer.table.value

    def fail(source, size):
        raise DataError("a.png is <gone>")

    monkeypatch.setattr(ArrayImages, "load", fail)
    explorer.select([5, 6])
    assert explorer.thumbnails.value == explorer.table.value == "" and explorer.status.value == "a.png is &lt;gone&gt;"


def test_pages_turn_and_a_new_selection_starts_at_the_first(explorer):
    lasso(explorer, "teacher", range(10))
    assert explorer.page.max == 3
    explorer.page.value = 3
    assert explorer.thumbnails.value.count("<figure") == 2 and "one of x19" in explorer.thumbnails.value
    lasso(explorer, "teacher", range(2, 9))
    assert (explorer.page.value, explorer.page.max) == (1, 2)
    assert "one of x12" in explorer.thumbnails.value and "one of x19" not in explorer.thumbnails.value


def test_every_column_colours_every_view_by_its_own_values(explorer, points):
    assert explorer.colour_by.options == ("class", "patient", "predicted", "confidence", "correct", "age")
    of_class = dict(zip(["a", "b", "<c>", "d"], PALETTE, strict=False))
    of_truth = dict(zip(["right", "wrong"], PALETTE, strict=False))
    for column, colour_of in (("class", of_class), ("predicted", of_class), ("correct", of_truth)):
        explorer.colour_by.value = column
        for method in METHODS:
            values = points.loc[points["method"] == method, column]
            assert colours_on_screen(explorer, method) == [colour_of[value].upper() for value in values]


def test_numbers_get_brighter_with_the_value_on_one_scale_for_all_views(explorer, points):
    explorer.colour_by.value = "age"
    codes = explorer.scatters["teacher"].widget.points[:, 2]
    assert (np.diff(codes) >= 0).all() and len(set(codes)) == 10
    brightness = [np.dot(colour[:3], [0.2, 0.7, 0.1]) for colour in explorer.scatters["GMCD"].widget.color]
    assert (np.diff(brightness) > 0).all()


def test_many_patients_are_grey_and_the_legend_says_how_many(explorer):
    explorer.colour_by.value = "patient"
    assert colours_on_screen(explorer, "teacher").count(GREY.upper()) == 2
    assert "1 other (2)" in explorer.legend.value and explorer.view.disabled


def test_the_legend_counts_the_points_of_every_method(explorer):
    assert "&lt;c&gt; (8)" in explorer.legend.value and "a (7)" in explorer.legend.value
    explorer.colour_by.value = "correct"
    assert "right (10 | 10 | 10)" in explorer.legend.value and "teacher | GMCD | CE only" in explorer.legend.value


def test_the_keyboard_selects_a_value_and_of_which_method(explorer, points):
    explorer.value.value = "b"
    explorer.select_button.click()
    assert explorer.selection["class"].unique().tolist() == ["b"] and len(explorer.selected) == 7
    explorer.colour_by.value = "correct"
    explorer.value.value, explorer.view.value = "right", "CE only"
    explorer.select_button.click()
    expected = points[(points["method"] == "CE only") & (points["correct"] == "right")]["id"]
    assert explorer.ids[explorer.selected].tolist() == expected.tolist()


def test_each_export_is_a_new_csv_of_all_methods(explorer, tmp_path):
    lasso(explorer, "teacher", [0, 5])
    explorer.export_button.click()
    lasso(explorer, "teacher", [7])
    explorer.export_button.click()
    first, second = (pd.read_csv(tmp_path / "made" / f"selection_{number}.csv") for number in (1, 2))
    assert first["id"].tolist() == ["x10", "x15"] * 3 and second["method"].tolist() == list(METHODS)
    pd.testing.assert_frame_equal(second, explorer.selection, check_dtype=False)
    assert "3 rows (1 images)" in explorer.status.value and "selection_2.csv" in explorer.status.value


def test_an_export_that_fails_says_so(explorer, tmp_path):
    (tmp_path / "made").write_text("a file where the folder should be")
    lasso(explorer, "teacher", [0])
    explorer.export_button.click()
    assert "cannot be written to" in explorer.status.value


def test_methods_with_other_images_are_linked_by_image(interactive, points, cohort):
    kept = ~((points["method"] == "GMCD") & points["id"].isin(["x10", "x11", "x12"]))
    explorer = explore(points[kept], cohort, size=8, methods=["GMCD", "teacher"])
    assert list(explorer.scatters) == ["GMCD", "teacher"]
    lasso(explorer, "teacher", [1, 4])
    assert explorer.ids[explorer.selected].tolist() == ["x14", "x11"]
    assert list(explorer.scatters["GMCD"].widget.selection) == [1]
    lasso(explorer, "GMCD", [0])
    assert list(explorer.scatters["teacher"].widget.selection) == [3]


def test_simulated_data_and_the_credit_line_are_told_as_text(explorer):
    assert "Toy (simulated)" in explorer.children[0].value
    assert explorer.children[-1].value == "by &lt;somebody&gt;"
    lasso(explorer, "teacher", [0])
    assert "<c>" not in explorer.thumbnails.value + explorer.table.value


def test_headless_runs_get_a_figure_of_the_same_panels(points, cohort, monkeypatch):
    monkeypatch.setenv("MEDKD_HEADLESS", "1")
    figure = explore(points, cohort, methods=["teacher", "CE only"])
    assert isinstance(figure, Figure) and "simulated" in figure.get_suptitle()
    panels = [ax for ax in figure.axes if ax.get_title()]
    assert [ax.get_title() for ax in panels] == ["teacher", "CE only"]
    drawn = np.concatenate([dots.get_offsets() for dots in panels[1].collections])
    own = points.loc[points["method"] == "CE only", ["x", "y"]].to_numpy()
    np.testing.assert_allclose(np.sort(drawn, axis=0), np.sort(own, axis=0))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "<c>", "d"]


def test_points_of_another_cohort_and_unknown_methods_are_refused(points, cohort):
    with pytest.raises(DataError, match="images that toy does not have: x38, x39"):
        explore(points, cohort.take(np.arange(38)))
    with pytest.raises(ParameterError, match="KD"):
        explore(points, cohort, methods=["KD"])


def test_importing_it_does_not_import_what_takes_seconds():
    code = "import sys, medkd.widgets.explorer; print({'jscatter', 'torch', 'sklearn'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
