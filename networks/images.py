"""Slices as the discriminator sees them."""

import tensorflow as tf

from networks.layers import RESCALE
from utils.config import Config
from utils.transforms import invtransform


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
        s; with `multichannel` tanh(x/1000); and, where it has a weight, ln(1 + x/datascale), which unlike both others
        changes as much from one bright pixel to the next as from one faint pixel to the next. Each times its weight.
    """
    weights = config.channel_weights
    channels = [weights[0] * s]
    if config.multichannel:
        channels.append(weights[1] * tf.tanh(density / RESCALE))
    if weights[2] > 0:
        channels.append(weights[2] * tf.math.log1p(density / config.datascale))
    images = tf.concat(channels, axis=-1)
    if config.datafmt == "channels_first":
        images = tf.transpose(images, (0, 3, 1, 2))
    return images


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
