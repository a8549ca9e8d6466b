"""The first call of a notebook: style, cohort and the place where figures and tables go."""

from __future__ import annotations

import os
from importlib.metadata import version

from medkd.data.cohort import Cohort
from medkd.paths import reports_dir
from medkd.report.artifacts import Artifacts
from medkd.report.index import forget
from medkd.report.plan import CHAINS
from medkd.report.status import follow_trainings
from medkd.report.style import use_style
from medkd.stages.context import check_chain, cohort_for
from medkd.stages.params import StageParams


def begin(params: StageParams) -> tuple[Cohort, Artifacts]:
    """The cohort that the parameters name, and the artefacts of this stage on it; prints what runs on what.

    Raises:
        DataError: the cohort cannot be read, see `medkd.data.registry.load_cohort`.
        ParameterError: it belongs to another chain than the notebook.
    """
    import torch

    use_style()
    follow_trainings()
    check_chain(params, *(name for name, stages in CHAINS.items() if params.stage in stages))
    cohort = cohort_for(params)
    folder, stage = reports_dir() / params.report, f"{params.stage}.{params.dataset}"
    forget(folder, stage)
    out = Artifacts(folder, stage, simulated=cohort.simulated)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"
    print(f"medkd {version('medkd')}, torch {torch.__version__}, {device}")
    print(
        f"{cohort.label_text}: {len(cohort)} samples of {cohort.table['patient'].nunique()} {cohort.group}s, "
        f"content {cohort.fingerprint}"
    )
    return cohort, out
