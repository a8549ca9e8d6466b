"""`medkd doctor`: whether this installation can do the work, and what to mend where it cannot."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medkd.paths import cache_dir, home, reports_dir

State = Literal["ok", "note", "mend"]
FREE_GB, MEMORY_GB = 5.0, 4.0
"""Disk of a quick report with its environment's caches, and memory of one notebook, generously."""


@dataclass(frozen=True)
class Check:
    """What was found.

    Attributes:
        name: of the check.
        state: "ok"; "note" for what works, but less well; "mend" for what must be mended first.
        text: what was found and, unless all is well, what to do.
    """

    name: str
    state: State
    text: str


def examine() -> list[Check]:
    """All checks; one that fails unexpectedly is a finding of its own, not the end."""
    found = []
    for name, check in CHECKS.items():
        try:
            found.append(Check(name, *check()))
        except Exception as error:  # a broken package can raise anything when it is imported
            first = str(error).splitlines()[0] if str(error) else ""
            found.append(Check(name, "mend", f"{type(error).__name__}: {first}; run `make` again in a fresh .venv"))
    return found


def versions_against(lock: Path) -> tuple[State, str]:
    """The installed packages against the lock file: what differs, or is missing."""
    if not lock.is_file():
        return "note", f"{lock.name} is not in {lock.parent}; start medkd in the project's folder to compare versions"
    pinned = re.findall(r"^([A-Za-z0-9._-]+)(?:\[[a-z,]+\])?==([^\s;]+)( ; .*)?$", lock.read_text(), re.MULTILINE)
    differing = []
    for name, wanted, marker in pinned:
        if marker:  # for some platforms only
            continue
        try:
            has = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            has = "missing"
        if has != wanted:
            differing.append(f"{name} {has} (pinned {wanted})")
    if differing:
        more = f" and {len(differing) - 4} more" if len(differing) > 4 else ""
        return (
            "note",
            f"not as pinned: {', '.join(differing[:4])}{more}; `make` in a fresh .venv installs the pinned ones",
        )
    return "ok", f"all {len(pinned)} as pinned"


def _python() -> tuple[State, str]:
    found = ".".join(map(str, sys.version_info[:3]))
    return ("ok", found) if sys.version_info >= (3, 11) else ("mend", f"{found}; medkd needs 3.11 or newer")


def _torch() -> tuple[State, str]:
    """The two come in pairs; a wrong pair fails when torchvision's operators are registered."""
    import torch
    import torchvision
    from torchvision.ops import nms

    text = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0]), 0.5)
    return "ok", text


def _gpu() -> tuple[State, str]:
    import torch

    from medkd.models.device import has_native_bfloat16

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        bf16 = has_native_bfloat16(torch.device("cuda"))
        return "ok", f"{', '.join(names)}; bfloat16 {'in hardware' if bf16 else 'not in hardware, float32 is used'}"
    if shutil.which("nvidia-smi"):
        return "mend", (
            f"nvidia-smi is here, but torch {torch.__version__} (CUDA {torch.version.cuda or 'none'}) sees no GPU; "
            "update the driver, or install the torch build of the driver's CUDA version"
        )
    return "note", f"none; training runs on {os.cpu_count()} processor cores"


def _kernel() -> tuple[State, str]:
    """Whether the notebooks' kernel is this Python: papermill and JupyterLab start what the kernel spec names."""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    try:
        program = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        return "mend", "no kernel called python3; run `.venv/bin/python -m ipykernel install --sys-prefix`"
    known = shutil.which(program) or program
    if program not in ("python", "python3") and _environment(Path(known)) != Path(sys.prefix).resolve():
        return "mend", (
            f"kernel python3 starts {known}, not this Python ({sys.executable}); "
            "run `.venv/bin/python -m ipykernel install --sys-prefix`"
        )
    return "ok", f"python3 starts {sys.executable}"


def _environment(program: Path) -> Path:
    """Folder of the environment that a Python program belongs to, whatever its name there."""
    return (program.absolute().parent / "..").resolve()


def _fonts() -> tuple[State, str]:
    from matplotlib import font_manager

    from medkd.report.style import use_style

    use_style()
    path = Path(font_manager.findfont(font_manager.FontProperties()))
    if path.suffix.lower() not in (".ttf", ".otf"):
        return "mend", f"figures would use {path.name}, which cannot be embedded as TrueType; install a TrueType font"
    return "ok", f"{path.stem}, embedded as TrueType"


def _numba_cache() -> tuple[State, str]:
    """UMAP compiles for about ten seconds where numba cannot keep what it compiled."""
    named = os.environ.get("NUMBA_CACHE_DIR")
    spec = importlib.util.find_spec("umap")
    if spec is None or spec.origin is None:
        return "mend", "umap-learn is missing; run `make` again"
    folder = Path(named) if named else Path(spec.origin).parent
    while not folder.exists():
        folder = folder.parent
    if _is_writable(folder):
        return "ok", "can be kept"
    if named:
        return "note", f"NUMBA_CACHE_DIR = {named} cannot be written to; name another folder"
    return "ok", f"{folder} cannot be written to, so what is compiled is kept in {cache_dir() / 'numba'}"


def _project() -> tuple[State, str]:
    here = home()
    if not (here / "notebooks").is_dir():
        return "mend", f"no notebooks in {here}; start medkd in the project's folder, or set MEDKD_HOME to it"
    for folder in (here / "data", reports_dir()):
        if not _is_writable(folder if folder.exists() else here):
            return "mend", f"{folder} cannot be written to; change its owner or mode, or set MEDKD_HOME to a copy"
    return "ok", "notebooks, data and reports are in place"


def _room() -> tuple[State, str]:
    from distributed.system import MEMORY_LIMIT  # of a container too

    there = next(folder for folder in (home(), *home().parents) if folder.is_dir())
    free = shutil.disk_usage(there).free / 1e9
    memory = MEMORY_LIMIT / 1e9
    text = f"{free:.0f} GB of disk free, {memory:.0f} GB of memory"
    if free < FREE_GB:
        return "mend", f"{text}; free at least {FREE_GB:.0f} GB (`medkd runs gc`, `make clean`)"
    if memory < MEMORY_GB:
        return "note", f"{text}; with less than {MEMORY_GB:.0f} GB lower batch_size or image_size"
    return "ok", text


def _is_writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


CHECKS: dict[str, Callable[[], tuple[State, str]]] = {
    "Python": _python,
    "torch and torchvision": _torch,
    "GPU": _gpu,
    "packages": lambda: versions_against(home() / "requirements.lock"),
    "kernel": _kernel,
    "fonts": _fonts,
    "UMAP's cache": _numba_cache,
    "project folder": _project,
    "room": _room,
}
"""What is looked at, in this order."""
