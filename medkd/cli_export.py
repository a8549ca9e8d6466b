"""The commands `medkd export`, `medkd predict` and `medkd bundle`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from medkd.cli_data import Root, fail, told


def export(
    run: Annotated[str, typer.Argument(help="Key of a finished run (`medkd runs list`), or its first digits.")],
    to: Annotated[str, typer.Option(help="Folder to write; default: reports/exports/KEY.")] = "",
    root: Root = "",
    weights: Annotated[str, typer.Option(help="File of a frozen encoder's weights, if the run began from one.")] = "",
) -> None:
    """Write a trained student for use elsewhere: torch.export, ONNX, and a model card with its numbers.

    Preprocessing and calibration are inside. Both files are compared with PyTorch on held-out images before they are
    kept. Needs the packages of medkd[export]. Research only: what is written is no medical device.
    """
    from medkd.deploy.export import export_run
    from medkd.deploy.runtime import RECORD

    with told():
        folder = export_run(run, Path(to) if to else None, root=os.path.abspath(root) if root else "", weights=weights)
    record = json.loads((folder / RECORD).read_text())
    print(f"{record['title']}: temperature {record['calibration']['temperature']:.3f} ({record['calibration']['how']})")
    parity = record["parity"]
    print(f"largest difference from PyTorch: ONNX {parity['onnx']:.1e}, torch.export {parity['torch_export']:.1e}")
    print(os.path.relpath(folder))


def predict(
    model: Annotated[str, typer.Argument(help="Folder that `medkd export` wrote.")],
    images: Annotated[list[str], typer.Argument(help="Image files, or folders with images in them.")],
    to: Annotated[str, typer.Option(help="Folder for predictions.csv and the contact sheets.")] = "predictions",
) -> None:
    """Predict images with an exported model: a CSV of probabilities and a contact sheet. Research only.

    Images that cannot be read are named and left out. An interrupted call goes on after its last page of 60 images.
    Exit status: 0 all predicted, 2 bad input, some images among it.
    """
    from medkd.deploy.predict import predict_images

    with told():
        done = predict_images(Path(model), images, Path(to))
    if done.n_kept:
        print(f"{done.n_kept} pages were there from an interrupted call", file=sys.stderr)
    for name, reason in done.unreadable.items():
        print(f"not read: {name}: {reason}", file=sys.stderr)
    for name, count in done.table["predicted"].value_counts().items():
        print(f"{count} {name}")
    for path in done.files:
        print(os.path.relpath(path))
    if done.unreadable:
        n_all = len(done.table) + len(done.unreadable)
        fail(f"{len(done.unreadable)} of {n_all} images cannot be read and were left out; they are named above", 2)


def bundle(
    study: Annotated[str, typer.Argument(help="Name of a finished study that has its report.")],
    to: Annotated[str, typer.Option(help="Folder to make; default: reports/bundles/STUDY.")] = "",
    notebooks: Annotated[bool, typer.Option(help="With executed notebooks, which show images of the cohort.")] = True,
) -> None:
    """Put what a reviewer needs of a study into one folder, with a script that runs it again and compares."""
    from medkd.bundle.assemble import bundle as assemble

    with told():
        print(os.path.relpath(assemble(study, Path(to) if to else None, notebooks=notebooks)))
