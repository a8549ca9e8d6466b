"""Playground: what K, temperature, mix and DIC's gamma do to pseudo-labels and few-shot accuracy, within a second."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any, get_args

import ipywidgets as widgets
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple

from medkd.data.cohort import Cohort
from medkd.errors import MedkdError
from medkd.evaluation.adaptation import STEPS, Adaptation
from medkd.evaluation.episode_probe import EpisodeProbe
from medkd.evaluation.pseudo_labels import Classifier
from medkd.report.style import PAGE_WIDTH, PALETTE, use_style
from medkd.widgets.monitor import png_of
from medkd.widgets.place import is_interactive

SHOTS = (1, 3, 5)
"""K of the static counterpart, and of the curve that the playground opens with."""
CLOSED = "tasks of common classes; the query sets stay closed"
STAND_IN = "nearest centroids stand in for the student"
PLACES = {"left": 0.07, "right": 0.99, "bottom": 0.27, "top": 0.92, "wspace": 0.18}
COLOURS = dict(zip(STEPS, ("0.75", *PALETTE), strict=False))
HATCHES = dict(zip(STEPS, ("", "///", "", "..."), strict=True))
MARKERS = dict(zip(STEPS[1:], "os^", strict=True))


class Playground(widgets.VBox):
    """Sliders over an `EpisodeProbe`; made by `playground`, which explains the arguments.

    Attributes:
        probe: what computes the numbers.
        numbers: of the pseudo-labels that are shown, see `label_numbers`.
        tau: temperatures of DIC that are shown, shape (n_way,).
        shots: the few-shot accuracies that are drawn, see `EpisodeProbe.accuracy`; of other K than the present one
            only the classifier itself, which no other slider changes.
    """

    def __init__(self, probe: EpisodeProbe, classifier: Classifier, n_tasks: int) -> None:
        self.probe, self._tried = probe, {name: {} for name in get_args(Classifier)}
        start, layout = Adaptation(), widgets.Layout(width="400px")
        same = {"layout": layout, "style": {"description_width": "90px"}}
        late = same | {"continuous_update": False}
        shown = min(SHOTS[-1], probe.max_shots)
        self.k_shot = widgets.IntSlider(value=shown, min=1, max=probe.max_shots, description="K", **late)
        self.temperature = widgets.FloatLogSlider(
            value=start.temperature, min=-1, max=1, step=0.05, description="temperature", readout_format=".2f", **late
        )
        self.mix = widgets.FloatSlider(value=start.mix, min=0, max=1, step=0.05, description="mix", **late)
        self.gamma = widgets.FloatSlider(value=start.gamma, min=0, max=0.5, step=0.05, description="gamma", **late)
        self.task = widgets.BoundedIntText(value=0, min=0, max=n_tasks - 1, description="task", **same)
        self.classifier = widgets.Dropdown(
            options=get_args(Classifier), value=classifier, description="classifier", **same
        )
        self.line, self.picture = widgets.HTML(), widgets.Image(format="png", layout=widgets.Layout(max_width="100%"))
        controls = (self.k_shot, self.temperature, self.mix, self.gamma, self.task, self.classifier)
        for control in controls:
            control.observe(self._redraw, names="value")
        about = widgets.HTML(f"<b>{html.escape(probe.cohort.label_text)}</b>; accuracy: {CLOSED}; {STAND_IN}")
        rows = [widgets.HBox(controls[start : start + 2]) for start in range(0, len(controls), 2)]
        super().__init__([about, *rows, self.line, self.picture])
        self._redraw()

    @property
    def settings(self) -> Adaptation:
        """Where temperature, mix and gamma stand."""
        return Adaptation(self.temperature.value, self.mix.value, self.gamma.value)

    def _redraw(self, _: Any = None) -> None:
        k_shot, classifier, tried = self.k_shot.value, self.classifier.value, self._tried[self.classifier.value]
        opening = [] if any(self._tried.values()) else [k for k in SHOTS if k < self.probe.max_shots]
        try:
            self.numbers, self.tau = self.probe.pseudo_labels(k_shot, self.task.value, classifier, self.settings)
            found = {k: self.probe.accuracy(k, classifier, self.settings) for k in {*opening, k_shot}}
        except MedkdError as error:  # features that are not finite, a regression that does not converge
            self.line.value, self.picture.layout.display = html.escape(str(error)), "none"
            return
        tried |= {k: table.iloc[:1] for k, table in found.items()}
        others = [row for k, row in tried.items() if k != k_shot]
        self.shots = pd.concat([*others, found[k_shot]]).sort_values("K", kind="stable", ignore_index=True)
        self.picture.value, self.picture.layout.display = png_of(self._figure()), None
        lines = "<br>".join(html.escape(text) for text in self._texts(found[k_shot]))
        self.line.value = f'<div style="line-height:1.4">{lines}</div>'

    def _figure(self) -> Figure:
        with mpl.rc_context():
            use_style()
            # no pyplot, other threads may be drawing; no layout engine, it takes half of the time
            figure = Figure(figsize=(PAGE_WIDTH, 2.8), layout="none")
            left, right = figure.subplots(1, 2, gridspec_kw=PLACES)
            bars(self.numbers, self.tau, self.probe.classes, left)
            left.set_title(f"pseudo-labels of common images, K = {self.k_shot.value}, task {self.task.value}")
            accuracy_by_shots(self.shots, 1 / self.probe.n_way, right, marked=self.k_shot.value)
            _legend(figure)
        return figure

    def _texts(self, present: pd.DataFrame) -> tuple[str, str]:
        """The numbers behind the left and the right picture in words."""
        shares = ", ".join(f"{name} {self.numbers.at['hard labels', name]:.0%}" for name in self.probe.classes)
        soft, aim = self.numbers.loc["soft labels"], self.numbers.loc["adaptive target"]
        names = ("confidence", "entropy", "effective classes")
        sure = ", ".join(f"{name} {soft[name]:.3f} to {aim[name]:.3f}" for name in names)
        tau = ", ".join(f"{value:.3f}" for value in self.tau)
        few = "; ".join(
            f"{row.step} {row.accuracy:.3f} [{row.low:.3f}, {row.high:.3f}], overconfidence {row.overconfidence:+.2f}"
            for row in present.itertuples()
        )
        return (
            f"K = {self.k_shot.value}, task {self.task.value}: hard labels {shares}; soft labels to target: {sure}; "
            f"tau {tau}",
            f"accuracy over {self.probe.n_episodes} tasks: {few}",
        )


def playground(
    features: np.ndarray,
    cohort: Cohort,
    *,
    seed: int = 0,
    classifier: Classifier = "lr",
    n_tasks: int = 2,
    **options: Any,
) -> Playground | Figure:
    """The playground where somebody can use it; elsewhere a figure of its content at the defaults, for K = 1, 3 and 5.

    Pseudo-labels are those that the classifier of a rare task's support set gives all common images. Accuracy is that
    of tasks of common classes, so that no setting is chosen by the test data. The student is a stand-in, see
    `medkd.evaluation.adaptation.student_logits`: a first look before 06_self_distillation trains one.

    Args:
        features: of every image in the order of the cohort's table, shape (n, d), from the URL encoder.
        cohort: with common and rare classes.
        seed: of all draws; as in stage 05, whose tasks are shown.
        classifier: what the dropdown starts with.
        n_tasks: tasks of rare classes to choose from.
        options: further ones of `EpisodeProbe`: by_lesion, C, normalize (as in stage 05), n_episodes, n_pool.

    Raises: as `EpisodeProbe`.
    """
    probe = EpisodeProbe(features, cohort, seed=seed, **options)
    return Playground(probe, classifier, n_tasks) if is_interactive() else overview(probe, classifier)


def overview(probe: EpisodeProbe, classifier: Classifier) -> Figure:
    """Pseudo-labels of task 0 for each K of `SHOTS` that the cohort has images for, and accuracy against K."""
    shots, settings = [k_shot for k_shot in SHOTS if k_shot <= probe.max_shots], Adaptation()
    with mpl.rc_context():
        use_style()
        figure, grid = plt.subplots(2, 2, figsize=(PAGE_WIDTH, 5.0), layout="constrained")
        plt.close(figure)  # pyplot makes notebooks show figures; closed, it is shown once, as the value of its cell
        for ax, k_shot in zip(grid.flat, shots, strict=False):
            numbers, tau = probe.pseudo_labels(k_shot, 0, classifier, settings)
            bars(numbers, tau, probe.classes, ax)
            soft, aim = numbers.loc["soft labels"], numbers.loc["adaptive target"]
            sure, spread = (f"{soft[name]:.2f} to {aim[name]:.2f}" for name in ("confidence", "entropy"))
            ax.set_title(
                f"K = {k_shot}, soft labels to target: confidence\n{sure}, entropy {spread} nats, "
                f"{aim['effective classes']:.1f} classes"
            )
        for unused in grid.flat[len(shots) : -1]:
            unused.axis("off")
        table = pd.concat([probe.accuracy(k_shot, classifier, settings) for k_shot in shots], ignore_index=True)
        accuracy_by_shots(table, 1 / probe.n_way, grid.flat[-1])
        figure.suptitle(
            f"{probe.cohort.label_text}: temperature {settings.temperature:g}, mix {settings.mix:g}, "
            f"gamma {settings.gamma:g}, task 0;\n{STAND_IN}"
        )
        _legend(figure)
    return figure


def bars(numbers: pd.DataFrame, tau: np.ndarray, classes: Sequence[str], ax: Axes) -> Axes:
    """Mean probability of each class at every step, beside one another; tau under the names.

    Args:
        numbers: of `label_numbers`.
        tau: temperature of each class under DIC, shape (n_way,).
        classes: n_way names.
        ax: where.
    """
    places, width = np.arange(len(classes)), 0.8 / len(numbers)
    for number, (name, row) in enumerate(numbers.iterrows()):
        offset = (number - (len(numbers) - 1) / 2) * width
        look = {"color": COLOURS[name], "hatch": HATCHES[name], "edgecolor": "white", "linewidth": 0}
        ax.bar(places + offset, row[list(classes)].to_numpy(float), width, label=name, **look)
    room = max(4, 60 // len(classes))
    names = [name if len(name) <= room else f"{name[: room - 3]}..." for name in classes]
    ax.set_xticks(places, [f"{name}\nτ {value:.3f}" for name, value in zip(names, tau, strict=True)])
    ax.set(ylabel="mean probability", ylim=(0, 1))
    return ax


def accuracy_by_shots(table: pd.DataFrame, chance: float, ax: Axes, *, marked: int = 0) -> Axes:
    """Few-shot accuracy with its interval against K, one marker a step.

    Args:
        table: columns step, K, accuracy, low, high.
        chance: accuracy of guessing.
        ax: where.
        marked: K that gets a grey band; 0 for none.
    """
    shots = sorted(table["K"].unique())
    for number, (name, rows) in enumerate(table.groupby("step", sort=False)):
        places = rows["K"].map(shots.index).to_numpy() + 0.18 * (list(MARKERS).index(name) - 1)
        low, high = rows["accuracy"] - rows["low"], rows["high"] - rows["accuracy"]
        look = {"color": COLOURS[name], "marker": MARKERS[name], "markersize": 4, "zorder": 3 + number}
        ax.errorbar(places, rows["accuracy"], [low, high], linewidth=0.8, capsize=2, **look)
    if marked:
        ax.axvspan(shots.index(marked) - 0.4, shots.index(marked) + 0.4, color="0.92", zorder=0)
    ax.axhline(chance, color="0.5", linestyle=":", linewidth=0.8)
    ax.annotate("chance", (1, chance), xycoords=("axes fraction", "data"), ha="right", va="top", color="0.4")
    ax.set_xticks(range(len(shots)), shots)
    ax.set(xlabel="K" + ("; grey: the present one" if marked else ""), ylabel="accuracy, 95% over tasks")
    ax.set(xlim=(-0.6, len(shots) - 0.4), ylim=(0, 1.02), title=CLOSED)
    return ax


def _legend(figure: Figure) -> None:
    """One for both pictures: what bars and markers of one colour stand for."""
    handles, names = figure.axes[0].get_legend_handles_labels()
    points = {name: figure.axes[0].plot([], [], MARKERS[name], color=COLOURS[name])[0] for name in MARKERS}
    pairs = [(bar, points[name]) if name in points else bar for bar, name in zip(handles, names, strict=True)]
    handler = {tuple: HandlerTuple(ndivide=None)}
    figure.legend(
        pairs,
        names,
        loc="outside lower center" if figure.get_layout_engine() else "lower center",
        ncols=len(names),
        handler_map=handler,
    )
