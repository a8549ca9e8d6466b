"""Parts of a batch on several threads, one core each: torch's own threads meet after every small operation."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier

import torch


def in_parts(work: Callable[[slice], None], n: int, largest: int, smallest: int) -> None:
    """Call `work` on slices that together are 0..n, in several threads; each uses one core.

    Where a machine is busy this is about ten times faster than torch's threads inside every operation: those wait for
    the slowest one each time.

    Args:
        work: what is done with a part; parts may run at the same time, and what they give must not depend on the cut.
        n: rows in all.
        largest: rows of a part, at most.
        smallest: a part is not cut further for the sake of more threads if it would have fewer rows.
    """
    n_threads = torch.get_num_threads()
    n_parts = max(-(-n // largest), min(n_threads, n // max(smallest, 1)), 1)
    edges = [n * number // n_parts for number in range(n_parts + 1)]
    parts = [slice(start, end) for start, end in zip(edges, edges[1:], strict=False)]
    if n_parts == 1 or n_threads == 1:
        for part in parts:
            work(part)
        return
    inference = torch.is_inference_mode_enabled()  # of the calling thread; each thread has its own

    def attempt(part: slice) -> None:
        with torch.inference_mode(inference):
            work(part)

    list(_pool(n_threads).map(attempt, parts))


@cache
def _pool(n_threads: int) -> ThreadPoolExecutor:
    """Threads whose operations use one core each."""
    pool = ThreadPoolExecutor(n_threads, "medkd-part", initializer=_take_one_core)
    ready = Barrier(n_threads + 1)
    for _ in range(n_threads):
        pool.submit(ready.wait)
    ready.wait()
    torch.set_num_threads(n_threads)  # back to what it was here; a thread keeps what it has taken
    return pool


def _take_one_core() -> None:
    """Make this thread's operations use one core."""
    torch.set_num_threads(1)
    torch.get_num_threads()  # a thread takes the number that is set when it first asks, and would take a later one


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork
