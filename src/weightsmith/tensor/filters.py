"""Health of convolution filters (Gavrikov and Keuper, 2022, arXiv:2203.15331)."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from weightsmith.tensor.arrays import Array

SILENT = 0.01  # of the layer's largest magnitude: a filter all below it counts as sparse


class FilterHealth(NamedTuple):
    """Figures of one convolution.

    Attributes:
        sparsity: Share of filters whose entries all lie below SILENT times the layer's largest magnitude.
        entropy: Entropy, to base 10, of how the filters' variance spreads over its principal directions.
        entropy_ratio: That over what as many random filters have: about 0.9 is healthy, near 0 redundant, 1 or more random. For
            filters of 3 x 3 alone, else None.
        orthogonality: 1 minus the mean magnitude of cosines between output channels, 0 beside a channel of zeros; None for
            a single channel.
    """

    sparsity: float
    entropy: float
    entropy_ratio: float | None
    orthogonality: float | None


def is_convolution(shape: tuple[int, ...]) -> bool:
    """Tell whether a tensor is taken as a convolution: (out, in, ...) with a kernel of more than one entry, not depthwise."""
    return len(shape) > 2 and shape[0] > 0 and shape[1] > 1 and math.prod(shape[2:]) > 1


def random_entropy(filters: int) -> float:
    """Return the entropy that so many random filters of 3 x 3 have, as the paper fits it.

    >>> round(random_entropy(10**6), 3)
    0.951
    """
    return 1.2618047 / (1 + math.exp(-0.88767525 * (math.log2(filters) - 2.30436435))) - 0.31050834


def filter_health(weights: Array) -> FilterHealth:
    """Return the figures of a convolution's weights, (out, in, ...); all are the same for any scale of the weights."""
    shape = weights.shape
    filters = weights.reshape(shape[0] * shape[1], -1).astype(np.float64)
    largest = float(np.abs(filters).max())
    silent = (np.abs(filters) < SILENT * largest).all(1) if largest > 0 else np.ones(len(filters), bool)
    centered = filters - filters.mean(0)
    squares = np.clip(np.linalg.eigvalsh(centered.T @ centered), 0, None)
    total = float(squares.sum())
    shares = squares[squares > 1e-12 * total] / total if total > 0 else np.ones(1)
    entropy = max(0.0, float(-(shares * np.log10(shares)).sum()))
    expected = random_entropy(len(filters)) if filters.shape[1] == 9 else None
    return FilterHealth(
        float(silent.mean()),
        entropy,
        entropy / expected if expected is not None and expected > 0 else None,
        _orthogonality(filters.reshape(shape[0], -1)),
    )


def _orthogonality(channels: Array) -> float | None:
    count = len(channels)
    if count < 2:
        return None
    lengths = np.sqrt((channels * channels).sum(1, keepdims=True))
    unit = np.divide(channels, lengths, out=np.zeros_like(channels), where=lengths > 0)
    cosines = np.abs(unit @ unit.T)
    np.fill_diagonal(cosines, 0.0)
    return 1 - float(cosines.sum()) / (count * (count - 1))
