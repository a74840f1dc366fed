"""Histogram matching: the last, monotone step from a trained generator to densities distributed as in the training set.

In cosmology rank-preserving maps of density fields are known from Weinberg 1992 (MNRAS 254, 315), elsewhere as quantile
mapping. A network learns where structures lie, and which pixels are brighter than others, better than how bright they
are.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from utils.config import Config

# Densities at which histograms are made equal, and the brightest pixel.
_BOUNDS = 21 + 1
# A density that fewer pixels of either set reach is left out. So few, for the brightest pixels carry much of the power:
# a quarter of them too many or too few is an error of 6 % in their density, by the slope that histograms have there.
_MIN_PIXELS = 16
# Brighter pixels than the training set's brightest are drawn now and then; one alone put the density spectrum of 2048
# slices 19 instead of 12 % off. None becomes brighter than that by more than this factor.
_BEYOND = 2.0


class HistogramMatching(keras.layers.Layer):
    """A monotone map of u, half the logarithm of the density over `datascale`: u plus a shift that depends on u.

    The shift is linear between knots, and constant below them. Above the last one, where the training set has no pixels
    any more, u rises ever more slowly, towards a density `_BEYOND` times as high. In training mode the layer does
    nothing: the discriminator judges the network as it is, and a map that moves would be one more thing to keep up
    with.

    Notes
    -----
    Until `shift` is called, knots and shifts are zero and nothing is changed. They are weights, though not trainable
    ones, and are saved and loaded with the others.
    """

    def build(self, input_shape):
        # (2, knots): where, ascending, and by how much
        self.table = self.add_weight(
            name="table", shape=(2, _BOUNDS + 1), initializer="zeros", trainable=False, autocast=False
        )

    def shift(self, knots: np.ndarray, shifts: np.ndarray) -> None:
        """Shift u at each knot by so much from now on, (23,) each, as `fit_shifts` gives them."""
        self.table.assign(np.stack([knots, shifts]))

    def call(self, inputs, training=None):
        if training:
            return inputs
        knots, shifts = tf.unstack(self.table.value)
        u = tf.reshape(inputs, (-1,))  # (n, N, N, 1) -> (n * N * N,)
        above = tf.searchsorted(knots, u, "right")
        left, right = (tf.clip_by_value(knot, 0, _BOUNDS) for knot in (above - 1, above))
        start = tf.gather(knots, left)
        # Below the first knot and above the last one left and right are the same, and the share is 0 over 0.
        share = tf.math.divide_no_nan(u - start, tf.gather(knots, right) - start)
        shift = (1.0 - share) * tf.gather(shifts, left) + share * tf.gather(shifts, right)
        # A map that was not fitted, or to too faint a training set, has a single knot and no end.
        end = tf.where(knots[-1] > knots[0], knots[-1], np.inf)
        reach = 0.5 * math.log(_BEYOND)
        beyond = -reach * tf.math.expm1(tf.minimum(end - u, 0.0) / reach)
        u = tf.minimum(u, end) + shift + beyond
        return tf.reshape(u, tf.shape(inputs))  # (n * N * N,) -> (n, N, N, 1)


class Tail(NamedTuple):
    """How often the pixels of a set reach some densities, up to that of the brightest."""

    bounds: np.ndarray
    """(k,), float64, k at most 22, ascending [particles per voxel]: from where on a density is rounded to reach one."""
    counts: np.ndarray
    """(k,), int64: pixels that reach them."""
    pixels: int
    """Of so many."""


def measure_tail(batches: Iterable[np.ndarray], whole: bool, config: Config) -> Tail:
    """Count the bright pixels of training slices, from half of `datascale` up, in steps of sqrt(2) in density.

    Fainter pixels are few particles each, which the networks get right as it is.

    Parameters
    ----------
    batches : iterable of array, any shape
        Densities [particles per voxel].
    whole : bool
        Whether they are counts.
    config : Config
        Says how generated densities are rounded to counts.

    Returns
    -------
    Tail
        Empty where hardly any pixel is that bright.
    """
    bounds = 0.5 * config.datascale * np.sqrt(2.0) ** np.arange(_BOUNDS - 1)
    if whole:
        bounds = np.unique(np.maximum(np.rint(bounds), 1.0))
    numbers, pixels, brightest = np.zeros(len(bounds) + 1, np.int64), 0, 0.0
    for densities in batches:
        # searchsorted gives each pixel the number of bounds that it reaches.
        numbers += np.bincount(np.searchsorted(bounds, densities.ravel(), "right"), minlength=len(numbers))
        pixels += densities.size
        brightest = max(brightest, densities.max())
    # Rounded to the nearest count, or stochastically, a density becomes t from t - 1/2 on, though the latter only on
    # average over densities about there; rounded down, from t on.
    shift = 0.5 if whole and not config.dequantise else 0.0
    counts = numbers[::-1].cumsum()[::-1][1:]
    known = (counts >= _MIN_PIXELS) & (bounds < brightest)
    if known.any():
        bounds, counts = np.append(bounds[known], brightest), np.append(counts[known], 1)
        return Tail(bounds - shift, counts, pixels)
    return Tail(np.zeros(0), np.zeros(0, np.int64), pixels)


def fit_shifts(u: np.ndarray, tail: Tail, datascale: float) -> tuple[np.ndarray, np.ndarray]:
    """The shifts after which generated pixels reach densities as often as training pixels do.

    Parameters
    ----------
    u : array, any shape
        Half the logarithm of generated densities over `datascale`, before the map.
    tail : Tail
        Of training slices.
    datascale : float
        a in s(x) [particles per voxel].

    Returns
    -------
    array, array, (23,) each, float64
        Knots in u, ascending, and the shift at each: zero well below the first bound.
    """
    found, wanted = np.zeros(0), np.zeros(0)
    if len(tail.bounds):
        wanted = 0.5 * np.log(tail.bounds / datascale)
        # The brightest of n pixels stands where half a pixel is beyond, and so do quantiles below (Hazen 1914).
        share = (tail.counts - 0.5) / tail.pixels
        # The smaller set does not know what is rarer than its own brightest pixel.
        top = max(share[-1], 0.5 / u.size)
        brightest = np.interp(-np.log(top), -np.log(share), wanted)
        known = share[:-1] * u.size >= _MIN_PIXELS
        wanted, share = np.append(wanted[:-1][known], brightest), np.append(share[:-1][known], top)
        found = np.quantile(u, 1.0 - share, method="hazen")
    # Below both by a factor of two in density, so that the map rises from there on whatever the two are.
    anchor = min([*found[:1], *wanted[:1], 0.0]) - 0.5 * math.log(2.0)
    knots, shifts = [anchor, *found], [0.0, *(wanted - found)]
    missing = _BOUNDS + 1 - len(knots)
    return np.pad(knots, (0, missing), "edge"), np.pad(shifts, (0, missing), "edge")
