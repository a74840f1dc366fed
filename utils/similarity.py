"""How alike images are: MS-SSIM of pairs, and the distance to the nearest neighbour in a set.

Both look at fields in network units, s = 2x/(x+a) − 1 in [−1, 1] (`utils.transforms.transform`), in which faint
structure counts. Pure NumPy and SciPy; stacks are (n, N, N) and are worked through in parts, so that memory stays
bounded.
"""

from typing import NamedTuple

import numpy as np
import scipy.ndimage

from utils.stacks import batches, checked, map_parts, positive

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, finest scale first
_WINDOW, _SIGMA = 11, 1.5  # pixels; Wang et al. 2004
_K1, _K2 = 0.01, 0.03
_PAIRS_AT_ONCE = 16  # the copies of so many images of 128² stay in the cache
COARSE_SIDE = 32
ORIENTATIONS = 8
_QUERIES_AT_ONCE = 512


class Neighbours(NamedTuple):
    """The nearest reference of each query."""

    distance: np.ndarray
    """(n,) float32, root mean square difference of s per pixel of the coarse images."""
    index: np.ndarray
    """(n,) int64, number of that reference."""
    orientation: np.ndarray
    """(n,) int64, in which orientation the query is nearest to it (`oriented`)."""


def ms_ssim(one, other, data_range=2.0, scales=None) -> np.ndarray:
    """Multi-scale structural similarity of pairs of images (Wang, Simoncelli & Bovik 2003).

    At each scale local means, variances and covariance are taken under a Gaussian window (11 × 11 pixels, σ = 1.5,
    population covariance, windows that lie inside the image only), K₁ = 0.01, K₂ = 0.03; contrast and structure
    count at every scale, luminance at the coarsest alone; scales are halved by averaging 2 × 2 pixels (an odd last row
    or column is dropped). As many of the five scales are used as keep the side at 11 pixels or more, and their
    weights are renormalised to a sum of 1. A negative mean of contrast times structure counts as 0.

    Parameters
    ----------
    one, other : (n, N, N) arrays, N at least 11
        The pairs: usually s.
    data_range : float
        Width of the range of possible values; 2 for s in [−1, 1].
    scales : int, optional
        Number of scales, at most 5; 1 is the structural similarity of Wang et al. (2004). By default as above.

    Returns
    -------
    (n,) float64 array
        1 for identical images (constant ones too), about 0 for unrelated ones.

    Raises
    ------
    ValueError
        Images of a wrong or unequal shape or type, images too small for the scales, NaN or infinite pixels, or a range
        that is not positive.
    """
    one, other = checked(one), checked(other)
    if one.shape != other.shape:
        raise ValueError(f"pairs need two stacks of equal shape, not {one.shape} and {other.shape}")
    data_range = positive("the data range", data_range)
    most = number_of_scales(one.shape[-1])
    scales = most if scales is None else scales
    if not 1 <= scales <= most:
        raise ValueError(f"{scales} scales are not possible with {one.shape[-1]} pixels per side; at most {most} are")
    weights = np.array(SCALE_WEIGHTS[:scales]) / sum(SCALE_WEIGHTS[:scales])

    def of_part(part):
        pair = [np.concatenate(list(batches(stack[part]))).astype(np.float64) for stack in (one, other)]
        product = 1.0
        for scale, weight in enumerate(weights):
            full, structure = _similarity(*pair, data_range)
            last = scale == scales - 1
            product = product * np.maximum(full if last else structure, 0.0) ** weight
            pair = [_halved(stack) for stack in pair]
        return product

    return np.concatenate(map_parts(of_part, len(one), _PAIRS_AT_ONCE))


def number_of_scales(pixels: int) -> int:
    """Scales, at most five, that keep the side of an image at 11 pixels or more; 0 for a smaller image."""
    return sum(pixels >> scale >= _WINDOW for scale in range(len(SCALE_WEIGHTS)))


def ms_ssim_diversity(fields, pairs=1000, seed=0, data_range=2.0) -> np.ndarray:
    """MS-SSIM of random pairs of different images of a set (Odena et al. 2017, arXiv:1610.09585).

    The higher its mean, the less diverse the set: a generator whose modes have collapsed shows values near 1. Compare
    with independent real images only (neighbouring slices of a universe are alike).

    Parameters
    ----------
    fields : (n, N, N) array, n at least 2, N at least 11
        Usually s.
    pairs : int
        How many pairs to draw, with replacement.
    seed : int
        Of the draw.
    data_range : float
        As for `ms_ssim`.

    Returns
    -------
    (pairs,) float64 array

    Raises
    ------
    ValueError
        Fewer than two images, fewer than one pair, and as for `ms_ssim`.
    """
    fields = checked(fields)
    if len(fields) < 2 or pairs < 1:
        raise ValueError(f"diversity needs two images and one pair at least, not {len(fields)} and {pairs}")
    rng = np.random.default_rng(seed)
    first = rng.integers(len(fields), size=pairs)
    second = (first + rng.integers(1, len(fields), size=pairs)) % len(fields)
    parts = [slice(start, start + _PAIRS_AT_ONCE) for start in range(0, pairs, _PAIRS_AT_ONCE)]
    return np.concatenate([ms_ssim(fields[first[part]], fields[second[part]], data_range) for part in parts])


def coarse(fields, least=COARSE_SIDE) -> np.ndarray:
    """Images averaged over blocks of pixels, as the rows that `nearest_neighbours` compares.

    Nearness is a question of large structures: pixel noise would hide a copy. The blocks are the largest that divide
    the image and leave at least 32 a side; smaller images stay as they are.

    Parameters
    ----------
    fields : (n, N, N) array
        Usually s.
    least : int
        Pixels a side that have to be left, where there are as many.

    Returns
    -------
    (n, M, M) float32 array

    Raises
    ------
    ValueError
        Images of a wrong shape or type, NaN or infinite pixels.
    """
    fields = checked(fields)
    pixels = fields.shape[-1]
    side = min(side for side in range(1, pixels + 1) if pixels % side == 0 and side >= min(least, pixels))
    block = pixels // side
    return np.concatenate(
        [
            batch.reshape(-1, side, block, side, block).mean(axis=(2, 4), dtype=np.float64).astype(np.float32)
            for batch in batches(fields)
        ]
    )


def nearest_neighbours(queries, references, symmetries=False, excluded=None) -> Neighbours:
    """The nearest reference of each query, by root mean square difference per pixel.

    Every query is compared with every reference: work and results are those of brute force, done as matrix products.

    Parameters
    ----------
    queries, references : (n, M, M) and (m, M, M) arrays
        Usually from `coarse`.
    symmetries : bool
        Look for the queries in all eight orientations, so that mirrored and turned copies are found too.
    excluded : (n,) integers, optional
        The reference that each query is not compared with: itself, where a set is searched for its own neighbours.

    Returns
    -------
    Neighbours
        A named tuple `distance` (n,), `index` (n,), `orientation` (n,). Copies are at distance 0; the distance is
        infinite where the only reference is excluded.

    Raises
    ------
    ValueError
        Empty stacks, or images of a wrong or unequal shape or type, NaN or infinite pixels.
    """
    queries, references = _rows(queries), _rows(references)
    if queries.shape[1:] != references.shape[1:]:
        raise ValueError(f"images must be of one shape, not {queries.shape[1:]} and {references.shape[1:]}")
    # Only differences matter; without the common mean the products below cancel less.
    centre = references.mean(axis=0, dtype=np.float64).astype(np.float32)
    flat = (references - centre).reshape(len(references), -1)
    squares = np.einsum("ij,ij->i", flat, flat)
    index, orientation = np.zeros((2, len(queries)), np.int64)
    distance = np.full(len(queries), np.inf, np.float32)
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        part = slice(start, start + _QUERIES_AT_ONCE)
        for number in range(ORIENTATIONS if symmetries else 1):
            turned = oriented(queries[part], number)
            rows = (turned - centre).reshape(len(turned), -1)
            products = squares - 2.0 * rows @ flat.T
            if excluded is not None:
                products[np.arange(len(rows)), excluded[part]] = np.inf
            best = np.argmin(products, axis=1)
            # From the difference itself: |q|² + |r|² − 2 q·r would leave a copy at a distance of rounding noise.
            found = np.sqrt(np.mean((rows - flat[best]) ** 2, axis=1))
            found[np.isinf(products[np.arange(len(rows)), best])] = np.inf
            better = found < distance[part]
            distance[part][better], index[part][better] = found[better], best[better]
            orientation[part][better] = number
    return Neighbours(distance, index, orientation)


def oriented(images, number: int) -> np.ndarray:
    """Images (n, N, N) in one of the eight symmetries of the square: turned number // 2 times, mirrored if odd."""
    turned = np.rot90(images, number // 2, axes=(1, 2))
    return turned[:, ::-1] if number % 2 else turned


def _similarity(one: np.ndarray, other: np.ndarray, data_range: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean over each image of luminance × contrast × structure, and of contrast × structure: (n, N, N) -> (n,)."""
    mean, mean_other = _local_mean(one), _local_mean(other)
    squares = mean**2 + mean_other**2
    variances = _local_mean(one**2 + other**2) - squares
    product = mean * mean_other
    covariance = _local_mean(one * other) - product
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    structure = (2.0 * covariance + c2) / (variances + c2)
    luminance = (2.0 * product + c1) / (squares + c1)
    return (luminance * structure).mean(axis=(1, 2)), structure.mean(axis=(1, 2))


def _local_mean(stack: np.ndarray) -> np.ndarray:
    """Mean under a Gaussian window of 11 × 11 pixels wherever it lies inside: (n, N, N) -> (n, N − 10, N − 10)."""
    half = _WINDOW // 2
    gaussian = np.exp(-0.5 * (np.arange(-half, half + 1) / _SIGMA) ** 2)
    gaussian /= gaussian.sum()
    for axis in (1, 2):
        stack = scipy.ndimage.correlate1d(stack, gaussian, axis)
    return stack[:, half:-half, half:-half]


def _halved(stack: np.ndarray) -> np.ndarray:
    """Means over blocks of 2 × 2 pixels."""
    side = stack.shape[-1] // 2
    return stack[:, : 2 * side, : 2 * side].reshape(len(stack), side, 2, side, 2).mean(axis=(2, 4))


def _rows(images) -> np.ndarray:
    return np.concatenate(list(batches(checked(images)))).astype(np.float32, copy=False)
