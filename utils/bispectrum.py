"""Equilateral bispectrum of stacks of images: the lowest statistic that sees phases, and so filaments.

Pure NumPy and SciPy; images are (n, N, N), of any integer or floating type, and are worked through in batches.
"""

import functools
from typing import NamedTuple

import numpy as np
import scipy.fft

from utils.stacks import checked, map_batches, mean_of, positive


class Bispectrum(NamedTuple):
    """Equilateral bispectra of n images of N pixels a side, in M = (N − 1)//3 rings."""

    k: np.ndarray
    """(M,) float64, wave number of the rings [h/Mpc], those of `utils.statistics.power_spectrum`."""
    bispectrum: np.ndarray
    """(n, M) float64, bispectrum of each image [(Mpc/h)⁴]."""
    triangles: np.ndarray
    """(M,) int64, ordered triples of FFT cells in each ring that close to a triangle."""


def equilateral_bispectrum(images, pixel_size=1.0, mean=None) -> Bispectrum:
    """Bispectrum of the overdensity δ = x/x̄ − 1 of each image, for triangles of three equally long wave vectors.

    B(k) = dx⁴/N² · ⟨δ(k₁) δ(k₂) δ(k₃)⟩, δ(k) the FFT, averaged over all triples of cells of ring n with
    k₁ + k₂ + k₃ = 0; the rings are those of the power spectrum, and real and exactly periodic fields of Gaussian
    statistics give 0. The sum over triples is taken as Scoccimarro (2000, arXiv:astro-ph/0004086) does, in two
    dimensions: the ring is filtered out, transformed back, and the mean of its cube is divided by the mean cube of
    the same filter applied to ones, which counts the triangles.

    The cube of a field that holds wave numbers up to n reaches 3n; beyond 3n = N − 1 it would alias, so the rings are
    n = 1 … M = (N − 1)//3, k = 2πn/(N·dx) up to N/3 · 2π/(N·dx). For the same reason a grid of 3n + 1 points holds
    everything about ring n, which makes the small rings cheap.

    Parameters
    ----------
    images : (n, N, N) array, N even, at least 4
        Densities; negative values are allowed.
    pixel_size : float
        Side of a pixel, dx [Mpc/h].
    mean : float, optional
        Mean density x̄, usually of the training set; by default the mean of this stack.

    Returns
    -------
    Bispectrum
        A named tuple `k` (M,), `bispectrum` (n, M), `triangles` (M,). Constant images have bispectrum 0.

    Raises
    ------
    ValueError
        Images of a wrong shape or type, odd N or N below 4, NaN or infinite pixels, or a mean or pixel size that is
        not positive.
    """
    images = checked(images, even=True)
    pixels = images.shape[-1]
    if pixels < 4:
        raise ValueError(f"the bispectrum needs at least 4 pixels per side, not {pixels}")
    if mean is None:
        mean = mean_of(images)
    mean, pixel_size = positive("the mean density", mean), positive("the pixel size", pixel_size)
    rings = (pixels - 1) // 3
    triangles = np.array([_triangles(ring) for ring in range(1, rings + 1)])

    def cubes(batch):
        contrast = np.divide(batch, mean, dtype=np.float64) - 1.0
        amplitudes = scipy.fft.rfft2(contrast, overwrite_x=True)  # (b, N, N/2 + 1)
        return np.stack([_sum_over_triangles(amplitudes, ring) for ring in range(1, rings + 1)], axis=1)

    sums = np.concatenate(map_batches(cubes, images))
    k = 2.0 * np.pi * np.arange(1, rings + 1) / (pixels * pixel_size)
    return Bispectrum(k, pixel_size**4 / pixels**2 * sums / triangles, triangles)


def _sum_over_triangles(amplitudes: np.ndarray, ring: int) -> np.ndarray:
    """Σ a(k₁) a(k₂) a(k₃) over the ordered triples of a ring that add up to zero: (b, ≥ n, > n) -> (b,).

    `amplitudes` is the half plane of a real transform, its rows by signed frequency as FFTs order them.
    """
    side, mask = _filter(ring)
    part = np.zeros((len(amplitudes), side, side // 2 + 1), dtype=amplitudes.dtype)
    part[:, : ring + 1, : ring + 1] = amplitudes[:, : ring + 1, : ring + 1] * mask[: ring + 1]
    part[:, -ring:, : ring + 1] = amplitudes[:, -ring:, : ring + 1] * mask[ring + 1 :]
    # norm="forward": the field is the plain sum of its waves, so that the mean of its cube is the sum over triples.
    field = scipy.fft.irfft2(part, s=(side, side), norm="forward", overwrite_x=True)
    return np.einsum("nij,nij->n", field * field, field) / side**2


@functools.lru_cache(maxsize=512)
def _filter(ring: int) -> tuple[int, np.ndarray]:
    """Side of the grid for a ring, and its cells (2n + 1, n + 1) in rows 0 … n, −n … −1 and columns 0 … n."""
    side = scipy.fft.next_fast_len(3 * ring + 1, real=True)
    rows = np.concatenate([np.arange(ring + 1), np.arange(-ring, 0)])
    return side, np.rint(np.hypot(rows[:, np.newaxis], np.arange(ring + 1))) == ring


@functools.lru_cache(maxsize=512)
def _triangles(ring: int) -> int:
    """Number of ordered triples of cells of a ring that add up to zero."""
    ones = np.ones((1, 2 * ring + 1, ring + 1), dtype=np.complex128)
    return int(np.rint(_sum_over_triangles(ones, ring)[0]))
