"""Convolutions computed in ways of our own against TensorFlow's, values and derivatives."""

import numpy as np
import pytest
import tensorflow as tf

from networks import convolutions, winograd
from networks.convolutions import (
    convolve,
    convolve_transposed,
    kernel_gradient_by_products,
    transposed_by_neighbours,
)

SIZES = [(5, 2), (3, 2), (4, 2), (2, 2), (5, 3), (3, 3), (7, 4)]


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def normal(rng, *shape):
    return tf.constant(rng.normal(size=shape).astype(np.float32))


def assert_equal(one, other):
    scale = float(tf.reduce_max(tf.abs(other)))
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize(("side", "stride"), SIZES)
def test_transposed_by_neighbours(rng, side, stride):
    images, kernel = normal(rng, 2, 4, 4, 3), normal(rng, side, side, 2, 3)
    expected = tf.nn.conv2d_transpose(images, kernel, (2, 4 * stride, 4 * stride, 2), stride, "SAME")
    assert_equal(transposed_by_neighbours(images, kernel, stride), expected)


@pytest.mark.parametrize(("side", "stride"), [*SIZES, (5, 1)])
def test_kernel_gradient(rng, side, stride):
    images, upstream = normal(rng, 3, 4 * stride, 4 * stride, 2), normal(rng, 3, 4, 4, 5)
    expected = tf.raw_ops.Conv2DBackpropFilter(
        input=images,
        filter_sizes=(side, side, 2, 5),
        out_backprop=upstream,
        strides=(1, stride, stride, 1),
        padding="SAME",
    )
    assert_equal(kernel_gradient_by_products(images, upstream, side, stride), expected)


def plain_convolve(images, kernel, stride):
    return tf.nn.conv2d(images, kernel, stride, "SAME")


def plain_transposed(images, kernel, stride):
    n, rows, columns, _ = images.shape
    return tf.nn.conv2d_transpose(images, kernel, (n, rows * stride, columns * stride, kernel.shape[2]), stride, "SAME")


@pytest.mark.parametrize(
    "ways",
    [{}, {"_FEW_CHANNELS": 0}, {"_FEW_CHANNELS": 0, "_many_channels": lambda: 0}],
    ids=" ".join,
)
@pytest.mark.parametrize(("ours", "plain"), [(convolve, plain_convolve), (convolve_transposed, plain_transposed)])
def test_first_and_second_derivatives(rng, monkeypatch, ours, plain, ways):
    """A gradient penalty differentiates the gradient with respect to the images once more, as here."""
    called = set()

    def noted(name, function):
        def call(*arguments):
            called.add(name)
            return function(*arguments)

        return call

    for name in ("convolve", "convolve_transposed", "kernel_gradient"):
        monkeypatch.setattr(winograd, name, noted(name, getattr(winograd, name)))
    monkeypatch.setattr(convolutions, "_on_cpu", lambda: True)
    for name, value in ways.items():
        monkeypatch.setattr(convolutions, name, value)
    side = 16 if ours is convolve else 8
    images = normal(rng, 2, side, side, 2)
    kernel = normal(rng, 5, 5, 2, 2)

    @tf.function(autograph=False)
    def derivatives(convolution):
        with tf.GradientTape() as outer:
            outer.watch((images, kernel))
            with tf.GradientTape() as inner:
                inner.watch((images, kernel))
                value = tf.reduce_sum(tf.sin(convolution(images, kernel, 2)))
            gradients = inner.gradient(value, (images, kernel))
            penalty = sum(tf.reduce_sum(tf.square(gradient)) for gradient in gradients) + value
        return *gradients, *outer.gradient(penalty, (images, kernel))

    for one, other in zip(derivatives(ours), derivatives(plain), strict=True):
        assert_equal(one, other)
    everything = {"convolve", "convolve_transposed", "kernel_gradient"}
    assert called == (everything if "_many_channels" in ways else set())


def test_kernel_gradient_in_bfloat16_on_small_maps(rng, monkeypatch):
    """Within the rounding of bfloat16, which is that of the inputs: sums are kept in float32."""
    images, kernel, weights_of_sum = normal(rng, 8, 8, 8, 4), normal(rng, 5, 5, 4, 6), normal(rng, 8, 4, 4, 6)
    calls = []

    def counted(*arguments):
        calls.append(arguments)
        return kernel_gradient_by_products(*arguments)

    monkeypatch.setattr(convolutions, "_on_cpu", lambda: True)
    monkeypatch.setattr(convolutions, "kernel_gradient_by_products", counted)
    gradients = []
    for dtype in (tf.bfloat16, tf.float32):
        low, weights = tf.cast(tf.cast(images, tf.bfloat16), dtype), tf.cast(tf.cast(kernel, tf.bfloat16), dtype)
        with tf.GradientTape() as tape:
            tape.watch(weights)
            value = tf.reduce_sum(convolve(low, weights, 2) * tf.cast(tf.cast(weights_of_sum, tf.bfloat16), dtype))
        gradients.append(tf.cast(tape.gradient(value, weights), tf.float32))
    assert len(calls) == 1
    np.testing.assert_allclose(gradients[0], gradients[1], rtol=0.01, atol=0.05)


@pytest.mark.parametrize(
    ("outputs", "side", "channels", "dtype", "flags", "pays"),
    [
        (8, 5, (128, 256), tf.float32, "sse2 avx avx2", True),
        (4, 5, (128, 256), tf.float32, "sse2 avx avx2", False),
        (10, 5, (128, 256), tf.float32, "sse2 avx avx2", False),
        (64, 5, (128, 256), tf.float32, "sse2 avx avx2", False),
        (8, 3, (128, 256), tf.float32, "sse2 avx avx2", False),
        (8, 7, (128, 256), tf.float32, "sse2 avx avx2", False),
        (8, 5, (64, 256), tf.float32, "sse2 avx avx2", False),
        (8, 5, (128, 256), tf.bfloat16, "sse2 avx avx2", False),
        (8, 5, (128, 256), tf.float32, "sse2 avx avx2 avx512f", False),
        (8, 5, (256, 256), tf.float32, "sse2 avx avx2 avx512f", True),
        (8, 5, (256, 256), tf.float32, "sse2 avx", False),
    ],
)
def test_where_winograds_way_is_taken(monkeypatch, outputs, side, channels, dtype, flags, pays):
    monkeypatch.setattr(convolutions, "_on_cpu", lambda: True)
    monkeypatch.setattr(convolutions, "processor_flags", lambda: set(flags.split()))
    kernel = tf.zeros((side, side, *channels), dtype)
    assert convolutions._winograd_pays(outputs, kernel, 2) == pays


def test_batches_of_any_size(rng):
    images, kernel = normal(rng, 3, 8, 8, 2), normal(rng, 5, 5, 2, 2)

    @tf.function(input_signature=[tf.TensorSpec((None, 8, 8, 2))], autograph=False)
    def transposed(images):
        outputs = convolve_transposed(images, kernel, 2)
        assert outputs.shape[1:] == (16, 16, 2)
        return outputs

    assert_equal(transposed(images), plain_transposed(images, kernel, 2))
