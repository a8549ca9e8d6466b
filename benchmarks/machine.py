"""What the benchmarks ran on, in words that name no host, no user and no path."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

import psutil
import torch

PACKAGES = ("medkd", "torch", "torchvision", "numpy", "scikit-learn", "lightly", "torchdistill")


def describe() -> dict[str, Any]:
    """Processor, cores, memory, GPU and versions."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
    }


def file_name(machine: dict[str, Any]) -> str:
    """Name of the machine's file: processor, cores and GPU."""
    parts = [machine["cpu"], f"{machine['cores']} cores", machine["gpu"] or ""]
    return re.sub(r"[^a-z0-9]+", "-", " ".join(parts).lower()).strip("-") + ".json"


def _cpu() -> str:
    """Model of the processor; where the system hides it, its vendor, family and model number."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        fields = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", info.read_text(), flags=re.MULTILINE))
        if (name := fields.get("model name", "unknown").strip()) != "unknown":
            return re.sub(r"\((R|TM)\)|@.*", "", name).strip()
        if "vendor_id" in fields:
            return f"{fields['vendor_id']} family {fields.get('cpu family', '?')} model {fields.get('model', '?')}"
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
