"""Checkpoints: what ends a training must cost no more than the steps since the last one."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import warnings

import pytest
import torch
from safetensors import SafetensorError
from torch import nn
from torch.nn import functional as F

from medkd.errors import TrainingError
from medkd.models.device import to_device
from medkd.training import checkpoint
from medkd.training.loop import Step, fit, linear_decay
from medkd.training.progress import listening
from medkd.training.stop import Stopped, request_stop

STEPS = 4  # an epoch: 13 rows in batches of three
EPOCHS = 3


class QueueStep(Step):
    """A line with dropout, noise and a queue with a pointer, so that every kind of state takes part."""

    def __init__(self, at=None, act=None):
        torch.manual_seed(0)
        self.modules = nn.Sequential(nn.Dropout(0.3), nn.Linear(4, 1))
        self.modules.register_buffer("queue", torch.zeros(5))
        self.modules.register_buffer("pointer", torch.zeros((), dtype=torch.long))
        self.device, self.at, self.act, self.n = torch.device("cpu"), at, act, 0

    def loss(self, rows, progress):
        noise = (torch.randn(len(rows), 4, generator=drawn) for drawn in (self.generator, self.others))
        x = F.one_hot(rows % 4, 4) + 0.1 * sum(noise)
        out = self.modules(x).squeeze(1)
        loss = F.mse_loss(out, rows.float() + self.modules.queue.mean())
        for value in out.detach():
            self.modules.queue[self.modules.pointer % 5] = value
            self.modules.pointer += 1
        return loss, {"spread": out.std()}

    def after_step(self):
        self.n += 1
        if self.n == self.at:
            self.act()

    def validate(self):
        return {"score": float(self.modules.queue.sum())}


def adam(weights):
    return torch.optim.Adam(weights, lr=0.05)


def train(step, folder, optimizer=adam, **changes):
    optimizer = optimizer(step.modules.parameters())
    options = {"epochs": EPOCHS, "batch_size": 3, "schedule": linear_decay, "seed": 1, "title": "line"}
    return fit(step, torch.arange(13), optimizer, folder=folder, select="score", **(options | changes))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    step = QueueStep()
    return train(step, tmp_path_factory.mktemp("whole")), step.modules.state_dict()


def assert_equal_runs(history, step, whole):
    expected, weights = whole
    columns = [name for name in expected if name != "seconds"]
    assert history[columns].to_numpy().tolist() == expected[columns].to_numpy().tolist()
    for name, tensor in weights.items():
        assert torch.equal(step.modules.state_dict()[name], tensor), name


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("at", range(1, STEPS * EPOCHS))
def test_a_stop_at_any_step_is_resumed_bit_for_bit_and_repeats_nothing(tmp_path, whole, at):
    with pytest.raises(Stopped, match="run the same cell or command again to go on"):
        train(QueueStep(at, request_stop), tmp_path)
    resumed = QueueStep()
    history = train(resumed, tmp_path)
    assert_equal_runs(history, resumed, whole)
    assert resumed.n == STEPS * EPOCHS - at
    assert checkpoint.has_checkpoint(tmp_path)  # until what follows the training is written too, see the run store
    ended = QueueStep()
    assert_equal_runs(train(ended, tmp_path), ended, whole)
    assert ended.n == 0


class ConvolutionStep(QueueStep):
    """A convolution whose weights are channels-last, as those of every encoder are."""

    def __init__(self, at=None, act=None):
        super().__init__(at, act)
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 1))
        self.modules = to_device(network, self.device)
        self.modules.register_buffer("queue", torch.zeros(5))

    def loss(self, rows, progress):
        images = torch.linspace(-9, 9, 13 * 48).sin().view(13, 3, 4, 4)[rows]
        return F.mse_loss(self.modules(images).squeeze(1), rows.float()), {}


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda weights: torch.optim.SGD(weights, lr=0.001, momentum=0.9, fused=True),
        lambda weights: torch.optim.Adam(weights, lr=0.05, fused=True),
    ],
    ids=["sgd", "adam"],
)
def test_fused_steps_of_channels_last_weights_are_resumed_bit_for_bit(tmp_path, optimizer):
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    step = ConvolutionStep()
    whole = train(step, tmp_path / "whole", optimizer), step.modules.state_dict()
    with pytest.raises(Stopped):
        train(ConvolutionStep(5, request_stop), tmp_path / "parts", optimizer)
    resumed = ConvolutionStep()
    assert_equal_runs(train(resumed, tmp_path / "parts", optimizer), resumed, whole)
    assert resumed.n == STEPS * EPOCHS - 5


@pytest.mark.parametrize("number, error", [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_waits_for_the_end_of_the_step_and_keeps_a_checkpoint(tmp_path, whole, number, error):
    before = signal.getsignal(number)
    with pytest.raises(error) as raised:
        train(QueueStep(6, lambda: signal.raise_signal(number)), tmp_path)
    assert number != signal.SIGTERM or raised.value.code == 143
    assert signal.getsignal(number) is before
    resumed = QueueStep()
    assert_equal_runs(train(resumed, tmp_path), resumed, whole)
    assert resumed.n == STEPS * EPOCHS - 6


def test_a_second_interrupt_does_not_wait(tmp_path):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(QueueStep(6, twice), tmp_path)
    assert not checkpoint.has_checkpoint(tmp_path)


def test_other_threads_train_without_touching_signals(tmp_path, whole):
    step, found = QueueStep(), []
    thread = threading.Thread(target=lambda: found.append(train(step, tmp_path)))
    thread.start()
    thread.join()
    assert_equal_runs(found[0], step, whole)


def stop_with_two_checkpoints(folder):
    with pytest.raises(Stopped):
        train(QueueStep(7, request_stop), folder, checkpoint_seconds=-1.0)
    return sorted(folder.glob("checkpoint.*.json"))


def test_the_last_two_checkpoints_are_kept(tmp_path):
    stop_with_two_checkpoints(tmp_path)
    assert names_in(tmp_path) == [
        "checkpoint.6.json", "checkpoint.6.safetensors", "checkpoint.7.json", "checkpoint.7.safetensors",
    ]  # fmt: skip


def damage_tensors(newest):
    path = newest.with_suffix(".safetensors")
    content = bytearray(path.read_bytes())
    content[-3] ^= 1  # one bit, which safetensors itself would not notice
    path.write_bytes(content)


def truncate_record(newest):
    newest.write_text(newest.read_text()[:20])


def drop_tensors(newest):
    newest.with_suffix(".safetensors").unlink()


@pytest.mark.parametrize("damage", [damage_tensors, truncate_record, drop_tensors])
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(tmp_path, whole, damage):
    damage(stop_with_two_checkpoints(tmp_path)[-1])
    resumed = QueueStep()
    with pytest.warns(UserWarning, match=r"checkpoint\.7 cannot be used .*going on from the one before it"):
        history = train(resumed, tmp_path)
    assert_equal_runs(history, resumed, whole)
    assert resumed.n == STEPS * EPOCHS - 6


def test_with_both_damaged_the_run_starts_over(tmp_path, whole):
    for record in stop_with_two_checkpoints(tmp_path):
        truncate_record(record)
    resumed = QueueStep()
    with pytest.warns(UserWarning, match="cannot be used"):
        history = train(resumed, tmp_path)
    assert_equal_runs(history, resumed, whole)
    assert resumed.n == STEPS * EPOCHS


def test_checkpoints_that_were_refused_do_not_push_out_those_of_the_run_that_starts_over(tmp_path, whole):
    for record in stop_with_two_checkpoints(tmp_path):
        truncate_record(record)
    with pytest.warns(UserWarning, match="cannot be used"), pytest.raises(Stopped):
        train(QueueStep(3, request_stop), tmp_path, checkpoint_seconds=-1.0)
    assert [path.stem for path in sorted(tmp_path.glob("*.json"))] == ["checkpoint.2", "checkpoint.3"]
    resumed = QueueStep()
    assert_equal_runs(train(resumed, tmp_path), resumed, whole)
    assert resumed.n == STEPS * EPOCHS - 3


def test_a_checkpoint_of_other_networks_is_told_and_nothing_of_it_is_taken(tmp_path, whole):
    stop_with_two_checkpoints(tmp_path)
    resumed = QueueStep()
    resumed.modules.register_buffer("more", torch.zeros(2))
    with pytest.warns(UserWarning, match="cannot be used .*another version's networks"):
        history = train(resumed, tmp_path)
    del resumed.modules.more
    assert_equal_runs(history, resumed, whole)
    assert resumed.n == STEPS * EPOCHS


def test_the_checkpoints_of_older_releases_are_passed_over(tmp_path, whole):
    (tmp_path / "checkpoint.json").write_text(json.dumps({"tensors": "checkpoint.2.safetensors", "history": []}))
    (tmp_path / "checkpoint.2.safetensors").write_bytes(b"old")
    step = QueueStep()
    assert_equal_runs(train(step, tmp_path), step, whole)
    assert "checkpoint.2.safetensors" not in names_in(tmp_path)


def test_a_full_disk_ends_in_one_sentence_and_the_last_good_checkpoint_stays(tmp_path, whole, monkeypatch):
    stop_with_two_checkpoints(tmp_path)
    kept = names_in(tmp_path)

    def full(tensors, path):
        path.write_bytes(b"half")
        raise SafetensorError(f"Error while serializing: I/O error: No space left on device (os error {errno.ENOSPC})")

    with monkeypatch.context() as patched:
        patched.setattr("safetensors.torch.save_file", full)
        with pytest.raises(TrainingError, match=r"the disk of .* is full: a checkpoint needs \d+ MB; .*make room"):
            train(QueueStep(), tmp_path, checkpoint_seconds=-1.0)
    assert names_in(tmp_path) == kept
    resumed = QueueStep()
    assert_equal_runs(train(resumed, tmp_path), resumed, whole)


def test_a_clock_that_goes_backwards_changes_nothing(tmp_path, whole, monkeypatch):
    """Wall clocks are set back (time servers, daylight saving); intervals are measured on one that is not."""
    import time

    clock = iter(range(10**6, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: next(clock))
    step = QueueStep()
    history = train(step, tmp_path, checkpoint_seconds=0.0)
    assert_equal_runs(history, step, whole)
    assert (history["seconds"] >= 0).all()


SCRIPT = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_checkpoint import QueueStep, train
step = QueueStep(6, lambda: (print("step", flush=True), time.sleep(60)))
train(step, Path(sys.argv[1]), checkpoint_seconds=-1.0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_costs_the_steps_since_the_last_checkpoint(tmp_path, whole, number):
    """Killed in its sixth step; the checkpoint after the fifth is whole. SIGTERM ends the sleep and the step first."""
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), os.path.dirname(__file__)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout.readline() == b"step\n"
    process.send_signal(number)
    if number == signal.SIGTERM:
        process.kill()  # the sleep goes on after the handler; what counts is tested above
    process.wait()
    resumed = QueueStep()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history = train(resumed, tmp_path)
    assert_equal_runs(history, resumed, whole)
    assert resumed.n == STEPS * EPOCHS - 5


def test_listeners_are_told_of_every_epoch_and_a_broken_one_ends_nothing(tmp_path, whole):
    told = []

    def broken(progress):
        raise ValueError("no screen")

    step = QueueStep()
    with pytest.warns(UserWarning, match="a listener of line failed .*no screen"), listening(broken):
        with listening(told.append):
            history = train(step, tmp_path)
    assert_equal_runs(history, step, whole)
    assert [progress.epoch for progress in told if progress.step == 0] == [1, 2, 3]
    assert (told[-1].n_epochs, told[-1].n_steps, len(told[-1].history)) == (EPOCHS, STEPS, EPOCHS)
    n_told = len(told)
    train(QueueStep(), tmp_path)
    assert len(told) == n_told
