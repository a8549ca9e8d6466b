"""Where numba keeps what it compiles."""

from __future__ import annotations

import os
from pathlib import Path

from medkd.paths import cache_dir


def keep_compiled(module_file: str) -> None:
    """Let numba use the project's cache where it cannot write beside a module, and would refuse to compile it.

    Beside a module or below the user's home is where numba keeps such files by itself, and neither can be written to in
    a container of another user. Nothing is changed where NUMBA_CACHE_DIR names a folder.

    Args:
        module_file: `__file__` of the module.
    """
    import numba

    if not numba.config.CACHE_DIR and not os.access(Path(module_file).parent, os.W_OK):
        numba.config.CACHE_DIR = str(cache_dir() / "numba")
