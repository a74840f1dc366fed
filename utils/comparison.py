"""The two sides of a comparison: real slices read and summarised, generated slices summarised as they are drawn.

Curves and distributions take in every slice, in batches. What compares slices with slices (`utils.likeness`) looks at
a part of each set that fits in memory, spread over all universes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.likeness import Likeness, compare_slices
from utils.noise import PERMUTED_UNIVERSES
from utils.slices import SliceSet
from utils.summaries import BLOCKS, Summary, blocks_within, natural_resolution, summarise
from utils.training_search import Places, PlaneSearch, SliceSearch

_BATCH = 512  # real slices read at once
_KEPT_BYTES = 2**28  # of densities kept in memory of each set
_KEPT_SLICES = 4096  # the work of comparing all with all grows with the square
_PAIRED_PIXELS = 2**24  # in slices paired for MS-SSIM, which scatters more from pair to pair where slices are small
GENERATED_BLOCKS = 32  # parts of the generated set behind its bootstrap bands, at least


class Known(NamedTuple):
    """What of a set was looked for in the training set, and where it was found."""

    rows: np.ndarray
    """(k,) int64, which of the slices that are kept."""
    places: Places


@dataclass(frozen=True, eq=False)
class Real:
    """Held-back slices, and the search through the training slices."""

    path: Path
    redshift: float | None
    summary: Summary
    images: np.ndarray
    """(m, N, N) densities of the slices that are kept."""
    universe: np.ndarray
    """(m,) int64, group of each: its universe or, with fewer than three of them, its block."""
    search: PlaneSearch | SliceSearch | None
    known: Known | None
    """Without a search nothing is known."""


@dataclass(frozen=True, eq=False)
class Generated:
    """Generated slices."""

    summary: Summary
    images: np.ndarray
    """(m, N, N) float32, densities of the first slices."""
    known: Known | None


def read_real(
    slices: SliceSet, mean: float, a: float, number: int, search: PlaneSearch | SliceSearch | None = None
) -> Real:
    """Summarise `number` slices spread over all universes (all, where there are fewer).

    Parameters
    ----------
    slices : SliceSet
        Held-back slices.
    mean : float
        Density of the training set, which overdensities refer to [particles per voxel].
    a : float
        Density that maps to s = 0 (`datascale`).
    number : int
    search : PlaneSearch or SliceSearch, optional
        Of `utils.training_search`.
        Without it the score `memorisation` is unknown.

    Raises
    ------
    UserError
        As for `utils.slices.SliceSet.read`.
    """
    rows = slices.rows_spread(number)
    universe = np.zeros(len(rows), np.int64) if slices.universe is None else slices.universe[rows].astype(np.int64)
    block = blocks_within(universe)  # told here because a universe may span batches
    kept = _spread(len(rows), _limit(slices.dim))
    images = slices.read(rows[kept])
    resolution = natural_resolution(images)
    summary = None
    for start in range(0, len(rows), _BATCH):
        part = slice(start, start + _BATCH)
        added = summarise(slices.read(rows[part]), a, slices.pixel_size, mean, universe[part], block[part], resolution)
        summary = added if summary is None else summary + added
    group = universe[kept] if summary.groups()[1] == "universes" else universe[kept] * BLOCKS + block[kept]
    return Real(slices.path, slices.redshift, summary, images, group, search, _look_for(images, search))


def take_generated(batches: Iterator[np.ndarray], number: int, real: Real) -> Generated:
    """Summarise `number` generated slices as the real ones were, and keep as many as are kept of those.

    Parameters
    ----------
    batches : iterator of (m, N, N) arrays
        Densities [particles per voxel], `number` in all.
    number : int
    real : Real

    Raises
    ------
    ValueError
        As for `utils.summaries.summarise`.
    """
    settings, summary, kept, done = real.summary.settings, None, [], 0
    # As many in each of as many groups as there are real universes, which `utils.noise.p_values` makes of them.
    universes = len(np.unique(real.summary.universe))
    blocks = universes * -(-GENERATED_BLOCKS // universes)
    for images in batches:
        block = (done + np.arange(len(images))) * blocks // number
        added = summarise(
            images,
            settings.a,
            settings.pixel_size,
            settings.mean,
            block=block,
            resolution=settings.resolution,
        )
        summary = added if summary is None else summary + added
        if done < len(real.images):
            kept.append(images[: len(real.images) - done].copy())  # of a part alone, a view would keep the whole
        done += len(images)
    images = np.concatenate(kept)
    return Generated(summary, images, _look_for(images, real.search))


def compare(generated: Generated, real: Real) -> Likeness:
    """Compare slices with slices; across the two sets too where universes are enough to permute them."""
    cross = len(np.unique(real.summary.universe)) >= PERMUTED_UNIVERSES
    distance = np.full(len(generated.images) + len(real.images), np.nan, np.float32)
    for first, side in ((0, generated), (len(generated.images), real)):
        if side.known is not None:
            distance[first + side.known.rows] = side.known.places.distance
    return compare_slices(
        generated.images,
        real.images,
        real.summary.settings.a,
        real.universe,
        training_distance=distance,
        pairs=_pairs(real.images.shape[-1]),
        cross=cross,
    )


def _look_for(images: np.ndarray, search: PlaneSearch | SliceSearch | None) -> Known | None:
    if search is None:
        return None
    rows = _spread(len(images), search.number(len(images)))
    return Known(rows, search.nearest(images[rows]))


def _limit(pixels: int) -> int:
    """How many slices are kept of each set; never so few that nothing could be said."""
    return max(64, min(_KEPT_SLICES, _KEPT_BYTES // (4 * pixels**2)))


def _pairs(pixels: int) -> int:
    """How many pairs of generated slices are drawn for MS-SSIM."""
    return max(1000, min(4096, _PAIRED_PIXELS // pixels**2))


def _spread(number: int, limit: int) -> np.ndarray:
    """At most `limit` of `number` row numbers, evenly spread."""
    return np.arange(min(number, limit)) * number // min(number, limit)
