"""Stacks of images (n, N, N): checked once, worked through in batches, so that memory stays bounded."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

_BATCH_PIXELS = 2**18  # 2 MiB in float64: the few copies that a statistic makes stay in the processor's cache
_THREADS = min(8, os.cpu_count() or 1)


def checked(images, even=False) -> np.ndarray:
    """Refuse what is no stack of square, real images. Pixel values are checked batch by batch."""
    images = np.asarray(images)
    if images.dtype.kind not in "biuf":
        raise ValueError(f"images must be integers or floating-point numbers, not {images.dtype}")
    if images.ndim != 3 or images.shape[1] != images.shape[2]:
        raise ValueError(f"images must be a stack of square slices (n, N, N), not of shape {images.shape}")
    if images.size == 0:
        raise ValueError(f"there are no pixels in a stack of shape {images.shape}")
    if even and images.shape[-1] % 2:
        raise ValueError(f"the power spectrum needs an even number of pixels per side, not {images.shape[-1]}")
    return images


def batches(images: np.ndarray) -> Iterator[np.ndarray]:
    """Consecutive parts of a checked stack, small enough for work on several copies of each."""
    step = max(1, _BATCH_PIXELS // images[0].size)
    for start in range(0, len(images), step):
        batch = images[start : start + step]
        if batch.dtype.kind == "f" and not np.isfinite(batch).all():
            raise ValueError(f"NaN or infinite pixels in images {start} to {start + len(batch) - 1}")
        yield batch


def map_batches(function: Callable[[np.ndarray], np.ndarray], images: np.ndarray) -> list:
    """Results of a function of each batch of a checked stack, in order; threads share the batches among them.

    NumPy and SciPy let go of Python's lock while they work on a batch. No result depends on the number of threads.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(function, batches(images)))


def map_parts(function: Callable[[slice], np.ndarray], number: int, size: int) -> list:
    """Results of a function of consecutive slices of `number` things, `size` at a time, in order, in threads."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(function, (slice(start, start + size) for start in range(0, number, size))))


def mean_of(images: np.ndarray) -> float:
    """Mean of all pixels of a checked stack."""
    return float(sum(map_batches(lambda batch: batch.sum(dtype=np.float64), images)) / images.size)


def checked_edges(edges) -> np.ndarray:
    """Edges of bins as a (nbins + 1,) float64 array; `ValueError` where they are not strictly increasing."""
    edges = np.asarray(edges, dtype=np.float64)
    if edges.ndim != 1 or len(edges) < 2 or not (np.diff(edges) > 0).all():
        raise ValueError(f"edges must be at least two strictly increasing numbers, not {edges}")
    return edges


def positive(what: str, value) -> float:
    """A number as a float; `ValueError`, naming what it is, where it is not positive and finite."""
    value = float(value)
    if not 0.0 < value < np.inf:
        raise ValueError(f"{what} must be positive and finite, not {value}")
    return value
