"""Rounding and symmetries of slices, which no network takes part in."""

import numpy as np
import pytest
import scipy
import tensorflow as tf

from networks.images import blue_noise, random_symmetry, round_stochastically


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def test_random_symmetry_draws_all_eight_and_nothing_else(rng):
    square = rng.normal(size=(4, 4)).astype(np.float32)
    coins = tf.constant(rng.random((400, 3)) < 0.5)
    drawn = random_symmetry(tf.tile(square[None, ..., None], (400, 1, 1, 1)), coins).numpy()[..., 0]
    allowed = [np.rot90(flip, turns) for flip in (square, square.T) for turns in range(4)]
    counts = [sum(np.array_equal(image, symmetry) for image in drawn) for symmetry in allowed]
    assert sum(counts) == 400
    assert min(counts) > 20


def test_stochastic_rounding_keeps_the_mean_and_gives_whole_numbers():
    density = tf.constant(np.repeat([0.0, 0.25, 1.0, 2.9], 40_000).reshape(4, -1).astype(np.float32))
    counts = round_stochastically(density, tf.random.stateless_uniform(density.shape, (1, 2))).numpy()
    np.testing.assert_array_equal(counts, np.floor(counts))
    assert np.abs(counts - density).max() < 1
    # The mean of n Bernoulli variables scatters by sqrt(p (1 - p) / n), here at most 0.0025; five of these.
    np.testing.assert_allclose(counts.mean(axis=1), [0.0, 0.25, 1.0, 2.9], atol=0.0125)


def test_blue_noise_is_that_of_scipy(rng):
    """Uniform, never 1, and apart from its neighbours, also across the edges."""
    normal = rng.normal(size=(50, 16, 16)).astype(np.float32)
    normal[0, 3, 5] = 20.0
    noise = blue_noise(tf.constant(normal)).numpy()
    kernel = np.full((3, 3), -0.4 / 8)
    kernel[1, 1] = 1.0
    g = [scipy.ndimage.convolve(slice_, kernel, mode="wrap") for slice_ in normal.astype(float)]
    np.testing.assert_allclose(noise, scipy.stats.norm.cdf(g, scale=np.sqrt(1.02)), atol=1e-6)
    assert noise.max() < 1
    assert scipy.stats.kstest(noise[1:].ravel(), "uniform").pvalue > 0.01
