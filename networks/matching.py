"""Histogram matching: the last, monotone step from a trained generator to densities distributed as in the training set.

In cosmology rank-preserving maps of density fields are known from Weinberg 1992 (MNRAS 254, 315), elsewhere as quantile
mapping. A network learns where structures lie, and which pixels are brighter than others, better than how bright they
are.
"""

import math

import keras
import numpy as np
import tensorflow as tf

from utils.config import Config

_THRESHOLDS = 21
# A fraction known from fewer training pixels is left out.
_MIN_PIXELS = 100


class HistogramMatching(keras.layers.Layer):
    """A monotone map of u, half the logarithm of the density over `datascale`: u plus a shift that depends on u.

    The shift is linear between knots, and constant beyond them. In training mode the layer does nothing: the
    discriminator judges the network as it is, and a map that moves would be one more thing to keep up with.

    Notes
    -----
    Until `shift` is called, all shifts are zero. They and the knots are weights, though not trainable ones, and are
    saved and loaded with the others.
    """

    def build(self, input_shape):
        # (2, knots): where, ascending, and by how much
        self.table = self.add_weight(
            name="table", shape=(2, _THRESHOLDS + 1), initializer="zeros", trainable=False, autocast=False
        )

    def shift(self, knots: np.ndarray, shifts: np.ndarray) -> None:
        """Shift u at each knot by so much from now on, (22,) each, as `fit_shifts` gives them."""
        self.table.assign(np.stack([knots, shifts]))

    def call(self, inputs, training=None):
        if training:
            return inputs
        knots, shifts = tf.unstack(self.table.value)
        u = tf.reshape(inputs, (-1,))  # (n, N, N, 1) -> (n * N * N,)
        above = tf.searchsorted(knots, u, "right")
        left, right = (tf.clip_by_value(knot, 0, _THRESHOLDS) for knot in (above - 1, above))
        start = tf.gather(knots, left)
        # Below the first knot and above the last one left and right are the same, and the share is 0 over 0.
        share = tf.math.divide_no_nan(u - start, tf.gather(knots, right) - start)
        u += (1.0 - share) * tf.gather(shifts, left) + share * tf.gather(shifts, right)
        return tf.reshape(u, tf.shape(inputs))  # (n * N * N,) -> (n, N, N, 1)


def thresholds(config: Config) -> np.ndarray:
    """Densities at which histograms are made equal: from half of `datascale` up, a factor of sqrt(2) apart.

    Fainter pixels are few particles each, which the networks get right as it is.

    Returns
    -------
    array, (k,), float64
        Ascending; whole numbers where generated densities are rounded.
    """
    densities = 0.5 * config.datascale * np.sqrt(2.0) ** np.arange(_THRESHOLDS)
    if config.count_noise or config.dequantise:
        return np.unique(np.maximum(np.rint(densities), 1.0))
    return densities


def fit_shifts(u: np.ndarray, fractions: np.ndarray, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """The shifts after which generated pixels reach the thresholds as often as training pixels do.

    Parameters
    ----------
    u : array, any shape
        Half the logarithm of generated densities over `datascale`, before the map.
    fractions : array, (k,), float64
        From `fractions_reached`, for the `thresholds` of the same configuration.
    config : Config

    Returns
    -------
    array, array, (22,) each, float64
        Knots in u, ascending, and the shift at each: zero well below the first threshold; above the last one that
        enough training pixels reach as there.
    """
    known = fractions > 0
    # A density x is rounded stochastically to t or more, on average over densities about there, if it is above t - 1/2.
    bounds = thresholds(config)[known] - (0.5 if config.count_noise else 0.0)
    wanted = 0.5 * np.log(bounds / config.datascale)
    found = np.quantile(u, 1.0 - fractions[known])
    # Below both by a factor of two in density, so that the map rises from there on whatever the two are.
    anchor = min([*found[:1], *wanted[:1], 0.0]) - 0.5 * math.log(2.0)
    knots, shifts = [anchor, *found], [0.0, *(wanted - found)]
    missing = _THRESHOLDS + 1 - len(knots)
    return np.pad(knots, (0, missing), "edge"), np.pad(shifts, (0, missing), "edge")


def count_reached(densities: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """How many pixels reach each threshold.

    Parameters
    ----------
    densities : array, any shape
    bounds : array, (k,)
        Ascending, from `thresholds`.

    Returns
    -------
    array, (k,), int64
    """
    # searchsorted gives each pixel the number of thresholds that it reaches.
    numbers = np.bincount(np.searchsorted(bounds, densities.ravel(), "right"), minlength=len(bounds) + 1)
    return numbers[::-1].cumsum()[::-1][1:]


def fractions_reached(counts: np.ndarray, pixels: int) -> np.ndarray:
    """Fractions of so many pixels, (k,) float64, from the counts; zero where too few pixels are counted to know."""
    return np.where(counts >= _MIN_PIXELS, counts / pixels, 0.0)
