"""Simulated cohorts with a documented generative model (docs/phantoms.md): no real patient is in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from medkd.data.cohort import Cohort
from medkd.data.phantoms import glioma, paired_skin, rare_skin

PHANTOMS: Mapping[str, Callable[..., Cohort]] = MappingProxyType(
    {
        "phantom-glioma": glioma.make,
        "phantom-glioma-600": glioma.make_600,
        "phantom-paired-skin": paired_skin.make,
        "phantom-rare-skin": rare_skin.make,
    }
)
