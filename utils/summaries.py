"""What is kept of a set of slices: sums per universe from which scores, noise floors and figures are made.

Pure NumPy. A `Summary` is small (tens of kilobytes per universe) and summaries add, so that sets larger than memory
are summarised in batches: `summarise(first, ...) + summarise(second, ...)`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from utils.statistics import (
    equilateral_bispectrum,
    minkowski_functionals,
    orientation_coherence,
    peak_counts,
    power_spectrum,
    ring_power,
    wave_numbers,
)
from utils.transforms import transform

TOP_VALUE = 32767  # particles per voxel, the largest int16; brighter pixels are counted here
BRIGHT = 100.0  # pixels above this many particles are called bright
PEAK_EDGES = np.array([0, 2, 4, 8, 16, 32, 64, 128, np.inf])  # particles per voxel
MINKOWSKI_THRESHOLDS = np.array([1, 2, 3, 5, 10, 20, 30, 50, 100, 200], dtype=np.float64)  # particles per voxel
BLOCKS = 8  # parts of a universe, see `summarise`

_SUMS = (
    *("slices", "mass", "counts", "power", "power_squares", "power_s"),
    *("bispectrum", "peaks", "minkowski", "orientation"),
)
_BOOTSTRAPS = 200  # resampled sets behind the band of a curve


@dataclass(frozen=True)
class Settings:
    """What two summaries must have in common to be added or compared."""

    pixels: int  # per side
    a: float  # density that maps to s = 0
    pixel_size: float  # [Mpc/h]
    mean: float  # density that the overdensity refers to
    resolution: float  # densities are rounded to multiples of this before they are counted


class Curve(NamedTuple):
    """A mean curve and how well it is known."""

    mean: np.ndarray
    scatter: np.ndarray
    """Standard deviation between universes (or blocks of slices); NaN for a single one."""
    low: np.ndarray
    """16th percentile of the mean over resampled universes (or blocks); NaN for a single one."""
    high: np.ndarray
    """84th percentile."""
    kind: str
    """What the scatter is between: "universes" or "blocks"."""


@dataclass(frozen=True, eq=False)
class Summary:
    """Sums over the slices of a set; one row per universe and block within it, R rows.

    Densities are in particles per voxel, N is the number of pixels per side. Build with `summarise`, add with `+`.
    """

    settings: Settings
    universe: np.ndarray
    """(R,) int64, label of the universe."""
    block: np.ndarray
    """(R,) int64, label of the block within the universe."""
    slices: np.ndarray
    """(R,) int64, number of slices."""
    mass: np.ndarray
    """(R,) float64, sum over slices of the mean density."""
    counts: np.ndarray
    """(R, L) int64, pixels of density 0, 1, 2, ... times the resolution."""
    power: np.ndarray
    """(R, N/2) float64, sum of P(k) of the overdensity [(Mpc/h)²]."""
    power_squares: np.ndarray
    """(R, N/2) float64, sum of its square."""
    power_s: np.ndarray
    """(R, N/2) float64, sum of P(k) of the field s, not divided by its mean [(Mpc/h)²]."""
    bispectrum: np.ndarray
    """(R, (N − 1)//3) float64, sum of the equilateral bispectrum of the overdensity [(Mpc/h)⁴]."""
    peaks: np.ndarray
    """(R, len(PEAK_EDGES) − 1) float64, sum of the peak counts."""
    minkowski: np.ndarray
    """(R, 3, len(MINKOWSKI_THRESHOLDS)) float64, sum over slices of the functionals per pixel."""
    orientation: np.ndarray
    """(R, 2) float64, sum over slices of what `utils.statistics.orientation_coherence` gives for the field s."""

    def __add__(self, other: "Summary") -> "Summary":
        """The summary of both sets together; rows of the same universe and block are added."""
        check_comparable(self, other)
        length = max(self.counts.shape[1], other.counts.shape[1])
        sums = {name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in _SUMS if name != "counts"}
        sums["counts"] = np.concatenate([pad_counts(self.counts, length), pad_counts(other.counts, length)])
        labels = np.stack(
            [np.concatenate([self.universe, other.universe]), np.concatenate([self.block, other.block])]
        )  # (2, R)
        return _merge(self.settings, labels, sums)

    def by_universe(self) -> "Summary":
        """The same sums with the blocks of every universe added up: one row per universe."""
        return self.regrouped(self.universe)

    def regrouped(self, universe: np.ndarray) -> "Summary":
        """The same sums with rows of equal label (R,) added up, the labels being the universes of the result."""
        labels = np.stack([universe, np.zeros_like(self.block)])
        return _merge(self.settings, labels, {name: getattr(self, name) for name in _SUMS})

    @property
    def k(self) -> np.ndarray:
        """(N/2,) wave numbers of the power spectra [h/Mpc]."""
        return wave_numbers(self.settings.pixels, self.settings.pixel_size)

    @property
    def values(self) -> np.ndarray:
        """(L,) densities that `counts` refers to."""
        return np.arange(self.counts.shape[1]) * self.settings.resolution

    def groups(self) -> tuple["Summary", str]:
        """What the scatter of real universes is measured on: one row per universe, or, below three, per block."""
        universes = self.by_universe()
        return (universes, "universes") if len(universes.slices) >= 3 else (self, "blocks")

    def curve(self, name) -> Curve:
        """Mean over the slices of "power", "power_s", "bispectrum", "peaks" or "minkowski", in the units above."""
        groups, kind = self.groups()
        return _curve(getattr(groups, name), groups.slices, kind)

    def power_scatter(self) -> np.ndarray:
        """(2, N/2) lower and upper end of the range that holds 68 % of the slices' P(k) [(Mpc/h)²].

        The range of the log-normal distribution that has the mean and the variance of the slices: power is positive
        and skewed, so that mean − deviation would reach zero on large scales. NaN where the mean power is zero.
        """
        mean, mean_square = (total.sum(axis=0) / self.slices.sum() for total in (self.power, self.power_squares))
        variance = np.maximum(mean_square - mean**2, 0.0)
        relative = np.divide(variance, mean**2, out=np.full_like(mean, np.nan), where=mean > 0)
        median, sigma = mean / np.sqrt(1.0 + relative), np.sqrt(np.log1p(relative))
        return np.stack([median * np.exp(-sigma), median * np.exp(sigma)])

    def histogram_curve(self, edges) -> Curve:
        """Fraction of the pixels per unit of density, (nbins,) [voxels per particle].

        Divided by the number of densities in each bin that pixels can have (multiples of the resolution), not by the
        distance between the edges, so that narrow bins show the data and not how many integers a bin holds. Bins
        without any are NaN. Bins are closed on the left, and densities outside the edges are left out.
        """
        edges, resolution = np.asarray(edges, dtype=np.float64), self.settings.resolution
        first = np.ceil(edges / resolution).astype(np.int64)  # the first density at or above each edge
        width = np.diff(first) * resolution
        width = np.where(width > 0, width, np.nan)

        groups, kind = self.groups()
        below = np.cumsum(np.pad(groups.counts, ((0, 0), (1, 0))), axis=1)  # (G, L + 1)
        binned = np.diff(below[:, np.clip(first, 0, groups.counts.shape[1])], axis=1) / width
        return _curve(binned / self.settings.pixels**2, groups.slices, kind)


def summarise(
    images,
    a,
    pixel_size=1.0,
    mean=1.0,
    universe=None,
    block=None,
    resolution=1.0,
    bispectrum=True,
) -> Summary:
    """Summarise a set of slices.

    Power spectra are of the densities as they are. For everything else densities are first rounded to multiples of
    `resolution`: the pixels of simulated universes are integers, and the same question must be put to both sets.

    Parameters
    ----------
    images : (n, N, N) array, N even
        Densities [particles per voxel].
    a : float
        Density that maps to s = 0 (`datascale`).
    pixel_size : float
        Side of a pixel [Mpc/h].
    mean : float
        Mean density of the training set, which the overdensity refers to.
    universe : (n,) integers, optional
        Universe of each slice. By default all slices are of one.
    block : (n,) integers, optional
        Block of each slice within its universe, as far from the other blocks as may be: what a noise floor falls back
        on where universes are too few. By default each universe's slices are divided, in the order given, into eight.
        Give it yourself where one universe comes in several batches.
    resolution : float
        1 for particle counts; smaller, such as 1/64, only where the real densities are no integers.
    bispectrum : bool
        False leaves out the bispectrum, which costs as much as all the rest; its score is NaN.

    Raises
    ------
    ValueError
        As for `utils.statistics.power_spectrum`; also negative densities or labels of the wrong length.
    """
    images = np.asarray(images)
    power = power_spectrum(images, pixel_size, mean).power  # checks the images too
    universe = _labels("universe", universe, len(images))
    block = blocks_within(universe) if block is None else _labels("block", block, len(images))
    settings = Settings(images.shape[-1], float(a), float(pixel_size), float(mean), float(resolution))

    labels, row = np.unique(np.stack([universe, block]), axis=1, return_inverse=True)
    rows = [_sums(images[row == index], power[row == index], settings, bispectrum) for index in range(labels.shape[1])]
    length = max(len(sums["counts"]) for sums in rows)
    for sums in rows:
        sums["counts"] = pad_counts(sums["counts"], length)
    return Summary(settings, *labels, **{name: np.stack([sums[name] for sums in rows]) for name in _SUMS})


def check_comparable(one: Summary, other: Summary) -> None:
    """Refuse two summaries whose settings differ (`ValueError`)."""
    if one.settings != other.settings:
        raise ValueError(f"summaries of different settings: {one.settings} and {other.settings}")


def blocks_within(universe: np.ndarray) -> np.ndarray:
    """Divide the slices of each universe, in their order, into BLOCKS contiguous parts of about equal size.

    Labels (n,) in any order, blocks (n,) int64 from 0 to BLOCKS − 1.
    """
    block = np.empty(len(universe), np.int64)
    for label in np.unique(universe):
        here = universe == label
        count = np.count_nonzero(here)
        block[here] = np.arange(count) * BLOCKS // count
    return block


def pad_counts(counts: np.ndarray, length: int) -> np.ndarray:
    """`counts` (..., L) with zeros appended up to `length` densities."""
    return np.pad(counts, [(0, 0)] * (counts.ndim - 1) + [(0, length - counts.shape[-1])])


def natural_resolution(images) -> float:
    """The resolution to count real densities with: 1 where all of them are whole particles, finer otherwise."""
    images = np.asarray(images)
    return 1.0 if images.dtype.kind in "iu" or np.array_equal(images, np.rint(images)) else 1.0 / 8.0


def whole_numbers(images, resolution=1.0) -> np.ndarray:
    """Densities rounded to whole multiples of `resolution`, int32; densities above TOP_VALUE count as it.

    Raises
    ------
    ValueError
        Negative densities, or a resolution that is not positive.
    """
    if not 0.0 < resolution < np.inf:
        raise ValueError(f"the resolution must be positive and finite, not {resolution}")
    images = np.asarray(images)
    if images.min() < 0:
        raise ValueError(f"densities must not be negative, but the smallest is {images.min()}")
    if images.dtype.kind in "iu":
        images = images.astype(np.int64)  # the smallest types cannot be compared with TOP_VALUE
    images = np.minimum(images, TOP_VALUE)
    if images.dtype.kind == "f" or resolution != 1.0:
        images = np.rint(images / resolution)
    return images.astype(np.int32)


def _sums(images, power, settings: Settings, bispectrum) -> dict[str, np.ndarray]:
    """The sums over the slices of one row, by name."""
    numbers = whole_numbers(images, settings.resolution)
    scale_s = (settings.pixel_size / settings.pixels) ** 2
    triangles = np.full((len(images), (settings.pixels - 1) // 3), np.nan)
    if bispectrum:
        triangles = equilateral_bispectrum(images, settings.pixel_size, settings.mean).bispectrum
    return {
        "slices": np.int64(len(images)),
        "mass": images.mean(axis=(1, 2), dtype=np.float64).sum(),
        "counts": np.bincount(numbers.ravel()),
        "power": power.sum(axis=0),
        "power_squares": (power**2).sum(axis=0),
        "power_s": scale_s * ring_power(transform(images, settings.a)).sum(axis=0),
        "bispectrum": triangles.sum(axis=0),
        "peaks": peak_counts(numbers, PEAK_EDGES / settings.resolution) * len(images),
        "minkowski": minkowski_functionals(numbers, MINKOWSKI_THRESHOLDS / settings.resolution) * len(images),
        "orientation": orientation_coherence(transform(numbers * settings.resolution, settings.a)).sum(axis=0),
    }


def _curve(sums: np.ndarray, slices: np.ndarray, kind: str) -> Curve:
    """The mean curve of groups, from their sums (G, ...) over slices (G,), and how it scatters."""
    number = len(sums)
    mean = sums.sum(axis=0) / slices.sum()
    if number < 2:
        unknown = np.full_like(mean, np.nan)
        return Curve(mean, unknown, unknown, unknown, kind)
    scatter = (sums / slices.reshape(-1, *[1] * mean.ndim)).std(axis=0, ddof=1)
    # One draw fewer than there are groups makes the variance of the resampled mean that of the mean itself.
    draws = np.random.default_rng(0).multinomial(number - 1, np.full(number, 1 / number), size=_BOOTSTRAPS)
    means = np.tensordot(draws, sums, axes=1) / (draws @ slices).reshape(-1, *[1] * mean.ndim)
    low, high = np.percentile(means, (16, 84), axis=0)
    return Curve(mean, scatter, low, high, kind)


def _merge(settings: Settings, labels: np.ndarray, sums: dict[str, np.ndarray]) -> Summary:
    """Add the rows that have the same labels (2, R)."""
    labels, row = np.unique(labels, axis=1, return_inverse=True)
    merged = {}
    for name, values in sums.items():
        merged[name] = np.zeros((labels.shape[1], *values.shape[1:]), dtype=values.dtype)
        np.add.at(merged[name], row, values)
    return Summary(settings, *labels, **merged)


def _labels(what: str, labels, slices: int) -> np.ndarray:
    if labels is None:
        return np.zeros(slices, dtype=np.int64)
    labels = np.asarray(labels)
    if labels.shape != (slices,) or labels.dtype.kind not in "iu":
        raise ValueError(f"{what} must be one integer for each of {slices} slices, not {labels.dtype} {labels.shape}")
    return labels.astype(np.int64)
