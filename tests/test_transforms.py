"""The transform and its inverse: exact values, types, both libraries, the clip at s = 1."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from utils.transforms import invtransform, transform


def test_known_values():
    x = np.array([0.0, 4.0, 12.0, 4 / 3])
    np.testing.assert_allclose(transform(x, 4), [-1.0, 0.0, 0.5, -0.5], atol=1e-15)
    np.testing.assert_allclose(invtransform(np.array([-1.0, 0.0, 0.5, -0.5]), 4), x, atol=1e-15)


def test_is_tanh_of_half_the_logarithm():
    x = np.geomspace(1e-3, 1e4, 50)
    np.testing.assert_allclose(transform(x, 4), np.tanh(0.5 * np.log(x / 4)), atol=1e-13)
    np.testing.assert_allclose(transform(x, 4), 2 * x / (x + 4) - 1, atol=1e-15)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floating_types_are_kept(dtype):
    x = np.arange(6, dtype=dtype).reshape(2, 3)
    # A NumPy scalar for a must not widen the result.
    for a in (4, 4.0, np.float64(4.0), np.int64(4)):
        assert transform(x, a).dtype == dtype
        assert invtransform(transform(x, a), a).dtype == dtype
        assert transform(tf.constant(x), a).dtype == dtype
        assert invtransform(tf.constant(transform(x, a)), a).dtype == dtype
    assert transform(x, 4).shape == (2, 3)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64])
def test_integers_become_float32(dtype):
    s = transform(np.array([0, 4, 12], dtype=dtype), 4)
    assert s.dtype == np.float32
    np.testing.assert_array_equal(s, np.float32([-1, 0, 0.5]))


def test_large_integers_do_not_overflow():
    assert transform(np.array([32767], dtype=np.int16), 4)[0] == pytest.approx(1 - 8 / 32771)


def test_round_trip_keeps_every_integer_of_a_simulation():
    x = np.arange(10_001, dtype=np.int16)
    np.testing.assert_array_equal(np.rint(invtransform(transform(x, 4), 4)), x)


@given(st.floats(0, 1e4), st.floats(0.1, 100))
def test_round_trip_and_range(x, a):
    s = transform(np.array([x]), a)
    assert -1 <= s[0] < 1
    assert invtransform(s, a)[0] == pytest.approx(x, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_inverse_is_finite_at_one_and_exact_below(dtype):
    below = np.nextafter(dtype(1), dtype(0))
    s = np.array([1, below, 0.999, 0.3, -0.7, -1], dtype=dtype)
    x = invtransform(s, 4)
    textbook = dtype(4) * ((1 + s[1:]) / (1 - s[1:]))
    assert x[0] == x[1]
    assert np.isfinite(x).all()
    np.testing.assert_array_equal(x[1:], textbook)
    assert invtransform(np.array([dtype(1) + np.finfo(dtype).eps]), 4)[0] == x[1]


def test_tensors_give_what_arrays_give():
    rng = np.random.default_rng(0)
    x = rng.exponential(10.0, (3, 5)).astype(np.float32)
    s = np.append(transform(x, 4), np.float32([1, -1]))
    np.testing.assert_allclose(transform(tf.constant(x), 4).numpy(), transform(x, 4), atol=1e-7)
    np.testing.assert_allclose(invtransform(tf.constant(s), 4).numpy(), invtransform(s, 4), rtol=1e-6)
    compiled = tf.function(lambda tensor: invtransform(tensor, 4))
    np.testing.assert_allclose(compiled(tf.constant(s)).numpy(), invtransform(s, 4), rtol=1e-6)


def test_gradient_of_the_inverse():
    s = tf.constant([-1.0, 0.5, 1.0])
    with tf.GradientTape() as tape:
        tape.watch(s)
        x = invtransform(s, 4.0)
    # dx/ds = 2a/(1-s)²; at s = 1 the value only has to be finite.
    gradient = tape.gradient(x, s).numpy()
    np.testing.assert_allclose(gradient[:2], [2.0, 32.0])
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("a", [0, -4, np.nan, np.inf])
def test_refuses_a_scale_that_is_not_positive(a):
    for function in (transform, invtransform):
        with pytest.raises(ValueError, match="positive"):
            function(np.ones(3), a)


def test_does_not_import_tensorflow():
    code = "import sys, utils.transforms, utils.scores; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
