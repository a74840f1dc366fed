"""The two sides of a comparison: real slices read and summarised, generated slices summarised as they are drawn.

Curves and distributions take in every slice, in batches. What compares slices with slices (`utils.likeness`) looks at
a part of each set that fits in memory, spread over all universes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from utils.likeness import Likeness, compare_slices
from utils.noise import PERMUTED_UNIVERSES
from utils.similarity import coarse
from utils.slices import SliceSet
from utils.summaries import BLOCKS, Summary, natural_resolution, summarise
from utils.transforms import transform

_BATCH = 512  # real slices read at once
_KEPT_BYTES = 2**28  # of densities kept in memory of each set
_KEPT_SLICES = 4096  # the work of comparing all with all grows with the square
_TRAINING_SLICES = 8192  # training slices that neighbours are looked for in, spread over all universes
_PAIRED_PIXELS = 2**24  # in slices paired for MS-SSIM, which scatters more from pair to pair where slices are small
GENERATED_BLOCKS = 32  # parts of the generated set behind its bootstrap bands


@dataclass(frozen=True, eq=False)
class Real:
    """Held-back slices, and the training slices beside them."""

    summary: Summary
    images: np.ndarray
    """(m, N, N) densities of the slices that are kept."""
    universe: np.ndarray
    """(m,) int64, group of each: its universe or, with fewer than three of them, its block."""
    training: np.ndarray
    """(t, M, M) float32, training slices, s, averaged over blocks of pixels."""
    training_rows: np.ndarray
    """(t,) int64, their rows in the training file."""


@dataclass(frozen=True, eq=False)
class Generated:
    """Generated slices."""

    summary: Summary
    images: np.ndarray
    """(m, N, N) float32, densities of the first slices."""


def read_real(slices: SliceSet, training: SliceSet, a: float, number: int) -> Real:
    """Summarise `number` slices spread over all universes (all, where there are fewer).

    Parameters
    ----------
    slices, training : SliceSet
        Held-back and training slices of equal size.
    a : float
        Density that maps to s = 0 (`datascale`).
    number : int
    """
    rows = slices.rows_spread(number)
    universe = np.zeros(len(rows), np.int64) if slices.universe is None else slices.universe[rows].astype(np.int64)
    # Blocks of neighbouring slices in each universe, told here because a universe may span batches.
    first = np.searchsorted(universe, universe)
    block = (np.arange(len(rows)) - first) * BLOCKS // np.bincount(universe)[universe]
    summary, resolution = None, None
    for start in range(0, len(rows), _BATCH):
        part = slice(start, start + _BATCH)
        images = slices.read(rows[part])
        resolution = resolution or natural_resolution(images)
        added = summarise(images, a, slices.pixel_size, training.mean, universe[part], block[part], resolution)
        summary = added if summary is None else summary + added
    kept = _spread(len(rows), _limit(slices.dim))
    group = universe[kept] if summary.groups()[1] == "universes" else universe[kept] * BLOCKS + block[kept]
    training_rows = training.rows_spread(_TRAINING_SLICES)
    known = [
        coarse(transform(training.read(training_rows[start : start + _BATCH]), a))
        for start in range(0, len(training_rows), _BATCH)
    ]
    return Real(summary, slices.read(rows[kept]), group, np.concatenate(known), training_rows)


def take_generated(batches: Iterator[np.ndarray], number: int, real: Real) -> Generated:
    """Summarise `number` generated slices as the real ones were, and keep as many as are kept of those."""
    settings, summary, kept, done = real.summary.settings, None, [], 0
    for images in batches:
        block = (done + np.arange(len(images))) * GENERATED_BLOCKS // number
        added = summarise(
            images,
            settings.a,
            settings.pixel_size,
            settings.mean,
            block=block,
            resolution=settings.resolution,
        )
        summary = added if summary is None else summary + added
        kept.append(images[: max(0, len(real.images) - done)])
        done += len(images)
    return Generated(summary, np.concatenate(kept))


def compare(generated: Generated, real: Real) -> Likeness:
    """Compare slices with slices; across the two sets too where universes are enough to permute them."""
    cross = len(np.unique(real.summary.universe)) >= PERMUTED_UNIVERSES
    return compare_slices(
        generated.images,
        real.images,
        real.summary.settings.a,
        real.universe,
        training=real.training,
        pairs=_pairs(real.images.shape[-1]),
        cross=cross,
    )


def _limit(pixels: int) -> int:
    """How many slices are kept of each set; never so few that nothing could be said."""
    return max(64, min(_KEPT_SLICES, _KEPT_BYTES // (4 * pixels**2)))


def _pairs(pixels: int) -> int:
    """How many pairs of generated slices are drawn for MS-SSIM."""
    return max(1000, min(4096, _PAIRED_PIXELS // pixels**2))


def _spread(number: int, limit: int) -> np.ndarray:
    """At most `limit` of `number` row numbers, evenly spread."""
    return np.arange(min(number, limit)) * number // min(number, limit)
