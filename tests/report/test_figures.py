import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from medkd.errors import DataError, ParameterError
from medkd.evaluation.metrics import calibration_table
from medkd.report import figures, figures_results
from medkd.report.style import METHOD_COLOURS, PALETTE, method_colour, panels, use_style, with_legend


def legend_texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def cell_texts(ax):
    return [text.get_text() for text in ax.texts]


def tick_texts(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def test_style_sets_paper_width_and_font_and_loads_no_backend():
    backend = mpl.get_backend()
    use_style()
    fig, ax = plt.subplots()
    assert fig.get_figwidth() == 3.4
    assert ax.xaxis.label.get_size() == 8
    assert ax.plot([0, 1])[0].get_color() == PALETTE[0]
    assert mpl.get_backend() == backend


def test_method_colours_are_told_apart_inside_each_chain():
    teacher_student = ["teacher", "image only", "second only", "CE only", "KD", "GMCD"]
    rare = ["MoCo + LR", "Hbr.Dst.", "Hbr.Dst.-DIC"]
    for chain in (teacher_student, rare):
        assert len({METHOD_COLOURS[method] for method in chain}) == len(chain)
    assert set(METHOD_COLOURS.values()) <= set(PALETTE)


def test_unknown_methods_keep_one_colour_and_a_modality_alone_has_the_second_ones():
    styles = figures_results.line_styles(
        {name: method_colour(name) for name in ["KD", "GMCD", *(f"other {n}" for n in range(26))]}
    )
    assert len({tuple(style.values()) for style in styles.values()}) == 28
    assert styles["KD"] == {"color": method_colour("KD"), "linestyle": "-"}
    assert method_colour("genomics only") == METHOD_COLOURS["second only"]
    assert method_colour("CE only") == METHOD_COLOURS["CE only"]
    assert method_colour("new method") == method_colour("new method") in PALETTE
    assert method_colour("new method", other="0.5") == "0.5" and method_colour("KD", other="0.5") in PALETTE


def test_learning_curves_draw_the_columns_against_the_epoch(ax):
    history = pd.DataFrame({"epoch": [1, 2, 3], "loss": [3.0, 2.0, 1.0], "val": [0.5, 0.6, 0.7]})
    assert figures_results.learning_curves(history, ["loss", "val"], ax, labels=["loss", "GMCD"]) is ax
    loss, val = ax.lines
    assert loss.get_xydata().tolist() == [[1, 3], [2, 2], [3, 1]]
    assert val.get_ydata().tolist() == [0.5, 0.6, 0.7]
    assert val.get_color() == METHOD_COLOURS["GMCD"] and loss.get_color() == PALETTE[0]
    assert legend_texts(ax) == ["loss", "GMCD"]
    assert not ax.collections


def test_learning_curves_of_two_runs_are_their_mean_and_a_band_of_one_sd(ax):
    history = pd.DataFrame({"epoch": [1, 2, 1, 2], "loss": [1.0, 2.0, 3.0, 6.0]})
    figures_results.learning_curves(history, ["loss"], ax)
    assert ax.lines[0].get_ydata().tolist() == [2, 4]
    band = ax.collections[0].get_paths()[0].vertices
    corners = [[1, 2 - 2**0.5], [1, 2 + 2**0.5], [2, 4 - 8**0.5], [2, 4 + 8**0.5]]  # (3 - 1) / sqrt 2, (6 - 2) / sqrt 2
    for corner in corners:
        assert np.isclose(band, corner).all(axis=1).any(), corner


def test_second_call_adds_lines_in_the_next_colour(ax):
    history = pd.DataFrame({"epoch": [1, 2], "a": [1.0, 2.0], "b": [2.0, 1.0]})
    figures_results.learning_curves(history, ["a"], ax)
    figures_results.learning_curves(history, ["b"], ax)
    assert [line.get_color() for line in ax.lines] == list(PALETTE[:2])


def test_a_method_with_a_colour_of_its_own_has_its_full_line_and_many_methods_have_no_bands(ax):
    """CRC-32 gives "RKD" the colour of another method; whoever comes first in the table, CE only keeps its line."""
    names = ["RKD", "SP", "PKT", "CC", "VID", "CE only", "KD"]
    rows = [
        {"method": name, "epoch": epoch, "loss": epoch * run} for name in names for epoch in (1, 2) for run in (1, 2)
    ]
    figures_results.method_curves(pd.DataFrame(rows), "loss", ax)
    lines = {line.get_label(): line for line in ax.lines}
    for name in ("CE only", "KD"):
        assert (lines[name].get_color(), lines[name].get_linestyle()) == (METHOD_COLOURS[name], "-")
    assert not ax.collections


def test_weights_of_panels_that_share_an_axis_are_not_cut_off():
    _, (first, second) = plt.subplots(1, 2, sharey=True)
    for top, ax in ((3.0, first), (5.0, second)):
        figures_results.weights_over_time(
            pd.DataFrame({"epoch": [1, 2], "weight_kd_teacher": [1, top]}), ["weight_kd_teacher"], ax
        )
    assert first.get_ylim() == second.get_ylim() == (0, pytest.approx(5.25))


def test_method_curves_draw_one_colour_a_method(ax):
    history = pd.DataFrame(
        {"method": ["KD", "KD", "KD", "GMCD"], "part": [0, 1, 0, 0], "epoch": [1, 1, 2, 1], "val_auc": [1.0, 2, 4, 3]}
    )
    figures_results.method_curves(history, "val_auc", ax)
    assert [line.get_xydata().tolist() for line in ax.lines] == [[[1, 1.5], [2, 4]], [[1, 3]]]
    assert [line.get_color() for line in ax.lines] == [METHOD_COLOURS["KD"], METHOD_COLOURS["GMCD"]]
    assert [line.get_label() for line in ax.lines] == ["KD", "GMCD"] and ax.get_ylabel() == "val auc"


def test_methods_that_share_a_colour_differ_in_their_dash(ax):
    methods = [f"method {number}" for number in range(12)]
    history = pd.DataFrame({"method": methods, "epoch": 1, "loss": 1.0})
    figures_results.method_curves(history, "loss", ax)
    assert len({(line.get_color(), line.get_linestyle()) for line in ax.lines}) == 12


def test_epochs_at_which_a_method_was_not_measured_are_left_out(ax):
    history = pd.DataFrame({"method": ["KD", "KD", "CE only"], "epoch": [1, 2, 1], "loss": [1.0, np.nan, np.nan]})
    figures_results.method_curves(history, "loss", ax)
    assert [line.get_xydata().tolist() for line in ax.lines] == [[[1, 1]]]


def test_weights_over_time_start_at_zero_and_drop_the_prefix(ax):
    history = pd.DataFrame({"epoch": [1, 2], "weight_kd_teacher": [1.0, 5.0], "weight_kd_momentum": [0.5, 0.8]})
    figures_results.weights_over_time(history, ["weight_kd_teacher", "weight_kd_momentum"], ax)
    assert legend_texts(ax) == ["kd teacher", "kd momentum"]
    assert ax.lines[0].get_ydata().tolist() == [1, 5]
    assert ax.get_ylim()[0] == 0


def test_confusion_shows_shares_of_each_true_class_and_counts(ax):
    figures_results.confusion(np.array([[3, 1], [0, 0]]), ["grade II", "grade III"], ax)
    np.testing.assert_allclose(ax.images[0].get_array().filled(np.nan), [[0.75, 0.25], [np.nan, np.nan]])
    assert cell_texts(ax) == ["0.75\n(3)", "0.25\n(1)", "–", "–"]
    assert [text.get_color() for text in ax.texts[:2]] == ["white", "black"]
    assert tick_texts(ax.yaxis) == tick_texts(ax.xaxis) == ["grade II", "grade III"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted class", "true class")


def test_long_names_beside_a_matrix_are_broken_into_lines(ax):
    names = ["high-grade squamous intraepithelial lesion", "NV"]
    figures_results.confusion(np.eye(2, dtype=int), names, ax)
    assert tick_texts(ax.yaxis) == tick_texts(ax.xaxis) == ["high-grade\nsquamous intra\nepithelial\nlesion", "NV"]


def test_heatmap_shows_values_and_marks_unknown_ones(ax):
    figures.heatmap(np.array([[0.5, np.nan, -1.0]]), ["row"], ["a", "b", "c"], ax)
    assert cell_texts(ax) == ["0.50", "–", "-1.00"]
    assert ax.images[0].get_clim() == (-1, 0.5)
    assert tick_texts(ax.xaxis) == ["a", "b", "c"]


def test_interval_bars_put_the_first_method_on_top(ax):
    table = pd.DataFrame(
        {"method": ["teacher", "GMCD"], "value": [0.9, 0.8], "low": [0.85, 0.81], "high": [0.95, 0.84]}
    )
    figures_results.interval_bars(table, ax)
    spans, dots = ax.lines[::2], ax.lines[1::2]
    assert [list(line.get_xdata()) for line in spans] == [[0.85, 0.95], [0.81, 0.84]]
    assert [dot.get_xydata().tolist() for dot in dots] == [[[0.9, 0]], [[0.8, 1]]]
    assert [dot.get_color() for dot in dots] == [METHOD_COLOURS["teacher"], METHOD_COLOURS["GMCD"]]
    assert tick_texts(ax.yaxis) == ["teacher", "GMCD"]
    assert ax.yaxis_inverted()


def test_scatter_draws_rare_classes_last_and_larger(ax):
    coordinates = np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    figures_results.scatter_embedding(coordinates, np.array([1, 0, 0, 2]), ["DF", "NV", "VASC"], ax, on_top=["DF"])
    assert [dots.get_label() for dots in ax.collections] == ["NV", "VASC", "DF"]
    assert ax.collections[2].get_offsets().tolist() == [[1, 1], [2, 2]]
    assert ax.collections[2].get_sizes()[0] > ax.collections[0].get_sizes()[0]
    colours = [to_hex(dots.get_facecolor()[0]).upper() for dots in ax.collections]
    assert colours == [PALETTE[1], PALETTE[2], PALETTE[0]]


def test_scatter_refuses_a_class_that_is_not_there(ax):
    with pytest.raises(ParameterError, match="'MEL', which is not among the classes NV"):
        figures_results.scatter_embedding(np.zeros((1, 2)), np.zeros(1), ["NV"], ax, on_top=["MEL"])


def test_image_grid_shows_the_pixels_and_hides_left_over_axes():
    images = np.random.default_rng(0).integers(256, size=(5, 6, 8, 3)).astype(np.uint8)
    fig = figures.image_grid(images, n_columns=3, titles=list("abcde"))
    assert len(fig.axes) == 6 and not any(ax.axison for ax in fig.axes)
    np.testing.assert_array_equal([ax.images[0].get_array() for ax in fig.axes[:5]], images)
    assert [ax.get_title() for ax in fig.axes] == [*"abcde", ""]
    assert not fig.axes[5].images
    assert fig.get_figwidth() == 3.4


def test_image_grid_of_many_columns_is_as_wide_as_a_page():
    fig = figures.image_grid(np.zeros((8, 4, 4, 3), np.uint8), n_columns=8)
    assert fig.get_size_inches().tolist() == [7.0, 7.0 / 8]


def test_image_grid_names_what_it_cannot_draw():
    with pytest.raises(DataError, match=r"got float64 \(1, 4, 4, 3\)"):
        figures.image_grid(np.zeros((1, 4, 4, 3)), n_columns=1)
    with pytest.raises(DataError, match="a title for each of 1 images; got 2"):
        figures.image_grid(np.zeros((1, 4, 4, 3), np.uint8), n_columns=1, titles=["a", "b"])


def test_class_counts_draw_a_bar_and_a_number_for_each_count(ax):
    summary = pd.DataFrame({"class": ["NV", "DF"], "images": [6705, 115], "lesions": [5403, 73]})
    figures.class_counts(summary, ax)
    bars = [bar for container in ax.containers for bar in container]
    assert [bar.get_width() for bar in bars] == [6705, 115, 5403, 73]
    assert cell_texts(ax) == ["6,705", "115", "5,403", "73"]
    assert legend_texts(ax) == ["images", "lesions"]
    middles = [bar.get_y() + bar.get_height() / 2 for bar in bars]
    assert middles == pytest.approx([-0.2, 0.8, 0.2, 1.2])
    assert ax.yaxis_inverted() and tick_texts(ax.yaxis) == ["NV", "DF"]


def test_histograms_share_bins_and_have_area_one(ax):
    rng = np.random.default_rng(0)
    values, groups = rng.standard_normal(60), np.array(["right"] * 40 + ["wrong"] * 20)
    figures.histogram_by_group(values, groups, ax)
    ax.legend()
    assert legend_texts(ax) == ["right", "wrong"]
    shown = {line.get_color(): line.get_xydata() for line in ax.lines}  # of each step its left end, and the last end
    assert len(shown) == 2
    edges = np.histogram_bin_edges(values, bins=30)
    for handle, name in zip(ax.get_legend().legend_handles, ("right", "wrong"), strict=True):
        density, _ = np.histogram(values[groups == name], bins=edges, density=True)
        np.testing.assert_allclose(shown[handle.get_color()][:-1], np.stack([edges[:-1], density], axis=1))


def test_calibration_draws_accuracy_against_confidence_and_writes_the_error(ax):
    """Two bins: three at .9, two of them right; one at .6, right: ECE = (3 |.9 - 2/3| + .4) / 4 = .275."""
    labels, probabilities = np.array([0, 0, 1, 0]), np.array([[0.9, 0.1]] * 3 + [[0.6, 0.4]])
    figures_results.calibration(calibration_table(labels, probabilities), ax)
    np.testing.assert_allclose(ax.lines[1].get_xydata(), [[0.6, 1], [0.9, 2 / 3]])
    np.testing.assert_allclose(ax.collections[0].get_sizes(), [100 / 4, 100 * 3 / 4])
    assert cell_texts(ax) == ["ECE 0.275"]


def test_a_single_epoch_is_a_dot(ax):
    for n_epochs, marker in ((1, "."), (2, "None")):
        figures_results.learning_curves(pd.DataFrame({"epoch": range(n_epochs), "loss": 1.0}), ["loss"], ax)
        assert ax.lines[-1].get_marker() == marker


def test_a_risk_group_has_its_colour_where_another_is_missing(ax):
    table = pd.DataFrame(
        {"group": ["low", "high"], "months": 0, "survival": 1.0, "low": 1.0, "high": 1.0, "at_risk": 3}
    )
    groups = ["low", "middle", "high"]
    figures_results.kaplan_meier(table.assign(p_value=np.nan), ax, groups=groups, legend=False)
    assert [line.get_color() for line in ax.lines] == [PALETTE[0], PALETTE[2]] and not ax.texts


def test_more_groups_than_colours_have_lines_of_their_own_in_the_order_of_the_classes(ax):
    names = [f"c{number:02d}" for number in range(11)]
    groups = np.array(names[::-1] * 20)
    figures.histogram_by_group(np.random.default_rng(0).normal(size=len(groups)), groups, ax, [*names, "absent"])
    assert [line.get_label() for line in ax.lines] == names
    assert len({(line.get_color(), line.get_linestyle()) for line in ax.lines}) == 11


def test_long_titles_stay_over_their_image():
    fig = figures.image_grid(
        np.zeros((6, 4, 4, 3), np.uint8), n_columns=6, titles=["seborrheic keratosis, second_image"] * 6
    )
    fig.canvas.draw()
    boxes = [ax.title.get_window_extent() for ax in fig.axes]
    assert all(left.x1 <= right.x0 for left, right in zip(boxes, boxes[1:], strict=False))
    assert (
        boxes[0].x0 >= 0 and boxes[-1].x1 <= fig.bbox.x1 and max(box.y1 for box in boxes) <= fig.bbox.y1 + 2
    )  # the box has room above the ink


def test_a_legend_has_as_many_columns_as_fit():
    fig, axes = panels(1)
    for name in (
        "dermatofibroma",
        "actinic keratosis",
        "vascular lesion",
        "squamous cell carcinoma",
        "melanoma",
        "naevus",
    ):
        axes[0].plot([0, 1], label=name)
    with_legend(fig, axes)
    fig.canvas.draw()
    box = fig.legends[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= fig.bbox.x1


def test_captions_tell_bands_only_where_there_are_some():
    history = pd.DataFrame({"method": ["a", "a", "b", "b"], "epoch": [1, 1, 1, 1]})
    assert figures_results.over_parts(history) == "; mean over folds, band of one SD"
    assert figures_results.over_parts(history.drop_duplicates()) == ""
    many = pd.concat([history.assign(method=name) for name in "abcdef"])
    assert figures_results.over_parts(many, "tasks") == "; mean over tasks, no bands of SD for 6 methods"


def test_kaplan_meier_draws_a_step_curve_with_band_for_each_group(ax):
    table = pd.DataFrame(
        {
            "group": ["low", "low", "high", "high", "high"],
            "months": [0, 9, 0, 4, 6],
            "survival": [1, 0.8, 1, 0.5, 0.0],
            "low": [1, 0.6, 1, 0.3, np.nan],
            "high": [1, 0.9, 1, 0.7, np.nan],
            "at_risk": [10, 10, 4, 4, 2],
        }
    )
    assert figures_results.kaplan_meier(table, ax) is ax
    low, high = ax.lines
    assert low.get_xydata().tolist() == [[0, 1], [9, 0.8]]
    assert high.get_xydata().tolist() == [[0, 1], [4, 0.5], [6, 0]]
    assert {line.get_drawstyle() for line in ax.lines} == {"steps-post"}
    assert [line.get_color() for line in ax.lines] == list(PALETTE[:2])
    band = {tuple(point) for point in ax.collections[0].get_paths()[0].vertices}
    assert band >= {(9, 0.6), (9, 0.9), (9, 1)}  # the step down at month 9
    assert legend_texts(ax) == ["low (n = 10)", "high (n = 4)"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("months", "survival")
    without = figures_results.kaplan_meier(table.assign(p_value=0.0123), plt.subplots()[1], legend=False)
    assert without.get_legend() is None and [line.get_label() for line in without.lines] == ["low", "high"]
    assert cell_texts(without) == ["log-rank p = 0.012"]


def test_singular_spectrum_sorts_all_frequencies_and_puts_zeros_on_a_named_line(ax):
    table = pd.DataFrame(
        {
            "rank": [0, 1, 0, 1] * 2,
            "frequency": [0, 0, 1, 1] * 2,
            "value": [8.0, 0.3, 4.0, 1.0, 7.0, 1e-9, 3.0, 0.0],
            "state": ["before"] * 4 + ["after"] * 4,
        }
    )
    figures_results.singular_spectrum(table, ax)
    before, after, floor = ax.lines
    assert before.get_ydata().tolist() == [8, 4, 1, 0.3]
    assert after.get_ydata().tolist() == [7, 3, 0.01, 0.01]
    assert before.get_xdata().tolist() == [1, 2, 3, 4]
    assert list(floor.get_ydata()) == [0.01, 0.01] and cell_texts(ax) == ["zero"]
    assert legend_texts(ax) == ["before", "after (2 of 4 zero)"]
    assert ax.get_yscale() == "log"
    ax.get_figure().canvas.draw()
    ticks = [text for text in tick_texts(ax.yaxis) if text]
    assert {"0.1", "1"} <= set(ticks) and not any("$" in text for text in ticks)


def test_singular_spectrum_without_zeros_has_no_line_for_them(ax):
    figures_results.singular_spectrum(pd.DataFrame({"value": [2.0, 1.0], "state": "before"}), ax)
    assert len(ax.lines) == 1 and not ax.texts and legend_texts(ax) == ["before"]


def test_singular_spectrum_names_values_that_no_log_axis_can_show(ax):
    with pytest.raises(DataError, match="singular values >= 0 and one above 0"):
        figures_results.singular_spectrum(pd.DataFrame({"value": [0.0, 0.0], "state": "after"}), ax)


def test_panels_are_three_a_row_and_the_rest_is_hidden():
    fig, axes = panels(4)
    assert len(axes) == 4
    assert [ax.axison for ax in fig.axes] == [True] * 4 + [False] * 2


def test_a_setting_does_not_change_a_methods_colour():
    assert method_colour("Hbr.Dst. K=5") == METHOD_COLOURS["Hbr.Dst."]
    assert method_colour("Hbr.Dst. + ridge") == METHOD_COLOURS["Hbr.Dst."]
    assert method_colour("MoCo + ridge K=5") == METHOD_COLOURS["MoCo + LR"] == method_colour("MoCo + centroid")


def test_confusion_of_many_classes_leaves_the_numbers_out():
    _, ax = plt.subplots()
    figures_results.confusion(np.eye(6, dtype=int), list("abcdef"), ax)
    assert {text.get_text() for text in ax.texts} == {""}


def test_a_class_that_is_nowhere_keeps_its_colour_and_has_no_name(ax):
    figures_results.scatter_embedding(np.zeros((2, 2)), np.array([1, 2]), ["", "NV", "DF"], ax, legend=False)
    assert [drawn.get_label() for drawn in ax.collections] == ["NV", "DF"]
    assert [to_hex(drawn.get_facecolor()[0]).upper() for drawn in ax.collections] == list(PALETTE[1:3])


def test_more_lines_than_colours_have_dashes(ax):
    columns = [f"temperature_{number}" for number in range(9)]
    figures_results.learning_curves(pd.DataFrame({"epoch": [1, 2]} | dict.fromkeys(columns, 1.0)), columns, ax)
    assert len({(line.get_color(), line.get_linestyle()) for line in ax.lines}) == 9


def test_only_the_panel_that_asks_for_it_has_a_legend():
    _, axes = plt.subplots(1, 2)
    for ax, legend in zip(axes, (False, True), strict=True):
        figures_results.scatter_embedding(np.zeros((2, 2)), np.array([0, 1]), ["NV", "DF"], ax, legend=legend)
    assert axes[0].get_legend() is None
    assert [text.get_text() for text in axes[1].get_legend().get_texts()] == ["NV", "DF"]
