"""The one training loop: epochs over rows, schedule, autocast, history, progress, checkpoints and resume."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from medkd import parallel
from medkd.errors import TrainingError
from medkd.seeds import seed_for
from medkd.training.checkpoint import Position, read_checkpoint, refuse_other_checkpoints, write_checkpoint
from medkd.training.finite import NotFinite, Watch, explain
from medkd.training.progress import Progress, Teller
from medkd.training.stop import StopRequests, stop_requests


class Step:
    """One stage's training step; `training/<stage>.py` has one class each.

    Attributes:
        modules: everything with state that a resumed run needs: networks, momentum copies, queues, banks.
        device: where it runs.
    """

    modules: nn.Module
    device: torch.device

    def start(self, generator: torch.Generator, others: torch.Generator) -> None:
        """Called once before the first batch.

        Args:
            generator: draws the order of the rows and one view of each, so that all methods that draw no more from it
                see the same in every step.
            others: whatever a method draws beside that: further views, contrast rows, the order of keys.
        """
        self.generator, self.others = generator, others

    def loss(self, rows: Tensor, progress: float) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Loss of the batch of these rows, and named numbers to log; `progress` is the share of epochs done."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Called after each optimiser step, for example to move a momentum copy; by default nothing moves."""

    def validate(self) -> dict[str, float]:
        """Numbers logged after each epoch; by default none, where there is nothing to validate on."""
        return {}


AGREE = 10
"""Steps between two moments at which several processes ask each other whether to write a checkpoint or to stop."""

Schedule = Callable[[int, int], float]
"""(epoch, n_epochs) -> factor on the learning rate."""


def linear_decay(epoch: int, n_epochs: int) -> float:
    """1 - (epoch + 1) / (n_epochs + 1): GMCD's schedule (epochs 0..29 of 30 give .968 to .032)."""
    return 1 - (epoch + 1) / (n_epochs + 1)


def step_decay(epoch: int, n_epochs: int) -> float:
    """Times 0.1 at 60% and again at 80% of the epochs: MoCo v1's 120 and 160 of 200."""
    return 0.1 ** ((epoch >= 0.6 * n_epochs) + (epoch >= 0.8 * n_epochs))


def cosine_decay(epoch: int, n_epochs: int) -> float:
    """Half a cosine from 1 to 0: MoCo v2's schedule, per epoch."""
    return 0.5 * (1 + torch.cos(torch.tensor(torch.pi * epoch / n_epochs)).item())


SCHEDULES: dict[str, Schedule] = {"step": step_decay, "cosine": cosine_decay}


def fit(
    step: Step,
    rows: Tensor,
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    batch_size: int,
    schedule: Schedule,
    seed: int,
    folder: Path,
    title: str,
    select: str = "",
    ids: Sequence[str] | None = None,
    checkpoint_seconds: float = 60.0,
) -> pd.DataFrame:
    """Train `step` on `rows`; an interrupted call goes on from its last checkpoint in `folder`, in mid-epoch too.

    Batches are drawn without replacement and the last, smaller one is dropped, as both papers do.

    Args:
        step: the stage's step.
        rows: row numbers to train on, shape (n,), int64.
        optimizer: over the parameters that learn.
        epochs: passes over `rows`.
        batch_size: rows per step, at most n.
        schedule: factor on the learning rate by epoch.
        seed: seeds order, augmentation and dropout.
        folder: where checkpoints lie; that of the end stays, for `medkd.training.checkpoint.clear_checkpoints`.
        title: name on the progress bar.
        select: name of a validation number; the weights of the epoch where it is largest come back. "" keeps the last.
        ids: id of every row of the cohort, for error messages; None for row numbers.
        checkpoint_seconds: least time between two checkpoints, which are written between steps.

    Returns:
        History: one row per epoch with epoch, lr, seconds, the mean of every logged number, and validation numbers.

    Raises:
        TrainingError: the loss is not finite (names step, terms and batch; the last checkpoint, written while all was
            finite, is kept), `select` is nan after an epoch, the disk is full, there are fewer rows than
            `batch_size`, or of several processes some would have less than two rows of a batch or go on from elsewhere.
        Stopped, KeyboardInterrupt, SystemExit: on request, after the present step and a checkpoint, see
            `medkd.training.stop`.
    """
    if len(rows) < batch_size:
        raise TrainingError(
            f"{title}: {len(rows)} training rows are fewer than batch_size = {batch_size}; lower batch_size"
        )
    if batch_size < 2 * parallel.world_size() > 2:
        raise TrainingError(
            f"{title}: batch_size = {batch_size} leaves {parallel.world_size()} processes less than two rows each; "
            "raise batch_size, or take fewer processes"
        )
    devices = [step.device] if step.device.type == "cuda" else []
    torch.backends.cudnn.benchmark |= bool(devices)  # all batches of a training have one shape
    with torch.random.fork_rng(devices=devices), stop_requests() as stop:
        torch.manual_seed(seed)  # dropout takes no generator of its own
        training = _Training(step, rows, optimizer, epochs, batch_size, seed, folder, title, checkpoint_seconds, stop)
        rates = [group["lr"] for group in optimizer.param_groups]
        position = training.position
        shown = {"desc": title, "unit": "epoch", "mininterval": 1.0, "disable": not parallel.is_main()}
        with tqdm(total=epochs, initial=position.epoch, **shown) as bar:
            for epoch in range(position.epoch, epochs):
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * schedule(epoch, epochs)
                try:
                    logged = training.run_epoch()
                except NotFinite as found:
                    raise TrainingError(explain(found, title, epoch, ids, folder)) from None
                record = {"epoch": epoch + 1, "lr": optimizer.param_groups[0]["lr"], **logged, **step.validate()}
                record = parallel.told_by_main(record)  # a last digit may differ, and with it the choice of an epoch
                if select and math.isnan(record[select]):
                    raise TrainingError(
                        f"{title}: {select} is not defined on the validation rows (one class alone, or no two samples "
                        "of whom it is known who failed first), so that no epoch can be chosen by it; change the "
                        'split, or set keep = "last"'
                    )
                training.end_epoch(record, select)
                bar.update()
                chosen = f", {select} {record[select]:.3f}" if select else ""
                bar.set_postfix_str(f"loss {record['loss']:.3f}{chosen}")
    if parallel.is_main():  # what is left to do with the network may fail, and must not cost the training
        write_checkpoint(folder, step, optimizer, training.generator, position)
    parallel.barrier()
    if position.best:
        step.modules.load_state_dict(position.best)
    return pd.DataFrame(position.history)


class _Training:
    """One call of `fit`: its position, and the steps of one epoch after another."""

    def __init__(
        self,
        step: Step,
        rows: Tensor,
        optimizer: torch.optim.Optimizer,
        epochs: int,
        batch_size: int,
        seed: int,
        folder: Path,
        title: str,
        checkpoint_seconds: float,
        stop: StopRequests,
    ) -> None:
        self.step, self.rows, self.optimizer, self.epochs, self.batch_size = step, rows, optimizer, epochs, batch_size
        self.folder, self.title, self.checkpoint_seconds, self.stop = folder, title, checkpoint_seconds, stop
        self.seed, self.generator, self.others = seed, torch.Generator().manual_seed(seed), torch.Generator()
        views = self.generator
        if parallel.world_size() > 1:  # one order for all processes, views of its own for each
            parallel.share_state(step.modules, from_main=True)
            views = torch.Generator()
        step.start(views, self.others)
        self.position = read_checkpoint(folder, step, optimizer, self.generator) or Position()
        if parallel.world_size() > 1:
            refuse_other_checkpoints(self.position, step, folder, title)
            views.manual_seed(self._seed_now())
            torch.manual_seed(self._seed_now() + 2)  # other units are dropped of other samples
        self.learned = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.n_steps = len(rows) // batch_size
        self.started = self.saved = time.monotonic()
        self.stopping, self.steps_before = False, self.position.total_steps
        if self.steps_before and parallel.is_main():
            ended = self.position.epoch == epochs
            where = "the end" if ended else f"epoch {self.position.epoch + 1}, step {self.position.step + 1}"
            tqdm.write(f"{title}: going on from a checkpoint at {where}")
        self.teller = Teller()

    def run_epoch(self) -> dict[str, float]:
        """The rest of the present epoch; returns the mean of each logged number.

        Raises:
            NotFinite: at the first step whose loss is not finite.
        """
        step, position, start = self.step, self.position, time.monotonic()
        step.modules.train()
        if not len(position.order):
            position.order = self.rows[torch.randperm(len(self.rows), generator=self.generator)]
        watch, before = Watch(step.device, position.step), position.seconds
        while position.step < self.n_steps:
            batch = position.order[position.step * self.batch_size : (position.step + 1) * self.batch_size]
            batch = parallel.own_part(batch)
            self.others.manual_seed(self._seed_now() + 1)
            loss, logged = step.loss(batch, position.epoch / self.epochs)
            watch.look(loss, logged, batch)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            parallel.share_gradients(self.learned, len(batch), self.batch_size)
            self.optimizer.step()
            step.after_step()
            for name, value in {"loss": loss, **logged}.items():
                value = torch.as_tensor(value, dtype=torch.float32).detach()
                position.sums[name] = position.sums[name] + value if name in position.sums else value
            position.step += 1
            position.total_steps += 1
            position.seconds = before + time.monotonic() - start
            if self.teller.due():
                self._tell()
            if self._due() and position.step < self.n_steps:  # at the end of an epoch it is validated first
                watch.check()
                self._save()
        watch.check()
        parallel.share_state(step.modules)
        return {name: float(parallel.mean_of(total)) / self.n_steps for name, total in position.sums.items()}

    def _seed_now(self) -> int:
        """A seed for this process at this step, so that no checkpoint need hold what is drawn from it."""
        return seed_for(self.seed, parallel.rank(), self.position.total_steps)

    def end_epoch(self, record: dict[str, Any], select: str) -> None:
        """Take the record of the epoch into the history, remember its weights if they are the best, and save if due."""
        position = self.position
        record["seconds"] = round(position.seconds, 3)
        history = position.history
        if select and (not history or record[select] > max(row[select] for row in history)):
            weights = self.step.modules.state_dict().items()
            position.best = {name: tensor.detach().cpu().clone() for name, tensor in weights}
        history.append(record)
        position.epoch, position.step, position.sums, position.seconds = position.epoch + 1, 0, {}, 0.0
        position.order = position.order[:0]
        self._tell()
        ends = position.epoch == self.epochs  # then a button comes too late, but a signal ends the process
        if self._due() and (not ends or parallel.any_of(bool(self.stop.signal), self.step.device)):
            self._save()

    def _due(self) -> bool:
        """Whether to write a checkpoint; several processes ask each other every `AGREE` steps."""
        if parallel.world_size() > 1 and self.position.step % AGREE:
            return False
        self.stopping = parallel.any_of(self.stop.any, self.step.device)
        overdue = time.monotonic() - self.saved > self.checkpoint_seconds
        return self.stopping or parallel.any_of(overdue, self.step.device)

    def _save(self) -> None:
        parallel.share_state(self.step.modules)
        self.position.sums = {name: parallel.mean_of(total) for name, total in self.position.sums.items()}
        self.stop.signal = parallel.told_by_main(self.stop.signal)
        if parallel.is_main():
            write_checkpoint(self.folder, self.step, self.optimizer, self.generator, self.position)
        parallel.barrier()
        self.saved = time.monotonic()
        if self.stopping:
            self.stop.obey(f"{self.title}, epoch {self.position.epoch + 1}, step {self.position.step}")

    def _tell(self) -> None:
        position = self.position
        self.teller.tell(
            Progress(
                self.title,
                self.folder,
                position.epoch,
                self.epochs,
                position.step,
                self.n_steps,
                time.monotonic() - self.started,
                (position.total_steps - self.steps_before) / self.n_steps,
                position.history,
            )
        )
