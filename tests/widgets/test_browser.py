import dataclasses
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from medkd.data.arrays import ArrayImages
from medkd.data.checks import Finding
from medkd.data.cohort import Cohort, VectorTable
from medkd.data.folds import Split
from medkd.report.style import figure
from medkd.widgets import place
from medkd.widgets.browser import CohortBrowser, browse, vector_profile

NAMED = {"JPY_SESSION_NAME": "x"}


@pytest.fixture
def cohort():
    labels = np.arange(30) % 3
    table = pd.DataFrame({"id": [f"x{i:02d}" for i in range(30)], "label": labels})
    table["class"], table["roi"] = np.array(list("abc"))[labels], "r"
    table["patient"] = [f"P{i // 2}" for i in range(30)]
    images = {name: ArrayImages(np.full((30, 8, 8, 3), grey, np.uint8)) for name, grey in (("one", 9), ("two", 99))}
    values = np.random.default_rng(0).normal(size=(30, 20)).astype(np.float32)
    values[4, 7] = 40
    vectors = {"omic": VectorTable(values, tuple(f"g{i}" for i in range(20)))}
    return Cohort("toy", "Toy", True, ("a", "b", "c"), table, images, vectors)


@pytest.fixture
def browser(cohort):
    split = Split(np.arange(0, 20), np.arange(20, 24), np.arange(24, 30))
    return CohortBrowser(cohort, split=split, findings=[Finding("leak", True, "<b>one</b> file")], size=8, n_shown=4)


def test_filters_by_class_split_and_patient_combine(browser):
    assert len(browser.rows) == 30
    browser.class_filter.label = "b"
    assert browser.rows.tolist() == list(range(1, 30, 3))
    browser.split_filter.value = "test"
    assert browser.rows.tolist() == [25, 28]
    assert "2 of 30 samples, 2 patients (simulated)" in browser.count.value
    browser.patient_filter.value = "p14"
    assert browser.rows.tolist() == [28]
    browser.patient_filter.value = "nobody"
    assert len(browser.rows) == 0 and browser.sample.options == ()


def test_pages_show_the_samples_of_the_filter_with_both_modalities(browser):
    browser.class_filter.label = "c"
    assert browser.page.max == 3
    browser.page.value = 3
    assert [label for label, _ in browser.sample.options] == ["x26 (c)", "x29 (c)"]
    assert browser.thumbnails.value.count("<img") == 4
    assert "one of x26" in browser.thumbnails.value and "two of x26" in browser.thumbnails.value


def test_a_chosen_sample_shows_images_facts_and_its_unusual_values(browser):
    browser.page.value = 2
    browser.sample.value = 4
    assert browser.chosen == 4
    assert browser.detail.value.count("<img") == 2 and "P2" in browser.detail.value


def test_no_sample_leaves_no_profile_of_the_one_before(browser, monkeypatch):
    waits = []
    monkeypatch.setattr(browser.profile, "clear_output", lambda wait: waits.append(wait))
    browser.sample.value = 1
    browser.patient_filter.value = "nobody"
    assert browser.chosen == -1 and waits[0] is True and waits[-1] is False


def test_findings_are_shown_as_text(browser):
    assert "error:" in browser.children[0].value and "&lt;b&gt;one" in browser.children[0].value


def test_the_most_unusual_value_of_a_sample_comes_first(cohort):
    _, ax = figure()
    vector_profile(cohort, "omic", 4, ax, n_columns=5)
    assert ax.get_yticklabels()[0].get_text() == "g7"
    assert ax.lines[-1].get_xdata()[0] > 4


def test_a_class_may_be_called_all(cohort):
    table = cohort.table.assign(**{"class": cohort.table["class"].replace("a", "all")})
    renamed = CohortBrowser(dataclasses.replace(cohort, classes=("all", *cohort.classes[1:]), table=table), size=8)
    renamed.class_filter.index = 1
    assert renamed.class_filter.label == "all" and len(renamed.rows) == (table["class"] == "all").sum() < len(table)


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel what a process was started with")
@pytest.mark.parametrize("of_parent, expected", [("x", "False"), (None, "True")])
def test_a_kernel_that_a_kernel_started_is_headless(of_parent, expected):
    asks = "from medkd.widgets.place import is_interactive; print(is_interactive())"
    starts = f"import os, subprocess, sys; subprocess.run([sys.executable, '-c', {asks!r}], env=os.environ | {NAMED!r})"
    names = ("MEDKD_HEADLESS", *NAMED)
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {} if of_parent is None else NAMED
    done = subprocess.run([sys.executable, "-c", starts], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected


@pytest.mark.parametrize("names, expected", [([], False), (["JPY_SESSION_NAME"], True), (["VSCODE_PID"], True)])
def test_headless_runs_get_the_table_and_people_the_widget(cohort, monkeypatch, names, expected):
    for name in ("MEDKD_HEADLESS", "JPY_SESSION_NAME", "VSCODE_PID", "VSCODE_CWD"):
        monkeypatch.delenv(name, raising=False)
    for name in names:
        monkeypatch.setenv(name, "x")
    assert place.is_interactive() is expected
    assert isinstance(browse(cohort, size=8), CohortBrowser) is expected
    monkeypatch.setenv("MEDKD_HEADLESS", "1")
    assert isinstance(browse(cohort, size=8), pd.DataFrame)
