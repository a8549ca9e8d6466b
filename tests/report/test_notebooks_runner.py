import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jupyter_client
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from medkd.errors import DataError, ParameterError
from medkd.report import notebooks
from medkd.report.notebooks import (
    NotebookFailure,
    exit_code_of,
    export_html,
    is_stripped,
    run_notebook,
    strip_outputs,
)

PROJECT = Path(__file__).parents[2]
PARAMETERS = "temperature: float = 4.0  # softening\nfolder: str = ''  # where to\nteacher: dict = {}  # overrides"


def write_notebook(path, code):
    """Six cells: title, parameters, heading "Train", the given code, heading "After", a print."""
    cells = [
        new_markdown_cell("# Title"),
        new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        new_markdown_cell("text\n\n## Train"),
        new_code_cell(code),
        new_markdown_cell("## After"),
        new_code_cell("print('after')", metadata={"tags": ["result"]}),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


def run_and_fail(folder, code, **options):
    output = folder / "made" / "03_distillation.quick.ipynb"
    with pytest.raises(NotebookFailure) as caught:
        run_notebook(write_notebook(folder / "03_distillation.ipynb", code), output, {"temperature": 2.0}, **options)
    return caught.value, nbformat.read(output, as_version=4)


def assert_tells_the_truth(notebook, failure):
    """Banner on top, the failing cell marked, what came before finished, what comes after not run."""
    banner, *cells = notebook.cells
    assert banner.cell_type == "markdown"
    assert f"This run stopped: {failure.kind}" in banner.source
    assert str(failure) in banner.source
    assert [cell.metadata.papermill.status for cell in cells] == ["completed"] * 4 + ["failed"] + ["pending"] * 2
    assert f"#cell-id={cells[4].id}" in banner.source
    assert "continues from there" in banner.source
    assert [cell.metadata.papermill.start_time is None for cell in cells] == [False] * 5 + [True] * 2
    assert cells[6].outputs == []
    assert notebook.metadata.papermill.exception is True
    assert (failure.notebook, failure.cell, failure.heading) == ("03_distillation.quick", 4, "Train")
    assert str(failure) == f"03_distillation.quick, cell 4 (Train): {failure.text}"


def test_a_finished_run_has_its_parameters_and_a_private_socket_and_one_output_per_stream(tmp_path, capfd):
    code = (
        "import json, sys\nfrom ipykernel.connect import get_connection_info\n"
        "info = json.loads(get_connection_info())\n"
        "print(json.dumps([temperature, teacher, info['transport'], info['ip']]))\n"
        "for i in range(200): print(f'\\rstep {i}', end='', file=sys.stderr, flush=True)"
    )
    source = write_notebook(tmp_path / "03_distillation.ipynb", code)
    output = tmp_path / "a" / "b" / "out.ipynb"
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    run_notebook(source, output, {"temperature": 2.5, "teacher": {"epochs": 3}}, echo=True)

    assert handlers == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    cells = nbformat.read(output, as_version=4).cells
    assert [cell.metadata.papermill.status for cell in cells] == ["completed"] * 7
    streams = {out.name: out.text for out in cells[4].outputs}
    assert len(cells[4].outputs) == 2
    temperature, teacher, transport, address = json.loads(streams["stdout"])
    assert (temperature, teacher) == (2.5, {"epochs": 3})
    assert transport == "ipc"
    assert len(address) < 100
    assert not Path(address).parent.exists()
    assert streams["stderr"] == "step 199"
    shown = capfd.readouterr().err
    assert "step 100" in shown  # the kernel's bar
    assert "7/7" in shown  # papermill's bar over the cells

    assert not is_stripped(output)
    strip_outputs(output)
    assert is_stripped(output)
    stripped = nbformat.read(output, as_version=4).cells
    assert [cell.source for cell in stripped] == [cell.source for cell in nbformat.read(source, as_version=4).cells]
    assert stripped[5].metadata == {"tags": ["result"]}


def test_an_exception_is_told_with_its_traceback_and_ends_in_3(tmp_path, capfd):
    code = "raise ValueError('k_shot is `0`\\nsecond line')"
    failure, notebook = run_and_fail(tmp_path, code)
    assert (failure.kind, exit_code_of(failure)) == ("exception", 3)
    assert failure.text == "ValueError: k_shot is `0`"
    (error,) = notebook.cells[5].outputs
    assert (error.ename, error.evalue) == ("ValueError", "k_shot is `0`\nsecond line")
    assert any("raise ValueError" in re.sub(r"\x1b\[[0-9;]*m", "", line) for line in error.traceback)
    assert [cell.metadata.papermill.status for cell in notebook.cells[1:]] == ["completed"] * 4 + ["failed"] + [
        "pending"
    ] * 2
    assert "`03_distillation.quick, cell 4 (Train): ValueError: k_shot is '0'`" in notebook.cells[0].source
    assert capfd.readouterr().err == ""


def test_a_killed_kernel_does_not_look_finished_and_ends_in_4(tmp_path):
    failure, notebook = run_and_fail(tmp_path, "import os\nos.kill(os.getpid(), 9)")
    assert (failure.kind, exit_code_of(failure)) == ("dead kernel", 4)
    assert "memory" in failure.text
    assert_tells_the_truth(notebook, failure)


CHECKPOINTED = """
import os, torch
from torch import nn
from pathlib import Path
from medkd.training.loop import fit, linear_decay

class Step:
    modules, device, n = nn.Linear(1, 1), torch.device("cpu"), 0
    def start(self, generator, others): pass
    def loss(self, rows, progress): return self.modules(rows.float()[:, None]).pow(2).mean(), {}
    def after_step(self):
        self.n += 1
        if self.n == 7: os.kill(os.getpid(), 9)
    def validate(self): return {"val_auc": 0.625}

folder = Path(os.environ["MEDKD_HOME"]) / "reports/runs/03_distillation/abc"
folder.mkdir(parents=True)
step = Step()
fit(step, torch.arange(8), torch.optim.SGD(step.modules.parameters(), lr=0.001), epochs=3, batch_size=2,
    schedule=linear_decay, seed=0, folder=folder, title="tiny", checkpoint_seconds=-1.0)
"""


def test_the_banner_of_a_killed_training_has_its_last_metrics_and_the_command(project, monkeypatch):
    monkeypatch.setenv("MEDKD_COMMAND", "medkd batch study.yaml")
    for stage, age in (("02_teacher_training", -60), ("03_distillation", 60)):  # of another report; of days ago
        other = project / "reports" / "runs" / stage / "other" / "checkpoint.1.json"
        other.parent.mkdir(parents=True)
        other.write_text('{"history": [{"loss": 1.0}], "total_steps": 5}')
        os.utime(other, (time.time() - age, time.time() - age))
    stopped = run_and_fail(project, "1 / 0")[1]
    assert "No training of its stage had reached a checkpoint since it began." in stopped.cells[0].source
    failure, notebook = run_and_fail(project, CHECKPOINTED)
    assert failure.kind == "dead kernel"
    banner = notebook.cells[0].source
    assert "Last metrics (03_distillation/abc, 6 steps): epoch 1, " in banner and "val_auc 0.625" in banner
    assert "`medkd batch study.yaml` continues from there" in banner


def test_an_output_folder_that_cannot_be_written_is_told_before_a_kernel_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks.papermill, "execute_notebook", lambda *_, **__: pytest.fail("a kernel was started"))
    source = write_notebook(tmp_path / "a.ipynb", "1")
    with pytest.raises(DataError, match=r"^/proc/nowhere cannot be written to .*give it write permission"):
        run_notebook(source, Path("/proc/nowhere/a.ipynb"), {})  # not even root may make a folder there


def test_a_wall_clock_that_is_set_back_while_a_notebook_runs_changes_nothing(tmp_path, monkeypatch):
    clock = iter(range(2_000_000_000, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: next(clock))
    output = tmp_path / "made" / "a.ipynb"
    run_notebook(write_notebook(tmp_path / "a.ipynb", "print('done')"), output, {"temperature": 2.0})
    assert nbformat.read(output, as_version=4).cells[-1].outputs[0].text == "after\n"


def test_a_timeout_does_not_look_finished_and_ends_in_5(tmp_path):
    code = "import time\nfor i in range(100): print(f'\\rstep {i}', end='', flush=True)\ntime.sleep(60)"
    failure, notebook = run_and_fail(tmp_path, code, cell_timeout=2)
    assert (failure.kind, exit_code_of(failure)) == ("timeout", 5)
    assert failure.text == "the cell took longer than 2 s"
    assert_tells_the_truth(notebook, failure)
    assert [out.text for out in notebook.cells[5].outputs if out.output_type == "stream"] == ["step 99"]


def test_the_exported_page_loads_nothing_and_keeps_formulas(tmp_path):
    source = write_notebook(tmp_path / "03.ipynb", "1")
    notebook = nbformat.read(source, as_version=4)
    notebook.cells[4].source = "Loss $T^2 \\cdot \\mathrm{KL}(p_T \\| p_S)$"
    script = {"application/javascript": "alert('run')", "text/plain": "plain text in its place"}
    picture = {"image/png": "iVBORw0KGgo=", "text/plain": "<Figure>"}
    notebook.cells[3].outputs = [nbformat.v4.new_output("display_data", data) for data in (script, picture)]
    notebook.metadata.widgets = {"application/vnd.jupyter.widget-state+json": {"state": {}}}
    nbformat.write(notebook, source)
    export_html(source, tmp_path / "03.html")
    html = (tmp_path / "03.html").read_text()
    assert "Loss $T^2 \\cdot \\mathrm{KL}(p_T \\| p_S)$" in html
    assert "plain text in its place" in html
    assert "data:image/png;base64,iVBORw0KGgo=" in html
    assert not re.findall(r"<(?:script|link|iframe|object)\b", html)
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", html)
    assert not re.findall(r"""(?:url\(|@import)\s*["']?(?:https?:)?//""", html)


@pytest.mark.slow  # a second interpreter and its kernel
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_stops_the_kernel_and_ends_in_130(tmp_path, name):
    code = (
        "import os, pathlib, time\npart = pathlib.Path(folder, 'part')\npart.write_text(str(os.getpid()))\n"
        "part.rename(pathlib.Path(folder, 'pid'))\ntime.sleep(60)"
    )
    source = write_notebook(tmp_path / "03_distillation.ipynb", code)
    output = tmp_path / "03_distillation.quick.ipynb"
    program = (
        "import sys\nfrom medkd.report.notebooks import *\n"
        "try:\n    run_notebook(sys.argv[1], sys.argv[2], {'folder': sys.argv[3]})\n"
        "except Exception as error:\n    print(error)\n    sys.exit(exit_code_of(error))\n"
    )
    arguments = [sys.executable, "-c", program, str(source), str(output), str(tmp_path)]
    path = os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}
    ) as runner:
        deadline = time.monotonic() + 60
        while not (tmp_path / "pid").exists() and runner.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        runner.send_signal(getattr(signal, name))
        printed, _ = runner.communicate(timeout=60)
    assert runner.returncode == 130
    failure = NotebookFailure("interrupt", output.stem, 4, "Train", f"stopped by {name}")
    assert printed.strip() == str(failure)
    assert_tells_the_truth(nbformat.read(output, as_version=4), failure)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_an_unknown_parameter_is_refused_before_a_kernel_starts(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(jupyter_client.AsyncKernelManager, "start_kernel", lambda *a, **k: started.append(a))
    source = write_notebook(tmp_path / "03_distillation.ipynb", "print(1)")
    with pytest.raises(ParameterError) as caught:
        run_notebook(source, tmp_path / "made" / "out.ipynb", {"tempreature": 2})
    assert str(caught.value) == (
        'unknown parameter "tempreature" for 03_distillation; did you mean "temperature"? '
        "Known: folder, teacher, temperature"
    )
    assert exit_code_of(caught.value) == 2
    assert not started
    assert not (tmp_path / "made").exists()


def test_a_kernel_that_does_not_start_is_no_finished_run(tmp_path):
    source = write_notebook(tmp_path / "01_x.ipynb", "print(1)")
    notebook = nbformat.read(source, as_version=4)
    notebook.metadata.kernelspec.name = "no-such-kernel"
    nbformat.write(notebook, source)
    output = tmp_path / "out.ipynb"
    with pytest.raises(NotebookFailure, match="out, before the first cell: .*no-such-kernel") as caught:
        run_notebook(source, output, {})
    assert (caught.value.kind, caught.value.cell) == ("dead kernel", 0)
    saved = nbformat.read(output, as_version=4)
    assert "This run stopped: dead kernel" in saved.cells[0].source
    assert {cell.metadata.papermill.status for cell in saved.cells[1:]} == {"pending"}


def test_a_missing_notebook_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no notebook .*09_none\.ipynb"):
        run_notebook(tmp_path / "09_none.ipynb", tmp_path / "out.ipynb", {})


def test_exit_codes_of_other_endings():
    assert [exit_code_of(error) for error in (None, DataError("x"), KeyboardInterrupt(), OSError("x"))] == [
        0,
        2,
        130,
        1,
    ]
