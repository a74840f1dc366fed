"""Spectra inside the networks: against those of the statistics, and the critic that sees them."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from networks.gan import GAN
from networks.images import images_from_s
from networks.losses import TrainingSet, measure_training_set, spectral_loss
from networks.optimizers import first_moments
from networks.spectra import BatchScatter, LogSpectra, log_spectra, ring_power, ring_weights
from tests import numpy_twin
from utils import statistics
from utils.slices import open_slices
from utils.transforms import transform


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def training_set_of(densities, config, folder):
    for split in ("train", "val"):
        np.save(folder / f"raw_{split}.npy", densities[..., None])
    return measure_training_set(config, open_slices("raw", "train", config.img_dim, folder))


def test_ring_power_is_that_of_the_statistics(rng):
    fields = rng.lognormal(size=(4, 16, 16)).astype(np.float32)
    power = ring_power(tf.constant(fields), tf.constant(ring_weights(16))).numpy()
    np.testing.assert_allclose(power, statistics.ring_power(fields), rtol=1e-4)


def test_spectral_loss_value_and_gradient(rng):
    fields = rng.lognormal(size=(3, 8, 8)).astype(np.float32)
    weights = tf.constant(ring_weights(8))
    target = tf.constant(rng.lognormal(3, 0.3, 4).astype(np.float32))

    def loss(values):
        return spectral_loss(tf.reduce_mean(ring_power(tf.convert_to_tensor(values, tf.float32), weights), 0), target)

    power = np.abs(np.fft.rfft2(fields.astype(float))).reshape(3, -1) ** 2 @ weights.numpy()
    assert float(loss(fields)) == pytest.approx(np.mean(np.log(power.mean(0) / target.numpy()) ** 2), rel=1e-4)
    with tf.GradientTape() as tape:
        variable = tf.Variable(fields)
        value = loss(variable)
    gradient = tape.gradient(value, variable).numpy()
    direction = rng.normal(size=fields.shape).astype(np.float32)
    h = 1e-2
    slope = (float(loss(fields + h * direction)) - float(loss(fields - h * direction))) / (2 * h)
    assert np.sum(gradient * direction) == pytest.approx(slope, rel=2e-2)


def numpy_log_spectra(density):
    """(n, N, N) float64 -> (n, N + 2), with the white noise that is added to the power."""
    s = (density - 4.0) / (density + 4.0)
    logs = [np.log(statistics.ring_power(field) + 1e-6 * field[0].size) for field in (s, density)]
    return np.concatenate([*logs, np.log(density.mean((1, 2)) + 1e-3)[:, None], s.mean((1, 2))[:, None]], axis=1)


def test_log_spectra_value_and_gradient(rng):
    density = rng.lognormal(0.0, 1.5, size=(3, 8, 8))
    weights = tf.constant(ring_weights(8))

    def spectra(density):
        density = tf.convert_to_tensor(density, tf.float32)
        return log_spectra(transform(density, 4.0), density, weights)

    np.testing.assert_allclose(spectra(density), numpy_log_spectra(density), rtol=1e-4, atol=1e-4)
    mix = rng.normal(size=10).astype(np.float32)
    with tf.GradientTape() as tape:
        variable = tf.Variable(density.astype(np.float32))
        value = tf.reduce_sum(spectra(variable) * mix)
    gradient = tape.gradient(value, variable).numpy()
    direction = rng.normal(size=density.shape)
    h = 1e-3
    ends = [np.sum(spectra(density + side * h * direction) * mix) for side in (1, -1)]
    assert np.sum(gradient * direction) == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=2e-2)
    # A constant field has no power, and all the same a logarithm and a slope.
    with tf.GradientTape() as tape:
        variable = tf.Variable(np.zeros((1, 8, 8), np.float32))
        empty = spectra(variable)
    assert np.isfinite(empty).all()
    assert np.isfinite(tape.gradient(empty, variable)).all()


def test_layer_takes_s_from_the_first_channel_in_units_of_the_scatter(rng):
    counts = rng.poisson(rng.lognormal(0.0, 1.5, size=(5, 8, 8))).astype(np.float32)
    s = transform(counts, 4.0)
    layer = LogSpectra(datascale=4.0)
    channels = np.stack([s, np.full_like(s, 7.0)], axis=-1)
    plain = layer(channels).numpy()
    np.testing.assert_allclose(plain, log_spectra(s, counts, tf.constant(layer.ring_weights)), rtol=1e-3, atol=1e-4)
    mean, sigma = rng.normal(size=10), rng.uniform(0.5, 2.0, 10)
    layer.standardize(mean, sigma)
    np.testing.assert_allclose(layer(channels), (plain - mean) / sigma, rtol=1e-4, atol=1e-5)
    assert not layer.trainable_variables
    assert layer.compute_output_shape((5, 8, 8, 2)) == (5, 10)
    twin = LogSpectra.from_config(layer.get_config())
    np.testing.assert_allclose(twin(channels), plain)


def test_scatter_of_a_batch_stands_beside_its_features(rng):
    features = rng.normal(3.0, [0.1, 1.0, 5.0], (7, 3)).astype(np.float32)
    found = BatchScatter()(features).numpy()
    np.testing.assert_array_equal(found[:, :3], features)
    np.testing.assert_allclose(found[:, 3:], np.tile(np.sqrt(features.var(axis=0) + 1e-4), (7, 1)), rtol=1e-5)
    np.testing.assert_allclose(BatchScatter()(features[:1])[:, 3:], 0.01, rtol=1e-4)


def critic_config(tiny_config, **changes):
    return dataclasses.replace(tiny_config, critic_weight=0.5, **changes)


@pytest.mark.parametrize("datafmt", ["channels_first", "channels_last"])
def test_training_slices_are_standardised(tiny_config, rng, tmp_path, datafmt):
    densities = rng.poisson(rng.lognormal(-0.5, 1.0, (300, 8, 8))).astype(np.int16)
    config = critic_config(tiny_config, datafmt=datafmt)
    training_set = training_set_of(densities, config, tmp_path)
    gan = GAN(config, training_set=training_set)
    images = images_from_s(transform(tf.constant(densities[..., None], tf.float32), config.datascale), config)
    spectra = keras.Model(gan.critic.inputs, gan.critic.get_layer("log_spectra").output)(images).numpy()
    np.testing.assert_allclose(spectra.mean(axis=0), 0.0, atol=2e-3)
    np.testing.assert_allclose(spectra.std(axis=0), 1.0, atol=2e-3)
    # The targets of the spectral loss are of the same slices.
    expected = statistics.ring_power(densities).mean(axis=0)
    np.testing.assert_allclose(training_set.power, expected, rtol=1e-4)
    assert gan.critic(images).shape == (300, 1)
    assert f"critic/{len(gan.critic.weights) - 1:03d}" in gan.state()


def gan_with_critic(tiny_config, **changes):
    zeros, ones = np.zeros(10), np.ones(10)
    config = critic_config(tiny_config, **changes)
    return GAN(config, training_set=TrainingSet(spectra_mean=zeros, spectra_sigma=ones))


def test_critic_tells_spectra_apart(tiny_config, rng):
    gan = gan_with_critic(tiny_config, learn_rate=(1e-9, 1e-2), label_flip=0.0)
    for _ in range(60):
        density = rng.lognormal(0.0, 1.5, (8, 8, 8, 1)).astype(np.float32)
        z = rng.normal(size=(8, gan.config.noise_vect_len)).astype(np.float32)
        losses = gan.train_step(transform(density, 4.0), z, np.zeros(8, bool))
    assert float(losses["critic_loss"]) < 0.1
    assert gan.mean_losses()["critic_loss"] > float(losses["critic_loss"])


def test_critic_loss_and_what_it_adds_to_the_generators_gradient_against_numpy(tiny_config, rng):
    """The gradient with respect to the last bias, which is a part of every u and so multiplies all densities."""
    weights = [rng.normal(0.0, 0.3, shape) for shape in ((20, 64), (64,), (64, 64), (64,), (64, 1), (1,))]
    z = rng.normal(size=(6, tiny_config.noise_vect_len)).astype(np.float32)
    real = rng.lognormal(0.0, 1.5, (6, 8, 8))

    def crossentropy(density, label):
        x = numpy_log_spectra(density)
        x = np.hstack([x, np.broadcast_to(np.sqrt(x.var(axis=0) + 1e-4), x.shape)])
        for kernel, bias in zip(weights[0:4:2], weights[1:4:2], strict=True):
            x = x @ kernel + bias
            x = np.where(x > 0, x, 0.2 * x)
        return numpy_twin.crossentropy(label, x @ weights[4] + weights[5])

    moments, losses = [], []
    for weight in (0.5, 1.5):
        gan = gan_with_critic(tiny_config, learn_rate=(1e-30, 1e-30))
        gan.config = dataclasses.replace(gan.config, critic_weight=weight)
        gan.critic.set_weights([*gan.critic.get_layer("log_spectra").get_weights(), *weights])
        gan.generator.trainable_variables[-1].assign([-0.5])
        u = gan._generator_of_u([z], training=True).numpy().astype(float)
        losses.append(gan.train_step(transform(real[..., None], 4.0).astype(np.float32), z, np.zeros(6, bool)))
        moments.append(float(first_moments(gan.generator_optimizer)[-1][0]))
    fake = 4.0 * np.exp(2.0 * u)
    expected = 0.5 * (crossentropy(real, 1.0) + crossentropy(fake, 0.0))
    assert float(losses[0]["critic_loss"]) == pytest.approx(expected, rel=1e-3)
    h = 1e-5
    slope = (crossentropy(fake * np.exp(2 * h), 1.0) - crossentropy(fake * np.exp(-2 * h), 1.0)) / (2 * h)
    # Adam's first moment is half a first gradient; the weights differ by one.
    assert moments[1] - moments[0] == pytest.approx(0.5 * slope, rel=1e-2)


def test_critic_draws_the_generator_and_only_by_its_weight(tiny_config, rng):
    """The discriminator has no slope here, so that the generator follows the critic alone, if it has a weight."""
    moved = []
    for weight in (0.5, 1e-9):
        gan = gan_with_critic(tiny_config, learn_rate=(1e-3, 1e-9))
        gan.config = dataclasses.replace(gan.config, critic_weight=weight)
        gan.discriminator.layers[-1].kernel.assign(np.zeros_like(gan.discriminator.layers[-1].kernel))
        for layer in gan.critic.layers:
            if isinstance(layer, keras.layers.Dense):
                layer.kernel.assign(rng.normal(0.0, 0.3, layer.kernel.shape))
        z = rng.normal(size=(8, gan.config.noise_vect_len)).astype(np.float32)
        density = rng.lognormal(0.0, 1.5, (8, 8, 8, 1)).astype(np.float32)
        before = gan.critic(gan.generator(z, training=True)).numpy().mean()
        for _ in range(5):
            gan.train_step(transform(density, 4.0), z, np.zeros(8, bool))
        moved.append(gan.critic(gan.generator(z, training=True)).numpy().mean() - before)
    assert moved[0] > 10 * abs(moved[1])
