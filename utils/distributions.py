"""Distances between two one-dimensional distributions, each given as samples with or without weights. Pure NumPy."""

import numpy as np


def ks_distance(one, other, weights=None, other_weights=None, one_sided=False) -> float:
    """Kolmogorov-Smirnov distance: the largest difference of two cumulative distributions.

    Parameters
    ----------
    one, other : arrays of any shape
        Samples: pixels of two stacks, or distances. Infinity is allowed.
    weights, other_weights : arrays of the same shapes, optional
        Not negative, not all zero: such as counts of the samples, which then are the possible values.
    one_sided : bool
        The largest amount by which the cumulative distribution of `one` is *above* the other's: how far `one` lies at
        smaller values.

    Returns
    -------
    float
        Between 0 (equal distributions) and 1 (no overlap).

    Raises
    ------
    ValueError
        Empty or NaN samples, or weights of a wrong shape, negative, or without a positive sum.
    """
    _, gap = _cumulative_gap(one, other, weights, other_weights)
    return float(gap.max() if one_sided else np.abs(gap).max())  # the last gap is 0


def wasserstein_distance(one, other, weights=None, other_weights=None) -> float:
    """Wasserstein distance of order 1: the area between two cumulative distributions, in the unit of the samples.

    Equal to the least mean distance by which the mass of one distribution has to be moved to make the other.

    Parameters and errors are those of `ks_distance`; infinite samples give infinity or NaN.
    """
    values, gap = _cumulative_gap(one, other, weights, other_weights)
    return float(np.abs(gap[:-1]) @ np.diff(values))


def _cumulative_gap(one, other, weights, other_weights) -> tuple[np.ndarray, np.ndarray]:
    """All samples in ascending order, and the difference of the cumulative distributions at and after each."""
    (one, weights), (other, other_weights) = _weighted(one, weights), _weighted(other, other_weights)
    values = np.concatenate([one, other])
    order = np.argsort(values, kind="stable")
    values = values[order]
    last = np.append(values[1:] != values[:-1], True)  # of equal samples only the last has the whole step behind it
    # Summed apart, so that equal distributions come out at 0 exactly.
    steps = np.concatenate([weights, np.zeros(len(other))]), np.concatenate([np.zeros(len(one)), other_weights])
    below = [np.cumsum(side[order])[last] for side in steps]
    return values[last], below[0] / below[0][-1] - below[1] / below[1][-1]


def _weighted(samples, weights) -> tuple[np.ndarray, np.ndarray]:
    samples = np.asarray(samples, dtype=np.float64)
    weights = np.ones(samples.shape) if weights is None else np.asarray(weights, dtype=np.float64)
    if samples.size == 0 or np.isnan(samples).any():
        raise ValueError("a distribution needs samples, none of them NaN")
    if weights.shape != samples.shape or not (weights >= 0).all() or not 0 < weights.sum() < np.inf:
        raise ValueError("weights must be one number for each sample, not negative and not all zero")
    return samples.ravel(), weights.ravel()
