"""Power spectra inside the networks, as functions of tensors; `utils.statistics` has them for results."""

import keras
import numpy as np
import tensorflow as tf

from networks.distribution import mean_over_replicas
from utils.statistics import ring_matrix
from utils.transforms import invtransform

# Variance of a white noise whose power is added before a logarithm is taken: fields may be constant.
_FLOOR = 1e-6
# Added to the variance of a feature over a batch, in whose units features have variances of one: a batch may be of one.
_LEAST_VARIANCE = 1e-4
# Densities are clipped here in the losses [particles per voxel]: some 25 times the brightest known pixel.
MAX_DENSITY_IN_LOSS = 1e5


def ring_weights(side: int) -> np.ndarray:
    """The matrix that averages the half plane of a real FFT in rings.

    Parameters
    ----------
    side : int
        N, even.

    Returns
    -------
    ndarray, (N * (N/2 + 1), N/2), float32
        Column n - 1 holds the weight of every cell of ``rfft2`` in ring n: cells whose distance from the zero
        frequency rounds to n. Cells that stand for their mirror image too count twice.
    """
    return ring_matrix(side).average.toarray().T.astype(np.float32)


def ring_power(fields: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """The unnormalised power |rfft2|^2 of each field, averaged in rings.

    Parameters
    ----------
    fields : tensor, (n, N, N), float32
    weights : tensor, (N * (N/2 + 1), N/2), float32
        From `ring_weights`.

    Returns
    -------
    tensor, (n, N/2), float32
    """
    modes = tf.signal.rfft2d(fields)
    power = tf.square(tf.math.real(modes)) + tf.square(tf.math.imag(modes))
    return tf.matmul(tf.reshape(power, (-1, weights.shape[0])), weights)  # (n, N, N/2 + 1) -> (n, N * (N/2 + 1))


def log_spectra(s: tf.Tensor, density: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """What the spectra say of each slice: logarithms of the power of s and density in rings, and means.

    Parameters
    ----------
    s, density : tensor, (n, N, N), float32
        Transformed density in [-1, 1]; and density in particles per voxel.
    weights : tensor, (N * (N/2 + 1), N/2), float32
        From `ring_weights`.

    Returns
    -------
    tensor, (n, N + 2), float32
        ln P of s in the rings 1 to N/2, that of the density, ln of the mean density, and the mean of s.
    """
    floor = _FLOOR * s.shape[1] * s.shape[2]
    logs = [tf.math.log(ring_power(field, weights) + floor) for field in (s, density)]
    mean = tf.reduce_mean(density, (1, 2), keepdims=True)[..., 0]  # (n, N, N) -> (n, 1)
    return tf.concat([*logs, tf.math.log(mean + _FLOOR**0.5), tf.reduce_mean(s, (1, 2), keepdims=True)[..., 0]], 1)


class LogSpectra(keras.layers.Layer):
    """The `log_spectra` of images, each in units of its scatter over training slices about its mean.

    Parameters
    ----------
    datascale : float
        a in s(x) [particles per voxel].

    Notes
    -----
    Until `standardize` is called, they are put out as they are. Mean and scatter are weights, though not trainable
    ones, and are saved and loaded with the others.
    """

    def __init__(self, datascale, **kwargs):
        super().__init__(**kwargs)
        self.datascale = datascale

    def build(self, input_shape):
        side = input_shape[1]
        self.mean = self.add_weight(name="mean", shape=(side + 2,), initializer="zeros", trainable=False)
        self.sigma = self.add_weight(name="sigma", shape=(side + 2,), initializer="ones", trainable=False)
        self.ring_weights = ring_weights(side)

    def standardize(self, mean: np.ndarray, sigma: np.ndarray) -> None:
        """Take mean and standard deviation over the training slices, (N + 2,) each, from now on."""
        self.mean.assign(mean)
        self.sigma.assign(sigma)

    def call(self, images):
        s = images[..., 0]  # (n, N, N, channels) -> (n, N, N), the first channel
        density = tf.minimum(invtransform(s, self.datascale), MAX_DENSITY_IN_LOSS)
        features = log_spectra(s, density, tf.constant(self.ring_weights))
        return (features - self.mean.value) / self.sigma.value

    def compute_output_shape(self, input_shape):
        return (input_shape[0], input_shape[1] + 2)

    def get_config(self):
        return super().get_config() | {"datascale": self.datascale}


class BatchScatter(keras.layers.Layer):
    """Features (n, m) of slices, and beside them the standard deviation of each over the batch: (n, 2 m).

    By one slice at a time it can hardly be told that slices are too much alike, for none of them is wrong; a batch
    shows it (Karras et al. 2018, arXiv:1710.10196, who give a discriminator one such number). Of several devices, over
    the batch of all of them.
    """

    def call(self, features):
        mean = mean_over_replicas(tf.reduce_mean(features, axis=0))
        variance = mean_over_replicas(tf.reduce_mean(tf.square(features - mean), axis=0))
        scatter = tf.sqrt(variance + _LEAST_VARIANCE)
        return tf.concat([features, tf.broadcast_to(scatter, tf.shape(features))], axis=1)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], 2 * input_shape[1])
