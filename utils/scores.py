"""Scores: how far a set of generated slices is from real ones, and how far real universes are from each other.

Pure NumPy. Summaries of both sets come in (`summarise`), and what `utils.likeness` found by comparing slices with
slices; dictionaries of numbers go out. Every score is 0 for identical sets and grows with the difference; next to each
stands its noise floor, the score of other real universes.
"""

from typing import NamedTuple

import numpy as np

from utils import likeness as slicewise
from utils.likeness import Likeness, likeness_scores
from utils.summaries import (
    BRIGHT,
    MINKOWSKI_THRESHOLDS,
    Settings,
    Summary,
    check_comparable,
    pad_counts,
)

DEFINITIONS = {
    "chisq": (
        "sum over bins of (h_gen - h_real)^2 / h_real, pixel histograms in 25 equal bins of the real range, last five"
        " bins dropped, bins empty in the real set skipped; counts of as many slices as the smaller set has"
    ),
    "chisq_pspect": (
        "sum over rings of (P_gen - P_real)^2 / P_real, P the mean over slices of the unnormalised |FFT|^2 of the"
        " density, rings 1 to N/2 around the zero frequency"
    ),
    "pspect_rms": "rms over rings of P_gen / P_real - 1, P the mean power spectrum of the density",
    "pspect_rms_s": "the same for the power spectrum of s = 2x/(x+a) - 1, in which faint structure counts",
    "bispectrum": (
        "rms over rings of Q_gen - Q_real, over the rms of Q_real: 1 where generated phases are random; Q = B / (3 P^2)"
        " of the mean equilateral bispectrum and the mean power spectrum"
    ),
    "mean_density": "|mean_gen / mean_real - 1|, of all pixels",
    "ks": "Kolmogorov-Smirnov distance: largest difference of the cumulative distributions of pixel density",
    "wasserstein": "Wasserstein distance of the pixel distributions: mean density that has to be moved times how far",
    "bright_fraction": f"|f_gen / f_real - 1|, f the fraction of pixels with a density above {BRIGHT:g}",
    "peaks": (
        "sum over bins of height of |n_gen - n_real|, over the sum of n_real; n the mean number per slice of pixels"
        " above all eight neighbours"
    ),
    "minkowski_area": "rms over thresholds of A_gen / A_real - 1, A the area of the set above a threshold",
    "minkowski_boundary": "the same for the length of its boundary",
    "minkowski_euler": "the same for its Euler characteristic (components minus holes)",
    "filaments": (
        "|c_gen / c_real - 1|, c the coherence of orientation of s: the part of its gradients that lie along one line,"
        " which is large where structures are drawn out and small where they are clumps"
    ),
    **slicewise.DEFINITIONS,
}
"""One line on each score; the last three need a `Likeness`."""

UNITS = dict.fromkeys(DEFINITIONS, "1") | {
    "chisq": "pixels",
    "chisq_pspect": "(particles per voxel)^2",
    "wasserstein": "particles per voxel",
}

SQUARES = ("chisq", "chisq_pspect")
"""Scores that grow with the square of a deviation."""

FAMILIES = {
    "pixels": ("mean_density", "ks", "wasserstein", "bright_fraction"),
    "clustering": ("pspect_rms", "pspect_rms_s", "bispectrum"),
    "morphology": ("peaks", "minkowski_area", "minkowski_boundary", "minkowski_euler", "filaments"),
    "originality": tuple(slicewise.DEFINITIONS),
}
"""What the figure of merit is made of."""

SCORED_THRESHOLDS = (3.0, 10.0, 30.0, 100.0)
_SCORED = np.searchsorted(MINKOWSKI_THRESHOLDS, SCORED_THRESHOLDS)


class Means(NamedTuple):
    """Means over the slices of a set: what every score is a function of."""

    mass: np.ndarray  # (), density
    counts: np.ndarray  # (L,) pixels of each density, per slice
    power: np.ndarray  # (N/2,)
    power_s: np.ndarray  # (N/2,)
    bispectrum: np.ndarray  # ((N - 1)//3,)
    peaks: np.ndarray  # (nbins,)
    minkowski: np.ndarray  # (3, nthresholds)
    orientation: np.ndarray  # (2,)


def scores(generated: Summary, real: Summary, likeness: Likeness | None = None) -> dict[str, float]:
    """Score generated slices against real ones.

    Parameters
    ----------
    generated, real : Summary
        Of the same settings.
    likeness : Likeness, optional
        Of both sets, from `utils.likeness.compare_slices`.

    Returns
    -------
    dict of str to float
        By the names in `DEFINITIONS`, the last three with `likeness` only. NaN where the real set leaves a score
        undefined (no bright pixels, no peaks, a functional that is zero at every threshold) or a summary was made
        without the bispectrum.

    Raises
    ------
    ValueError
        Summaries of different settings.
    """
    check_comparable(generated, real)
    length = max(generated.counts.shape[1], real.counts.shape[1])
    slices = min(generated.slices.sum(), real.slices.sum())
    found = score_means(means(generated, length), means(real, length), real.settings, int(slices))
    if likeness is not None:
        found |= likeness_scores(likeness, likeness.generated, ~likeness.generated)
    return found


def ratio_to_floor(name: str, value: float, floor: float) -> float:
    """How many times as far as other real universes a score is; NaN without a floor.

    Score over noise floor; for the two chi-squares, which are sums of squares, the root of that, so that twice the
    deviation doubles every ratio.
    """
    if not floor > 0:
        return float("nan")
    return float((value / floor) ** (0.5 if name in SQUARES else 1.0))


def figure_of_merit(ratios: dict[str, float | None]) -> float:
    """One number for a generator: how many times as far from the real slices as other real universes are.

    The geometric mean over the families of `FAMILIES` of the geometric mean of max(ratio, 1) of their scores. Ratios,
    since they have no unit and know how well each score can be known; geometric, so that halving any ratio counts the
    same; at least 1, since to be nearer than other real universes is luck and must not pay for a fault elsewhere;
    families, so that a statistic does not count more for having more siblings. 1 is perfect; real universes
    themselves come to about 1.3, six against six.

    Parameters
    ----------
    ratios : dict of str to float or None
        By the names in `DEFINITIONS`; unknown ones (None, NaN, missing) are left out.

    Returns
    -------
    float
        NaN where no ratio is known.
    """
    logarithms = []
    for names in FAMILIES.values():
        known = [ratios[name] for name in names if ratios.get(name) is not None and np.isfinite(ratios[name])]
        if known:
            logarithms.append(np.mean(np.log(np.maximum(known, 1.0))))
    return float(np.exp(np.mean(logarithms))) if logarithms else float("nan")


def means(summary: Summary, length: int, weights=None) -> Means:
    """Means over slices with each row taken `weights` times, the densities padded to `length`."""
    weights = np.ones(len(summary.slices)) if weights is None else weights
    return Means(*(total / (weights @ summary.slices) for total in sums_of(summary, weights, length)))


def sums_of(summary: Summary, weights, length: int) -> list[np.ndarray]:
    """Sums over slices with each row taken `weights` times, in the order of `Means`."""
    sums = {name: np.tensordot(weights, getattr(summary, name), axes=1) for name in Means._fields}
    return list((sums | {"counts": pad_counts(sums["counts"], length)}).values())


def score_means(generated: Means, real: Means, settings: Settings, slices: int) -> dict[str, float]:
    """All scores; see `DEFINITIONS`. `slices` is the number that chisq counts."""
    values = np.arange(len(real.counts)) * settings.resolution
    cumulative = np.cumsum(generated.counts - real.counts) / settings.pixels**2
    bright = values > BRIGHT
    # |FFT of the density|² from P(k) of the overdensity, see utils.statistics.power_spectrum.
    unnormalised = (settings.pixels * settings.mean / settings.pixel_size) ** 2
    area, boundary, euler = (_rms_ratio(*pair) for pair in zip(*_scored(generated, real), strict=True))
    return {
        "chisq": _chisq(values, generated.counts * slices, real.counts * slices),
        "chisq_pspect": unnormalised * _chi_squared(generated.power, real.power),
        "pspect_rms": _rms_ratio(generated.power, real.power),
        "pspect_rms_s": _rms_ratio(generated.power_s, real.power_s),
        "bispectrum": _bispectrum_distance(generated, real),
        "mean_density": _rms_ratio(generated.mass, real.mass),
        "ks": float(np.abs(cumulative).max()),
        "wasserstein": float(np.abs(cumulative).sum() * settings.resolution),
        "bright_fraction": _rms_ratio(generated.counts[bright].sum(), real.counts[bright].sum()),
        "peaks": _divide(np.abs(generated.peaks - real.peaks).sum(), real.peaks.sum()),
        "minkowski_area": area,
        "minkowski_boundary": boundary,
        "minkowski_euler": euler,
        "filaments": _rms_ratio(*(_divide(*side.orientation) for side in (generated, real))),
    }


def _scored(generated: Means, real: Means) -> tuple[np.ndarray, np.ndarray]:
    """Minkowski functionals (3, 4) of both at the thresholds that are scored."""
    return generated.minkowski[:, _SCORED], real.minkowski[:, _SCORED]


def _chisq(values, generated, real, bins=25, dropped=5) -> float:
    """The old suite's histogram score, from pixel counts per density."""
    seen = values[real > 0]
    edges = np.histogram_bin_edges(seen[[0, -1]], bins)
    histograms = [np.histogram(values, edges, weights=counts)[0][:-dropped] for counts in (generated, real)]
    return _chi_squared(*histograms)


def _chi_squared(generated, real) -> float:
    """Σ (generated − real)²/real where real is not zero."""
    used = real > 0
    return float(np.sum((generated[used] - real[used]) ** 2 / real[used]))


def _bispectrum_distance(generated: Means, real: Means) -> float:
    """Rms difference of the reduced bispectra over the rms of the real one, in the rings that have power in both."""
    rings = len(real.bispectrum)
    squares = [3.0 * side.power[:rings] ** 2 for side in (generated, real)]
    used = (squares[0] > 0) & (squares[1] > 0)
    reduced, other = (
        side.bispectrum[used] / square[used] for side, square in zip((generated, real), squares, strict=True)
    )
    return float(np.sqrt(_divide(np.sum((reduced - other) ** 2), np.sum(other**2))))


def _rms_ratio(generated, real) -> float:
    """Rms of generated/real − 1 where real is not zero; NaN where it is zero throughout."""
    generated, real = np.atleast_1d(generated), np.atleast_1d(real)
    used = real != 0
    if not used.any():
        return float("nan")
    return float(np.sqrt(np.mean((generated[used] / real[used] - 1.0) ** 2)))


def _divide(numerator, denominator) -> float:
    return float(numerator / denominator) if denominator != 0 else float("nan")
