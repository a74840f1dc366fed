"""Winograd's convolutions against TensorFlow's, in float64, where the two ways agree to its last digits."""

import numpy as np
import pytest
import tensorflow as tf

from networks import winograd

SIZES = [(5, 2), (3, 2), (4, 2), (2, 2), (6, 2), (5, 3), (7, 4), (3, 1), (2, 3)]


@pytest.fixture
def rng():
    return np.random.default_rng(8)


def normal(rng, *shape):
    return tf.constant(rng.normal(size=shape))


def by_tensorflow(images, kernel, upstream, stride):
    """The convolution, and the derivatives of its product with `upstream`: its transpose and the kernel's gradient."""
    with tf.GradientTape() as tape:
        tape.watch((images, kernel))
        outputs = tf.nn.conv2d(images, kernel, stride, "SAME")
        value = tf.reduce_sum(outputs * upstream)
    return outputs, *tape.gradient(value, (images, kernel))


def by_winograd(images, kernel, upstream, stride):
    return (
        winograd.convolve(images, kernel, stride),
        winograd.convolve_transposed(upstream, kernel, stride),
        winograd.kernel_gradient(images, upstream, kernel.shape[0], stride),
    )


@pytest.mark.parametrize("outputs", [4, 12])
@pytest.mark.parametrize(("side", "stride"), SIZES)
def test_values(rng, side, stride, outputs):
    assert winograd.is_possible(side, stride, outputs)
    images = normal(rng, 3, outputs * stride, outputs * stride, 2)
    kernel, upstream = normal(rng, side, side, 2, 5), normal(rng, 3, outputs, outputs, 5)
    expected = by_tensorflow(images, kernel, upstream, stride)
    for one, other in zip(by_winograd(images, kernel, upstream, stride), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("side", "stride", "outputs"), [(7, 2, 8), (4, 1, 8), (5, 2, 6), (5, 2, 2)])
def test_what_it_cannot_do(side, stride, outputs):
    assert not winograd.is_possible(side, stride, outputs)


def test_derivatives(rng):
    """Each is linear in both its arguments, so its derivatives are the other two."""
    images, kernel, upstream = normal(rng, 2, 8, 8, 3), normal(rng, 5, 5, 3, 2), normal(rng, 2, 4, 4, 2)
    outputs, of_images, of_kernel = by_tensorflow(images, kernel, upstream, 2)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch((images, kernel, upstream))
        values = [
            tf.reduce_sum(result * factor)
            for result, factor in zip(by_winograd(images, kernel, upstream, 2), (upstream, images, kernel), strict=True)
        ]
    for value in values:
        for variable, expected in ((images, of_images), (kernel, of_kernel), (upstream, outputs)):
            derivative = tape.gradient(value, variable)
            np.testing.assert_allclose(derivative, expected, rtol=0, atol=1e-11)


def test_float32_keeps_its_digits(rng):
    """Sums of thousands of products round a little more than term by term, by far less than a short type would."""
    images, kernel = normal(rng, 2, 16, 16, 128), normal(rng, 5, 5, 128, 128) / 50
    upstream = normal(rng, 2, 8, 8, 128)
    exact = by_tensorflow(images, kernel, upstream, 2)
    single = by_winograd(*(tf.cast(tensor, tf.float32) for tensor in (images, kernel, upstream)), 2)
    for one, other in zip(single, exact, strict=True):
        error = np.std(tf.cast(one, tf.float64) - other) / np.std(other)
        assert error < 3e-6


def test_batches_of_any_size(rng):
    kernel = normal(rng, 5, 5, 2, 3)
    images, upstream = normal(rng, 3, 8, 8, 2), normal(rng, 3, 4, 4, 3)

    @tf.function(
        input_signature=[tf.TensorSpec((None, 8, 8, 2), tf.float64), tf.TensorSpec((None, 4, 4, 3), tf.float64)],
        autograph=False,
    )
    def compute(images, upstream):
        results = by_winograd(images, kernel, upstream, 2)
        assert [result.shape[1:].as_list() for result in results] == [[4, 4, 3], [8, 8, 2], [5, 2, 3]]
        return results

    for one, other in zip(compute(images, upstream), by_tensorflow(images, kernel, upstream, 2), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)
