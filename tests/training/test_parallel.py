"""Two processes on one training: gloo on processors, started as `medkd train` or torchrun starts them."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from typer.testing import CliRunner

from medkd import parallel
from medkd.cli import app
from medkd.errors import ParameterError, TrainingError
from medkd.losses.contrast_sampler import ContrastSampler
from medkd.losses.memory import ContrastiveDistillation
from medkd.losses.modulation import GradientModulation
from medkd.models import device
from medkd.models.momentum import MoCo
from medkd.report.plan import plan
from medkd.stages import MocoParams, local
from medkd.stages import worker as stage_worker
from medkd.stages.rare import refuse_parts_of_one
from medkd.training import loop
from medkd.training.loop import AGREE, Step, fit, linear_decay
from medkd.training.stop import Stopped, request_stop

N, BATCH, EPOCHS = 120, 8, 2
LOCAL = "import sys; from medkd.stages.local import run; sys.exit(run([sys.executable, *sys.argv[1:]], 2))"
"""A program that runs its arguments in two processes, as `medkd train` does."""


class WholeStep(Step):
    """MoCo and a memory bank on fixed inputs without batch norm: what a process sees is all that can differ."""

    def __init__(self, folder, stop_at=0):
        torch.manual_seed(0)
        self.x = torch.randn(N, 6)
        encoder = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4))
        self.moco = MoCo(encoder, queue_size=20, dim=4, momentum=0.9)
        self.bank = ContrastiveDistillation(N, 4, 4, embed_dim=4, generator=torch.Generator().manual_seed(0))
        self.modules = nn.ModuleDict({"moco": self.moco, "bank": self.bank})
        self.sampler = ContrastSampler(torch.arange(N) % 2, n_positives=3, n_negatives=5)
        self.device, self.folder, self.stop_at, self.n = torch.device("cpu"), folder, stop_at, 0
        self.seen, self.drawn = [], []

    def loss(self, rows, progress):
        self.seen += rows.tolist()
        self.drawn.append(torch.rand(()).item())  # as dropout does
        x = self.x[rows]
        output = self.moco(x, x * 1.1)
        drawn = torch.stack([self.sampler(row[None], torch.Generator().manual_seed(int(row)))[0] for row in rows])
        contrast = self.bank(output["features"], F.normalize(x[:, :4], dim=1), rows, drawn, n_positives=3)
        return output["loss"] + contrast, {"contrast": contrast}

    def after_step(self):
        self.n += 1
        if self.n == self.stop_at and parallel.is_main():
            request_stop()

    def validate(self):
        return {"norm": self.moco.query_encoder[0].weight.detach().norm().item(), "score": self.score()}

    def score(self):
        """Best in the first epoch; in another process than the main one by a last digit in the second."""
        return 0.9 + 1e-7 * parallel.rank() * (self.n > N // BATCH)


def train(folder, *, select="", **options):
    step = WholeStep(folder, **options)
    optimizer = torch.optim.SGD(step.modules.parameters(), lr=0.05, momentum=0.9)
    history = fit(
        step, torch.arange(N), optimizer, epochs=EPOCHS, batch_size=BATCH, schedule=linear_decay, seed=1, folder=folder,
        title="whole", select=select,
    )  # fmt: skip
    return step, history


def cosines(rows):
    """Of the gradients of three losses, each a mean over these rows of eleven."""
    features = torch.randn(11, 4, generator=torch.Generator().manual_seed(0))[rows].requires_grad_()
    targets = torch.randn(3, 11, 4, generator=torch.Generator().manual_seed(1))[:, rows]
    *losses, main = ((features - target).pow(2).sum(dim=1).mean() for target in targets)
    modulation = GradientModulation(len(losses))
    modulation(losses, main, features)
    return modulation.last_cosine.tolist()


def chosen(folder):
    """First weights of the best epoch."""
    step, _ = train(folder, select="score")
    return step.moco.query_encoder[0].weight.flatten().tolist()


def elsewhere(folder):
    """What is said where only the main process sees the checkpoint of an earlier call."""
    seen = loop.read_checkpoint if parallel.is_main() else lambda *_: None
    with pytest.MonkeyPatch.context() as patch, pytest.raises(TrainingError) as told:
        patch.setattr(loop, "read_checkpoint", seen)
        train(folder)
    return str(told.value)


def listening():
    """Addresses at which this process, or the one that started it, waits for connections."""
    family = [psutil.Process(), psutil.Process(os.getppid())]
    found = [each for process in family for each in process.net_connections("inet")]
    return sorted({each.laddr.ip for each in found if each.status == psutil.CONN_LISTEN})


def worker(folder, stop_at, *store):
    """Runs in each process: trains, and writes what it has seen and holds."""
    parallel.join(*store)
    try:
        step, history = train(Path(folder), stop_at=int(stop_at))
        state = {name: tensor.flatten().tolist() for name, tensor in step.modules.state_dict().items()
                 if isinstance(tensor, torch.Tensor) and "extra" not in name}  # fmt: skip
        own = parallel.own_part(torch.arange(11))
        dealt = parallel.dealt(own)
        found = {"seen": step.seen, "drawn": step.drawn, "loss": history["loss"].tolist(), "state": state,
                 "own": own.tolist(), "dealt": dealt.tolist(), "back": parallel.undealt(dealt).tolist(),
                 "cosines": cosines(own), "listening": listening(), "elsewhere": elsewhere(Path(folder)),
                 "chosen": chosen(Path(folder, "chosen"))}  # fmt: skip
        Path(folder, f"rank{parallel.rank()}.json").write_text(json.dumps(found))
    except Stopped as error:
        print(error)
    finally:
        parallel.leave()


def two_processes(folder, stop_at=0, torchrun=False):
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-c", LOCAL, __file__]
    if torchrun:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    done = subprocess.run(
        [*command, str(folder), str(stop_at)], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True,
        text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(path.read_text()) for path in sorted(folder.glob("rank*.json"))]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return train(tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return two_processes(tmp_path_factory.mktemp("both"))


@pytest.mark.slow
def test_two_processes_have_the_loss_curve_of_one(alone, both):
    _, history = alone
    assert both[0]["loss"] == both[1]["loss"] == pytest.approx(history["loss"].tolist(), rel=1e-5)


@pytest.mark.slow
def test_weights_queue_and_banks_are_the_same_in_both_and_near_those_of_one(alone, both):
    step, _ = alone
    for name, tensor in step.modules.state_dict().items():
        if name in both[0]["state"]:
            assert both[0]["state"][name] == both[1]["state"][name], name
            assert both[0]["state"][name] == pytest.approx(tensor.flatten().tolist(), abs=1e-4), name
    assert {"moco.queue.keys", "moco.queue.pointer", "bank.bank_student"} <= set(both[0]["state"])


@pytest.mark.slow
def test_all_come_back_with_the_epoch_that_the_main_process_chose(both):
    assert both[0]["chosen"] == both[1]["chosen"] != both[0]["state"]["moco.query_encoder.0.weight"]


@pytest.mark.slow
def test_processes_that_would_go_on_from_different_steps_refuse_all(both):
    last = EPOCHS * N // BATCH
    for rank, step in zip(both, (last, 0), strict=True):
        assert "found different checkpoints in" in rank["elsewhere"] and f"that of step {step};" in rank["elsewhere"]


@pytest.mark.slow
def test_processes_of_one_machine_listen_to_no_other(both):
    for rank in both:
        assert set(rank["listening"]) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, rank["listening"]
    assert both[0]["listening"], "nothing was looked at"


@pytest.mark.parametrize(
    "code, status",
    [
        ("sys.exit(0)", 0),
        ("sys.exit(2 * int(os.environ['RANK']))", 2),
        ("os.environ['RANK'] == '1' and os.kill(os.getpid(), 9); time.sleep(60)", 137),
    ],
)
def test_processes_end_together_with_the_status_of_the_one_that_failed(monkeypatch, code, status):
    monkeypatch.setattr(local, "END_WITHIN", 0.2)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    start = time.monotonic()
    assert local.run([sys.executable, "-c", f"import os, sys, time; {code}"], 2) == status
    assert time.monotonic() - start < 20
    for number, handler in before.items():
        signal.signal(number, handler)


def running(work, folder):
    """A program in two processes that both write a file into the folder, once both have."""
    process = subprocess.Popen([sys.executable, "-c", LOCAL, "-c", work, str(folder)])
    for _ in range(600):
        if len(list(folder.iterdir())) == 2:
            break
        time.sleep(0.05)
    return process


def test_a_signal_reaches_all_processes(tmp_path):
    work = "import os, sys, time; open(os.path.join(sys.argv[1], os.environ['RANK']), 'w'); time.sleep(60)"
    process = running(work, tmp_path)
    process.terminate()
    assert process.wait(20) == 128 + signal.SIGTERM


def test_a_second_signal_ends_processes_that_heed_none(tmp_path):
    work = (
        "import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "open(os.path.join(sys.argv[1], os.environ['RANK']), 'w'); time.sleep(60)"
    )
    process = running(work, tmp_path)
    process.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.terminate()
    assert process.wait(20) == 128 + signal.SIGKILL


@pytest.mark.parametrize(
    "batch_size, bn_splits, n, fits",
    [(20, 8, 1, True), (20, 8, 2, False), (64, 4, 2, True), (64, 8, 4, True), (14, 6, 2, False), (6, 2, 4, True)],
)
def test_no_process_normalises_a_part_of_one_image(monkeypatch, batch_size, bn_splits, n, fits):
    """20 images in two processes of 4 parts are 3, 3, 3 and 1; of 6 in four, each sees one part without ghosts."""
    monkeypatch.setattr(parallel, "world_size", lambda: n)
    params = MocoParams(batch_size=batch_size, bn_splits=bn_splits)
    with nullcontext() if fits else pytest.raises(ParameterError, match=f"batch_size = {batch_size} among {n} proc"):
        refuse_parts_of_one(params)


def test_batches_too_small_for_the_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "world_size", lambda: 5)
    with pytest.raises(TrainingError, match="batch_size = 8 leaves 5 processes less than two rows each"):
        train(tmp_path)


@pytest.mark.parametrize(
    "name, number, told",
    [
        ("auto", 1, r"more processes on this machine than GPUs \(1\); lower --devices"),
        ("cuda", 1, "more processes"),
        ("cuda:0", 0, 'device="cuda:0" would give one GPU to 2 processes; use device="cuda"'),
        ("cuda", 0, ""),
        ("auto", 0, ""),
        ("cpu", 1, ""),
    ],
)
def test_each_process_has_a_gpu_of_its_own(monkeypatch, name, number, told):
    for what, value in (("is_available", True), ("device_count", 1)):
        monkeypatch.setattr(torch.cuda, what, lambda value=value: value)
    monkeypatch.setattr(device, "world_size", lambda: 2)
    monkeypatch.setattr(device, "local_rank", lambda: number)
    if told:
        with pytest.raises(ParameterError, match=told):
            device.pick_device(name)
    else:
        assert device.pick_device(name) == torch.device("cpu" if name == "cpu" else "cuda:0")


@pytest.mark.slow
def test_rows_are_dealt_out_among_the_processes_and_come_back(both):
    assert [rank["own"] for rank in both] == [rank["back"] for rank in both] == [list(range(6)), list(range(6, 11))]
    assert [rank["dealt"] for rank in both] == [[0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9]]


@pytest.mark.slow
def test_modulation_weighs_by_the_gradients_of_the_whole_batch(both):
    whole = np.array(cosines(torch.arange(11)))
    for rank in both:
        np.testing.assert_allclose(rank["cosines"], whole, atol=1e-6)
    assert np.abs(whole - cosines(torch.arange(6))).max() > 0.01


@pytest.mark.slow
def test_each_row_is_seen_once_an_epoch_by_one_process(alone, both):
    step, _ = alone
    each = N // 2
    for epoch in range(EPOCHS):
        seen = [rank["seen"][epoch * each : (epoch + 1) * each] for rank in both]
        assert sorted(seen[0] + seen[1]) == list(range(N))
    assert sorted(both[0]["seen"] + both[1]["seen"]) == sorted(step.seen)


@pytest.mark.slow
def test_each_process_draws_a_dropout_of_its_own(both):
    drawn = [rank["drawn"] for rank in both]
    assert len(set(drawn[0] + drawn[1])) == 2 * EPOCHS * N // BATCH


@pytest.mark.slow
def test_what_two_processes_began_one_goes_on_with(tmp_path, alone):
    """Stopped in the middle of the first epoch, at the next step at which they agree."""
    assert two_processes(tmp_path / "run", stop_at=4, torchrun=True) == []
    step, history = train(tmp_path / "run")
    _, expected = alone
    assert len(step.seen) == N * EPOCHS - AGREE * BATCH
    assert history["loss"].tolist() == pytest.approx(expected["loss"].tolist(), rel=1e-5)
    assert history["contrast"].tolist() == pytest.approx(expected["contrast"].tolist(), rel=1e-5)


def test_a_single_process_shares_nothing():
    values, model = torch.arange(3.0), nn.Linear(2, 2)
    assert parallel.gathered(values) is values and parallel.own_part(values) is values
    assert parallel.mean_of(values) is values and parallel.told_by_main(5) == 5
    assert parallel.any_of(True, torch.device("cpu")) is True
    before = model.weight.clone()
    parallel.share_state(model)
    assert torch.equal(before, model.weight) and parallel.is_main()


@pytest.mark.slow
def test_the_command_trains_a_stage_in_two_processes_into_the_folder_that_notebooks_load(project):
    config = project / "config.json"
    settings = {"dataset": "phantom-rare-skin", "image_size": 16, "width": 0.125, "epochs": 1, "batch_size": 128}
    config.write_text(json.dumps(settings | {"queue_size": 128, "device": "cpu"}))
    command = [sys.executable, "-m", "medkd", "train", "moco", "--config", str(config)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MEDKD_HOME": str(project)}
    done = subprocess.run([*command, "--devices", "2"], env=environment, capture_output=True, text=True, timeout=240,
                          cwd=project, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("04_moco_url/") == 1 and "made" in done.stdout
    from medkd.stages import MocoParams, pretrain

    run = pretrain(MocoParams(**json.loads(config.read_text())))
    assert not run.made, "the notebook would train again"
    assert run.key in done.stdout


@pytest.mark.parametrize(
    "stage, content, message",
    [
        ("moko", "{}", 'there is no stage "moko" to train; did you mean "moco"'),
        ("moco", "{", "is no readable JSON"),
        ("moco", "[]", "must hold a JSON object"),
        ("moco", '{"epoch": 3}', 'did you mean "epochs"'),
    ],
)
def test_mistakes_end_with_status_2(tmp_path, stage, content, message):
    path = tmp_path / "config.json"
    path.write_text(content)
    from medkd.errors import MedkdError
    from medkd.stages.train import run_stage

    with pytest.raises(MedkdError, match=message):
        list(run_stage(stage, path))


def test_a_stage_is_trained_with_the_settings_of_a_report(project, monkeypatch):
    """What runs is a process of its own; what it is given are the parameters that the notebook would get."""
    started = []
    monkeypatch.setattr(os, "execv", lambda _, line: started.append(line))
    given = ["--dataset", "phantom-rare-skin", "-p", "moco.epochs=3", "--seed", "4"]
    done = CliRunner().invoke(app, ["train", "moco", *given])
    assert done.exit_code == 0, done.output
    *_, stage, config = started[0]
    (entry,) = (
        entry
        for entry in plan(["phantom-rare-skin"], report="interactive", overrides={"moco.epochs": 3}, seed=4)
        if entry.notebook == "04_moco_url"
    )
    assert stage == "moco" and json.loads(Path(config).read_text())["parameters"] == entry.parameters


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["moco"], "give either --dataset, as to medkd report, or --config FILE"),
        (["moco", "--dataset", "phantom-glioma"], "the stages of its chain are teacher, distillation"),
        (["moko", "--dataset", "phantom-rare-skin"], "are moco, pseudo_labels, self_distillation"),
    ],
)
def test_what_cannot_be_trained_ends_with_status_2(project, arguments, message):
    failed = CliRunner().invoke(app, ["train", *arguments])
    assert failed.exit_code == 2 and message in failed.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["-p", "epochs=1"], "--config FILE holds all parameters"),
        (["--seed", "3"], "--config FILE holds all parameters"),
        (["--device", "cpu"], "--config FILE holds all parameters"),
        (["--preset", "paper"], "--config FILE holds all parameters"),
        (["--root", "x"], "--config FILE holds all parameters"),
        (["--node", "1"], "--node and --address are for several machines"),
        (["--address", "host:1"], "--node and --address are for several machines"),
        (
            ["--nodes", "2", "--node", "2", "--address", "h:1"],
            "--node 2 is no machine of --nodes 2: they are counted from 0",
        ),
        (["--devices", "2"], "there is no file"),
    ],
)
def test_what_would_not_be_heeded_is_refused_and_several_processes_do_not_start_in_vain(
    project, monkeypatch, arguments, message
):
    monkeypatch.setattr(os, "execv", lambda *line: pytest.fail("something was started"))
    failed = CliRunner().invoke(app, ["train", "moco", "--config", "none.json", *arguments])
    assert failed.exit_code == 2 and message in failed.stderr and len(failed.stderr.splitlines()) == 1


def test_what_cannot_be_written_ends_a_training_in_one_sentence(monkeypatch, capsys):
    def refuse(stage, config):
        raise NotADirectoryError(20, "Not a directory", "reports/runs/04_moco_url/x")

    monkeypatch.setattr("medkd.stages.train.run_stage", refuse)
    monkeypatch.setattr(sys, "argv", ["worker", "moco", "x.json"])
    with pytest.raises(SystemExit) as ended:
        stage_worker.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "medkd: reports/runs/04_moco_url/x: Not a directory\n"


def test_more_machines_need_an_address(tmp_path):
    failed = CliRunner().invoke(app, ["train", "moco", "--config", str(tmp_path / "x.json"), "--nodes", "2"])
    assert failed.exit_code == 2 and "--address" in failed.stderr


if __name__ == "__main__":
    worker(*sys.argv[1:])
