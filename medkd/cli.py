"""The `medkd` command: report, share, lab, doctor; the others come from `cli_*.py`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from medkd.cli_batch import batch, train
from medkd.cli_data import Assignments, Device, Preset, Root, Seed, assigned, data_app, fail, told
from medkd.cli_export import bundle, export, predict
from medkd.cli_runs import runs_app

app = typer.Typer(
    help="Knowledge distillation and rare-disease learning in medical imaging, driven from notebooks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(data_app, name="data")
app.add_typer(runs_app, name="runs")
app.command()(batch)
app.command()(train)
app.command()(export)
app.command()(predict)
app.command()(bundle)


@app.command()
def report(
    study: Annotated[str, typer.Argument(help="A study that `medkd batch` ran: compare its cells, run nothing.")] = "",
    dataset: Annotated[
        str,
        typer.Option(help="Cohort by name (see `medkd data list`); without it the preset's simulated ones."),
    ] = "",
    root: Root = "",
    name: Annotated[
        str, typer.Option(help="Folder under reports/; default: the dataset and the preset, as far as they are given.")
    ] = "",
    p: Assignments = None,
    preset: Preset = "quick",
    device: Device = "auto",
    seed: Seed = 0,
    cell_timeout: Annotated[int, typer.Option(min=0, help="Seconds per notebook cell may take; 0 for no limit.")] = 0,
) -> None:
    """Run the notebooks headless and build the report page.

    The notebooks of a cohort run in order, each through papermill, and one page shows their figures and tables.
    What is up to date is not run again; after a failure the same command goes on where it stopped. Exit status:
    0 finished, 2 bad input, 3 exception in a notebook, 4 killed kernel, 5 timeout, 130 interrupted.
    """
    from medkd.report.notebooks import NotebookFailure

    with told(interrupted="interrupted; finished stages are kept, and the same command goes on from there"):
        if study:
            from medkd.report.study import build_study_report

            if dataset or root or name or p or preset != "quick" or device != "auto" or seed or cell_timeout:
                fail("a study's report takes no options: the study's file says what was run", 2)
            print(os.path.relpath(build_study_report(study)))
            return
        from medkd.report.plan import default_cohorts
        from medkd.report.run import run_report

        try:
            page = run_report(
                [dataset] if dataset else default_cohorts(preset),
                root=os.path.abspath(root) if root else "",
                name=name or (dataset if preset == "quick" and dataset else "-".join(filter(None, (dataset, preset)))),
                preset=preset,
                overrides=assigned(p),
                device=device,
                seed=seed,
                cell_timeout=cell_timeout or None,
                say=lambda line: print(line, flush=True),
            )
        except NotebookFailure as error:
            fail(f"{error}\nFinished stages are kept; the same command goes on from there.", error.exit_code)
        print(os.path.relpath(page))


@app.command()
def share(
    name: Annotated[str, typer.Argument(help="Folder under reports/, such as quick.")],
    target: Annotated[str, typer.Argument(help="HTML file to write.")],
) -> None:
    """Write a report as one file to send or commit: no photographs, no links, no paths of this machine."""
    from medkd.report.share import share as write

    with told():
        print(os.path.relpath(write(name, Path(target))))


@app.command()
def lab(
    port: Annotated[int, typer.Option(help="First port to try.")] = 8888,
    browser: Annotated[bool, typer.Option(help="Open a browser window; the address is printed either way.")] = True,
) -> None:
    """Open JupyterLab on the notebooks (local, with a token)."""
    from medkd.paths import home

    folder = home() / "notebooks"
    if not folder.is_dir():
        fail(f"no notebooks in {folder}; start medkd lab in the project's folder or set MEDKD_HOME to it", 2)
    options = [f"--notebook-dir={folder}", "--ip=127.0.0.1", f"--port={port}"]
    options += [] if browser else ["--no-browser"]
    options += ["--allow-root"] if os.geteuid() == 0 else []  # containers run as root; the server is local either way
    os.execv(sys.executable, [sys.executable, "-m", "jupyterlab", *options])


@app.command()
def doctor() -> None:
    """Check the installation and say what to mend; exit status 1 if something must be."""
    from medkd.doctor import examine

    found = examine()
    for check in found:
        print(f"{check.state:4}  {check.name}: {check.text}")
    if any(check.state == "mend" for check in found):
        raise typer.Exit(1)
