"""Two-dimensional embedding of features for figures."""

from __future__ import annotations

import numpy as np

from medkd.errors import DataError
from medkd.evaluation.probes import unit_rows


def umap_embedding(features: np.ndarray, *, seed: int = 0, n_neighbors: int = 15, min_dist: float = 0.1) -> np.ndarray:
    """UMAP of L2-normalised features; the same seed gives the same bits on the same machine.

    It starts from the principal components: UMAP's own spectral start has been reported to differ from fit to fit on
    well separated classes, in spite of a seed (lmcinnes/umap#544).

    Args:
        features: shape (n, d), n >= 4, d >= 2.
        seed: of the optimisation; a seeded UMAP runs on one thread.
        n_neighbors: size of the neighbourhood that is preserved, clipped to n - 1.
        min_dist: smallest distance of embedded points, in units of the embedding, >= 0.

    Returns:
        Shape (n, 2), float32. Distances between clusters carry no meaning.

    Raises:
        DataError: if the features are too few or not finite.

    Source:
        McInnes, Healy, Melville 2018, arXiv:1802.03426.
    """
    features = np.asarray(features, dtype=np.float32)
    if features.ndim != 2 or len(features) < 4 or features.shape[1] < 2:
        raise DataError(f"UMAP needs features (n, d) with n >= 4 and d >= 2; got shape {features.shape}")
    if not np.isfinite(features).all():
        raise DataError("UMAP needs finite features, but some are nan or infinite; look at the training loss")
    from umap import UMAP  # takes seconds to import (numba), so only those who draw pay for it

    fit = UMAP(
        n_components=2,
        n_neighbors=min(n_neighbors, len(features) - 1),
        min_dist=min_dist,
        init="pca",
        random_state=seed,
        n_jobs=1,  # a seed forces one thread anyway; saying so avoids UMAP's warning
    )
    return fit.fit_transform(unit_rows(features)).astype(np.float32)
