"""Slices as tensors: from the generator's last pre-activation to densities, and to what the discriminator sees."""

import math

import tensorflow as tf

from networks.layers import RESCALE
from networks.spectra import MAX_DENSITY_IN_LOSS
from utils.config import Config
from utils.transforms import invtransform, transform

MAX_LOG_DENSITY_IN_LOSS = math.log(MAX_DENSITY_IN_LOSS)
# How much of the mean of its eight neighbours `blue_noise` takes from each pixel.
_REPULSION = 0.4
# e^20, some 5 10^8 particles per voxel, is far above any universe; at e^88 float32 would reach infinity.
_MAX_LOG_DENSITY = 20.0


def density_from_pre_activation(u: tf.Tensor, datascale: float, max_log: float = _MAX_LOG_DENSITY) -> tf.Tensor:
    """The density x = a exp(2u) [particles per voxel], its exponent clipped at `max_log`; any shape, float32."""
    return tf.exp(tf.minimum(2.0 * u + math.log(datascale), max_log))


def round_stochastically(density: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
    """Round up with a probability that leaves the mean: floor(x + uniform noise in [0, 1)); any shape, float32."""
    return tf.floor(density + uniform)


def blue_noise(normal: tf.Tensor) -> tf.Tensor:
    """Uniform random numbers that are anti-correlated among neighbours, to round densities by.

    The particles of a simulation start from a lattice or a glass, whose noise, unlike that of Poisson, vanishes on
    large scales (Gabrielli, Joyce & Sylos Labini 2002, arXiv:astro-ph/0110451), and keep some of that order in voids.
    Generated slices that are rounded pixel by pixel have too few solitary particles. Rounding by blue noise is known
    from dithering (Ulichney 1988, Proc. IEEE 76, 56); its weight of 0.4 was found by trial (benchmarks/RESULTS.md).

    Parameters
    ----------
    normal : tensor, (n, N, N), float32
        w, independent and standard normal.

    Returns
    -------
    tensor, (n, N, N), float32
        u = Phi(g) in [0, 1) with the normal distribution function Phi and g = (w - 0.4 m)/sqrt(1 + 0.4²/8), m the mean
        of w over the eight neighbours across periodic edges: on the largest scales the power of g is 0.35 times that of
        white noise.
    """
    # The kernel of g is a function of rows times one of columns plus one of the pixel itself.
    block = sum(tf.roll(normal, shift, axis=1) for shift in (-1, 0, 1))
    block = sum(tf.roll(block, shift, axis=2) for shift in (-1, 0, 1))
    g = ((1 + _REPULSION / 8) * normal - _REPULSION / 8 * block) / math.sqrt(1 + _REPULSION**2 / 8)
    return tf.minimum(0.5 * tf.math.erfc(-g / math.sqrt(2)), 1 - 2**-24)


def images_from_s(s: tf.Tensor, config: Config) -> tf.Tensor:
    """Slices as the discriminator sees them.

    Parameters
    ----------
    s : tensor, (n, N, N, 1), float32
        Transformed densities in [-1, 1).
    config : Config

    Returns
    -------
    tensor, (n, channels, N, N) or (n, N, N, channels), float32
        As `images_from_density` puts them together.
    """
    return images_from_density(s, invtransform(s, config.datascale), config)


def images_from_density(s: tf.Tensor, density: tf.Tensor, config: Config) -> tf.Tensor:
    """Slices as the discriminator sees them, where both s and the density x that it stands for are known.

    Parameters
    ----------
    s, density : tensor, (n, N, N, 1), float32
        In [-1, 1]; and in particles per voxel.
    config : Config

    Returns
    -------
    tensor, (n, channels, N, N) or (n, N, N, channels), float32
        s and, with `multichannel`, tanh(x/1000).
    """
    images = tf.concat([s, tf.tanh(density / RESCALE)], axis=-1) if config.multichannel else s
    if config.datafmt == "channels_first":
        images = tf.transpose(images, (0, 3, 1, 2))
    return images


def fields_from_pre_activation(
    u: tf.Tensor, config: Config, noise: tf.Tensor | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """s and density of generated slices; with noise, of densities rounded to whole particles.

    Parameters
    ----------
    u : tensor, (n, N, N), float32
        The generator's last pre-activation, of which s = tanh(u).
    config : Config
    noise : tensor, (n, N, N), float32, optional
        Uniform in [0, 1), as of `blue_noise`. Floor(x + noise) has the mean x: the gradient of the mean is passed on,
        that of the rounding ignored (Bengio, Leonard & Courville 2013, arXiv:1308.3432).

    Returns
    -------
    s, density : tensor, (n, N, N, 1), float32
        As `images_from_density` takes them.
    """
    u = u[..., None]  # (n, N, N) -> (n, N, N, 1)
    density = density_from_pre_activation(u, config.datascale, MAX_LOG_DENSITY_IN_LOSS)
    if noise is None:
        return tf.tanh(u), density
    counts = density + tf.stop_gradient(round_stochastically(density, noise[..., None]) - density)
    return transform(counts, config.datascale), counts


def random_symmetry(s: tf.Tensor, coins: tf.Tensor) -> tf.Tensor:
    """Give each slice one of the eight symmetries of the square: the universe has no preferred direction.

    Parameters
    ----------
    s : tensor, (n, N, N, 1)
    coins : tensor, (n, 3), bool
        Whether each slice is flipped along rows, flipped along columns, and transposed.

    Returns
    -------
    tensor, (n, N, N, 1)
    """
    coins = tf.reshape(coins, (-1, 1, 1, 1, 3))  # (n, 3) -> (n, 1, 1, 1, 3)
    s = tf.where(coins[..., 0], tf.reverse(s, [1]), s)
    s = tf.where(coins[..., 1], tf.reverse(s, [2]), s)
    return tf.where(coins[..., 2], tf.transpose(s, (0, 2, 1, 3)), s)
