import pytest
import torch

from medkd.training.loop import Step, fit, linear_decay
from medkd.training.progress import Progress, listening
from medkd.training.stop import Stopped
from medkd.widgets.monitor import TrainingMonitor, curves, monitor, png_of

HISTORY = [
    {"epoch": e, "lr": 0.1, "loss": 3.0 / e, "kd": 1.0 / e, "val_auc": e / 10, "weight_kd": 0.5, "seconds": 1.0}
    for e in (1, 2, 3)
]


def told(epoch, step, history=HISTORY):
    return Progress("student, fold 0", None, epoch, 10, step, 4, 6.0, epoch + step / 4, history)


def test_title_and_bar_say_where_it_stands_and_how_long_it_takes():
    view = TrainingMonitor()
    assert not view.stop.disabled
    view.update(told(3, 2))
    assert view.bar.value == pytest.approx(0.35)
    assert "student, fold 0</b>: epoch 4 of 10, step 2 of 4, about 11 s left" in view.title.value
    assert not view.stop.disabled
    view.update(told(10, 0))
    assert "finished in 6 s" in view.title.value and not view.stop.disabled


def test_curves_are_sorted_into_panels_by_what_they_are():
    axes = curves(HISTORY).axes
    assert [ax.get_title() for ax in axes] == ["loss", "validation", "weights and features"]
    assert [line.get_label() for line in axes[0].lines] == ["loss", "kd"]
    assert axes[1].lines[0].get_ydata().tolist() == [0.1, 0.2, 0.3]
    assert len(curves([{"epoch": 1, "loss": 1.0}]).axes) == 1
    assert png_of(curves(HISTORY)).startswith(b"\x89PNG")


def test_the_picture_follows_the_epochs(monkeypatch):
    view = TrainingMonitor()
    assert view.last_picture() == b""
    view.update(told(1, 0, HISTORY[:1]))
    first = bytes(view.picture.value)
    monkeypatch.setattr("medkd.widgets.monitor.REDRAW_SECONDS", 1e9)  # however slow this machine is
    view.update(told(2, 0, HISTORY[:2]))
    assert first.startswith(b"\x89PNG") and bytes(view.picture.value) == first, "drawing waits"
    monkeypatch.setattr("medkd.widgets.monitor.REDRAW_SECONDS", 0.0)
    view.update(told(2, 1, HISTORY[:2]))
    second = bytes(view.picture.value)
    monkeypatch.setattr("medkd.widgets.monitor.REDRAW_SECONDS", 1e9)
    view.update(told(10, 0))
    assert len({first, second, bytes(view.picture.value)}) == 3, "the end is drawn at once"


class PressedStep(Step):
    """A line that presses the button in this step of twelve."""

    def __init__(self, view=None, at=None):
        self.modules, self.device = torch.nn.Linear(1, 1), torch.device("cpu")
        self.view, self.at, self.n = view, at, 0

    def loss(self, rows, progress):
        return self.modules(rows.float()[:, None]).pow(2).mean(), {}

    def after_step(self):
        self.n += 1
        if self.n == self.at:
            self.view.stop.click()


def train(step, folder):
    folder.mkdir(exist_ok=True)
    optimizer = torch.optim.SGD(step.modules.parameters(), lr=0.001)
    options = {"epochs": 3, "batch_size": 2, "schedule": linear_decay, "seed": 0, "folder": folder, "title": "line"}
    return fit(step, torch.arange(8), optimizer, **options)


@pytest.fixture
def shown(monkeypatch):
    """What was displayed in a notebook that somebody looks at."""
    shown = []
    monkeypatch.delenv("MEDKD_HEADLESS", raising=False)
    monkeypatch.setenv("JPY_SESSION_NAME", "x")
    monkeypatch.setattr("IPython.display.display", shown.append)
    return shown


def test_the_button_ends_after_the_step_and_the_same_call_goes_on(tmp_path, capsys):
    view = TrainingMonitor()
    with listening(view.update), pytest.raises(Stopped, match="line, epoch 2, step 2: stopped as asked"):
        train(PressedStep(view, at=6), tmp_path)
    assert view.stop.description == "stopping" and view.stop.disabled
    resumed = PressedStep()
    history = train(resumed, tmp_path)
    assert history["epoch"].tolist() == [1, 2, 3]
    assert resumed.n == 6
    assert "line: going on from a checkpoint at epoch 2, step 3" in capsys.readouterr().out


@pytest.mark.parametrize("pressed_at", ["start", "last step"])
def test_a_press_between_two_trainings_stops_the_next_one(tmp_path, shown, pressed_at):
    with pytest.raises(Stopped, match="line, epoch 1, step 1: stopped as asked"), monitor() as view:
        if pressed_at == "start":
            view.stop.click()
        else:
            assert len(train(PressedStep(view, at=12), tmp_path / "first")) == 3
        train(PressedStep(), tmp_path / "second")
    assert len(train(PressedStep(), tmp_path / "second")) == 3


def test_a_press_that_came_too_late_does_not_stop_the_next_cell(tmp_path, shown):
    with monitor() as view:
        assert len(train(PressedStep(view, at=12), tmp_path / "first")) == 3
    with monitor():
        assert len(train(PressedStep(), tmp_path / "second")) == 3


def test_headless_nothing_is_shown(monkeypatch):
    monkeypatch.setenv("MEDKD_HEADLESS", "1")
    with monitor() as view:
        assert view is None


def test_in_a_notebook_the_widget_is_closed_and_a_picture_stays(shown):
    with monitor() as view:
        view.update(told(3, 0))
    assert isinstance(shown[0], TrainingMonitor) and shown[0].comm is None
    assert shown[1].data.startswith(b"\x89PNG")
