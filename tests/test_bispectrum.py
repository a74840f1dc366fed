"""The bispectrum against a direct sum over triangles, plane waves, and fields whose bispectrum is known."""

import itertools

import numpy as np
import pytest

from utils import stacks
from utils.bispectrum import equilateral_bispectrum


def ring_cells(ring):
    return [(p, q) for p, q in itertools.product(range(-ring, ring + 1), repeat=2) if round(np.hypot(p, q)) == ring]


@pytest.mark.parametrize("pixels", [8, 10, 12])
def test_agrees_with_the_sum_over_triangles(pixels):
    dx, mean = 1.3, 1.1
    images = np.random.default_rng(0).exponential(1.0, (2, pixels, pixels))
    found = equilateral_bispectrum(images, dx, mean)
    assert len(found.k) == (pixels - 1) // 3
    waves = np.fft.fft2(images / mean - 1)
    for index, ring in enumerate(range(1, len(found.k) + 1)):
        cells = ring_cells(ring)
        total, number = 0, 0
        for one, other in itertools.product(cells, repeat=2):
            third = (-one[0] - other[0], -one[1] - other[1])
            if third in cells:
                total = total + waves[:, *one] * waves[:, *other] * waves[:, *third]
                number += 1
        assert found.triangles[index] == number
        np.testing.assert_allclose(found.bispectrum[:, index], dx**4 / pixels**2 * total.real / number, rtol=1e-10)


def test_three_waves_that_close_to_a_triangle():
    pixels, dx, mean, amplitude = 24, 0.7, 2.0, 0.1
    row, column = np.mgrid[:pixels, :pixels]
    waves = sum(np.cos(2 * np.pi * (p * row + q * column) / pixels) for p, q in ((4, 0), (-2, 3), (-2, -3)))
    found = equilateral_bispectrum(mean * (1 + amplitude * waves)[np.newaxis], dx)
    expected = np.zeros(7)
    # The three waves in any order, and their complex conjugates.
    expected[3] = dx**4 / pixels**2 * 12 * (amplitude * pixels**2 / 2) ** 3 / found.triangles[3]
    np.testing.assert_allclose(found.bispectrum[0], expected, atol=1e-12)
    np.testing.assert_allclose(found.k, 2 * np.pi * np.arange(1, 8) / (pixels * dx))


def test_gaussian_fields_have_none_and_scatter_as_their_triangles_say():
    n, pixels, dx, sigma = 3000, 16, 1.5, 0.4
    images = np.random.default_rng(1).normal(1.0, sigma, (n, pixels, pixels))
    found = equilateral_bispectrum(images, dx, mean=1.0)
    # Of the ordered triples one in six is another triangle; each has the variance of a product of three waves.
    scatter = dx**4 * pixels * sigma**3 * np.sqrt(6 / found.triangles)
    assert (np.abs(found.bispectrum.mean(axis=0)) < 5 * scatter / np.sqrt(n)).all()
    np.testing.assert_allclose(found.bispectrum.std(axis=0), scatter, rtol=0.15)


def test_independent_pixels_have_their_third_cumulant_at_every_scale():
    n, pixels, dx = 2000, 16, 1.5
    images = np.random.default_rng(2).exponential(1.0, (n, pixels, pixels))
    found = equilateral_bispectrum(images, dx, mean=1.0).bispectrum
    error = found.std(axis=0) / np.sqrt(n)
    assert (np.abs(found.mean(axis=0) - 2 * dx**4) < 4 * error).all()  # the third cumulant of the distribution is 2
    assert (error < 0.2 * 2 * dx**4).all()


def test_a_squared_gaussian_field_at_tree_level():
    """δ = g + f(g² − σ²) has B = 2f (P₁P₂ + P₂P₃ + P₃P₁), and terms of order f³ that are small for small f."""
    n, pixels, f = 4000, 16, 0.1
    rng = np.random.default_rng(3)
    distance = np.hypot(*np.meshgrid(*[np.fft.fftfreq(pixels, 1 / pixels)] * 2))
    amplitude = np.where(distance > 0, 0.5 / np.maximum(distance, 1.0), 0.0)
    g = np.fft.ifft2(np.fft.fft2(rng.normal(size=(n, pixels, pixels))) * amplitude).real
    found = equilateral_bispectrum(1 + g + f * (g**2 - np.mean(g**2)), mean=1.0)
    power = amplitude**2
    for ring in range(2, 6):
        cells = set(ring_cells(ring))
        triangles = [
            (one, other, (-one[0] - other[0], -one[1] - other[1]))
            for one, other in itertools.product(cells, repeat=2)
            if (-one[0] - other[0], -one[1] - other[1]) in cells
        ]
        tree = np.mean(
            [2 * f * sum(power[a] * power[b] for a, b in itertools.combinations(triple, 2)) for triple in triangles]
        )
        values = found.bispectrum[:, ring - 1]
        assert abs(values.mean() - tree) < 5 * values.std() / np.sqrt(n) + 0.05 * tree


@pytest.mark.parametrize(
    "change",
    [lambda x: x[:, ::-1], lambda x: np.rot90(x, axes=(1, 2)), lambda x: np.roll(x, (3, 5), axis=(1, 2))],
)
def test_flips_turns_and_periodic_shifts_change_nothing(change):
    images = np.random.default_rng(4).exponential(1.0, (3, 32, 32))
    expected = equilateral_bispectrum(images).bispectrum
    np.testing.assert_allclose(equilateral_bispectrum(change(images)).bispectrum, expected, rtol=1e-8, atol=1e-10)


def test_scaling_laws():
    images = np.random.default_rng(5).exponential(1.0, (3, 16, 16))
    expected = equilateral_bispectrum(images).bispectrum
    np.testing.assert_allclose(equilateral_bispectrum(7 * images).bispectrum, expected)
    np.testing.assert_allclose(equilateral_bispectrum(images, pixel_size=2.0).bispectrum, 16 * expected)
    mean = images.mean()
    np.testing.assert_allclose(equilateral_bispectrum(mean + 3 * (images - mean), mean=mean).bispectrum, 27 * expected)
    np.testing.assert_allclose(equilateral_bispectrum(2 * mean - images, mean=mean).bispectrum, -expected)


def test_types_batches_and_constant_images(monkeypatch):
    images = np.random.default_rng(6).poisson(3.0, (7, 16, 16)).astype(np.int16)
    whole = equilateral_bispectrum(images).bispectrum
    np.testing.assert_allclose(equilateral_bispectrum(images.astype(np.float32)).bispectrum, whole)
    monkeypatch.setattr(stacks, "_BATCH_PIXELS", 2 * 256 + 1)
    np.testing.assert_allclose(equilateral_bispectrum(images).bispectrum, whole)
    np.testing.assert_allclose(equilateral_bispectrum(np.full((2, 8, 8), 5)).bispectrum, 0, atol=1e-25)


@pytest.mark.parametrize(
    ("images", "arguments", "message"),
    [
        (np.full((1, 8, 8), np.nan), {}, "NaN"),
        (np.full((1, 8, 8), np.inf), {"mean": 1.0}, "infinite"),
        (np.ones((0, 8, 8)), {}, "no pixels"),
        (np.ones((8, 8)), {}, "stack"),
        (np.ones((1, 7, 7)), {}, "even"),
        (np.ones((1, 2, 2)), {}, "at least 4"),
        (np.zeros((1, 8, 8)), {}, "mean density"),
        (np.ones((1, 8, 8)), {"pixel_size": -1}, "pixel size"),
    ],
)
def test_refuses(images, arguments, message):
    with pytest.raises(ValueError, match=message):
        equilateral_bispectrum(images, **arguments)
