"""Training monitor: live curves, time left, and a button that stops without losing anything."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ipywidgets as widgets
import matplotlib as mpl
from matplotlib.figure import Figure

from medkd.report.style import PAGE_WIDTH, PALETTE, use_style
from medkd.text import duration
from medkd.training.progress import Progress, listening
from medkd.training.stop import forget_request, request_stop
from medkd.widgets.place import is_interactive

REDRAW_SECONDS = 1.0
"""Least time between two pictures: drawing one takes about a tenth of a second, which training waits for."""
LEFT_OUT = ("epoch", "lr", "seconds")
NO_LOSS = ("weight_", "temperature_", "feature_std", "feature_norm", "alignment", "uniformity")
"""How the numbers begin that are neither a loss nor of the validation split."""


class TrainingMonitor(widgets.VBox):
    """Where the trainings of a cell stand; `update` is told by `medkd.training.progress`.

    JupyterLab 4.4 and later with ipykernel 7 handles the button while the cell runs (kernel subshells); older ones
    handle it when the cell ends, and there the kernel's stop button does the same.
    """

    def __init__(self) -> None:
        self._drawn, self._last = 0.0, None
        self.title = widgets.HTML("<b>waiting for a training to start</b>")
        self.bar = widgets.FloatProgress(min=0, max=1, layout=widgets.Layout(width="60%"))
        self.stop = widgets.Button(
            description="Stop", icon="stop", tooltip="end after the present step and keep a checkpoint"
        )
        self.stop.on_click(self._stop)
        _heard_while_busy(self.stop)
        self.picture = widgets.Image(format="png", layout=widgets.Layout(max_width="100%"))
        super().__init__([self.title, widgets.HBox([self.bar, self.stop]), self.picture])

    def update(self, progress: Progress) -> None:
        """Show where a training stands."""
        self._last = progress
        done = progress.epoch + progress.step / progress.n_steps
        self.bar.value, ends = done / progress.n_epochs, done >= progress.n_epochs
        self.title.value = f"<b>{progress.title}</b>: {_where(progress)}"
        if progress.history and (ends or time.monotonic() - self._drawn > REDRAW_SECONDS):
            self._drawn = time.monotonic()
            self.picture.value = png_of(curves(progress.history))

    def last_picture(self) -> bytes:
        """The curves of the training that was told of last as a PNG, b"" if no epoch was finished."""
        return png_of(curves(self._last.history)) if self._last is not None and self._last.history else b""

    def _stop(self, _: Any) -> None:
        request_stop()
        self.stop.disabled = True
        self.stop.description = "stopping"


@contextmanager
def monitor() -> Iterator[TrainingMonitor | None]:
    """While the block runs, show its trainings; afterwards leave the curves in the notebook as a picture.

    The button counts at any time of the block: between two trainings, it stops the next one at its first step. A press
    that comes after the last one is forgotten.

    Headless, or where nobody can use a widget, nothing is shown but the bar that every training has.
    """
    if not is_interactive():
        yield None
        return
    from IPython.display import Image, display

    view = TrainingMonitor()
    forget_request()
    display(view)
    try:
        with listening(view.update):
            yield view
    finally:
        view.close()
        forget_request()
        if content := view.last_picture():
            display(Image(content))


def curves(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Loss terms, validation numbers, and what else is logged (weights, features) against the epoch, side by side.

    Args:
        history: one record a finished epoch, as `medkd.training.loop.fit` keeps it.
    """
    names = [name for name in history[-1] if name not in LEFT_OUT]
    validation = [name for name in names if name.startswith(("val_", "knn"))]
    others = [name for name in names if name.startswith(NO_LOSS)]
    groups = {"loss": [name for name in names if name not in (*validation, *others)]}
    groups |= {title: group for title, group in (("validation", validation), ("weights and features", others)) if group}
    with mpl.rc_context():
        use_style()
        figure = Figure(figsize=(PAGE_WIDTH, 2.2), layout="constrained")  # no pyplot: other threads may be drawing
        axes = figure.subplots(1, len(groups), squeeze=False)[0]
        for ax, (title, group) in zip(axes, groups.items(), strict=True):
            for number, name in enumerate(group):
                points = [(record["epoch"], record[name]) for record in history if name in record]
                colour = PALETTE[number % len(PALETTE)]
                ax.plot(*zip(*points, strict=True), ".-", color=colour, label=name.removeprefix("val_"))
            ax.set(title=title, xlabel="epoch")
            ax.xaxis.get_major_locator().set_params(integer=True)
            ax.legend(fontsize="x-small")
    return figure


def png_of(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _heard_while_busy(button: widgets.Button) -> None:
    """Let clicks reach their handler while a cell runs.

    JupyterLab sends what a widget does to a subshell of the kernel, a thread of its own. From ipykernel 7.4 on the
    kernel hands it to the thread that last wrote to the widget instead, and that one trains.
    """
    if hasattr(button.comm, "_reply_subshell_for"):
        button.comm._reply_subshell_for = lambda data, subshell: subshell


def _where(progress: Progress) -> str:
    done = progress.epoch + progress.step / progress.n_steps
    text = f"epoch {min(progress.epoch + 1, progress.n_epochs)} of {progress.n_epochs}"
    if done >= progress.n_epochs:
        return f"{text}, finished in {duration(progress.seconds)}"
    text += f", step {progress.step} of {progress.n_steps}"
    if progress.epochs_here:
        left = progress.seconds / progress.epochs_here * (progress.n_epochs - done)
        text += f", about {duration(left)} left"
    return text
