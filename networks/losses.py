"""The terms of the two networks' losses, each a function of tensors, float32, averaged over the batch."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from networks.gradients import pairwise_gradients
from networks.images import images_from_density, images_from_s
from networks.matching import Tail, measure_tail
from networks.spectra import log_spectra, ring_power, ring_weights
from utils.config import Config
from utils.logs import log
from utils.slices import SliceSet
from utils.transforms import invtransform, transform

# Slices that spectra are measured on: their means are then known to a per cent or two; and slices on which bright
# pixels are counted, of which there are few.
_SPECTRA_SLICES, _TAIL_SLICES = 2048, 8192
# Slices read at a time.
_BATCH = 256
# Smallest scatter of the logarithms of spectra and of mean densities; slices that are normalised one by one may have
# none, and a critic that divides by it would take the smallest difference for an endless one.
_MIN_SCATTER = 1e-3


def crossentropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Binary cross-entropy from logits, ln(1 + e^logit) - label * logit: stable where a sigmoid would saturate.

    Parameters
    ----------
    labels, logits : tensor, (n, 1)
        1 for real, 0 for fake.

    Returns
    -------
    tensor, scalar
    """
    return tf.reduce_mean(tf.nn.softplus(logits) - labels * logits)


def r1_penalty(discriminator, images: tf.Tensor) -> tf.Tensor:
    """Half the mean squared norm of the discriminator's gradient with respect to real images, or what they are made of.

    Mescheder, Geiger & Nowozin 2018 (arXiv:1801.04406), eq. 9 without the weight.

    Parameters
    ----------
    discriminator : callable
        Images -> logits (n, 1).
    images : tensor of rank 4, (n, channels, N, N) or (n, N, N, channels)
        Real images as the discriminator sees them, or what `discriminator` makes them of.

    Returns
    -------
    tensor, scalar
        To be differentiated once more, with respect to the discriminator's variables.
    """
    (slopes,) = pairwise_gradients(tf.reduce_sum(discriminator(images)), [images])
    return 0.5 * tf.reduce_mean(tf.reduce_sum(tf.square(slopes), axis=(1, 2, 3)))


def r1_penalty_of_slices(discriminator, s: tf.Tensor, config: Config) -> tf.Tensor:
    """The R1 penalty with respect to the images, or to ln(1 + x/a), of which images are a function.

    With respect to images a discriminator pays for its slope in a channel at every pixel, however faint, and can afford
    none in the channel that tells bright pixels apart; so it pays where the channel changes.

    Parameters
    ----------
    discriminator : callable
        Images -> logits (n, 1).
    s : tensor, (n, N, N, 1), float32
        Real slices, transformed: s in [-1, 1).
    config : Config
        `r1_coordinate` decides.

    Returns
    -------
    tensor, scalar
    """
    if config.r1_coordinate == "images":
        return r1_penalty(discriminator, images_from_s(s, config))

    def logits(log_density):
        density = config.datascale * tf.math.expm1(log_density)
        # 1 - 2 exp(-ln(1 + x/a)) = (x - a)/(x + a) = s
        return discriminator(images_from_density(1.0 - 2.0 * tf.exp(-log_density), density, config))

    return r1_penalty(logits, tf.math.log1p(invtransform(s, config.datascale) / config.datascale))


def spectral_loss(power: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
    """Mean over rings of the squared logarithm of batch-mean power over target power.

    The mean over the batch comes before the logarithm: the mean of log P would describe typical slices and let the
    rare bright haloes, which carry the power, run away.

    Parameters
    ----------
    power : tensor, (N/2,), float32
        From `networks.spectra.ring_power`, averaged over the whole batch.
    target : tensor, (N/2,), float32
        The training set's power, in the same units.

    Returns
    -------
    tensor, scalar
    """
    return tf.reduce_mean(tf.square(tf.math.log(power / target)))


class TrainingSet(NamedTuple):
    """What losses, critic and map of densities have to know of the training slices; None is what they do not need."""

    power_s: np.ndarray | None = None
    """(N/2,), mean over slices of that of s, in the units of `networks.spectra.ring_power`."""
    power: np.ndarray | None = None
    """(N/2,), mean over slices of that of the density."""
    spectra_mean: np.ndarray | None = None
    """(N + 2,), mean over slices of their `networks.spectra.log_spectra`."""
    spectra_sigma: np.ndarray | None = None
    """(N + 2,), standard deviation of those, or a thousandth where it is less."""
    tail: Tail | None = None
    """How many pixels are how bright."""


def measure_training_set(config: Config, training: SliceSet) -> TrainingSet:
    """Measure what a configuration needs: spectra, and bright pixels, on slices spread over the set.

    Parameters
    ----------
    config : Config
        Its spectral loss, critic and map of densities decide what is needed.
    training : SliceSet
        Open, of `config.img_dim` pixels a side.

    Returns
    -------
    TrainingSet

    Raises
    ------
    UserError
        If slices cannot be read.
    """
    measured = {}
    if config.match_histogram:
        batches = _batches(training, _TAIL_SLICES)
        measured["tail"] = measure_tail(batches, training.dtype.kind in "iu", config)
        if not len(measured["tail"].bounds):
            log.warning("match_histogram changes nothing: hardly any training pixel is brighter than datascale/2")
    if config.spectral_weight > 0 or config.critic_weight > 0:
        measured |= _measure_spectra(config, _batches(training, _SPECTRA_SLICES))
    return TrainingSet(**measured)


def _batches(training: SliceSet, number: int) -> Iterable[np.ndarray]:
    """So many slices, or all there are, spread over the set."""
    rows = training.rows_spread(number)
    return (training.read(rows[start : start + _BATCH]) for start in range(0, len(rows), _BATCH))


def _measure_spectra(config: Config, batches: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
    """The spectra of a `TrainingSet`, by name."""
    rng = np.random.default_rng(config.seed)
    weights = tf.constant(ring_weights(config.img_dim))
    powers, spectra = [], []
    for counts in batches:
        density = counts.astype(np.float32)
        if config.dequantise:
            density += rng.uniform(size=density.shape).astype(np.float32)
        fields = transform(density, config.datascale), density
        powers.append(np.stack([ring_power(field, weights) for field in fields], axis=1))
        spectra.append(log_spectra(*(tf.constant(field) for field in fields), weights))
    power_s, power = np.concatenate(powers).mean(axis=0, dtype=np.float64)  # (n, 2, N/2) -> (2, N/2)
    features = np.concatenate(spectra).astype(np.float64)
    return {
        "power_s": power_s,
        "power": power,
        "spectra_mean": features.mean(axis=0),
        "spectra_sigma": np.maximum(features.std(axis=0), _MIN_SCATTER),
    }
