"""The terms of the two networks' losses, each a function of tensors, float32, averaged over the batch."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from utils.config import Config
from utils.slices import SliceSet
from utils.statistics import ring_power
from utils.transforms import transform

# Slices that the targets of the spectral loss are averaged over: their mean is then known to a per cent or two.
_TARGET_SLICES = 2048
# Slices read at a time for it.
_BATCH = 256


def crossentropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Binary cross-entropy straight from logits: stable where a sigmoid would saturate.

    Parameters
    ----------
    labels, logits : tensor, (n, 1)
        1 for real, 0 for fake.

    Returns
    -------
    tensor, scalar
    """
    return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits))


def r1_penalty(discriminator, images: tf.Tensor) -> tf.Tensor:
    """Half the mean squared norm of the discriminator's gradient with respect to real images, or what they are made of.

    Mescheder, Geiger & Nowozin 2018 (arXiv:1801.04406), eq. 9 without the weight.

    Parameters
    ----------
    discriminator : callable
        Images -> logits (n, 1).
    images : tensor, (n, ...)
        Real images as the discriminator sees them.

    Returns
    -------
    tensor, scalar
        To be differentiated once more, with respect to the discriminator's variables.
    """
    with tf.GradientTape() as tape:
        tape.watch(images)
        logit_sum = tf.reduce_sum(discriminator(images))
    gradients = tape.gradient(logit_sum, images)
    return 0.5 * tf.reduce_mean(tf.reduce_sum(tf.square(gradients), axis=(1, 2, 3)))


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
    rows = np.fft.fftfreq(side, 1 / side)[:, None]
    columns = np.arange(side // 2 + 1)[None, :]
    ring = np.rint(np.hypot(rows, columns)).astype(int).ravel()
    mirrored = np.broadcast_to(np.where((columns == 0) | (columns == side // 2), 1.0, 2.0), (side, side // 2 + 1))
    weights = (ring[:, None] == np.arange(1, side // 2 + 1)) * mirrored.reshape(-1, 1)
    return (weights / weights.sum(axis=0)).astype(np.float32)


def mean_ring_power(fields: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """The batch-mean unnormalised power |rfft2|^2 in rings.

    Parameters
    ----------
    fields : tensor, (n, N, N), float32
    weights : tensor, (N * (N/2 + 1), N/2), float32
        From `ring_weights`.

    Returns
    -------
    tensor, (N/2,), float32
    """
    modes = tf.signal.rfft2d(fields)
    power = tf.reduce_mean(tf.square(tf.math.real(modes)) + tf.square(tf.math.imag(modes)), axis=0)
    return tf.linalg.matvec(weights, tf.reshape(power, [-1]), transpose_a=True)


def spectral_loss(power: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
    """Mean over rings of the squared logarithm of batch-mean power over target power.

    The mean over the batch comes before the logarithm: the mean of log P would describe typical slices and let the
    rare bright haloes, which carry the power, run away.

    Parameters
    ----------
    power : tensor, (N/2,), float32
        From `mean_ring_power`, averaged over the whole batch.
    target : tensor, (N/2,), float32
        The training set's power, in the same units.

    Returns
    -------
    tensor, scalar
    """
    return tf.reduce_mean(tf.square(tf.math.log(power / target)))


class TrainingSet(NamedTuple):
    """What the generator's losses have to know of the training slices. Power is in the units of `mean_ring_power`."""

    brightest: float
    """The brightest pixel [particles per voxel]."""
    power_s: np.ndarray | None = None
    """(N/2,), mean over slices of that of s; None where no loss needs it."""
    power: np.ndarray | None = None
    """(N/2,), mean over slices of that of the density; None where no loss needs it."""


def measure_training_set(config: Config, training: SliceSet) -> TrainingSet:
    """Measure what the losses of a configuration need: the power on slices spread over the set, the rest is known."""
    # A bound has to lie above the density at which s is zero, whatever the training set is like.
    brightest = max(training.maximum, 2.0 * config.datascale)
    if config.spectral_weight == 0:
        return TrainingSet(brightest)
    rng = np.random.default_rng(config.seed)
    rows = training.rows_spread(_TARGET_SLICES)
    total = 0.0
    for start in range(0, len(rows), _BATCH):
        density = training.read(rows[start : start + _BATCH]).astype(np.float64)
        if config.dequantise:
            density += rng.uniform(size=density.shape)
        total += np.stack(
            [ring_power(fields).sum(axis=0) for fields in (transform(density, config.datascale), density)]
        )
    return TrainingSet(brightest, *total / len(rows))
