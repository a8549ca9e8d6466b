"""The `medkd data` command: list, info, fetch, check, prepare."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from medkd.errors import MedkdError, ParameterError

data_app = typer.Typer(
    help="List, fetch, check and prepare cohorts.", no_args_is_help=True, rich_markup_mode=None, add_completion=False
)

Name = Annotated[str, typer.Argument(help="Cohort by name, see `medkd data list`.")]
Root = Annotated[str, typer.Option(help="Folder with the publisher's files; simulated cohorts need none.")]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "-p",
        help="A parameter: `-p epochs=5` for every stage that has it, `-p teacher.epochs=5` for one. Lists as JSON: "
        "-p k_shots='[1, 5]'. Repeatable.",
    ),
]
Preset = Annotated[str, typer.Option(help='"quick", or "paper": the published constants and five folds.')]
Device = Annotated[str, typer.Option(help='"auto", "cpu", "cuda" or "cuda:1".')]
Seed = Annotated[int, typer.Option(min=0, help="Seeds splits, weights, shuffling and augmentation.")]
Yes = Annotated[bool, typer.Option("--yes", help="Answer every question with yes.")]


@data_app.command("list")
def data_list() -> None:
    """Show the cohorts by name, what they serve and where they come from."""
    from medkd.data.registry import cohort_names, describe

    for cohort in cohort_names():
        about = describe(cohort)
        needs = "needs --root" if about["needs_root"] else "simulated"
        print(f"{cohort:22} {about['chain']:16} {needs:14} {about['title']}")


@data_app.command("info")
def data_info(name: Name, root: Root = "") -> None:
    """Show what a cohort is, its licence, and its counts if its files are here."""
    from medkd.data.registry import describe, load_cohort, summary

    with told():
        about = describe(name)
        for key, value in about.items():
            print(f"{key}: {value}")
        if root or not about["needs_root"]:
            cohort = load_cohort(name, root)
            print(f"modalities: {', '.join(cohort.modalities)}")
            print(f"splits: {'own folds' if cohort.splits is None else ', '.join(cohort.splits)}")
            print(summary(cohort).to_string(index=False))


@data_app.command("fetch")
def data_fetch(
    name: Name,
    to: Annotated[str, typer.Option(help="Folder to put the files in; default: data/NAME in the project.")] = "",
    size: Annotated[int, typer.Option(help="Image side, for sets that are published in several.")] = 0,
    yes: Yes = False,
) -> None:
    """Download a cohort's files, once its licence is accepted; goes on where an interrupted download stopped.

    Sets that need a form or a login are not downloaded: what to do is printed instead.
    """
    from medkd.data.fetch import fetch
    from medkd.paths import home

    folder = Path(to) if to else home() / "data" / name
    with told(interrupted="interrupted; the same command goes on from there"):
        root = fetch(name, folder, consent=lambda text: yes or typer.confirm(text), say=print, size=size)
    if root is not None:
        print(f"now: medkd data check {name} --root {root}")


@data_app.command("check")
def data_check(
    name: Name,
    root: Root = "",
    folds: Annotated[int, typer.Option(min=2, help="Folds whose splits are checked.")] = 5,
    split_file: Annotated[str, typer.Option(help="CSV of published splits.")] = "",
) -> None:
    """Check a cohort: counts by class and split, copies, leaks, unreadable images; exit status 1 on an error.

    Counts are of the first fold, or of the first published split.
    """
    from medkd.data.checks import check, imbalance, split_counts
    from medkd.data.folds import split_rows
    from medkd.data.registry import load_cohort

    with told():
        cohort = load_cohort(name, root)
        findings = check(cohort, n_folds=folds, split_file=split_file)
        if not any(finding.error and finding.kind == "leak" for finding in findings):
            split = split_rows(cohort, fold=0, n_folds=folds, split_file=split_file)
            print(split_counts(cohort, split).to_string(index=False))
    print(f"largest class to smallest: {imbalance(cohort):.1f} to 1")
    for finding in findings:
        print(f"{'error' if finding.error else 'warning'}: {finding.text}", file=sys.stderr)
    if any(finding.error for finding in findings):
        raise typer.Exit(1)
    print(f"{cohort.label_text}: {len(cohort)} samples in order, no {cohort.group} in two splits")


@data_app.command("prepare")
def data_prepare(
    name: Name,
    root: Root = "",
    size: Annotated[list[int] | None, typer.Option(min=16, help="Image side in pixels; repeatable.")] = None,
    yes: Yes = False,
) -> None:
    """Decode a cohort's images once for each size, so that the first notebook need not wait.

    For your own data (`own`) the columns of the table are inferred first, shown, and written to `medkd.yaml` beside it.
    """
    from medkd.data.registry import load_cohort
    from medkd.paths import cache_dir

    with told(interrupted="interrupted; what is decoded completely is kept"):
        if name == "own" and not root:
            raise ParameterError("own needs --root FOLDER, the folder with your CSV and images")
        if name == "own" and not _own_confirmed(Path(root), yes):
            return
        cohort = load_cohort(name, root)
        for modality, source in cohort.images.items():
            for side in size or [48]:
                pixels = source.load(side)
                print(f"{modality} at {side} px: {len(pixels)} images, {pixels.nbytes / 1e6:.0f} MB")
    print(f"{cohort.label_text}: content {cohort.fingerprint}, cache {cache_dir()}")


def _own_confirmed(root: Path, yes: bool) -> bool:
    """Whether the folder's `medkd.yaml` is confirmed, after inferring and showing it where it is not."""
    from medkd.data.own_schema import SCHEMA_FILE, explain, infer, read_schema, write_schema

    if (root / SCHEMA_FILE).is_file():
        schema = read_schema(root)
        if schema.confirmed:
            return True
    else:
        schema = infer(root)
    print(explain(schema, root))
    agreed = yes or typer.confirm(f"Is this right? (no: {root / SCHEMA_FILE} is written for you to edit)")
    write_schema(root, schema.model_copy(update={"confirmed": agreed}))
    if not agreed:
        print(f"edit {root / SCHEMA_FILE}, then run this command again")
    return agreed


def assigned(given: list[str] | None) -> dict[str, Any]:
    """What `-p name=value` says, files as seen from here; a value is read as JSON where it is JSON, as text where not.

    Raises:
        ParameterError: one is no assignment.
    """
    from medkd.stages.params import absolute_files

    values: dict[str, Any] = {}
    for text in given or []:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ParameterError(f"-p {text} is no assignment; write -p name=value, for example -p epochs=5")
        try:
            values[name] = json.loads(value)
        except json.JSONDecodeError:
            values[name] = {"True": True, "False": False}.get(value, value)
        except (ValueError, RecursionError):  # a number of thousands of digits, brackets without end
            raise ParameterError(f"-p {name}=... is longer than any value; shorten it") from None
    return absolute_files(values, Path())


@contextmanager
def told(status: int = 2, *, interrupted: str = "interrupted") -> Iterator[None]:
    """What a user can mend, and an interruption, end the command with one line and an exit status."""
    try:
        yield
    except MedkdError as error:
        fail(str(error), status)
    except BrokenPipeError:  # of `medkd ... | head`
        raise
    except OSError as error:  # a full disk, a folder that may not be written to, a name that is too long
        fail(f"{error.filename or 'a file'}: {error.strerror or error}; mend it and run the same command again", status)
    except KeyboardInterrupt:
        fail(interrupted, 130)


def fail(message: str, status: int) -> NoReturn:
    """Print one line on stderr and end with this exit status."""
    print(f"medkd: {message}", file=sys.stderr)
    raise typer.Exit(status)
