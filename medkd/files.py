"""Files written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor


def write_json(path: Path, data: Any) -> None:
    """Write JSON so that a reader sees the old file or the whole new one, never a part."""
    write_atomically(path, lambda part: part.write_text(json.dumps(data, indent=1)))


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """Write a CSV by rename, see `write_json`."""
    write_atomically(path, lambda part: frame.to_csv(part, index=False))


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file by rename; tensors are brought to the CPU and made contiguous."""
    from safetensors.torch import save_file

    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_atomically(path, lambda part: save_file(plain, part))


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write(part)` on a temporary neighbour of `path`, flush it to the disk and rename it into place."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(part)
        with part.open("rb") as handle:
            os.fsync(handle.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
