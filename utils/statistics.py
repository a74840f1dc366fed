"""Summary statistics of stacks of slices: power spectrum, pixel histogram, peaks, Minkowski functionals.

The bispectrum, filaments, the likeness of images (MS-SSIM, nearest neighbours) and distances of distributions have
modules of their own and can be imported from here. Pure NumPy and SciPy. Images are (n, N, N), of any integer or
floating type, and are worked through in batches, so that memory stays bounded and a memory-mapped stack is never read
as a whole. The result for one image does not depend on the images beside it.
"""

import functools
from typing import NamedTuple

import numpy as np
import scipy.fft
import scipy.sparse

from utils.bispectrum import Bispectrum, equilateral_bispectrum
from utils.distributions import ks_distance, wasserstein_distance
from utils.filaments import orientation_coherence
from utils.similarity import Neighbours, coarse, ms_ssim, ms_ssim_diversity, nearest_neighbours
from utils.stacks import checked, checked_edges, map_batches, mean_of, positive

__all__ = [
    "Bispectrum",
    "Neighbours",
    "PowerSpectrum",
    "coarse",
    "equilateral_bispectrum",
    "ks_distance",
    "minkowski_functionals",
    "ms_ssim",
    "ms_ssim_diversity",
    "nearest_neighbours",
    "orientation_coherence",
    "peak_counts",
    "pixel_histogram",
    "power_spectrum",
    "ring_power",
    "wasserstein_distance",
    "wave_numbers",
]


class PowerSpectrum(NamedTuple):
    """Ring-averaged power spectra of n images of N pixels a side."""

    k: np.ndarray
    """(N/2,) float64, wave number of the rings [h/Mpc]."""
    power: np.ndarray
    """(n, N/2) float64, power of each image [(Mpc/h)²]."""
    modes: np.ndarray
    """(N/2,) int64, FFT cells in each ring; half of them are independent, the image being real."""


def power_spectrum(images, pixel_size=1.0, mean=None, window=None) -> PowerSpectrum:
    """Power spectrum of the overdensity x/x̄ − 1 of each image.

    P = dx²/N² · |FFT|² / ⟨w²⟩, averaged in rings n = 1 … N/2 of the cells whose distance from the zero frequency
    rounds to n; k = 2πn/(N·dx). The distance is the root of an integer and therefore never half-way between rings.
    Cells of the corners beyond N/2 belong to no ring.

    Negative pixels are allowed (a linear Gaussian field has them); the mean must be positive.

    Parameters
    ----------
    images : (n, N, N) array, N even
        Densities.
    pixel_size : float
        Side of a pixel, dx [Mpc/h].
    mean : float, optional
        Mean density x̄, usually of the training set; by default the mean of this stack.
    window : None, "hann", (N,) or (N, N) array
        Weights w multiplied onto the overdensity. Slices are not periodic, so without a window power leaks between
        rings. (N,) means the outer product with itself.

    Returns
    -------
    PowerSpectrum
        A named tuple `k` (N/2,), `power` (n, N/2), `modes` (N/2,). Constant images have power 0 without a window.

    Raises
    ------
    ValueError
        Images of a wrong shape or type, odd N, NaN or infinite pixels, a mean or pixel size that is not positive,
        or a window of the wrong shape.
    """
    images = checked(images, even=True)
    pixels = images.shape[-1]
    if mean is None:
        mean = mean_of(images)
    mean = positive("the mean density", mean)
    pixel_size = positive("the pixel size", pixel_size)

    scale = (pixel_size / (pixels * mean)) ** 2
    power = scale * ring_power(images, offset=mean, window=window)
    return PowerSpectrum(wave_numbers(pixels, pixel_size), power, ring_matrix(pixels).modes)


def ring_power(fields, offset=0.0, window=None) -> np.ndarray:
    """Unnormalised power |FFT(w·(field − offset))|² / ⟨w²⟩ of each field, averaged in the rings of `power_spectrum`.

    Parameters
    ----------
    fields : (n, N, N) array, N even
        Any real fields.
    offset : float
        Subtracted first. Without a window it changes nothing but rounding, because no ring holds the zero frequency.
    window : None, "hann", (N,) or (N, N) array
        As for `power_spectrum`.

    Returns
    -------
    (n, N/2) float64 array
        In units of the field squared.

    Raises
    ------
    ValueError
        As for `power_spectrum`.
    """
    fields = checked(fields, even=True)
    pixels = fields.shape[-1]
    weights = _window(window, pixels)
    rings = ring_matrix(pixels)

    def powers(batch):
        batch = np.subtract(batch, offset, dtype=np.float64)
        if weights is not None:
            batch *= weights
        amplitudes = scipy.fft.rfft2(batch, overwrite_x=True)  # (b, N, N/2 + 1)
        parts = amplitudes.view(np.float64).reshape(len(batch), -1)  # real, imaginary, real, ...
        np.square(parts, out=parts)
        return np.stack([rings.average @ squares for squares in parts[:, ::2] + parts[:, 1::2]])

    return np.concatenate(map_batches(powers, fields))


def wave_numbers(pixels, pixel_size=1.0) -> np.ndarray:
    """Wave numbers k = 2πn/(N·dx) [h/Mpc] of the rings n = 1 … N/2, for N `pixels` of `pixel_size` [Mpc/h].

    The last one is the Nyquist wave number π/dx.
    """
    return 2.0 * np.pi * np.arange(1, pixels // 2 + 1) / (pixels * pixel_size)


def pixel_histogram(images, edges) -> np.ndarray:
    """Count the pixels of a stack in bins of value; values outside the edges are counted in the end bins.

    Bins are closed on the left and open on the right, the last one closed, as in `numpy.histogram`.

    Parameters
    ----------
    images : (n, N, N) array
        Densities.
    edges : (nbins + 1,) array
        Strictly increasing, evenly spaced or not.

    Returns
    -------
    (nbins,) int64 array
        Counts over the whole stack; their sum is the number of pixels.

    Raises
    ------
    ValueError
        Images of a wrong shape or type, NaN or infinite pixels, or edges that do not increase.
    """
    images = checked(images)
    edges = checked_edges(edges)

    def below(batch):
        # Sorting and looking up the few edges is faster than looking up every pixel, and exact.
        return np.searchsorted(np.sort(batch, axis=None), edges[1:-1])

    inner = np.sum(map_batches(below, images), axis=0)  # pixels below each edge
    return np.diff(np.concatenate([[0], inner, [images.size]]))


def peak_counts(images, edges) -> np.ndarray:
    """Mean number of peaks per image, binned by height.

    A peak is a pixel strictly above all its eight neighbours; pixels on the border of an image are no peaks, and
    neither are plateaus. Bins are those of `numpy.histogram`: peaks outside the edges are not counted, and infinite
    edges are allowed.

    Parameters
    ----------
    images : (n, N, N) array
        Densities; make them integers first where they stand beside integer data.
    edges : (nbins + 1,) array
        Strictly increasing heights.

    Returns
    -------
    (nbins,) float64 array
        Peaks per image.

    Raises
    ------
    ValueError
        As for `pixel_histogram`.
    """
    images = checked(images)
    edges = checked_edges(edges)

    def peaks(batch):
        return np.histogram(batch[:, 1:-1, 1:-1][are_peaks(batch)], edges)[0]

    return np.sum(map_batches(peaks, images), axis=0) / len(images)


def are_peaks(images: np.ndarray) -> np.ndarray:
    """Which pixels, of those not on the border, are strictly above all their eight neighbours.

    Parameters
    ----------
    images : (n, N, N) array

    Returns
    -------
    (n, N - 2, N - 2) bool array
    """
    inner = images[:, 1:-1, 1:-1]
    above = np.ones(inner.shape, dtype=bool)
    for row, column in np.ndindex(3, 3):
        if (row, column) != (1, 1):
            above &= inner > images[:, row : row + inner.shape[1], column : column + inner.shape[2]]
    return above


def minkowski_functionals(images, thresholds) -> np.ndarray:
    """Minkowski functionals of the excursion sets {image ≥ threshold}, per pixel and averaged over the stack.

    Row 0, area: fraction of the pixels inside. Row 1, boundary length: π/4 × pairs of edge neighbours of which one is
    inside and one outside (π/4 corrects the length of a staircase, on average over directions); the frame of the image
    is no boundary. Row 2, Euler characteristic, components minus holes with 4-connected components: pixels −
    neighbour pairs + full 2 × 2 blocks.

    Parameters
    ----------
    images : (n, N, N) array
        Densities; make them integers first where they stand beside integer data.
    thresholds : (nthresholds,) array
        Densities.

    Returns
    -------
    (3, nthresholds) float64 array
        Area, boundary length [1/pixel] and Euler characteristic [1/pixel²], each per pixel.

    Raises
    ------
    ValueError
        Images of a wrong shape or type, NaN or infinite pixels, or thresholds that are no list of numbers.
    """
    images = checked(images)
    thresholds = np.asarray(thresholds, dtype=np.float64)
    if thresholds.ndim != 1 or np.isnan(thresholds).any():
        raise ValueError(f"thresholds must be a list of numbers, not {thresholds}")

    def functionals(batch):
        area, boundary, euler = result = np.zeros((3, len(thresholds)), dtype=np.int64)
        # np.float64 thresholds are compared exactly; a Python float would first be rounded to the type of the images.
        for index, threshold in enumerate(thresholds):
            inside = batch >= threshold
            rows = inside[:, 1:] & inside[:, :-1]
            columns = inside[:, :, 1:] & inside[:, :, :-1]
            blocks = rows[:, :, 1:] & rows[:, :, :-1]
            area[index] += np.count_nonzero(inside)
            boundary[index] += np.count_nonzero(inside[:, 1:] != inside[:, :-1])
            boundary[index] += np.count_nonzero(inside[:, :, 1:] != inside[:, :, :-1])
            pairs = np.count_nonzero(rows) + np.count_nonzero(columns)
            euler[index] += np.count_nonzero(inside) - pairs + np.count_nonzero(blocks)
        return result

    area, boundary, euler = np.sum(map_batches(functionals, images), axis=0)
    return np.stack([area, np.pi / 4.0 * boundary, euler]) / images.size


class Rings(NamedTuple):
    average: scipy.sparse.csr_array  # (N/2, N·(N/2 + 1)): the mean over each ring, from the half plane of rfft2
    modes: np.ndarray  # (N/2,) int64, cells in each ring of the full plane


@functools.lru_cache(maxsize=4)
def ring_matrix(pixels: int) -> Rings:
    """The ring of every cell of the half plane that `rfft2` gives, as a sparse averaging matrix."""
    rows = np.rint(np.fft.fftfreq(pixels, 1.0 / pixels))  # signed integer frequencies, zero first
    columns = np.arange(pixels // 2 + 1)
    ring = np.rint(np.hypot(rows[:, np.newaxis], columns)).astype(np.int64).ravel()
    # The half plane stands for the full one: its columns count twice, except frequency 0 and Nyquist (N even).
    twice = np.where((columns == 0) | (columns == pixels // 2), 1, 2)
    multiplicity = np.broadcast_to(twice, (pixels, len(columns))).ravel()

    cells = np.flatnonzero((ring >= 1) & (ring <= pixels // 2))
    ring, multiplicity = ring[cells] - 1, multiplicity[cells]
    modes = np.zeros(pixels // 2, dtype=np.int64)
    np.add.at(modes, ring, multiplicity)
    modes.flags.writeable = False  # shared through the cache
    shape = (pixels // 2, pixels * len(columns))
    return Rings(scipy.sparse.csr_array((multiplicity / modes[ring], (ring, cells)), shape=shape), modes)


def _window(window, pixels: int) -> np.ndarray | None:
    """The weights (N, N), scaled to ⟨w²⟩ = 1, or None."""
    if window is None:
        return None
    if isinstance(window, str):
        if window != "hann":
            raise ValueError(f'the window must be None, "hann" or an array, not "{window}"')
        # Sampled at pixel centres: no pixel is lost, and flips and quarter turns of the image change nothing.
        window = np.sin(np.pi * (np.arange(pixels) + 0.5) / pixels) ** 2
    window = np.asarray(window, dtype=np.float64)
    if window.ndim == 1:
        window = np.outer(window, window)
    if window.shape != (pixels, pixels):
        raise ValueError(f"the window must have shape ({pixels},) or ({pixels}, {pixels}), not {window.shape}")
    mean_square = np.mean(window**2)
    return window / np.sqrt(positive("the mean square of the window", mean_square))
