import dataclasses
import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medkd.errors import DataError, ParameterError
from medkd.report.artifacts import Artifacts
from medkd.report.index import read_index, read_metrics, read_runs
from medkd.stages.store import Run

STAGE = "02_teacher_training.phantom-glioma"


@pytest.fixture
def artifacts(tmp_path):
    return Artifacts(tmp_path / "report", STAGE, simulated=True)


@pytest.fixture
def table():
    return pd.DataFrame(
        {"method": ["CE_only", "GMCD", "100% & <b>"], "auc": [0.81234, 0.9, np.nan], "ece": [0.05, 0.1, 0.2]}
    )


def line_figure(layout="constrained"):
    fig, ax = plt.subplots(figsize=(3.4, 2.5), layout=layout)
    ax.plot([0, 1], [0, 1])
    ax.set_xlabel("epoch")
    return fig


def simulated_texts(fig):
    return [text for text in fig.texts if text.get_text() == "simulated"]


def test_figure_is_saved_as_png_pdf_and_csv_at_its_own_size(artifacts):
    data = pd.DataFrame({"epoch": [1, 2], "class": ["naïve", "b"]})
    artifacts.figure(line_figure(), "curves", "Loss.", data=data)
    stem = artifacts.folder / "figures" / f"{STAGE}-curves"
    assert Image.open(f"{stem}.png").size == (680, 500)  # 3.4 x 2.5 inches at 200 dpi
    pdf = (stem.parent / f"{stem.name}.pdf").read_bytes()
    assert pdf.startswith(b"%PDF") and b"/FontFile2" in pdf and b"/Type3" not in pdf
    saved = (stem.parent / f"{stem.name}.csv").read_bytes().decode("utf-8")
    assert saved == "epoch,class\n1,naïve\n2,b\n"
    assert [path.name for path in stem.parent.iterdir() if path.name.startswith(".")] == []


def test_same_figure_gives_the_same_bytes(artifacts):
    pictures = []
    for _ in range(2):
        artifacts.figure(line_figure(), "curves", "Loss.")
        pictures.append([path.read_bytes() for path in sorted((artifacts.folder / "figures").iterdir())])
    assert pictures[0] == pictures[1]


def test_figure_comes_back_closed_so_that_a_notebook_shows_it_once(artifacts):
    fig = line_figure()
    assert artifacts.figure(fig, "curves", "Loss.") is fig
    assert not plt.fignum_exists(fig.number)


def test_simulated_figure_says_so_once_below_its_axes(artifacts):
    fig = artifacts.figure(line_figure(), "curves", "Loss.")
    artifacts.figure(fig, "again", "Loss.")
    (mark,) = simulated_texts(fig)
    fig.draw_without_rendering()  # extents at the figure's own resolution, not the file's
    word = mark.get_window_extent()
    label = fig.axes[0].xaxis.label.get_window_extent()
    assert word.x1 <= fig.bbox.x1 and word.x0 > fig.bbox.width * 0.8
    assert 0 <= word.y0 and word.y1 <= label.y0


def test_simulated_mark_is_drawn_without_a_layout_engine_too(artifacts):
    assert len(simulated_texts(artifacts.figure(line_figure(layout="none"), "plain", "Loss."))) == 1


def test_real_data_carry_no_mark(tmp_path):
    real = Artifacts(tmp_path, "01_data_exploration", simulated=False)
    assert not simulated_texts(real.figure(line_figure(), "curves", "Loss."))
    assert real.table(pd.DataFrame({"a": [1]}), "counts", "Counts.").caption == "Counts."
    assert [entry["caption"] for entry in read_index(tmp_path)] == ["Loss.", "Counts."]


def test_caption_says_simulated_once_and_ends_with_the_attribution(artifacts):
    artifacts.figure(line_figure(), "one", "Views.", attribution="Images: phantom.")
    artifacts.figure(line_figure(), "two", "Views of simulated images.")
    captions = [entry["caption"] for entry in read_index(artifacts.folder)]
    assert captions == ["Views. Simulated data. Images: phantom.", "Views of simulated images."]


def test_table_keeps_all_digits_in_csv_and_shows_three(artifacts, table):
    style = artifacts.table(table, "main", "Results.")
    stem = artifacts.folder / "tables" / f"{STAGE}-main"
    pd.testing.assert_frame_equal(pd.read_csv(f"{stem}.csv"), table)
    shown = style.to_html()
    assert "0.812<" in shown and "0.81234" not in shown and "–" in shown
    assert "&lt;b&gt;" in shown and "<b>" not in shown
    assert style.caption == "Results. Simulated data."


def test_latex_table_has_booktabs_escapes_caption_and_label(artifacts, table):
    artifacts.table(table, "main", r"50% of a_b {c} \ ~.", formats={"auc": "{:.1%}"})
    latex = (artifacts.folder / "tables" / f"{STAGE}-main.tex").read_text(encoding="utf-8")
    for part in (
        r"\toprule",
        r"\midrule",
        r"\bottomrule",
        r"CE\_only & 81.2\% & 0.050 \\",
        r"100\% \& \textless{}b\textgreater{} & –",
    ):
        assert part in latex, part
    assert r"\caption{50\% of a\_b \{c\} \textbackslash{} \textasciitilde{}. Simulated data.}" in latex
    assert rf"\label{{tab:{STAGE}-main}}" in latex


def test_signs_that_mean_something_to_latex_at_the_start_of_a_row_or_in_its_first_fonts_do_not(artifacts):
    names = ["[x] first", "* star", "grade <2", "Gleason >7|8"]
    artifacts.table(pd.DataFrame({"class": names, "p_value": [0.0002, 0.5, 0.0, 1.0]}), "odd", "Odd.")
    latex = (artifacts.folder / "tables" / f"{STAGE}-odd.tex").read_text(encoding="utf-8")
    rows = (
        "{[}x] first & 0.0002",
        "{*} star & 0.500",
        "grade \\textless{}2 & 0.000",
        "Gleason \\textgreater{}7\\textbar{}8",
    )
    assert all(row in latex for row in rows)


def test_hyphens_of_negative_numbers_are_a_minus_in_latex_and_no_others(artifacts):
    frame = pd.DataFrame({"method": ["GMCD-2 of phantom-glioma-600"], "minus KD": ["-0.012 (-0.02 to -.001)"]})
    artifacts.table(frame, "signs", "From 2026-01-31 on.")
    latex = (artifacts.folder / "tables" / f"{STAGE}-signs.tex").read_text(encoding="utf-8")
    assert "GMCD-2 of phantom-glioma-600 & $-$0.012 ($-$0.02 to $-$.001)" in latex and "From 2026-01-31 on." in latex


def test_best_values_are_bold_where_asked(artifacts, table):
    style = artifacts.table(table, "main", "Results.", highlight={"auc": "max", "ece": "min"})
    latex = (artifacts.folder / "tables" / f"{STAGE}-main.tex").read_text(encoding="utf-8")
    assert r"\textbf{0.900}" in latex and r"\textbf{0.050}" in latex
    assert latex.count(r"\textbf") == 2
    bold = {cell for cell, properties in style._compute().ctx.items() if ("font-weight", "bold") in properties}
    assert bold == {(1, 1), (0, 2)}


def test_index_that_names_rows_becomes_a_column_and_row_numbers_do_not(artifacts):
    named = pd.DataFrame({"value": [0.5]}, index=["accuracy"])
    artifacts.table(named, "named", "Metrics.")
    artifacts.table(pd.DataFrame({"value": [1, 2, 3]}).iloc[[2, 0]], "rows", "Some rows.")
    tables = artifacts.folder / "tables"
    assert pd.read_csv(tables / f"{STAGE}-named.csv").to_numpy().tolist() == [["accuracy", 0.5]]
    assert pd.read_csv(tables / f"{STAGE}-rows.csv").to_dict("list") == {"value": [3, 1]}


def test_column_that_is_not_there_cannot_be_formatted(artifacts, table):
    with pytest.raises(ParameterError, match='table main has no column "f1" .* it has method, auc, ece'):
        artifacts.table(table, "main", "Results.", highlight={"f1": "max"})
    assert read_index(artifacts.folder) == []


def test_entry_holds_what_the_page_needs(artifacts, table):
    artifacts.table(table, "main", "Results.", summary=True)
    assert read_index(artifacts.folder) == [
        {
            "stage": STAGE,
            "simulated": True,
            "kind": "table",
            "name": "main",
            "caption": "Results. Simulated data.",
            "files": {"csv": f"tables/{STAGE}-main.csv", "tex": f"tables/{STAGE}-main.tex"},
            "summary": True,
        }
    ]


def test_writing_a_name_again_replaces_its_entry_in_place(artifacts, table):
    artifacts.figure(line_figure(), "main", "First.", data=table)
    artifacts.table(table, "main", "A table may share the name.")
    artifacts.figure(line_figure(), "main", "Second.")
    found = [(entry["kind"], entry["caption"], sorted(entry["files"])) for entry in read_index(artifacts.folder)]
    assert found == [
        ("figure", "Second. Simulated data.", ["pdf", "png"]),
        ("table", "A table may share the name. Simulated data.", ["csv", "tex"]),
    ]


def test_stages_come_in_order_and_a_later_session_adds_to_the_index(tmp_path):
    for stage, name in (("07_evaluation", "a"), ("02_teacher.x", "b"), ("02_teacher.x", "c"), ("02_teacher.d", "d")):
        Artifacts(tmp_path, stage, simulated=False).table(pd.DataFrame({"n": [1]}), name, "Counts.")
    found = [(entry["stage"], entry["name"]) for entry in read_index(tmp_path)]
    assert found == [("02_teacher.d", "d"), ("02_teacher.x", "b"), ("02_teacher.x", "c"), ("07_evaluation", "a")]


def test_metrics_merge_and_stay_strict_json(artifacts, table):
    artifacts.metrics({"auc": np.float32(0.5), "n": np.int64(3), "kappa": float("nan")})
    artifacts.table(table, "main", "Results.")
    artifacts.metrics({"auc": 0.75})
    assert read_metrics(artifacts.folder) == {STAGE: {"auc": 0.75, "n": 3, "kappa": None}}
    text = (artifacts.folder / "index" / f"{STAGE}.json").read_text()
    assert "NaN" not in text and len(json.loads(text)["entries"]) == 1


def test_the_runs_behind_a_stage_are_noted_once(artifacts):
    run = Run(artifacts.folder, "02", "abc", {}, {}, (), cohort="c", seconds=0.0)
    artifacts.uses([run, dataclasses.replace(run, key="def")])
    artifacts.metrics({"auc": 0.5})
    artifacts.uses([run])
    assert read_runs(artifacts.folder) == {STAGE: ["abc"]} and read_metrics(artifacts.folder)[STAGE] == {"auc": 0.5}


def test_report_without_artifacts_is_empty(tmp_path):
    assert read_index(tmp_path) == [] and read_metrics(tmp_path) == {}


def test_names_that_would_leave_the_folder_are_refused(tmp_path, artifacts):
    with pytest.raises(ParameterError, match='"../x" cannot be part of a file name'):
        Artifacts(tmp_path, "../x", simulated=False)
    with pytest.raises(ParameterError, match='"a/b"'):
        artifacts.figure(line_figure(), "a/b", "Loss.")


def test_damaged_index_is_named(artifacts):
    path = artifacts.folder / "index" / f"{STAGE}.json"
    path.write_text('{"entries": [')
    with pytest.raises(DataError, match=f"{STAGE}.json is not readable JSON"):
        read_index(artifacts.folder)
