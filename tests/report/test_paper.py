"""Figures of a paper: drawn from a table, and again from its CSV."""

import re
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from medkd.errors import DataError, ParameterError
from medkd.report import figures_results
from medkd.report.artifacts import Artifacts
from medkd.report.figures_paper import draw, paper_style
from medkd.report.index import read_index
from medkd.report.paper import DRAW, redraw
from medkd.report.style import PALETTE, class_styles, method_colour

METHODS = ("teacher", "CE only", "GMCD")
TWELVE = (*METHODS, "KD", "Hint", "AT", "CRD", "VID", "GMCD, no momentum views", "GMCD, one teacher", "NST", "PKT")
QUALITY = {"silhouette_features": 0.31, "silhouette_plane": -0.004, "purity_features": 0.5, "purity_plane": 0.6}


def table_of(kind, methods=METHODS, n_patients=3):
    """A small table of each kind."""
    if kind == "gkm weights":
        return pd.DataFrame({"epoch": [1, 2], "weight_kd_teacher": [1.0, 3.0], "weight_kd_momentum": [2.0, 2.0]})
    if kind == "singular values":
        rows = {
            "modality": ["omic"] * 4,
            "value": [3.0, 1.0, 2.0, 0.5],
            "state": ["before", "before", "after", "after"],
        }
        return pd.concat([pd.DataFrame(rows), pd.DataFrame(rows | {"modality": "histology"})])
    points = pd.DataFrame(
        {"class": ["NV", "MEL", "NV", "MEL"], "label": [1, 0, 1, 0], "x": [0.0, 0, 1, 1], "y": [0.5, 0.6, 1, 1]}
    )
    patients = {"shortcut": [f"p{number % n_patients}" for number in range(4)], "shortcut_kind": "patient"}
    one = {
        "learning curves": pd.DataFrame({"part": [0, 0, 1, 1], "epoch": [1, 2, 1, 2], "ce": [4.0, 2, 2, 1]}),
        "roc": points.assign(auc=0.75),
        "pr": points.assign(average_precision=0.75),
        "confusion": pd.DataFrame({"true": list("bbaa"), "predicted": list("baba"), "n": [3, 1, 0, 4]}),
        "calibration": pd.DataFrame({"confidence": [0.6, 0.9], "accuracy": [0.5, 1.0], "n_samples": [10, 30]}),
        "kaplan-meier": pd.DataFrame({"group": "low risk", "months": [0, 9], "survival": [1, 0.8]}).assign(
            low=0.5, high=1.0, at_risk=10, p_value=0.03
        ),
        "umap": points.assign(reference="teacher", **QUALITY),
        "umap shortcut": points.assign(reference="teacher", **QUALITY, **patients),
        "interval bars": pd.DataFrame({"metric": ["balanced_accuracy"], "value": 0.8, "low": 0.7, "high": 0.9}),
    }[kind]
    return pd.concat([one.assign(method=method) for method in methods], ignore_index=True)


@pytest.fixture
def out(tmp_path):
    return Artifacts(tmp_path, "07_evaluation.phantom-glioma", simulated=True)


@pytest.fixture(scope="module")
def all_kinds(tmp_path_factory):
    """A report with one figure of each kind."""
    out = Artifacts(tmp_path_factory.mktemp("report"), "07_evaluation.phantom-glioma", simulated=True)
    for number, kind in enumerate(DRAW):
        out.drawn(kind, table_of(kind), f"f{number}", "Caption.")
    return out


def drawn(kind, table, tmp_path):
    table.to_csv(tmp_path / "table.csv", index=False)
    with paper_style():
        return draw(kind, tmp_path / "table.csv")


def files_of(out):
    return {path.name: path.read_bytes() for path in sorted((out.folder / "figures").iterdir())}


def legend_texts(fig):
    return [text.get_text() for text in fig.legends[0].get_texts()]


def test_redrawing_gives_the_same_bytes_whatever_style_is_set(all_kinds):
    before = files_of(all_kinds)
    plt.rcParams.update({"font.size": 20, "pdf.fonttype": 3, "axes.grid": True})
    names = redraw(all_kinds.folder)
    assert names == [f"07_evaluation.phantom-glioma-f{number}" for number in range(len(DRAW))]
    assert files_of(all_kinds) == before
    assert plt.rcParams["font.size"] == 20 and not plt.get_fignums()


def test_every_figure_has_embedded_fonts_and_the_width_of_a_column_or_a_page(all_kinds):
    pdfs = {name: content for name, content in files_of(all_kinds).items() if name.endswith(".pdf")}
    assert len(pdfs) == len(DRAW)
    for name, pdf in pdfs.items():
        (width,) = re.findall(rb"/MediaBox \[ 0 0 ([\d.]+) ", pdf)
        assert float(width) / 72 in (pytest.approx(3.4), pytest.approx(7.0)), name
        assert b"/FontFile2" in pdf and b"/Type3" not in pdf and b"CreationDate" not in pdf, name


def test_redrawing_follows_the_table_and_leaves_other_figures_alone(out):
    out.drawn("interval bars", table_of("interval bars"), "bars", "Bars.")
    fig, _ = plt.subplots()
    out.figure(fig, "plain", "Not drawn from a table.", data=pd.DataFrame({"a": [1]}))
    (out.folder / "figures" / "07_evaluation.phantom-glioma-plain.csv").unlink()
    before = files_of(out)
    path = out.folder / "figures" / "07_evaluation.phantom-glioma-bars.csv"
    pd.read_csv(path).query("method != 'GMCD'").to_csv(path, index=False)
    assert redraw(out.folder) == ["07_evaluation.phantom-glioma-bars"]
    changed = {name for name, content in files_of(out).items() if content != before[name]}
    assert changed == {path.name, path.with_suffix(".pdf").name, path.with_suffix(".png").name}


def test_two_classes_that_were_given_one_name_are_drawn_as_one(out):
    out.drawn("confusion", table_of("confusion"), "confusion", "Confusion.")
    path = out.folder / "figures" / "07_evaluation.phantom-glioma-confusion.csv"
    table = pd.read_csv(path)
    table.replace({"true": {"b": "a"}, "predicted": {"b": "a"}}).to_csv(path, index=False)
    with paper_style():
        (text,) = draw("confusion", path).axes[0].texts
    total = table.loc[table["method"] == table["method"].iloc[0], "n"].sum()
    assert text.get_text() == f"1.00\n({total})"


@pytest.mark.parametrize("n_methods, n_classes", [(3, 5), (5, 11), (7, 5)])
def test_names_of_a_confusion_neither_overlap_nor_leave_the_page(tmp_path, n_methods, n_classes):
    names = [f"squamous cell carcinoma of kind {number}" for number in range(n_classes)]
    rows = [(f"method {m}", true, said, 5) for m in range(n_methods) for true in names for said in names]
    pd.DataFrame(rows, columns=["method", "true", "predicted", "n"]).to_csv(tmp_path / "c.csv", index=False)
    with paper_style(), warnings.catch_warnings():
        warnings.simplefilter("error")  # a layout that collapses is one
        fig = draw("confusion", tmp_path / "c.csv")
        fig.canvas.draw()
        first = fig.axes[0]
        boxes = [label.get_window_extent() for label in first.get_yticklabels()]
        assert all(upper.y0 >= lower.y1 - 1 for upper, lower in zip(boxes, boxes[1:], strict=False))
        for ax in fig.axes[:n_methods]:
            boxes = [label.get_window_extent() for label in ax.get_xticklabels() + ax.get_yticklabels()]
            seen = [box for box in boxes if box.width]
            assert all(box.x0 >= -1 and box.y0 >= -1 and box.x1 <= fig.bbox.x1 + 1 for box in seen)
        cell = first.get_window_extent().width / n_classes
        if n_classes <= figures_results.ROOMY:
            assert max(text.get_window_extent().width for text in first.texts) < cell


def test_redrawn_figures_of_simulated_data_say_so(out, tmp_path, monkeypatch):
    out.drawn("calibration", table_of("calibration"), "calibration", "Calibration.")
    seen = []
    monkeypatch.setattr("medkd.report.artifacts._mark_simulated", seen.append)
    redraw(out.folder)
    assert len(seen) == 1
    real = Artifacts(tmp_path / "real", "07_evaluation", simulated=False)
    real.drawn("calibration", table_of("calibration"), "calibration", "Calibration.")
    redraw(real.folder)
    assert len(seen) == 1


def test_index_says_what_draws_the_figure(out):
    fig = out.drawn("roc", table_of("roc"), "roc", "ROC.")
    (entry,) = read_index(out.folder)
    assert (entry["kind"], entry["draw"], entry["photographs"]) == ("figure", "roc", False)
    assert sorted(entry["files"]) == ["csv", "pdf", "png"] and entry["caption"] == "ROC. Simulated data."
    assert not plt.fignum_exists(fig.number)


def test_a_folder_without_a_report_is_named(tmp_path):
    with pytest.raises(DataError, match="holds no report; name its folder"):
        redraw(tmp_path / "none")


def test_what_cannot_be_drawn_is_named(out):
    with pytest.raises(
        ParameterError, match='"pie" is no figure of medkd.report.figures_paper; known are learning curves, roc'
    ):
        out.drawn("pie", table_of("roc"), "pie", "Pie.")
    with pytest.raises(DataError, match="bars.csv lacks the column 'low'"):
        out.drawn("interval bars", table_of("interval bars").drop(columns="low"), "bars", "Bars.")
    with pytest.raises(DataError, match="roc.csv has no rows"):
        out.drawn("roc", table_of("roc").iloc[:0], "roc", "ROC.")
    assert read_index(out.folder) == []
    out.drawn("roc", table_of("roc"), "roc", "ROC.")
    (out.folder / "figures" / "07_evaluation.phantom-glioma-roc.csv").unlink()
    with pytest.raises(DataError, match="roc.csv, the table of a figure, is missing; run the notebook"):
        redraw(out.folder)


def test_names_that_read_like_numbers_or_gaps_stay_names(tmp_path):
    table = table_of("confusion", ["1", "NA"]).replace(
        {"true": {"a": "01", "b": "None"}, "predicted": {"a": "01", "b": "None"}}
    )
    fig = drawn("confusion", table, tmp_path)
    assert [ax.get_title() for ax in fig.axes] == ["1", "NA"]
    assert [label.get_text() for label in fig.axes[0].get_yticklabels()] == ["None", "01"]


def test_learning_curves_have_a_panel_a_column_and_a_band_over_parts(tmp_path):
    table = table_of("learning curves").assign(val_auc_macro=0.5)
    fig = drawn("learning curves", table, tmp_path)
    loss, score = fig.axes
    assert [ax.get_ylabel() for ax in fig.axes] == ["ce", "val macro AUC"]
    assert loss.lines[1].get_ydata().tolist() == [3, 1.5] and len(loss.collections) == 3
    assert [line.get_color() for line in score.lines] == [method_colour(method) for method in METHODS]
    assert legend_texts(fig) == list(METHODS)


@pytest.mark.parametrize("kind", ["roc", "pr", "confusion", "calibration", "kaplan-meier", "umap", "umap shortcut"])
def test_methods_have_a_panel_each_on_shared_axes(kind, tmp_path):
    fig = drawn(kind, table_of(kind, TWELVE), tmp_path)
    assert [ax.get_title().replace("\n", " ") for ax in fig.axes] == list(TWELVE)
    assert fig.get_figwidth() == 7 and fig.get_figheight() < 9.5
    fig.axes[0].set_xlim(-7, 7)
    assert all(ax.get_xlim() == (-7, 7) for ax in fig.axes)


def test_only_outer_panels_name_their_axes(tmp_path):
    fig = drawn("roc", table_of("roc", TWELVE[:5]), tmp_path)
    assert [bool(ax.get_ylabel()) for ax in fig.axes] == [True, False, False, True, False]
    assert [bool(ax.get_xlabel()) for ax in fig.axes] == [False, False, True, True, True]


def test_confusion_panels_keep_the_order_of_the_classes(tmp_path):
    fig = drawn("confusion", table_of("confusion"), tmp_path)
    assert [label.get_text() for label in fig.axes[0].get_yticklabels()] == ["b", "a"]
    np.testing.assert_allclose(fig.axes[2].images[0].get_array(), [[0.75, 0.25], [0, 1]])


def test_umap_is_coloured_in_the_order_of_the_labels_and_shows_its_quality(tmp_path):
    fig = drawn("umap", table_of("umap"), tmp_path)
    assert legend_texts(fig) == ["MEL", "NV"]
    melanoma, nevi = fig.axes[1].collections
    assert melanoma.get_offsets().tolist() == [[0, 0.6], [1, 1]]
    assert [to_hex(dots.get_facecolor()[0]).upper() for dots in (melanoma, nevi)] == list(PALETTE[:2])
    assert fig.axes[1].get_xlabel() == "silhouette 0.31 | 0.00\nkNN purity 0.50 | 0.60"


def test_methods_that_were_fitted_alone_share_no_axes(tmp_path):
    fig = drawn("umap", table_of("umap").assign(reference=""), tmp_path)
    fig.axes[0].set_xlim(-7, 7)
    assert fig.axes[1].get_xlim() != (-7, 7)


def test_shortcuts_are_named_where_they_are_few_and_else_the_largest_are_coloured(tmp_path):
    few = drawn("umap shortcut", table_of("umap shortcut"), tmp_path)
    assert legend_texts(few) == ["p0", "p1", "p2"]
    base = table_of("umap shortcut", METHODS[:2], n_patients=1).iloc[[0, 4]]
    numbers = [0] * 3 + list(range(15))
    many = pd.concat([base.assign(shortcut=f"p{number:02}", x=number) for number in numbers], ignore_index=True)
    fig = drawn("umap shortcut", many, tmp_path)
    assert not fig.legends and fig.get_suptitle() == "colours: the 10 patients with the most images; grey: 5 others"
    others, first, *_ = fig.axes[1].collections
    assert others.get_offsets()[:, 0].tolist() == [10, 11, 12, 13, 14]
    assert first.get_offsets()[:, 0].tolist() == [0, 0, 0, 0]


def test_differences_are_drawn_beside_a_line_at_zero(tmp_path):
    table = table_of("interval bars").rename(columns={"value": "difference"}).assign(minus="KD", setting="K=5")
    (ax,) = drawn("interval bars", table, tmp_path).axes
    assert ax.get_xlabel() == "balanced accuracy\nminus that of KD"
    assert [label.get_text() for label in ax.get_yticklabels()] == [f"{method} K=5" for method in METHODS]
    assert list(ax.lines[-1].get_xdata()) == [0, 0]


def test_spectra_have_a_panel_a_modality(tmp_path):
    fig = drawn("singular values", table_of("singular values"), tmp_path)
    assert [ax.get_title() for ax in fig.axes] == ["omic", "histology"]
    assert fig.axes[1].lines[0].get_ydata().tolist() == [3, 1]


def test_class_curves_write_each_area_in_the_colour_of_its_class_and_of_many_the_mean():
    table = pd.DataFrame({"class": ["NV", "NV", "DF", "DF"], "x": [0, 1, 0, 1], "y": [0.0, 1, 0.5, 1]})
    table["auc"] = [0.5, 0.5, 0.75, 0.75]
    ax = plt.subplots()[1]
    figures_results.class_curves(table, "auc", class_styles(["NV", "DF"]), ax)
    diagonal, nevi, fibroma = ax.lines
    assert fibroma.get_xydata().tolist() == [[0, 0.5], [1, 1]] and nevi.get_label() == "NV"
    assert {(text.get_text(), text.get_color()) for text in ax.texts} == {("0.50", PALETTE[0]), ("0.75", PALETTE[1])}
    names = list("abcdefgh")
    many = pd.DataFrame({"class": names, "x": 0.0, "y": 1.0, "average_precision": np.arange(8) / 10})
    ax = plt.subplots()[1]
    figures_results.class_curves(many, "average_precision", class_styles(names), ax)
    assert [text.get_text() for text in ax.texts] == ["mean 0.35"] and ax.get_ylabel() == "precision"
    assert len({(line.get_color(), line.get_linestyle()) for line in ax.lines}) == 8
