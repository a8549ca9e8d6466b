"""Papermill, honestly: unknown parameters are refused, and a run that stopped says so and how it ended."""

from __future__ import annotations

import copy
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import papermill
import zmq
from jupyter_client.kernelspec import NoSuchKernel
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from medkd.errors import ParameterError, did_you_mean
from medkd.files import existing_notebook, unwritable, write_atomically
from medkd.report.failures import (
    INJECTED_TAG,
    MARKER_TAG,
    NotebookFailure,
    exit_code_of,
    first_line,
    settle,
    tags_of,
)
from medkd.report.page import export_html
from medkd.signals import handled

__all__ = ["NotebookFailure", "exit_code_of", "export_html", "is_stripped", "run_notebook", "strip_outputs"]


def run_notebook(
    source: Path,
    output: Path,
    parameters: Mapping[str, Any],
    *,
    cell_timeout: int | None = None,
    cwd: Path | None = None,
    echo: bool | None = None,
) -> None:
    """Execute a notebook with parameters and save it with its outputs, whether it succeeds or not.

    Args:
        source: the notebook; one cell tagged `parameters` names what may be set.
        output: where the executed notebook goes; its folder is made, an older file is replaced.
        parameters: name -> value, injected after the `parameters` cell.
        cell_timeout: seconds that a cell may take; None for no limit.
        cwd: the kernel's working directory; None for the present one.
        echo: whether stderr shows a bar over the cells and the kernel's stderr; None: if it is a terminal.

    Raises:
        DataError: there is no such notebook, or its output cannot be written.
        ParameterError: a parameter is not in the `parameters` cell; told before a kernel starts.
        NotebookFailure: an exception in a cell, a dead kernel, a timeout, or SIGINT or SIGTERM to this process.
    """
    source, output = Path(source).resolve(), Path(output).resolve()
    _check_parameters(source, parameters)
    _make_way(output)
    show = sys.stderr.isatty() if echo is None else echo
    with _stop_once(), _headless(), _kernel_config() as config:
        try:
            papermill.execute_notebook(
                source,
                output,
                parameters=dict(parameters),
                cwd=cwd,
                progress_bar={"desc": output.stem} if show else False,
                stderr_file=sys.stderr if show else None,
                start_timeout=120,  # seconds; a cold disk on a shared machine takes more than papermill's 60
                execution_timeout=cell_timeout,
                iopub_timeout=60,  # seconds; with the default 4 a burst of output counts as a timeout
                coalesce_streams=True,  # a progress bar is one output, not thousands
                store_widget_state=False,
                extra_arguments=["--IPKernelApp.log_level=50"],  # a stopped kernel's last words are about its sockets
                config=config,
            )
        except PapermillExecutionError as error:
            kind = "interrupt" if error.ename == "KeyboardInterrupt" else "exception"
            raise settle(output, kind, f"{error.ename}: {first_line(error.evalue)}".rstrip(": ")) from error
        except CellTimeoutError as error:
            limit = f"longer than {cell_timeout} s" if cell_timeout else "over 60 s to send its output"
            raise settle(output, "timeout", f"the cell took {limit}") from error
        except DeadKernelError as error:
            raise settle(output, "dead kernel", "the kernel was killed, most often because memory ran out") from error
        except (NoSuchKernel, RuntimeError) as error:  # what jupyter_client raises when a kernel does not come up
            raise settle(output, "dead kernel", f"the kernel did not answer: {first_line(str(error))}") from error
        except KeyboardInterrupt as error:
            raise settle(output, "interrupt", f"stopped by {str(error) or 'SIGINT'}") from error


def _make_way(output: Path) -> None:
    """Remove an older output, so that what is there after a failure is from this run.

    Raises:
        DataError: the folder cannot be written to; told before a kernel starts.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.unlink(missing_ok=True)
        output.touch()
        output.unlink()
    except OSError as error:
        raise unwritable(output.parent, error) from error


def strip_outputs(path: Path) -> None:
    """Take outputs, execution counts and the traces of a run out of a notebook; cell tags stay."""
    stripped = _stripped(nbformat.read(path, as_version=4))
    write_atomically(path, lambda part: nbformat.write(stripped, part))


def is_stripped(path: Path) -> bool:
    """Whether `strip_outputs` would change nothing."""
    notebook = nbformat.read(path, as_version=4)
    return _stripped(copy.deepcopy(notebook)) == notebook


def _stripped(notebook: NotebookNode) -> NotebookNode:
    notebook.cells = [cell for cell in notebook.cells if not {MARKER_TAG, INJECTED_TAG} & set(tags_of(cell))]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        for trace in ("papermill", "execution", "collapsed", "scrolled"):
            cell.metadata.pop(trace, None)
    for trace in ("papermill", "widgets"):
        notebook.metadata.pop(trace, None)
    return notebook


def _check_parameters(source: Path, parameters: Mapping[str, Any]) -> None:
    known = papermill.inspect_notebook(existing_notebook(source))
    for name in parameters:
        if name not in known:
            hint = did_you_mean(name, known, ".")
            names = ", ".join(sorted(known)) or "none, no cell is tagged `parameters`"
            raise ParameterError(f'unknown parameter "{name}" for {source.stem}{hint} Known: {names}')


@contextmanager
def _kernel_config() -> Iterator[Config]:
    """Kernel sockets as files in a private folder: runs side by side cannot take each other's TCP ports."""
    if not zmq.has("ipc"):
        yield Config()
        return
    # a socket's path may have about 100 characters, and temporary folders of batch systems can be longer
    short = tempfile.gettempdir() if len(tempfile.gettempdir()) <= 60 else "/tmp"
    with tempfile.TemporaryDirectory(prefix="medkd-", dir=short) as folder:
        connection_file = os.path.join(folder, "kernel.json")
        yield Config({"KernelManager": {"transport": "ipc", "connection_file": connection_file}})


@contextmanager
def _headless() -> Iterator[None]:
    """Kernels that start here know that nobody is there to use a widget, see `medkd.widgets.place`."""
    before = os.environ.get("MEDKD_HEADLESS")
    os.environ["MEDKD_HEADLESS"] = "1"
    try:
        yield
    finally:
        os.environ.pop("MEDKD_HEADLESS")
        if before is not None:
            os.environ["MEDKD_HEADLESS"] = before


@contextmanager
def _stop_once() -> Iterator[None]:
    """SIGINT and SIGTERM raise KeyboardInterrupt once; more of them wait until the kernel is down and all is saved."""
    numbers = (signal.SIGINT, signal.SIGTERM)

    def stop(number: int, _: Any) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt(signal.Signals(number).name)

    with handled(stop, *numbers):
        yield
