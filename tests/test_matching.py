"""Histogram matching against distributions whose map is known."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from networks.gan import GAN
from networks.losses import TrainingSet, measure_training_set
from networks.matching import HistogramMatching, count_reached, fit_shifts, fractions_reached, thresholds
from utils.slices import open_slices


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def layer_with(knots, shifts):
    layer = HistogramMatching()
    layer.build((None, 8, 8, 1))
    layer.shift(knots, shifts)
    return layer


def mapped(u, knots, shifts):
    return layer_with(knots, shifts)(u.astype(np.float32)[:, None, None, None]).numpy().ravel()


def test_layer_interpolates_between_its_knots_and_is_off_in_training(rng):
    knots, shifts = np.sort(rng.uniform(-2.0, 5.0, 22)), rng.normal(size=22)
    u = rng.uniform(-3.0, 6.0, 500)
    np.testing.assert_allclose(mapped(u, knots, shifts), u + np.interp(u, knots, shifts), atol=5e-5)
    images = tf.constant(u.astype(np.float32))
    np.testing.assert_array_equal(layer_with(knots, shifts)(images, training=True), images)
    fresh = HistogramMatching()
    np.testing.assert_array_equal(fresh(images), images)


def test_thresholds(tiny_config):
    exact = thresholds(tiny_config)
    np.testing.assert_allclose(exact[[0, 2, 20]], [2.0, 4.0, 2048.0])
    whole = thresholds(dataclasses.replace(tiny_config, count_noise=True))
    np.testing.assert_array_equal(whole[:6], [2, 3, 4, 6, 8, 11])
    # Where particles are few, several would round to the same.
    few = thresholds(dataclasses.replace(tiny_config, count_noise=True, datascale=0.1))
    assert few[0] == 1
    assert np.all(np.diff(few) > 0)


def test_counting(rng):
    densities, bounds = rng.poisson(3.0, (4, 50, 50)), np.array([1.0, 2.0, 7.0, 50.0])
    counts = count_reached(densities, bounds)
    np.testing.assert_array_equal(counts, [(densities >= bound).sum() for bound in bounds])
    fractions = fractions_reached(counts, densities.size)
    assert fractions[0] == pytest.approx(1 - np.exp(-3), abs=0.01)
    assert fractions[-1] == 0.0  # no pixel is so bright


@pytest.mark.parametrize("rounding", ["none", "count_noise", "dequantise"])
def test_fit_recovers_a_known_map(tiny_config, rng, rounding):
    """Fields whose logarithm is another linear function of the same Gaussian: the map is that function."""
    config = tiny_config
    if rounding != "none":
        config = dataclasses.replace(config, **{rounding: True})
    gaussian = rng.normal(size=2_000_000)
    real, generated = np.exp(-1.0 + 1.6 * gaussian), np.exp(-1.1 + 1.4 * gaussian)

    def rounded(densities):
        if rounding == "none":
            return densities
        return np.floor(densities + (rng.uniform(size=densities.shape) if rounding == "count_noise" else 0.0))

    bounds = thresholds(config)
    fractions = fractions_reached(count_reached(rounded(real), bounds), real.size)
    u = 0.5 * np.log(generated / config.datascale)
    table = fit_shifts(u, fractions, config)
    after = config.datascale * np.exp(2.0 * mapped(u, *table))
    # Where the thresholds of enough pixels lie.
    inside = (real > 4.0) & (real < 300.0)
    np.testing.assert_allclose(after[inside], real[inside], rtol=0.12)
    found = count_reached(rounded(after), bounds) / real.size
    known = fractions > 1e-4
    assert np.count_nonzero(known) > 10
    np.testing.assert_allclose(found[known], fractions[known], rtol=0.04)
    before = count_reached(rounded(generated), bounds) / real.size
    assert np.abs(before[known] / fractions[known] - 1.0).max() > 0.5


@pytest.mark.parametrize("level", [-9.0, 0.0, 1.0, 5.0])
@pytest.mark.parametrize("sigma", [0.0, 0.01, 1.0])
def test_map_rises_whatever_the_generator_makes(tiny_config, rng, level, sigma):
    fractions = np.where(np.arange(21) < 9, 0.3 * 0.6 ** np.arange(21), 0.0)
    table = fit_shifts(rng.normal(level, sigma, 10_000), fractions, tiny_config)
    u = np.linspace(-10.0, 10.0, 3001)
    assert np.all(np.diff(mapped(u, *table)) > -1e-5)


def test_nothing_known_changes_nothing(tiny_config):
    _, shifts = fit_shifts(np.zeros(10), np.zeros(21), tiny_config)
    np.testing.assert_array_equal(shifts, np.zeros(22))


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_training_does_not_notice(tiny_config, rng, ema_decay):
    """Weights are bit for bit those of a run without, and samples are as bright as the training set."""
    config = dataclasses.replace(tiny_config, ema_decay=ema_decay, match_histogram=True)
    fractions = np.where(np.arange(21) < 9, 0.2 * 0.7 ** np.arange(21), 0.0)
    gans = (
        GAN(config, training_set=TrainingSet(400.0, fractions=fractions)),
        GAN(dataclasses.replace(config, match_histogram=False)),
    )
    for _ in range(3):
        densities = rng.poisson(rng.lognormal(-0.5, 1.0, (6, 8, 8)))
        for gan in gans:
            gan.train_on_densities(densities)
            gan.match_histogram()
    for network in ("generator", "discriminator"):
        pair = (getattr(gan, network).trainable_variables for gan in gans)
        for weight, expected in zip(*pair, strict=True):
            np.testing.assert_array_equal(weight, expected)
    matched, plain = (gan.sample(4096, seed=5) for gan in gans)
    bounds = thresholds(config)
    # At first all pixels are about as bright: a node apart, they cannot be told.
    assert count_reached(plain, bounds)[3] == 0
    np.testing.assert_array_equal(np.argsort(plain[0].ravel()), np.argsort(matched[0].ravel()))


def test_samples_have_the_training_histogram(tiny_config, rng):
    config = dataclasses.replace(tiny_config, match_histogram=True, ema_decay=0.5)
    fractions = np.where(np.arange(21) < 9, 0.2 * 0.7 ** np.arange(21), 0.0)
    gan = GAN(config, training_set=TrainingSet(400.0, fractions=fractions))
    for weight in gan.average_generator.trainable_variables:
        weight.assign(0.4 * rng.normal(size=weight.shape))
    gan.match_histogram()
    found = count_reached(gan.sample(16384, seed=9), thresholds(config)) / (16384 * 64)
    np.testing.assert_allclose(found[:9], fractions[:9], rtol=0.05)


def test_fractions_of_a_training_set(tiny_config, rng, tmp_path):
    counts = rng.poisson(rng.lognormal(0.0, 1.5, (300, 8, 8))).astype(np.int16)
    for split in ("train", "val"):
        np.save(tmp_path / f"raw_{split}.npy", counts[..., None])
    config = dataclasses.replace(tiny_config, match_histogram=True, count_noise=True)
    with open_slices("raw", "train", 8, tmp_path) as slices:
        fractions = measure_training_set(config, slices).fractions
    expected = [(counts >= bound).sum() for bound in thresholds(config)]
    np.testing.assert_allclose(fractions, [n / counts.size if n >= 100 else 0.0 for n in expected])
