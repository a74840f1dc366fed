"""Distances of distributions against SciPy."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from utils.distributions import ks_distance, wasserstein_distance

SAMPLES = st.lists(st.integers(-5, 5), min_size=1, max_size=20)


@given(SAMPLES, SAMPLES)
def test_agree_with_scipy(one, other):
    assert ks_distance(one, other) == pytest.approx(scipy.stats.ks_2samp(one, other, method="asymp").statistic)
    above = scipy.stats.ks_2samp(one, other, alternative="greater", method="asymp").statistic
    assert ks_distance(one, other, one_sided=True) == pytest.approx(above)
    assert wasserstein_distance(one, other) == pytest.approx(scipy.stats.wasserstein_distance(one, other))


@given(SAMPLES, st.floats(0.1, 10.0), st.floats(-3.0, 3.0))
def test_shifts_and_scales(samples, scale, shift):
    samples = np.array(samples, dtype=float)
    assert wasserstein_distance(samples, samples + shift) == pytest.approx(abs(shift), abs=1e-9)
    other = samples[::-1] ** 2
    expected = scale * wasserstein_distance(samples, other)
    assert wasserstein_distance(scale * samples, scale * other) == pytest.approx(expected, abs=1e-9)
    assert ks_distance(samples, samples) == 0


def test_weights_are_repeats():
    values, counts, others = np.arange(4), np.array([3, 0, 2, 1]), np.array([1, 1, 0, 4])
    one, other = np.repeat(values, counts), np.repeat(values, others)
    assert ks_distance(values, values, counts, others) == pytest.approx(ks_distance(one, other))
    assert wasserstein_distance(values, values, counts, others) == pytest.approx(wasserstein_distance(one, other))


def test_disjoint_samples_are_at_one():
    assert ks_distance([1, 2], [3, 4]) == 1
    assert ks_distance([1, 2], [3, np.inf]) == 1


@pytest.mark.parametrize(
    ("samples", "weights"),
    [([], None), ([np.nan], None), ([1.0], [0.0]), ([1.0, 2.0], [1.0]), ([1.0, 2.0], [-1.0, 2.0]), ([1.0], [np.nan])],
)
def test_refuse(samples, weights):
    for function in (ks_distance, wasserstein_distance):
        with pytest.raises(ValueError, match=r"samples|weights"):
            function(samples, [1.0], weights)
