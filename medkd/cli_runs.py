"""The `medkd runs` command: list, show, compare, gc."""

from __future__ import annotations

import json
import time
from typing import Annotated

import typer

from medkd.cli_data import Yes, told
from medkd.text import duration

runs_app = typer.Typer(
    help="Look into the run store, and clear it up.", no_args_is_help=True, rich_markup_mode=None, add_completion=False
)


@runs_app.command("list")
def runs_list(
    stage: Annotated[str, typer.Argument(help="Stage, or its beginning such as 02; all by default.")] = "",
) -> None:
    """Show the finished runs: stage, key, title, when, how long, and one metric."""
    from medkd.stages.inventory import all_runs

    with told():
        table = all_runs(stage)
    print(table.to_string(index=False) if len(table) else "no finished runs")


@runs_app.command("show")
def runs_show(key: Annotated[str, typer.Argument(help="Key, or the first digits of it.")]) -> None:
    """Show a run: settings, metrics, what it was made from, and its files."""
    from medkd.stages.inventory import find_run

    with told():
        run = find_run(key)
    print(f"{run.stage}/{run.key}, {duration(run.seconds)}, cohort {run.cohort}")
    for title, values in (("settings", run.config), ("metrics", run.metrics)):
        print(f"{title}:")
        for name, value in values.items():
            print(f"  {name}: {json.dumps(value)}")
    print(f"made from: {', '.join(run.upstream) or 'nothing'}")
    for path in sorted(path for path in run.folder.iterdir() if not path.name.startswith(".")):
        print(f"  {path.name} ({path.stat().st_size / 1e6:.2f} MB)")


@runs_app.command("compare")
def runs_compare(keys: Annotated[list[str], typer.Argument(help="Two keys or more.")]) -> None:
    """Show which settings of runs differ, and their metrics side by side."""
    from medkd.stages.inventory import compared, find_run

    with told():
        settings, metrics = compared([find_run(key) for key in keys])
    print(settings.to_string(index=False) if len(settings) else "all settings are the same")
    print(metrics.to_string(index=False))


@runs_app.command("gc")
def runs_gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    keep_days: Annotated[float, typer.Option(min=0, help="Leave what was changed in so many days.")] = 0.0,
    yes: Yes = False,
) -> None:
    """Remove unfinished runs that nobody works on, and finished ones that no report refers to."""
    from medkd.stages.inventory import leftovers, remove, worked_on

    with told():
        found = leftovers(keep_days, time.time())
    for item in found:
        print(f"{item.folder.parent.name}/{item.folder.name}: {item.n_bytes / 1e6:.1f} MB, {item.reason}")
    if busy := worked_on():
        print(f"{busy[0].parent.name}/{busy[0].name} is being made: until that has ended, every finished run stays")
    total = sum(item.n_bytes for item in found) / 1e6
    print(f"{len(found)} folders, {total:.1f} MB")
    if found and not dry_run and (yes or typer.confirm("Remove them?")):
        with told():
            removed = remove(found)
        print(f"{len(removed)} removed" + (", the others are in use by now" if len(removed) < len(found) else ""))
