"""The commands that train: `medkd batch` and `medkd train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medkd.cli_data import Assignments, Device, Preset, Root, Seed, assigned, fail, told


def train(
    stage: Annotated[str, typer.Argument(help="teacher, distillation, moco, pseudo_labels or self_distillation.")],
    dataset: Annotated[str, typer.Option(help="Cohort by name: train as `medkd report` with these options does.")] = "",
    root: Root = "",
    p: Assignments = None,
    preset: Preset = "quick",
    device: Device = "auto",
    seed: Seed = 0,
    config: Annotated[
        str, typer.Option(help="In their place a JSON file: the notebook's parameters that differ from its defaults.")
    ] = "",
    devices: Annotated[int, typer.Option(min=1, help="Processes on this machine, one per GPU where it has some.")] = 1,
    nodes: Annotated[
        int, typer.Option(min=1, help="Machines; they share the run store's disk, and a network without strangers.")
    ] = 1,
    node: Annotated[int, typer.Option(min=0, help="Number of this machine, from 0.")] = 0,
    address: Annotated[str, typer.Option(help="HOST:PORT of machine 0, for more than one machine.")] = "",
) -> None:
    """Train a stage without its notebook, in several processes if asked for; the notebooks load what it makes."""
    import os

    from medkd.report.plan import stage_config
    from medkd.stages.train import checked_stage
    from medkd.stages.worker import command

    if bool(dataset) == bool(config):
        fail("give either --dataset, as to medkd report, or --config FILE", 2)
    if config and (root or p or preset != "quick" or device != "auto" or seed):
        fail("--config FILE holds all parameters: give no --root, -p, --preset, --device or --seed beside it", 2)
    if nodes == 1 and (node or address):
        fail("--node and --address are for several machines: give --nodes N too, or leave them out", 2)
    if dataset:
        with told():
            root = os.path.abspath(root) if root else ""
            how = {"root": root, "overrides": assigned(p), "preset": preset, "device": device, "seed": seed}
            config = str(stage_config(stage, dataset, **how))
    if nodes > 1 and not address:
        fail(f"--nodes {nodes} needs --address HOST:PORT, where machine 0 can be reached", 2)
    if node >= nodes:
        fail(f"--node {node} is no machine of --nodes {nodes}: they are counted from 0 to {nodes - 1}", 2)
    if nodes * devices > 1:  # one process tells what is wrong itself
        with told():
            checked_stage(stage, Path(config))
    line = command(stage, os.path.abspath(config), devices, nodes, address, node)
    os.execv(line[0], line)


def batch(
    study: Annotated[str, typer.Argument(help="Study file (YAML): name, cohorts, parameters, grid, cells.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run and what is there already.")] = False,
    workers: Annotated[int, typer.Option(min=0, help="Notebooks at once on this machine; 0: what fits.")] = 0,
    scheduler: Annotated[str, typer.Option(help="Dask scheduler of a cluster, such as tcp://host:8786.")] = "",
    jobqueue: Annotated[str, typer.Option(help="YAML for dask-jobqueue: cluster, jobs, arguments.")] = "",
    cell_timeout: Annotated[int, typer.Option(min=0, help="Seconds per notebook cell may take; 0 for no limit.")] = 0,
) -> None:
    """Run a study: every combination of its parameters, each notebook once, several at a time.

    What is finished is not run again; after a failure or an interruption the same command goes on. Exit status:
    0 all finished, 2 bad input, 3 some cells failed, 130 interrupted.
    """
    from medkd.batch.engine import SchedulerLost, is_finished, prepare, run_study
    from medkd.batch.study import Study
    from medkd.stages import SHORT_NAMES

    if scheduler and (jobqueue or workers):
        fail("--scheduler names a cluster with workers of its own: leave --jobqueue and --workers out", 2)
    if jobqueue and workers:
        fail("--workers counts notebooks on this machine: with --jobqueue, `jobs` in its file says how many run", 2)
    with told(interrupted="interrupted; finished notebooks are kept, and the same command goes on from there"):
        asked = Study.read(Path(study))
        if dry_run:
            cells, nodes, of_cell = prepare(asked)
            done = {key for key, node in nodes.items() if is_finished(asked, node)}
            for cell in cells:
                print(cell.name)
                for key in of_cell[cell.name]:
                    own = "" if nodes[key].folder == cell.name else f" (shared with {nodes[key].folder})"
                    state = "finished" if key in done else "would run"
                    print(f"  {nodes[key].entry.notebook:24} {state}{own}")
            print(f"{len(cells)} cells, {len(nodes)} notebooks: {len(done)} finished, {len(nodes) - len(done)} to run")
            return
        try:
            unfinished = run_study(
                asked,
                scheduler=scheduler,
                jobqueue=jobqueue,
                workers=workers,
                cell_timeout=cell_timeout or None,
                say=lambda line: print(line, flush=True),
            )
        except SchedulerLost as error:
            fail(str(error), 3)
    if unfinished:
        fail(
            f"{len(unfinished)} cells did not finish: {', '.join(unfinished)}; reports/{asked.name}/study.json says "
            f"why. Finished notebooks are kept; `medkd batch {study}` goes on from there",
            3,
        )
    compared = not asked.notebooks or SHORT_NAMES["evaluation"] in asked.notebooks
    then = f"now: medkd report {asked.name}" if compared else f"their notebooks are in reports/{asked.name}/"
    print(f"all cells of {asked.name} are finished; {then}")
