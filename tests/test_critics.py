"""The critics: what each can see, against a NumPy twin, and what they do to the networks."""

import dataclasses

import keras
import numpy as np
import pytest

from networks.critics import build_critics, build_texture_critic
from networks.gan import GAN
from networks.layers import LogMean
from networks.losses import TrainingSet
from utils.transforms import transform

CRITICS = ("critic", "texture")


@pytest.fixture
def rng():
    return np.random.default_rng(17)


def gan_with(name, tiny_config, **changes):
    config = dataclasses.replace(tiny_config, **{f"{name}_weight": 0.5}, **changes)
    return GAN(config, training_set=TrainingSet(1000.0, spectra_mean=np.zeros(10), spectra_sigma=np.ones(10)))


def texture_twin(critic, images):
    """The texture critic's logits, (n, 1), of images (n, N, N, channels), in NumPy."""
    first, second = (layer for layer in critic.layers if isinstance(layer, keras.layers.Conv2D))
    hidden, last = (layer for layer in critic.layers if isinstance(layer, keras.layers.Dense))
    (kernel, bias), (mixing, offset) = ([weight.numpy() for weight in layer.weights] for layer in (first, second))
    windows = np.lib.stride_tricks.sliding_window_view(images, (3, 3), axis=(1, 2))  # (n, N - 2, N - 2, channels, 3, 3)
    x = np.einsum("nijcab,abcf->nijf", windows, kernel) + bias
    x = np.where(x > 0, x, 0.2 * x)
    x = np.maximum(x @ mixing[0, 0] + offset, 0.0)
    x = np.log(x.mean(axis=(1, 2)) + 0.003)  # (n, N - 2, N - 2, kinds) -> (n, kinds)
    x = x @ hidden.kernel.numpy() + hidden.bias.numpy()
    return np.where(x > 0, x, 0.2 * x) @ last.kernel.numpy() + last.bias.numpy()


@pytest.mark.parametrize("datafmt", ["channels_first", "channels_last"])
def test_texture_critic_is_that_of_the_twin(tiny_config, rng, datafmt):
    critic = build_texture_critic(dataclasses.replace(tiny_config, datafmt=datafmt, channel_weights=(1.0, 2.0, 0.5)))
    for weight in critic.weights:
        weight.assign(weight + rng.normal(0.0, 0.1, weight.shape))
    images = rng.normal(size=(5, 8, 8, 3)).astype(np.float32)
    own = images if datafmt == "channels_last" else images.transpose(0, 3, 1, 2)
    np.testing.assert_allclose(critic(own), texture_twin(critic, images), rtol=1e-4, atol=1e-5)


def test_texture_critic_counts_and_does_not_see_places(tiny_config):
    critic = build_texture_critic(dataclasses.replace(tiny_config, datafmt="channels_last"))

    def logit(*specks):
        images = np.full((1, 8, 8, 2), -1.0, np.float32)
        for row, column in specks:
            images[0, row, column] = 0.5
        return float(critic(images)[0, 0])

    one = logit((2, 2))
    assert logit((5, 3)) == pytest.approx(one, abs=1e-7)
    assert abs(logit((2, 2), (5, 5)) - one) > 1e-4
    # Two in a row are another texture than two apart.
    assert abs(logit((2, 2), (2, 3)) - logit((2, 2), (5, 5))) > 1e-4


def test_log_mean(rng):
    values = rng.uniform(size=(3, 4, 5, 2)).astype(np.float32)
    values[1, ..., 0] = 0.0
    layer = LogMean(floor=0.01)
    found = layer(values).numpy()
    np.testing.assert_allclose(found, np.log(values.mean(axis=(1, 2)) + 0.01), rtol=1e-5)
    assert found[1, 0] == pytest.approx(np.log(0.01))
    assert layer.compute_output_shape(values.shape) == found.shape
    np.testing.assert_array_equal(LogMean.from_config(layer.get_config())(values), found)


def test_only_those_with_a_weight_are_built(tiny_config):
    assert build_critics(tiny_config) == {}
    for name in CRITICS:
        config = dataclasses.replace(tiny_config, **{f"{name}_weight": 0.1})
        assert list(build_critics(config)) == [name]
    both = build_critics(dataclasses.replace(tiny_config, critic_weight=0.1, texture_weight=0.1))
    assert list(both) == list(CRITICS)


@pytest.mark.parametrize("name", CRITICS)
def test_critic_tells_slices_apart(tiny_config, rng, name):
    gan = gan_with(name, tiny_config, learn_rate=(1e-9, 1e-2), label_flip=0.0)
    for _ in range(60):
        density = rng.lognormal(0.0, 1.5, (8, 8, 8, 1)).astype(np.float32)
        z = rng.normal(size=(8, gan.config.noise_vect_len)).astype(np.float32)
        losses = gan.train_step(transform(density, 4.0), z, np.zeros(8, bool))
    assert float(losses[f"{name}_loss"]) < 0.1
    assert gan.mean_losses()[f"{name}_loss"] > float(losses[f"{name}_loss"])
    assert f"{name}/{len(gan.critics[name].weights) - 1:03d}" in gan.state()


@pytest.mark.parametrize("name", CRITICS)
def test_critic_draws_the_generator_and_only_by_its_weight(tiny_config, rng, name):
    """The discriminator has no slope here, so that the generator follows the critic alone, if it has a weight."""
    moved = []
    for weight in (0.5, 1e-9):
        gan = gan_with(name, tiny_config, learn_rate=(1e-3, 1e-9))
        gan.config = dataclasses.replace(gan.config, **{f"{name}_weight": weight})
        gan.discriminator.layers[-1].kernel.assign(np.zeros_like(gan.discriminator.layers[-1].kernel))
        critic = gan.critics[name]
        for layer in critic.layers:
            if isinstance(layer, keras.layers.Dense):
                layer.kernel.assign(rng.normal(0.0, 0.3, layer.kernel.shape))
        z = rng.normal(size=(8, gan.config.noise_vect_len)).astype(np.float32)
        density = rng.lognormal(0.0, 1.5, (8, 8, 8, 1)).astype(np.float32)
        before = critic(gan.generator(z, training=True)).numpy().mean()
        for _ in range(5):
            gan.train_step(transform(density, 4.0), z, np.zeros(8, bool))
        moved.append(critic(gan.generator(z, training=True)).numpy().mean() - before)
    assert moved[0] > 10 * abs(moved[1])
