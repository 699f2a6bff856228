"""Fréchet distance between two sets of pictures in a feature space (Heusel et al. 2017, eq. 6).

Both sets are taken as Gaussian. The distance depends on the number of pictures: compare only what was measured with
the same numbers, as drawings against drawings with generated pictures against drawings.
"""

from __future__ import annotations

import numpy as np


def frechet_distance(a_NF: np.ndarray, b_MF: np.ndarray) -> float:
    """|mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) of features [N, F] and [M, F]."""
    a, b = np.asarray(a_NF, np.float64), np.asarray(b_MF, np.float64)
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root_a = _root(cov_a)
    # (C_a C_b)^(1/2) has the eigenvalues of the symmetric (C_a^(1/2) C_b C_a^(1/2))^(1/2), hence its trace.
    inner = np.linalg.eigvalsh(root_a @ cov_b @ root_a)
    shift = a.mean(0) - b.mean(0)
    return float(shift @ shift + np.trace(cov_a) + np.trace(cov_b) - 2 * np.sqrt(inner.clip(min=0)).sum())


def _root(symmetric: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(symmetric)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
