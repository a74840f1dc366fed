"""The two networks of the DCGAN (Radford et al. 2016, arXiv:1511.06434), after CosmoGAN (arXiv:1706.02390).

Inside, both compute channels_last, which is a quarter faster on CPUs, and which TensorFlow rearranges by itself where a
GPU prefers the other; `datafmt` is the layout of the images that go in and come out. Weights do not depend on it.
"""

import dataclasses
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from networks.images import blue_noise, density_from_pre_activation, random_symmetry, round_stochastically
from networks.layers import BatchNormalization, Conv2D, Conv2DTransposeSame, MultiChannelRescaling
from networks.matching import HistogramMatching
from networks.precision import hidden_dtype
from networks.spectra import BatchScatter, LogSpectra
from utils.cli import UserError
from utils.config import Config
from utils.runs import check_weights, find_weights, load_run_config

_INITIAL_SIGMA = 0.02
# Pixels per side of the kernel by which the generator's maps of full size become the slice.
_FULL_SIZE_KERNEL = 3
# Units of the hidden layers of the spectral critic, about as many as a slice of 64 x 64 has numbers in its spectra.
_CRITIC_UNITS = 64
# Added to variances that are divided by.
_EPSILON = 1e-5
# Independent streams of random numbers of one draw, beside those of the noise.
_ROUNDING, _UNMATCHED, _TURNING = 1, 2, 3
# Batch of a forward pass when sampling: large enough to fill the processor, small enough for any memory, where slices
# are large too.
_SAMPLING_BATCH, _SAMPLING_PIXELS = 128, 2**21


class Generator(keras.Model):
    """A generator: z (n, noise_vect_len) -> images in `datafmt`; made by `build_generator` or `load_generator`."""

    datascale: float
    noise_vect_len: int
    rounding: str
    """Of densities, when drawn: none, down or stochastic."""
    turning: bool
    """Whether slices are drawn in random symmetries of the square."""

    def sample(self, number: int, seed: int = 0, progress: bool = False) -> np.ndarray:
        """Draw slices of generated universes.

        Parameters
        ----------
        number : int
            How many, at least 1.
        seed : int
            The same seed gives the same slices, and the first slices do not depend on `number`.
        progress : bool
            Show a progress bar on a terminal.

        Returns
        -------
        ndarray, (number, N, N), float32
            Densities [particles per voxel; the cosmic mean is 1]; whole numbers with `dequantise` or `count_noise`.

        Raises
        ------
        ValueError
            `number` is less than 1.
        """
        if number < 1:
            raise ValueError(f"at least 1 slice has to be drawn, not {number}")
        return np.concatenate(list(draw_slices(density_function(self), self.output_shape[-2], number, seed, progress)))


def build_generator(config: Config) -> Generator:
    """Build the generator: dense, then transposed convolutions, each but the last normalised and with ReLU.

    The last one makes the slice, every pixel a weighted sum of maps half its size. With `full_size_filters` it makes so
    many maps instead, normalised and with ReLU too, and a convolution of them the slice.

    Parameters
    ----------
    config : Config

    Returns
    -------
    Generator
        A Keras model, z (n, noise_vect_len) -> images, (n, channels, N, N) or (n, N, N, channels), float32. Channel 0
        is s in [-1, 1]; channel 1, with `multichannel`, tanh(x/1000) of the same density x.
    """
    seeds, dtype = _layer_seeds(config.seed, network=0), hidden_dtype(config)
    side, maps = config.base_dim, 2 * config.ndeconvfilters[0]
    z = keras.Input((config.noise_vect_len,), name="z")
    x = keras.layers.Dense(side * side * maps, use_bias=False, kernel_initializer=_normal(next(seeds)), dtype=dtype)(z)
    x = _generator_norm(config)(x)
    x = keras.layers.ReLU(dtype=dtype)(x)
    x = keras.layers.Reshape((side, side, maps), dtype=dtype)(x)  # (n, side * side * maps) -> (n, side, side, maps)
    *hidden, image = config.ndeconvfilters
    for filters in (*hidden, config.full_size_filters) if config.full_size_filters else hidden:
        x = _transposed(config, filters, next(seeds), use_bias=False, dtype=dtype)(x)
        x = _generator_norm(config)(x)
        x = keras.layers.ReLU(dtype=dtype)(x)
    if config.full_size_filters:
        # Of order one from the start: slices that begin as nearly nothing may be told from real ones for good.
        normal = keras.initializers.GlorotNormal(next(seeds))
        x = Conv2D(image, _FULL_SIZE_KERNEL, 1, padding="same", kernel_initializer=normal, dtype="float32")(x)
    else:
        x = _transposed(config, image, next(seeds), use_bias=True, dtype="float32")(x)
    if config.match_histogram:
        x = HistogramMatching(dtype="float32", name="histogram_matching")(x)
    x = keras.layers.Identity(dtype="float32", name="pre_activation")(x)
    if config.multichannel:
        images = MultiChannelRescaling(config.datascale, dtype="float32")(x)
    else:
        images = keras.layers.Activation("tanh", dtype="float32")(x)
    if config.datafmt == "channels_first":
        images = keras.layers.Permute((3, 1, 2), dtype="float32")(images)  # (n, N, N, channels) -> (n, channels, N, N)
    generator = Generator(z, images, name="generator")
    generator.datascale = config.datascale
    generator.noise_vect_len = config.noise_vect_len
    generator.rounding = "down" if config.dequantise else "stochastic" if config.count_noise else "none"
    generator.turning = config.augment
    return generator


def build_discriminator(config: Config) -> keras.Model:
    """Build the discriminator: convolutions with batch norm and LeakyReLU, flattened into one logit.

    Parameters
    ----------
    config : Config

    Returns
    -------
    keras.Model
        Images in `datafmt`, as `networks.images` puts them together -> logits (n, 1), float32; no sigmoid.
    """
    seeds, dtype = _layer_seeds(config.seed, network=1), hidden_dtype(config)
    normalised = config.discriminator_norm == "batch"
    images, x = _image_input(config)
    for layer, filters in enumerate(config.nconvfilters):
        x = Conv2D(
            filters,
            config.convkern,
            strides=config.convstride,
            padding="same",
            data_format="channels_last",
            use_bias=not normalised,
            kernel_initializer=keras.initializers.TruncatedNormal(stddev=_INITIAL_SIGMA, seed=next(seeds)),
            exact_inputs=layer == 0,
            dtype=dtype,
        )(x)
        if normalised:
            x = _batch_norm(config)(x)
        x = keras.layers.LeakyReLU(0.2, dtype=dtype)(x)
    x = keras.layers.Flatten(data_format="channels_last", dtype=dtype)(x)  # -> (n, side * side * filters)
    logits = keras.layers.Dense(1, kernel_initializer=_normal(next(seeds)), dtype="float32")(x)
    return keras.Model(images, logits, name="discriminator")


def build_spectral_critic(config: Config) -> keras.Model:
    """Build a second discriminator, two dense layers on the `log_spectra` of slices and their scatter in a batch.

    Strided convolutions hardly see spectra (Chen et al. 2021, arXiv:2012.05535, who add such logits to those of the
    discriminator; kept apart, neither learns less for what the other one has seen already).

    Parameters
    ----------
    config : Config

    Returns
    -------
    keras.Model
        Images in `datafmt`, as the discriminator sees them -> logits (n, 1), float32 throughout. Its layer
        `log_spectra` has yet to be standardised.
    """
    seeds = _layer_seeds(config.seed, network=2)
    images, x = _image_input(config)
    x = LogSpectra(config.datascale, dtype="float32", name="log_spectra")(x)
    x = BatchScatter(dtype="float32")(x)
    for _ in range(2):
        # Features of order one, as images are not: the usual scale of weights, by the number of inputs and outputs.
        normal = keras.initializers.GlorotNormal(next(seeds))
        x = keras.layers.Dense(_CRITIC_UNITS, kernel_initializer=normal, dtype="float32")(x)
        x = keras.layers.LeakyReLU(0.2, dtype="float32")(x)
    logits = keras.layers.Dense(1, kernel_initializer=_normal(next(seeds)), dtype="float32")(x)
    return keras.Model(images, logits, name="spectral_critic")


def up_to_pre_activation(generator: Generator) -> keras.Model:
    """The same generator without its last step: z -> u (n, N, N), the last pre-activation, of which s = tanh(u)."""
    return _ending_in(generator, generator.get_layer("pre_activation").output)


def unmatched_function(generator: Generator) -> tf.types.experimental.PolymorphicFunction:
    """A compiled function that draws u as it is before the histogram is matched, with moving batch statistics.

    Returns
    -------
    callable
        (number, seed (2,) int64) -> u (number, N, N), float32; not of the slices that `density_function` draws.
    """
    model = _ending_in(generator, generator.get_layer("histogram_matching").input)

    @tf.function(reduce_retracing=True, autograph=False)
    def draw(number, seed):
        own_seed = tf.random.experimental.stateless_fold_in(seed, _UNMATCHED)
        return model(tf.random.stateless_normal((number, generator.noise_vect_len), own_seed), training=False)

    return draw


def density_function(generator: Generator) -> tf.types.experimental.PolymorphicFunction:
    """A compiled function that draws densities, with moving batch statistics.

    Returns
    -------
    callable
        (number, seed (2,) int64) -> densities (number, N, N), float32, rounded as the generator was trained for and,
        with `augment`, each in one of the eight symmetries of the square: a network has places that it prefers for its
        filaments, by which its slices would be more alike than real ones.
    """
    model = up_to_pre_activation(generator)

    @tf.function(reduce_retracing=True, autograph=False)
    def draw(number, seed):
        u = model(tf.random.stateless_normal((number, generator.noise_vect_len), seed), training=False)
        density = density_from_pre_activation(u, generator.datascale)
        if generator.rounding == "down":
            density = tf.floor(density)
        elif generator.rounding == "stochastic":
            own_seed = tf.random.experimental.stateless_fold_in(seed, _ROUNDING)
            noise = blue_noise(tf.random.stateless_normal(tf.shape(density), own_seed))
            density = round_stochastically(density, noise)
        if generator.turning:
            own_seed = tf.random.experimental.stateless_fold_in(seed, _TURNING)
            coins = tf.random.stateless_uniform((number, 3), own_seed) < 0.5
            density = random_symmetry(density[..., None], coins)[..., 0]  # (n, N, N) -> (n, N, N, 1) -> (n, N, N)
        return density

    return draw


def draw_slices(draw, side: int, number: int, seed: int, progress: bool = False) -> Iterator[np.ndarray]:
    """Draw slices batch by batch, for sets of any size.

    Parameters
    ----------
    draw : callable
        The `density_function` of a generator, or its `unmatched_function`.
    side : int
        Pixels of its slices, N.
    number, seed, progress
        As for `Generator.sample`.

    Yields
    ------
    ndarray, (n, N, N), float32
        Densities, or what the function draws; all batches together have `number` of them.
    """
    batch = max(1, min(_SAMPLING_BATCH, _SAMPLING_PIXELS // side**2))

    def draw_batch(start: int) -> np.ndarray:
        # Always a full batch: one compiled shape, and slice i is the same in a set of any size.
        return draw(batch, tf.constant((seed, start), tf.int64)).numpy()[: number - start]

    # Two batches at a time: with one thread an operation, one alone would leave a core idle.
    pairs = tqdm(range(0, number, 2 * batch), "generate", disable=None if progress else True)
    with ThreadPoolExecutor(2) as pool:
        for first in pairs:
            yield from pool.map(draw_batch, range(first, min(first + 2 * batch, number), batch))


def load_generator(run_folder: str | Path, weights: str | Path = "best") -> Generator:
    """Load a trained generator.

    Parameters
    ----------
    run_folder : path
        A run's folder, such as ``expts/base/run0``.
    weights : str or path
        ``best``, ``best_pspect``, ``last``, an epoch such as ``0009``, or the path of a ``*.weights.h5`` file.

    Returns
    -------
    Generator
        Ready to use: ``load_generator("expts/base/run0").sample(16)`` gives densities (16, N, N).

    Raises
    ------
    UserError
        If the run, its configuration or the weights are missing (the message names what there is), or the weights do
        not fit the configuration.
    """
    # Drawing takes little time: whatever the run was trained in, the slices are the same on every machine.
    config = dataclasses.replace(load_run_config(run_folder), precision="float32")
    generator = build_generator(config)
    load_weights(generator, find_weights(run_folder, weights), config)
    return generator


def load_weights(network: keras.Model, path: Path, config: Config) -> None:
    """Load a weights file into a network of a configuration. Raises `UserError` if it does not fit or is damaged."""
    check_weights(path, config)
    try:
        with warnings.catch_warnings():
            # Keras warns of every part that it misses before it raises; one message is enough.
            warnings.simplefilter("ignore")
            network.load_weights(path)
    except (OSError, ValueError, KeyError) as error:
        # Keras goes on to print every weight; its first words name the first layer that differs.
        raise UserError(
            f"weights {path} do not fit the configuration of tag '{config.tag}', or are damaged: {str(error)[:300]}"
        ) from None


def _ending_in(generator: Generator, u) -> keras.Model:
    """The generator up to one of its tensors of a single channel, (n, N, N, 1), which is put out as (n, N, N)."""
    return keras.Model(generator.inputs, keras.layers.Reshape(u.shape[1:3], dtype="float32")(u))


def _image_input(config: Config):
    """The input for images in `datafmt`, and the same images channels_last, (n, N, N, channels)."""
    sides = (config.img_dim, config.img_dim)
    if config.datafmt == "channels_last":
        images = keras.Input((*sides, config.channels), name="images")
        return images, images
    images = keras.Input((config.channels, *sides), name="images")
    return images, keras.layers.Permute((2, 3, 1), dtype="float32")(images)  # (n, channels, N, N) -> channels last


def _transposed(config: Config, filters: int, seed: int, use_bias: bool, dtype: str) -> Conv2DTransposeSame:
    return Conv2DTransposeSame(
        filters,
        config.convkern,
        config.convstride,
        use_bias=use_bias,
        kernel_initializer=_normal(seed),
        dtype=dtype,
    )


def _generator_norm(config: Config) -> keras.layers.Layer:
    """Batch norm; or layer norm, which Keras calls group norm of a single group: mean and variance of all pixels and
    channels of a slice, scale and offset per channel (Wu & He 2018, arXiv:1803.08494)."""
    if config.generator_norm == "layer":
        return keras.layers.GroupNormalization(groups=1, epsilon=_EPSILON, dtype=hidden_dtype(config))
    return _batch_norm(config)


def _batch_norm(config: Config) -> BatchNormalization:
    return BatchNormalization(
        momentum=0.9, epsilon=_EPSILON, synchronized=config.sync_batchnorm, dtype=hidden_dtype(config)
    )


def _normal(seed: int) -> keras.initializers.Initializer:
    return keras.initializers.RandomNormal(stddev=_INITIAL_SIGMA, seed=seed)


def _layer_seeds(seed: int, network: int) -> Iterator[int]:
    """An endless supply of independent seeds, one per layer, from the run's seed."""
    for layer in range(1_000_000):
        yield int(np.random.SeedSequence((seed, network, layer)).generate_state(1)[0] >> 1)
