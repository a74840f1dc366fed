"""Slices as the discriminator sees them."""

import tensorflow as tf

from networks.layers import RESCALE
from utils.config import Config
from utils.transforms import invtransform


def images_from_s(s: tf.Tensor, config: Config) -> tf.Tensor:
    """Real slices as the discriminator sees them, like the generator's images.

    Parameters
    ----------
    s : tensor, (n, N, N, 1), float32
        Transformed densities in [-1, 1).
    config : Config

    Returns
    -------
    tensor, (n, channels, N, N) or (n, N, N, channels), float32
        With `multichannel`, the second channel is tanh(x/1000) of the same density x.
    """
    images = s
    if config.multichannel:
        images = tf.concat([s, tf.tanh(invtransform(s, config.datascale) / RESCALE)], axis=-1)
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
