"""The training loop: batches, schedule, selection, resume and bad losses."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from medkd.errors import TrainingError
from medkd.training import finite
from medkd.training.checkpoint import KEPT, clear_checkpoints
from medkd.training.loop import Step, cosine_decay, fit, linear_decay, step_decay


class LineStep(Step):
    """Fits a line with dropout and noise, so that every source of randomness takes part."""

    def __init__(self, stop_after: int | None = None, scores=None):
        torch.manual_seed(0)
        self.modules = nn.Sequential(nn.Dropout(0.3), nn.Linear(4, 1))
        self.device = torch.device("cpu")
        self.seen, self.stop_after, self.scores, self.n_validations = [], stop_after, scores, 0

    def loss(self, rows, progress):
        self.seen += rows.tolist()
        x = torch.nn.functional.one_hot(rows % 4, 4) + 0.1 * torch.randn(len(rows), 4, generator=self.generator)
        return F.mse_loss(self.modules(x).squeeze(1), rows.float()), {}

    def validate(self):
        self.n_validations += 1
        if self.stop_after and self.n_validations > self.stop_after:
            raise KeyboardInterrupt
        return {"score": self.scores[self.n_validations - 1]} if self.scores else {}


def train(step, folder, epochs=6, **changes):
    optimizer = torch.optim.Adam(step.modules.parameters(), lr=0.05)
    options = {
        "batch_size": 3,
        "schedule": linear_decay,
        "seed": 1,
        "folder": folder,
        "title": "line",
        "checkpoint_seconds": -1.0,
    }
    return fit(step, torch.arange(10), optimizer, epochs=epochs, **(options | changes))


def test_a_validation_number_that_cannot_be_had_ends_the_training_after_one_epoch(tmp_path):
    step = LineStep(scores=[float("nan")] * 6)
    with pytest.raises(TrainingError, match='score is not defined on the validation rows .* set keep = "last"'):
        train(step, tmp_path, select="score")
    assert step.n_validations == 1
    assert len(train(LineStep(scores=[float("nan")] * 6), tmp_path / "last")) == 6


def test_an_interrupted_run_ends_bit_for_bit_like_an_uninterrupted_one(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole, broken, resumed = LineStep(), LineStep(stop_after=3), LineStep()
    history = train(whole, tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        train(broken, tmp_path / "b")
    again = train(resumed, tmp_path / "b")
    assert history["loss"].tolist() == again["loss"].tolist()
    for name, tensor in whole.modules.state_dict().items():
        assert torch.equal(tensor, resumed.modules.state_dict()[name])
    assert len(resumed.seen) == 3 + 2 * 9  # the last checkpoint is before the last of three batches of epoch 4


def test_two_checkpoints_are_left_for_what_follows_the_training(tmp_path):
    train(LineStep(), tmp_path)
    assert len(list(tmp_path.glob("checkpoint.*.json"))) <= KEPT
    clear_checkpoints(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_each_row_is_seen_once_an_epoch_and_the_last_short_batch_dropped(tmp_path):
    step = LineStep()
    train(step, tmp_path, epochs=1)
    assert len(step.seen) == len(set(step.seen)) == 9


def test_the_epoch_with_the_best_validation_number_is_kept(tmp_path):
    (tmp_path / "short").mkdir()
    best, short = LineStep(scores=[0.1, 0.9, 0.5]), LineStep(scores=[0.1, 0.9])
    train(best, tmp_path, epochs=3, select="score", schedule=lambda epoch, n: 1.0)
    train(short, tmp_path / "short", epochs=2, schedule=lambda epoch, n: 1.0)
    for name, tensor in best.modules.state_dict().items():
        assert torch.equal(tensor, short.modules.state_dict()[name])


def test_a_loss_that_is_not_finite_stops_with_step_and_rows(tmp_path):
    class Broken(LineStep):
        def loss(self, rows, progress):
            loss, _ = super().loss(rows, progress)
            return loss / 0.0 * 0.0, {"mse": loss}

    with pytest.raises(
        TrainingError, match=r"line, epoch 1, step 1: the loss is not finite \(mse .*; rows \d, \d, \d\)"
    ):
        train(Broken(), tmp_path)
    ids = [f"P{row}" for row in range(10)]
    with pytest.raises(TrainingError, match=r"; ids P\d, P\d, P\d\); lower the learning rate"):
        train(Broken(), tmp_path, ids=ids)


def test_the_checkpoint_before_a_loss_that_is_not_finite_is_kept_and_good(tmp_path):
    class BreaksLater(LineStep):
        def loss(self, rows, progress):
            loss, logged = super().loss(rows, progress)
            return (loss * float("nan") if progress > 0.4 else loss), logged

    with pytest.raises(TrainingError, match="epoch 4, step 1: .*the last good checkpoint is kept"):
        train(BreaksLater(), tmp_path)
    resumed = LineStep()
    again = train(resumed, tmp_path)
    assert again["epoch"].tolist() == [1, 2, 3, 4, 5, 6] and again["loss"].notna().all()
    assert len(resumed.seen) == 3 * 9  # the three epochs before the fault were not repeated


def test_a_device_that_is_looked_at_seldom_still_names_the_first_bad_step():
    """On a GPU the loss is looked at every 50 steps; the step, terms and batch told are those of the first fault."""
    watch = finite.Watch(torch.device("cpu"))
    watch.every = 50
    for number in range(20):
        loss = torch.tensor(float("nan") if number >= 7 else 1.0)
        watch.look(loss, {"term": torch.tensor(float(number))}, torch.tensor([number]))
    with pytest.raises(finite.NotFinite) as found:
        watch.check()
    step, terms, batch = found.value.args
    assert (step, terms, batch.tolist()) == (7, {"term": 7.0}, [7])


def test_a_process_stops_with_the_one_whose_loss_is_not_finite_and_says_that_another_knows(tmp_path, monkeypatch):
    watch = finite.Watch(torch.device("cpu"))
    watch.look(torch.tensor(1.0), {}, torch.tensor([3]))
    monkeypatch.setattr(finite.parallel, "any_of", lambda flag, device: True)
    with pytest.raises(finite.NotFinite) as found:
        watch.check()
    told = finite.explain(found.value, "MoCo URL", 1, None, tmp_path)
    assert told == "MoCo URL, epoch 2: the loss of another process is not finite; see what that one says"


def test_fewer_rows_than_a_batch_are_refused(tmp_path):
    with pytest.raises(TrainingError, match="10 training rows are fewer than batch_size = 64"):
        train(LineStep(), tmp_path, batch_size=64)


def test_schedules_have_the_published_endpoints():
    """Xing et al. 2023: 5e-4 falls from 4.839e-4 to 1.613e-5 in 30 epochs; MoCo v1: times .1 at 120 and 160 of 200."""
    assert 5e-4 * linear_decay(0, 30) == pytest.approx(4.839e-4, rel=1e-3)
    assert 5e-4 * linear_decay(29, 30) == pytest.approx(1.613e-5, rel=1e-3)
    assert [round(step_decay(epoch, 200), 6) for epoch in (119, 120, 159, 160)] == [1, 0.1, 0.1, 0.01]
    assert cosine_decay(0, 10) == pytest.approx(1)
    assert cosine_decay(5, 10) == pytest.approx(0.5, abs=1e-6)
