"""One process of `medkd train`: `python -m medkd.stages.worker STAGE CONFIG`, alone or one of several.

Those of one machine are started by `local.py`, which adds the file they meet in; those of several by torchrun.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

from medkd import parallel
from medkd.errors import MedkdError


def main() -> None:
    """Run the stage; prints what was made, and ends with status 2 on bad input, 3 if training cannot go on."""
    from medkd.errors import TrainingError
    from medkd.stages.train import run_stage
    from medkd.training.stop import GO_ON

    stage, config, *store = sys.argv[1:]
    try:
        parallel.join(*store)
        for line in run_stage(stage, Path(config)):
            if parallel.is_main():
                print(line, flush=True)
    except MedkdError as error:
        if parallel.is_main() or isinstance(error, TrainingError):  # which the process alone knows that met it
            print(f"medkd: {error}", file=sys.stderr, flush=True)
        _end(3 if isinstance(error, TrainingError) else 2)
    except OSError as error:  # as the other commands tell it
        print(f"medkd: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr, flush=True)
        _end(2)
    except KeyboardInterrupt:
        if parallel.is_main():
            print(f"medkd: interrupted; {GO_ON}", file=sys.stderr, flush=True)
        _end(130)
    except SystemExit as request:  # of all, after a checkpoint
        _end(int(request.code or 0))
    except Exception:
        traceback.print_exc()
        _end(1)
    parallel.leave()


def _end(status: int) -> None:
    """End without taking leave of others: with NCCL that waits for them, who may wait for this process."""
    sys.stdout.flush()
    sys.stderr.flush()
    if parallel.world_size() > 1:
        os._exit(status)
    sys.exit(status)


def command(stage: str, config: str, devices: int, nodes: int, address: str, node: int) -> list[str]:
    """The command line that runs the stage in `devices` processes on each of `nodes` machines."""
    work = ["-m", "medkd.stages.worker", stage, config]
    if devices * nodes == 1:
        return [sys.executable, *work]
    if nodes == 1:
        return [sys.executable, "-m", "medkd.stages.local", str(devices), stage, config]
    where = [
        f"--nnodes={nodes}", f"--node-rank={node}", f"--master-addr={address.partition(':')[0]}",
        f"--master-port={address.partition(':')[2] or 29500}",
    ]  # fmt: skip
    return [sys.executable, "-m", "torch.distributed.run", *where, f"--nproc-per-node={devices}", *work]


if __name__ == "__main__":
    main()
