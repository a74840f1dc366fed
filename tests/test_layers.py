"""Batch normalisation and convolution against their definitions, written out in NumPy and by finite differences."""

import numpy as np
import pytest
import tensorflow as tf

from networks.layers import BatchNormalization, Conv2D

EPSILON = 1e-5


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def built(rng, shape):
    """A layer with weights and moving statistics of no particular value."""
    layer = BatchNormalization(momentum=0.9, epsilon=EPSILON)
    layer.build((None, *shape[1:]))
    layer.set_weights([rng.uniform(0.5, 2.0, shape[-1:]) for _ in range(4)])
    return layer


@pytest.mark.parametrize("shape", [(12, 3), (4, 5, 5, 3)])
def test_values_and_moving_statistics(rng, shape):
    layer = built(rng, shape)
    x = rng.normal(1.0, 1.5, shape)
    gamma, beta, moving_mean, moving_variance = layer.get_weights()
    axes = tuple(range(len(shape) - 1))
    mean, variance = x.mean(axes), x.var(axes)
    expected = (x - mean) / np.sqrt(variance + EPSILON) * gamma + beta
    np.testing.assert_allclose(layer(x.astype(np.float32), training=True), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(layer.moving_mean, 0.9 * moving_mean + 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, 0.9 * moving_variance + 0.1 * variance, rtol=1e-5)
    inferred = (x - layer.moving_mean.numpy()) / np.sqrt(layer.moving_variance.numpy() + EPSILON) * gamma + beta
    np.testing.assert_allclose(layer(x.astype(np.float32), training=False), inferred, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("xla", [False, True])
def test_exact_inputs_in_bfloat16(xla):
    """Two bright pixels that bfloat16 rounds to the same number stay apart, in the result and in the gradient."""
    images = tf.constant(np.array([0.921, 0.9212, 0.5, 0.25], np.float32).reshape(1, 2, 2, 1))
    assert len(np.unique(tf.cast(images, tf.bfloat16).numpy())) == 3
    layer = Conv2D(1, 2, strides=2, padding="same", use_bias=False, exact_inputs=True, dtype="mixed_bfloat16")
    layer.build(images.shape)
    layer.set_weights([np.array([-1.0, 1.0, 0.0, 0.0], np.float32).reshape(2, 2, 1, 1)])

    @tf.function(jit_compile=xla)
    def outputs_and_slopes(images):
        outputs = layer(images)
        return outputs, *tf.gradients(outputs, [images, layer.kernel.value])

    outputs, by_images, by_kernel = outputs_and_slopes(images)
    assert outputs.dtype == tf.bfloat16
    np.testing.assert_allclose(np.float32(outputs), 0.0002, rtol=0.05)
    np.testing.assert_array_equal(np.ravel(by_images), [-1.0, 1.0, 0.0, 0.0])
    np.testing.assert_allclose(np.ravel(by_kernel), np.ravel(images), rtol=0.004)


@pytest.mark.parametrize(("side", "stride"), [(5, 2), (3, 2), (2, 2), (5, 1)])
def test_a_bias_is_added_before_rounding(rng, side, stride):
    """Bright pixels less a bias that is nearly theirs: what is left is small, and has all its digits."""
    images = tf.constant(rng.uniform(0.92, 0.93, (2, 8, 8, 1)).astype(np.float32))
    layer = Conv2D(3, side, strides=stride, padding="same", exact_inputs=True, dtype="mixed_bfloat16")
    layer.build(images.shape)
    kernel = np.zeros((side, side, 1, 3), np.float32)
    kernel[(side - 1) // 2, (side - 1) // 2] = [1.0, 2.0, -1.0]
    layer.set_weights([kernel, np.array([-0.925, -1.85, 0.925], np.float32)])
    with tf.GradientTape() as tape:
        outputs = layer(images)
    expected = tf.nn.conv2d(images, kernel, stride, "SAME") + layer.bias
    np.testing.assert_allclose(np.float32(outputs), expected, rtol=0.01, atol=5e-5)
    assert np.ptp(expected) > 0.01
    by_bias = tape.gradient(outputs, layer.bias.value)
    np.testing.assert_allclose(np.float32(by_bias), np.size(expected) / 3)
