"""Files written whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from medkd.errors import DataError

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""Of a stage, a table, a report or a study: one file or folder, on every file system."""


def write_json(path: Path, data: Any) -> None:
    """Write JSON so that a reader sees the old file or the whole new one, never a part."""
    write_atomically(path, lambda part: part.write_text(json.dumps(data, indent=1)))


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """Write a CSV by rename, see `write_json`."""
    write_atomically(path, lambda part: frame.to_csv(part, index=False))


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file by rename; tensors are brought to the CPU and made contiguous.

    Raises:
        OSError: the disk is full, or the folder cannot be written to.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}

    def save(part: Path) -> None:
        try:
            save_file(plain, part)
        except SafetensorError as error:  # which hides the number of the system's error in its words
            if number := re.search(r"os error (\d+)", str(error)):
                raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
            raise

    write_atomically(path, save)


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write(part)` on a temporary neighbour of `path`, flush it to the disk and rename it into place."""
    # of processes that train together some may have one number, in containers of their own
    part = path.with_name(f".{path.name}.{os.getpid()}-{os.environ.get('RANK', '0')}.part")
    try:
        write(part)
        part.chmod(0o666 & ~_umask())  # safetensors writes files that their owner alone may read
        with part.open("rb") as handle:
            os.fsync(handle.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _umask() -> int:
    """Which permissions new files do not get; there is no way to ask without setting it."""
    os.umask(mask := os.umask(0o077))
    return mask


def walk_once(
    folder: Path, onerror: Callable[[OSError], Any] | None = None
) -> Iterator[tuple[Path, list[str], list[str]]]:
    """`os.walk` that enters links too: each folder once, by a path without links if there is one.

    Args:
        folder: where it starts.
        onerror: called with the error of a folder that cannot be listed; by default it is passed over.

    Yields:
        Folder, names of its subfolders (those that the caller takes away are not entered), and of its files.
    """
    waiting, seen = deque([folder]), set()
    while waiting:
        for place, subfolders, files in os.walk(waiting.popleft(), onerror=onerror):
            status = os.stat(place)
            if (status.st_dev, status.st_ino) in seen:
                subfolders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            yield Path(place), subfolders, files
            waiting.extend(path for name in sorted(subfolders) if (path := Path(place, name)).is_symlink())


def check_room(folder: Path, n_bytes: int, *, what: str, remedy: str) -> None:
    """Refuse to fill a disk.

    Args:
        folder: where the bytes will lie; must exist.
        n_bytes: that will be written.
        what: what they are, plural.
        remedy: what makes them fewer.

    Raises:
        DataError: if the disk has less room.
    """
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        raise no_room(folder, n_bytes, f"has {free / 1e9:.2f} GB free", what=what, remedy=remedy)


def no_room(folder: Path, n_bytes: int, has: str, *, what: str, remedy: str) -> DataError:
    """The error to raise where a disk lacks room; `has` says what the folder has, all else is as in `check_room`."""
    return DataError(
        f"{what} need {n_bytes / 1e9:.2f} GB in {folder}, which {has}; make room, {remedy}, or set MEDKD_HOME to a "
        "copy of the project on a larger disk"
    )


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock file `path`; a second process that asks for it waits.

    Raises:
        BlockingIOError: another process holds it, and `wait` is False.
        FileNotFoundError: its folder is not there.
    """
    while True:
        with path.open("w") as handle:
            # released by the system when the process ends, however it ends
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_still(path, handle):  # who held it took the folder away, or another process made it anew
                continue
            yield
            return


def _is_still(path: Path, handle: IO[Any]) -> bool:
    """Whether the path leads to the open file."""
    try:
        return os.path.samestat(os.fstat(handle.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def locked_folder(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Make a folder and hold its lock; where it is taken away meanwhile, it is made again.

    Raises:
        BlockingIOError: as `locked`.
    """
    with ExitStack() as held:
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                held.enter_context(locked(folder / ".lock", wait=wait))
                break
            except FileNotFoundError:
                continue
        yield


def make_once(path: Path, write: Callable[[Path], Any]) -> None:
    """Make a file of a cache unless it is there, as `write_atomically` does; of several processes one makes it.

    What a process left that was killed is cleared up.
    """
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_suffix(".lock")):
        if not path.is_file():  # another process made it while this one waited
            for left in path.parent.glob(f".{path.name}.*.part"):
                left.unlink()
            write_atomically(path, write)


def digest_of(path: Path, kind: str = "sha256") -> str:
    """Hex digest of a file's content; `kind` is a name that hashlib knows."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def key_of(parts: Any, length: int = 16) -> str:
    """The first `length` hex digits of a digest over what JSON can hold, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:length]


def unwritable(folder: Path, error: OSError) -> DataError:
    """The error to raise where a folder cannot be written to."""
    remedy = "make room on its disk" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "give it write permission"
    return DataError(
        f"{folder} cannot be written to ({error.strerror}); {remedy}, or choose another folder (MEDKD_HOME, if it is "
        "one of the project's)"
    )


def existing_notebook(source: Path) -> Path:
    """The notebook, if it is there.

    Raises:
        DataError: it is not.
    """
    if not source.is_file():
        raise DataError(f"no notebook {source}; run the command in the project's folder or set MEDKD_HOME to it")
    return source
