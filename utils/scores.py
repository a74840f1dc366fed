"""Scores: how far a set of generated slices is from real ones, and how far real universes are from each other.

Pure NumPy. Summaries of both sets come in (`summarise`), dictionaries of numbers go out. Every score is 0 for
identical sets and grows with the difference; next to each stands its noise floor, the score of other real universes.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from utils.summaries import (
    BRIGHT,
    MINKOWSKI_THRESHOLDS,
    PEAK_EDGES,
    Settings,
    Summary,
    check_comparable,
    pad_counts,
    summarise,
)

__all__ = ["DEFINITIONS", "NoiseFloor", "Summary", "noise_floor", "scorecard", "scores", "summarise"]

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
}
"""One line on each score."""

UNITS = dict.fromkeys(DEFINITIONS, "1") | {
    "chisq": "pixels",
    "chisq_pspect": "(particles per voxel)^2",
    "wasserstein": "particles per voxel",
}

SCORED_THRESHOLDS = (3.0, 10.0, 30.0, 100.0)
_SCORED = np.searchsorted(MINKOWSKI_THRESHOLDS, SCORED_THRESHOLDS)

_LOW, _HIGH = 16, 84  # percentiles of the interval around a noise floor


class _Means(NamedTuple):
    """Means over the slices of a set: what every score is a function of."""

    counts: np.ndarray  # (L,) pixels of each density, per slice
    power: np.ndarray  # (N/2,)
    power_s: np.ndarray  # (N/2,)
    peaks: np.ndarray  # (nbins,)
    minkowski: np.ndarray  # (3, nthresholds)


@dataclass(frozen=True)
class NoiseFloor:
    """The scores of real universes against other real universes; NaN where it cannot be known."""

    median: dict[str, float]
    low: dict[str, float]
    """16th percentile."""
    high: dict[str, float]
    """84th percentile."""
    basis: str
    """In words: what was resampled, and what that means for the numbers."""
    reliable: bool
    """Whether whole universes were resampled."""
    universes: int
    groups: int
    """Universes or blocks that were resampled."""
    slices: int
    """Number of slices that `chisq` counts."""
    repeats: int
    seed: int


def scores(generated: Summary, real: Summary) -> dict[str, float]:
    """Score generated slices against real ones.

    Parameters
    ----------
    generated, real : Summary
        Of the same settings.

    Returns
    -------
    dict of str to float
        By the names in `DEFINITIONS`. NaN where the real set leaves a score undefined (no bright pixels, no peaks, a
        functional that is zero at every threshold) or a summary was made without morphology.

    Raises
    ------
    ValueError
        Summaries of different settings.
    """
    check_comparable(generated, real)
    length = max(generated.counts.shape[1], real.counts.shape[1])
    slices = min(generated.slices.sum(), real.slices.sum())
    return _score(_means(generated, length), _means(real, length), real.settings, int(slices))


def noise_floor(real: Summary, repeats=200, seed=0) -> NoiseFloor:
    """Score real universes against other real universes.

    From the U universes at hand two sets are drawn with replacement, independently of each other, and scored as if
    one were generated; this is repeated. Each set has U − 1 draws: the mean of U − 1 draws from U universes scatters
    with variance s²/U, s² the unbiased variance between universes, exactly as the mean of U fresh universes does
    (with U draws the floor would come out too low by √(1 − 1/U)). So the floor is the score of U *other* real
    universes against these U, and a generator at ratio 1 is as far away as they would be; a generator without any
    error and with endless samples comes to about 1/√2, since then only the real set is noisy.

    Where few pixels decide a score, a handful of universes seldom holds the extremes: with three to six, other real
    universes were seen at ratios of 1.0 to 1.3.

    Slices of one universe share its structures, hence whole universes are drawn. With fewer than three universes
    blocks of slices within them are drawn instead, which is an indication only, and the result says so: what blocks
    have in common makes the floor too low; that they share a fixed mass, so that one has what the other lacks, makes
    it too high (in boxes of 128 Mpc/h up to 2.5 times). With fewer than three blocks every number is NaN.

    Parameters
    ----------
    real : Summary
        Held-back slices, with the universe of each.
    repeats : int
        Pairs of sets to draw.
    seed : int
        The same seed gives the same floor.

    Returns
    -------
    NoiseFloor
    """
    universes = len(np.unique(real.universe))
    groups, kind = real.groups()
    number = len(groups.slices)
    slices = int(real.slices.sum())
    if number < 3:
        basis = f"unknown: {universes} universe(s) in {number} block(s) are too few to see any scatter"
        table = {name: np.full(1, np.nan) for name in DEFINITIONS}
    else:
        basis = f"{universes} whole universes resampled with replacement, {number - 1} at a time"
        if kind == "blocks":
            basis = (
                f"{number} blocks of slices within {universes} universe(s), resampled with replacement: an indication"
                " only, for blocks of a universe share its structures (too low) and its fixed mass (too high)"
            )
        draws = np.random.default_rng(seed).multinomial(number - 1, np.full(number, 1 / number), size=(repeats, 2))
        length = groups.counts.shape[1]
        pairs = [[_means(groups, length, weights) for weights in pair] for pair in draws]
        rows = [_score(one, other, real.settings, slices) for one, other in pairs]
        table = {name: np.array([row[name] for row in rows]) for name in DEFINITIONS}
    return NoiseFloor(
        median={name: float(np.median(column)) for name, column in table.items()},
        low={name: float(np.percentile(column, _LOW)) for name, column in table.items()},
        high={name: float(np.percentile(column, _HIGH)) for name, column in table.items()},
        basis=basis,
        reliable=kind == "universes",
        universes=universes,
        groups=number,
        slices=slices,
        repeats=repeats,
        seed=seed,
    )


def scorecard(generated: Summary, real: Summary, floor: NoiseFloor) -> dict:
    """Everything a reader needs to judge a generator, ready for JSON (None where a number is unknown).

    Parameters
    ----------
    generated, real : Summary
        Of the same settings.
    floor : NoiseFloor
        Of the real set.

    Returns
    -------
    dict
        `scores`: for each score its value, noise floor, interval of the floor, ratio, unit and definition. `sets`:
        what was compared. `noise_floor`: how it was found. `pixels` and `minkowski`: the quantities behind scores.

    Raises
    ------
    ValueError
        Summaries of different settings.
    """
    values = scores(generated, real)
    # Of as many slices as the comparison itself: chisq is of counts and grows in proportion to them.
    scale = dict.fromkeys(DEFINITIONS, 1.0)
    scale["chisq"] = min(generated.slices.sum(), real.slices.sum()) / floor.slices
    table = {}
    for name, value in values.items():
        median, low, high = (side[name] * scale[name] for side in (floor.median, floor.low, floor.high))
        table[name] = {
            "value": _json(value),
            "noise_floor": _json(median),
            f"noise_floor_{_LOW}_{_HIGH}": [_json(low), _json(high)],
            "ratio": _json(value / median if median > 0 else np.nan),
            "unit": UNITS[name],
            "definition": DEFINITIONS[name],
        }
    settings = real.settings
    return {
        "scores": table,
        "sets": {
            "generated": {"slices": int(generated.slices.sum())},
            "real": {"slices": int(real.slices.sum()), "universes": len(np.unique(real.universe))},
            "pixels_per_side": settings.pixels,
            "pixel_size": {"value": settings.pixel_size, "unit": "Mpc/h"},
            "mean_density": {"value": settings.mean, "unit": "particles per voxel"},
            "a": {"value": settings.a, "unit": "particles per voxel"},
        },
        "noise_floor": {
            "meaning": (
                "the score of as many other real universes; ratio 1: as far from the real set as they are."
                " Fewer generated than real slices add noise of their own to the value, not to the floor"
            ),
            "basis": floor.basis,
            "reliable": floor.reliable,
            "universes": floor.universes,
            "repeats": floor.repeats,
            "seed": floor.seed,
        },
        "pixels": {"generated": _pixels(generated), "real": _pixels(real)},
        "minkowski": {"generated": _morphology(generated), "real": _morphology(real)},
    }


def _means(summary: Summary, length: int, weights=None) -> _Means:
    """Means over slices with each row taken `weights` times, the densities padded to `length`."""
    weights = np.ones(len(summary.slices)) if weights is None else weights
    slices = weights @ summary.slices

    def mean(sums):
        return np.tensordot(weights, sums, axes=1) / slices

    counts = pad_counts(mean(summary.counts), length)
    return _Means(counts, *(mean(sums) for sums in (summary.power, summary.power_s, summary.peaks, summary.minkowski)))


def _score(generated: _Means, real: _Means, settings: Settings, slices: int) -> dict[str, float]:
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
        "ks": float(np.abs(cumulative).max()),
        "wasserstein": float(np.abs(cumulative).sum() * settings.resolution),
        "bright_fraction": _rms_ratio(generated.counts[bright].sum(), real.counts[bright].sum()),
        "peaks": _divide(np.abs(generated.peaks - real.peaks).sum(), real.peaks.sum()),
        "minkowski_area": area,
        "minkowski_boundary": boundary,
        "minkowski_euler": euler,
    }


def _scored(generated: _Means, real: _Means) -> tuple[np.ndarray, np.ndarray]:
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


def _rms_ratio(generated, real) -> float:
    """Rms of generated/real − 1 where real is not zero; NaN where it is zero throughout."""
    generated, real = np.atleast_1d(generated), np.atleast_1d(real)
    used = real != 0
    if not used.any():
        return float("nan")
    return float(np.sqrt(np.mean((generated[used] / real[used] - 1.0) ** 2)))


def _divide(numerator, denominator) -> float:
    return float(numerator / denominator) if denominator != 0 else float("nan")


def _pixels(summary: Summary) -> dict:
    """Mean, bright fraction and brightest pixel of a set."""
    counts, values = summary.counts.sum(axis=0), summary.values
    return {
        "mean": _json(counts @ values / counts.sum()),
        "bright_fraction": _json(counts[values > BRIGHT].sum() / counts.sum()),
        "brightest": _json(values[counts > 0][-1]),
    }


def _morphology(summary: Summary) -> dict:
    """Minkowski functionals and peaks per slice of a set."""
    means = _means(summary, summary.counts.shape[1])
    curves = {
        name: [_json(value) for value in row]
        for name, row in zip(("area", "boundary", "euler"), means.minkowski, strict=True)
    }
    peaks = {"heights_from": PEAK_EDGES[:-1].tolist(), "per_slice": [_json(value) for value in means.peaks]}
    return {"thresholds": MINKOWSKI_THRESHOLDS.tolist(), **curves, "peaks": peaks}


def _json(value) -> float | None:
    """A number, or None for what JSON has no word for."""
    return float(value) if np.isfinite(value) else None
