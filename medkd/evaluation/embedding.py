"""Two-dimensional embeddings of features for figures, alone or several methods in one plane."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING
from unittest.mock import patch

import numpy as np
from scipy.linalg import orthogonal_procrustes
from sklearn.metrics import silhouette_score
from sklearn.model_selection import GroupKFold
from threadpoolctl import ThreadpoolController

from medkd.compiled import keep_compiled
from medkd.errors import DataError, ParameterError
from medkd.evaluation.probes import neighbour_purity, unit_rows

if TYPE_CHECKING:
    from umap import UMAP

N_NEIGHBORS, MIN_DIST = 15, 0.1
ROTATION_FOLDS = 5


def umap_embedding(
    features: np.ndarray, *, seed: int = 0, n_neighbors: int = N_NEIGHBORS, min_dist: float = MIN_DIST
) -> np.ndarray:
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
    features = _checked(features)
    with _threads_kept():
        plane = _umap(len(features), seed, n_neighbors, min_dist).fit_transform(unit_rows(features))
    return plane.astype(np.float32)


def embed_together(
    features: Mapping[str, np.ndarray],
    reference: str,
    *,
    groups: np.ndarray | None = None,
    seed: int = 0,
    n_neighbors: int = N_NEIGHBORS,
    min_dist: float = MIN_DIST,
) -> dict[str, np.ndarray]:
    """Features of several methods on the same images in one plane: UMAP is fitted on `reference` once.

    Networks that were trained apart have no axes in common, so the L2-normalised features of each other method are
    rotated onto the reference's (see `rotated_onto`) and then transformed. The same seed gives the same bits on the
    same machine.

    Args:
        features: method -> shape (n, d), n >= 4, the same images in the same order; d may differ, the shorter ones
            are filled up with zeros.
        reference: method whose features UMAP is fitted on.
        groups: patient (or lesion) of each image, shape (n,); by default each image is its own group.
        seed: of the fit and of the transformations.
        n_neighbors: as `umap_embedding`.
        min_dist: as `umap_embedding`.

    Returns:
        Method -> shape (n, 2), float32. A point lies near those reference images that its method finds similar.

    Raises:
        ParameterError: if `reference` is not among the methods.
        DataError: if features are too few or not finite, or methods differ in the number of images.
    """
    if reference not in features:
        raise ParameterError(f'reference = "{reference}" is not among the methods {", ".join(features)}; name one')
    found = {method: unit_rows(_checked(values)) for method, values in features.items()}
    n, widest = len(found[reference]), max(values.shape[1] for values in found.values())
    if odd := [method for method, values in found.items() if len(values) != n]:
        raise DataError(
            f'methods in one plane need the same images, but "{odd[0]}" has {len(found[odd[0]])} and the reference '
            f'"{reference}" has {n}; pass the rows that all methods have in common'
        )
    found = {method: np.pad(values, ((0, 0), (0, widest - values.shape[1]))) for method, values in found.items()}
    with _threads_kept():
        fit = _umap(n, seed, n_neighbors, min_dist)
        plane = {reference: fit.fit_transform(found[reference])}
        for method, values in found.items():
            if method != reference:
                plane[method] = fit.transform(rotated_onto(found[reference], values, groups))
    return {method: plane[method].astype(np.float32) for method in features}


def rotated_onto(reference: np.ndarray, features: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
    """Features turned towards the reference's by orthogonal Procrustes, each image by a rotation found without it.

    A rotation leaves all distances as they are. One that is found on the very images it turns would still mislead:
    with fewer images than dimensions it carries even random features into the classes of the reference. So there are
    five rotations, each found on four fifths of the groups and used on the other fifth.

    Args:
        reference: shape (n, d).
        features: shape (n, d), the same images in the same order.
        groups: patient (or lesion) of each image, shape (n,); where there is only one, each image is its own group.

    Returns:
        Shape (n, d), in the dtype of `features`.
    """
    if groups is None or len(np.unique(groups)) < 2:
        groups = np.arange(len(features))
    turned = np.empty_like(features)
    folds = GroupKFold(min(ROTATION_FOLDS, len(np.unique(groups))))
    for others, own in folds.split(features, groups=groups):
        rotation, _ = orthogonal_procrustes(features[others], reference[others])
        turned[own] = features[own] @ rotation
    return turned


def quality(features: np.ndarray, coordinates: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """How well labels are separated in the L2-normalised features and in the plane that stands for them.

    Args:
        features: shape (n, d).
        coordinates: of `umap_embedding` or `embed_together`, shape (n, 2).
        labels: class (or site, or patient) of each row, shape (n,).

    Returns:
        silhouette_features, silhouette_plane (-1..1, Euclidean; nan where there is one label only or every row has its
        own), purity_features, purity_plane (share of the nearest neighbours with the same label, 0..1; ten neighbours,
        or as many as the most frequent label has to offer, so that 1 is within reach of small groups).

    Source:
        Rousseeuw 1987, Journal of Computational and Applied Mathematics 20 (silhouette).
    """
    _, labels, sizes = np.unique(np.asarray(labels, dtype=str), return_inverse=True, return_counts=True)
    spaces = {"features": unit_rows(features), "plane": coordinates}
    known, k = 2 <= len(sizes) < len(labels), max(1, min(10, sizes.max() - 1))
    silhouettes = {
        f"silhouette_{name}": float(silhouette_score(points, labels)) if known else float("nan")
        for name, points in spaces.items()
    }
    return silhouettes | {f"purity_{name}": neighbour_purity(points, labels, k) for name, points in spaces.items()}


def _checked(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, dtype=np.float32)
    if features.ndim != 2 or len(features) < 4 or features.shape[1] < 2:
        raise DataError(f"UMAP needs features (n, d) with n >= 4 and d >= 2; got shape {features.shape}")
    if not np.isfinite(features).all():
        raise DataError("UMAP needs finite features, but some are nan or infinite; look at the training loss")
    return features


def _umap(n: int, seed: int, n_neighbors: int, min_dist: float) -> UMAP:
    with _compiled_code_kept():
        from umap import UMAP  # takes seconds to import, so only those who draw pay for it

    return UMAP(
        n_components=2,
        n_neighbors=min(n_neighbors, n - 1),
        min_dist=min_dist,
        init="pca",
        random_state=seed,
        transform_seed=seed,
        n_jobs=1,  # a seed forces one thread anyway; saying so avoids UMAP's warning
    )


@contextmanager
def _threads_kept() -> Iterator[None]:
    """Give torch and BLAS back the threads that they had: numba's OpenMP layer takes all cores, for them too."""
    before = {library.filepath: library.num_threads for library in ThreadpoolController().lib_controllers}
    try:
        yield
    finally:
        for library in ThreadpoolController().lib_controllers:
            if library.filepath in before:
                library.set_num_threads(before[library.filepath])


@contextmanager
def _compiled_code_kept() -> Iterator[None]:
    """What is imported here keeps on disk what numba compiles for it, see `keep_compiled`.

    UMAP asks for it nowhere: it compiles the same 12 s of code in each process. What is computed has the same bits.
    """
    import numba

    keep_compiled(find_spec("umap").origin)
    keep = partial(numba.jit, cache=True)
    with patch("numba.jit", keep), patch("numba.core.decorators.jit", keep):
        yield
