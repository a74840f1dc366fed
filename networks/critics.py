"""Critics: small discriminators, each of which sees one kind of evidence and has a loss of its own.

A branch of the discriminator would do for spectra too, but what such a branch has told apart, the convolutions need not
learn. Critics see images as the discriminator does, and are trained with it. Both compute in float32 throughout.
"""

import keras

from networks.dcgan import image_input, layer_seeds, normal
from networks.layers import LogMean
from networks.spectra import LogSpectra
from utils.config import Config

# Units of the hidden layers of the spectral critic, about as many as a slice of 64 x 64 has numbers in its spectra.
_SPECTRAL_UNITS = 64
# Kinds of neighbourhoods that the texture critic counts, pixels along their sides, and units of its hidden layer.
_NEIGHBOURHOODS, _SIDE, _TEXTURE_UNITS = 16, 3, 32


def build_critics(config: Config) -> dict[str, keras.Model]:
    """The critics that a configuration gives a weight, by the name that their losses have in the log."""
    builders = {"critic": build_spectral_critic, "texture": build_texture_critic}
    return {name: build(config) for name, build in builders.items() if critic_weight(name, config) > 0}


def critic_weight(name: str, config: Config) -> float:
    """The weight of the generator's loss by a critic."""
    return getattr(config, f"{name}_weight")


def build_spectral_critic(config: Config) -> keras.Model:
    """Build a critic of power spectra: two dense layers on the spectra of slices, which see nothing else of them.

    Strided convolutions hardly see spectra (Chen et al. 2021, arXiv:2012.05535, who add such logits to those of the
    discriminator; kept apart, neither learns less for what the other one has seen already).

    Parameters
    ----------
    config : Config

    Returns
    -------
    keras.Model
        Images in `datafmt`, as the discriminator sees them -> logits (n, 1), float32. Its layer `log_spectra` has yet
        to be standardised.
    """
    seeds = layer_seeds(config.seed, network=2)
    images, x = image_input(config)
    x = LogSpectra(config.datascale, config.channel_weights[0], dtype="float32", name="log_spectra")(x)
    for _ in range(2):
        x = _hidden(x, _SPECTRAL_UNITS, next(seeds))
    return keras.Model(images, _logit(x, next(seeds)), name="spectral_critic")


def build_texture_critic(config: Config) -> keras.Model:
    """Build a critic of textures: how much a slice has of each of some kinds of neighbourhoods of 3 x 3 pixels.

    The kinds are learned; where in the slice they are it cannot know. The discriminator, whose last layer has weights
    of their own for every place, is slow to learn that specks are a third too many all over a slice. (Isola et al.
    2017, arXiv:1611.07004, average the logits of all patches; here the average comes first, so that a critic can tell
    how many of a kind there are, where no single one is unlike real ones.)

    Parameters
    ----------
    config : Config

    Returns
    -------
    keras.Model
        Images in `datafmt`, as the discriminator sees them -> logits (n, 1), float32.
    """
    seeds = layer_seeds(config.seed, network=3)
    images, x = image_input(config)
    # (n, N, N, channels) -> (n, N - 2, N - 2, kinds): padding would be a neighbourhood that no universe has.
    x = keras.layers.Conv2D(_NEIGHBOURHOODS, _SIDE, kernel_initializer=_glorot(next(seeds)), dtype="float32")(x)
    x = keras.layers.LeakyReLU(0.2, dtype="float32")(x)
    x = keras.layers.Conv2D(_NEIGHBOURHOODS, 1, kernel_initializer=_glorot(next(seeds)), dtype="float32")(x)
    x = keras.layers.ReLU(dtype="float32")(x)
    x = LogMean(dtype="float32")(x)  # (n, N - 2, N - 2, kinds) -> (n, kinds)
    x = _hidden(x, _TEXTURE_UNITS, next(seeds))
    return keras.Model(images, _logit(x, next(seeds)), name="texture_critic")


def _hidden(x, units, seed):
    x = keras.layers.Dense(units, kernel_initializer=_glorot(seed), dtype="float32")(x)
    return keras.layers.LeakyReLU(0.2, dtype="float32")(x)


def _logit(x, seed):
    return keras.layers.Dense(1, kernel_initializer=normal(seed), dtype="float32")(x)


def _glorot(seed):
    """Inputs are of order one here, as the discriminator's are not: weights by the number of inputs and outputs."""
    return keras.initializers.GlorotNormal(seed)
