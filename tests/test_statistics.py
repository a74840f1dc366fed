"""Statistics against known answers, slow twins and other libraries."""

import numpy as np
import powerbox
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.measure import euler_number

from utils import stacks
from utils.statistics import minkowski_functionals, peak_counts, pixel_histogram, power_spectrum, ring_power

SMALL_STACKS = arrays(np.int16, (2, 6, 6), elements=st.integers(0, 4))


def lognormal(n=3, pixels=32, seed=0, dtype=np.float64):
    field = np.exp(np.random.default_rng(seed).normal(0, 1.2, (n, pixels, pixels)))
    return (np.rint(field) if np.issubdtype(dtype, np.integer) else field).astype(dtype)


def signed_distance(pixels):
    frequency = np.fft.fftfreq(pixels, 1 / pixels)
    return np.hypot(frequency[:, None], frequency[None, :])


# --- power spectrum -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [None, "hann"])
def test_white_noise_is_flat_at_variance_times_pixel_area(window):
    n, pixels, dx, sigma = 400, 32, 1.7, 0.3
    images = np.random.default_rng(1).normal(1.0, sigma, (n, pixels, pixels))
    k, power, modes = power_spectrum(images, pixel_size=dx, mean=1.0, window=window)
    # Half the modes are independent, each exponentially distributed; the window joins neighbours (about ninefold).
    sigma_ring = np.sqrt(2.0 / (modes * n)) * (1 if window is None else 2)
    assert (np.abs(power.mean(axis=0) / (sigma * dx) ** 2 - 1) < 5 * sigma_ring).all()
    np.testing.assert_allclose(k, 2 * np.pi * np.arange(1, pixels // 2 + 1) / (pixels * dx))


@pytest.mark.parametrize(("p", "q", "cells"), [(3, 0, 2), (2, -5, 2), (0, 1, 2), (8, 0, 1), (7, 3, 2)])
def test_plane_wave_has_all_its_power_in_one_ring(p, q, cells):
    pixels, dx, amplitude, mean = 16, 0.5, 0.2, 3.0
    row, column = np.mgrid[:pixels, :pixels]
    image = mean * (1 + amplitude * np.cos(2 * np.pi * (p * row + q * column) / pixels))
    _, power, modes = power_spectrum(image[None], pixel_size=dx)
    ring = round(np.hypot(p, q)) - 1
    # A cosine puts |FFT| = A N²/2 on two cells; at Nyquist these are one.
    expected = np.zeros(pixels // 2)
    expected[ring] = dx**2 / pixels**2 * cells * (amplitude * pixels**2 / cells) ** 2 / modes[ring]
    np.testing.assert_allclose(power[0], expected, atol=1e-12)


def test_gaussian_field_gives_back_its_spectrum():
    n, pixels, dx = 200, 32, 2.0
    distance = signed_distance(pixels)
    k_cells = 2 * np.pi * distance / (pixels * dx)
    spectrum = 0.05 / (0.1 + k_cells**2)
    white = np.fft.fft2(np.random.default_rng(2).normal(size=(n, pixels, pixels)))
    images = 1 + np.fft.ifft2(white * np.sqrt(spectrum) / dx).real
    power = power_spectrum(images, pixel_size=dx, mean=1.0).power.mean(axis=0)
    for ring in range(1, pixels // 2 + 1):
        cells = np.rint(distance) == ring
        sigma = np.sqrt(2 * np.sum(spectrum[cells] ** 2) / n) / cells.sum()
        assert abs(power[ring - 1] - spectrum[cells].mean()) < 5 * sigma


def test_agrees_with_powerbox():
    pixels, dx = 24, 1.5
    image = lognormal(1, pixels)[0]
    step = 2 * np.pi / (pixels * dx)
    edges = step * (np.arange(pixels // 2 + 1) + 0.5)
    theirs = powerbox.get_power(image / image.mean() - 1, pixels * dx, bins=edges).power
    np.testing.assert_allclose(power_spectrum(image[None], dx).power[0], theirs, rtol=1e-10)


def test_agrees_with_the_definition_summed_directly():
    pixels, dx, mean = 8, 1.3, 1.7
    image = lognormal(1, pixels)[0]
    weights = np.random.default_rng(3).uniform(0.5, 1.5, (pixels, pixels))
    field = weights * (image / mean - 1)
    row, column = np.mgrid[:pixels, :pixels]
    rings = {ring: [] for ring in range(1, pixels // 2 + 1)}
    for p in range(-pixels // 2, pixels // 2):
        for q in range(-pixels // 2, pixels // 2):
            amplitude = np.sum(field * np.exp(-2j * np.pi * (p * row + q * column) / pixels))
            rings.get(round(np.hypot(p, q)), []).append(abs(amplitude) ** 2)
    expected = [dx**2 / pixels**2 * np.mean(ring) / np.mean(weights**2) for ring in rings.values()]
    found = power_spectrum(image[None], dx, mean, weights)
    np.testing.assert_allclose(found.power[0], expected, rtol=1e-12)
    np.testing.assert_array_equal(found.modes, [len(ring) for ring in rings.values()])


def test_modes_of_128_pixels():
    distance = np.rint(signed_distance(128))
    expected = [np.count_nonzero(distance == ring) for ring in range(1, 65)]
    np.testing.assert_array_equal(power_spectrum(np.ones((1, 128, 128))).modes, expected)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x[:, ::-1],
        lambda x: x[:, :, ::-1],
        lambda x: np.rot90(x, axes=(1, 2)),
        lambda x: np.swapaxes(x, 1, 2),
    ],
)
@pytest.mark.parametrize("window", [None, "hann"])
def test_flips_and_quarter_turns_change_nothing(change, window):
    images = lognormal()
    np.testing.assert_allclose(
        power_spectrum(change(images), window=window).power, power_spectrum(images, window=window).power, rtol=1e-9
    )
    edges, thresholds = [0, 1, 2, 4, np.inf], [0.5, 1, 3]
    np.testing.assert_array_equal(peak_counts(change(images), edges), peak_counts(images, edges))
    np.testing.assert_array_equal(
        minkowski_functionals(change(images), thresholds), minkowski_functionals(images, thresholds)
    )


@given(st.integers(0, 31), st.integers(0, 31))
@settings(max_examples=20, deadline=None)
def test_periodic_shift_keeps_power(rows, columns):
    images = lognormal(2)
    shifted = np.roll(images, (rows, columns), axis=(1, 2))
    np.testing.assert_allclose(power_spectrum(shifted).power, power_spectrum(images).power, rtol=1e-9)


def test_scaling_laws_of_power():
    images = lognormal()
    power = power_spectrum(images, pixel_size=1.0).power
    np.testing.assert_allclose(power_spectrum(7 * images).power, power, rtol=1e-12)
    np.testing.assert_allclose(power_spectrum(images, pixel_size=3.0).power, 9 * power, rtol=1e-12)
    np.testing.assert_allclose(power_spectrum(images, mean=2 * images.mean()).power, power / 4, rtol=1e-9)
    np.testing.assert_allclose(ring_power(2 * images), 4 * ring_power(images), rtol=1e-12)


def test_window_given_as_vector_or_plane_and_hann():
    images = lognormal()
    vector = np.sin(np.pi * (np.arange(32) + 0.5) / 32) ** 2
    plane = power_spectrum(images, window=np.outer(vector, vector)).power
    np.testing.assert_allclose(power_spectrum(images, window=vector).power, plane, rtol=1e-12)
    np.testing.assert_allclose(power_spectrum(images, window="hann").power, plane, rtol=1e-12)
    np.testing.assert_allclose(power_spectrum(images, window=5 * vector).power, plane, rtol=1e-12)
    np.testing.assert_allclose(power_spectrum(images, window=np.ones(32)).power, power_spectrum(images).power)


def test_constant_images_have_no_power():
    np.testing.assert_allclose(power_spectrum(np.full((2, 8, 8), 5)).power, 0, atol=1e-25)
    np.testing.assert_allclose(power_spectrum(np.full((2, 12, 12), 5.0), mean=2.0).power, 0, atol=1e-25)


# --- what all have in common ----------------------------------------------------------------------------------------

ALL = {
    "power_spectrum": lambda images: power_spectrum(images, mean=1.5).power,
    "pixel_histogram": lambda images: pixel_histogram(images, [0, 1, 2, 5, 100]),
    "peak_counts": lambda images: peak_counts(images, [0, 1, 2, 5, 100]),
    "minkowski_functionals": lambda images: minkowski_functionals(images, [1, 2, 5]),
}


@pytest.mark.parametrize("function", ALL.values(), ids=ALL)
def test_bad_images_are_refused(function):
    good = lognormal()
    for bad, message in [
        (np.full((1, 8, 8), np.nan), "NaN"),
        (np.where(good == good.max(), np.inf, good), "infinite"),
        (good[0], "stack"),
        (good[..., None], "stack"),
        (good[:, :16], "square"),
        (good[:0], "no pixels"),
        (good.astype(complex), "complex"),
        (good.astype(object), "object"),
    ]:
        with pytest.raises(ValueError, match=message):
            function(bad)


@pytest.mark.parametrize("function", ALL.values(), ids=ALL)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.float32, np.float64])
def test_any_numeric_type(function, dtype):
    images = lognormal(dtype=np.uint8)
    np.testing.assert_allclose(function(images.astype(dtype)), function(images), rtol=1e-12)


@pytest.mark.parametrize("function", ALL.values(), ids=ALL)
def test_batches_change_nothing(function, monkeypatch):
    images = lognormal(7)
    whole = function(images)
    monkeypatch.setattr(stacks, "_BATCH_PIXELS", 2 * 32 * 32 + 1)
    np.testing.assert_array_equal(function(images), whole)


def test_power_spectrum_refuses():
    images = lognormal()
    for arguments, message in [
        ({"images": images[:, :31, :31]}, "even"),
        ({"images": np.zeros((1, 4, 4))}, "mean density"),
        ({"images": images, "mean": -1}, "mean density"),
        ({"images": images, "mean": np.nan}, "mean density"),
        ({"images": images, "pixel_size": 0}, "pixel size"),
        ({"images": images, "window": "hamming"}, "hann"),
        ({"images": images, "window": np.ones(31)}, "shape"),
        ({"images": images, "window": np.zeros(32)}, "window"),
    ]:
        with pytest.raises(ValueError, match=message):
            power_spectrum(**arguments)


@pytest.mark.parametrize("edges", [[1], [1, 1], [2, 1], [0, np.nan], [[0, 1]]])
def test_edges_must_increase(edges):
    for function in (pixel_histogram, peak_counts):
        with pytest.raises(ValueError, match="increasing"):
            function(lognormal(), edges)


# --- histogram ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float64])
@pytest.mark.parametrize("edges", [np.linspace(0, 200, 26), [0, 0.5, 1, 3, 10, 1000], [0, 1000]])
def test_histogram_agrees_with_numpy(dtype, edges):
    images = lognormal(dtype=dtype)
    counts = pixel_histogram(images, edges)
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, np.histogram(images, edges)[0])


def test_histogram_counts_what_is_outside_in_the_end_bins():
    image = np.array([[[-3, 0, 1], [2, 2, 3], [4, 9, 1]]])
    np.testing.assert_array_equal(pixel_histogram(image, [0, 1, 2, 4]), [2, 2, 5])


@given(SMALL_STACKS)
def test_histogram_sums_to_the_pixels(images):
    assert pixel_histogram(images, [0.5, 1, 2.5]).sum() == images.size


# --- peaks ----------------------------------------------------------------------------------------------------------


@given(SMALL_STACKS)
def test_peaks_agree_with_brute_force(images):
    heights = []
    for image in images:
        for row in range(1, 5):
            for column in range(1, 5):
                patch = image[row - 1 : row + 2, column - 1 : column + 2].copy()
                height, patch[1, 1] = patch[1, 1], -1
                if height > patch.max():
                    heights.append(height)
    edges = [0, 2, 3, 4]
    np.testing.assert_allclose(peak_counts(images, edges), np.histogram(heights, edges)[0] / 2)


def test_peaks_known_answer():
    image = np.zeros((9, 9))
    image[2, 2], image[6, 6], image[0, 4], image[4, 6:8], image[7, 2] = 5, 3, 9, 2, 100
    # Not counted: the border pixel of 9, the plateau of 2, and what lies outside the edges.
    np.testing.assert_array_equal(peak_counts(image[None], [1, 4, 10]), [1, 1])
    np.testing.assert_array_equal(peak_counts(image[None], [1, 4, np.inf]), [1, 2])
    assert peak_counts(np.ones((3, 2, 2)), [0, 9]) == [0]


# --- Minkowski functionals ------------------------------------------------------------------------------------------


def test_minkowski_of_a_disc():
    row, column = np.mgrid[:256, :256]
    disc = np.hypot(row - 127.6, column - 128.3) < 80
    area, boundary, euler = minkowski_functionals(disc[None].astype(float), [0.5])[:, 0] * disc.size
    assert area == pytest.approx(np.pi * 80**2, rel=1e-3)
    assert boundary == pytest.approx(2 * np.pi * 80, rel=5e-3)
    assert euler == pytest.approx(1)


def test_minkowski_of_squares_and_a_ring():
    image = np.zeros((20, 20))
    image[:4, :4] = 1  # in the corner: the frame is no boundary
    image[10:15, 10:15] = 1
    image[12, 12] = 0  # a hole
    image[15, 15] = 1  # touches by a corner only: a component of its own
    area, boundary, euler = minkowski_functionals(image[None], [1.0])[:, 0] * image.size
    assert area == pytest.approx(16 + 24 + 1)
    assert boundary == pytest.approx(np.pi / 4 * (8 + 20 + 4 + 4))
    assert euler == pytest.approx(1 + (1 - 1) + 1)


def test_minkowski_of_nothing_and_everything():
    images = np.full((2, 8, 8), 3)
    found = minkowski_functionals(images, [3, 3.5, -np.inf, np.inf])
    np.testing.assert_allclose(found * 64, [[64, 0, 64, 0], [0, 0, 0, 0], [1, 0, 1, 0]])
    assert minkowski_functionals(images, []).shape == (3, 0)


@given(SMALL_STACKS)
@settings(deadline=None)
def test_euler_agrees_with_scikit_image(images):
    found = minkowski_functionals(images, [1, 2, 3.5])[2] * images.size
    expected = [sum(euler_number(image >= level, connectivity=1) for image in images) for level in (1, 2, 3.5)]
    np.testing.assert_allclose(found, expected, atol=1e-9)


@given(SMALL_STACKS)
def test_boundary_agrees_with_counting(images):
    inside = images >= 2
    pairs = sum(
        inside[i, r, c] != inside[i, r + dr, c + dc]
        for i, r, c in np.ndindex(2, 6, 6)
        for dr, dc in ((0, 1), (1, 0))
        if r + dr < 6 and c + dc < 6
    )
    np.testing.assert_allclose(minkowski_functionals(images, [2])[1, 0], np.pi / 4 * pairs / images.size)


def test_thresholds_are_compared_exactly():
    images = np.full((1, 4, 4), np.float32(0.7))  # just below 0.7
    assert minkowski_functionals(images, [0.7])[0, 0] == 0
    for bad in ([np.nan], 3.0, [[1.0]]):
        with pytest.raises(ValueError, match="thresholds"):
            minkowski_functionals(images, bad)
