"""The scores that a recipe is judged by, against loops over pixels and shapes that are known."""

import itertools

import numpy as np
import pytest
from skimage.measure import label

from benchmarks.judge_recipe import chi_1, deviations, halo_shape, largest_structure, slice_scatter, unevenness
from utils.scores import means
from utils.statistics import ring_power
from utils.summaries import summarise


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def summary_of(counts):
    return summarise(counts, 4.0, 1.0, 1.0)


def sides(*stacks):
    length = max(stack.max() for stack in stacks) + 1
    return [means(summary_of(stack), length) for stack in stacks]


def chi_1_of_pixels(generated, real):
    """By the definition, pixel after pixel."""
    edges = [-0.5, *np.arange(0.5, 101, 5), *np.arange(120.5, 301, 20), *np.arange(350.5, 1001, 50), 2000.0]

    def number(pixels, low, high):
        first, last = low == edges[0], high == edges[-1]
        return sum((first or pixel >= low) and (last or pixel < high) for pixel in pixels)

    real, generated = (np.sort(stack.ravel()) for stack in (real, generated))
    kept = [edges[-1]]
    for lower in edges[-2::-1]:
        if number(real, lower, kept[-1]) >= 25:
            kept.append(lower)
    total = 0.0
    for high, low in itertools.pairwise(kept):
        one, other = (number(pixels, low, high) / len(pixels) / (high - low) for pixels in (generated, real))
        total += (one - other) ** 2 / other
    return total


def test_chi_1_is_that_of_its_definition(rng):
    real, generated = (rng.poisson(rng.lognormal(0.5, width, (2, 32, 32))) for width in (1.7, 2.1))
    # Two groups of bright pixels with few in between: bins are to be merged below a full one too.
    real.reshape(-1)[:30] = 700
    generated.reshape(-1)[:5] = 5000
    of_generated, of_real = sides(generated, real)
    assert chi_1(of_generated, of_real, real.size) == pytest.approx(chi_1_of_pixels(generated, real), rel=1e-9)
    assert chi_1(of_real, of_real, real.size) == 0.0


def test_deviations_of_one_number_have_their_sign(rng):
    real, generated = (rng.poisson(rng.lognormal(0.5, width, (40, 32, 32))) for width in (1.5, 1.6))
    found = deviations(*sides(generated, real), real.size)
    for name, of_real, of_generated in (
        ("area at 3", real >= 3, generated >= 3),
        ("area at 30", real >= 30, generated >= 30),
        ("bright fraction", real > 100, generated > 100),
    ):
        assert found[name] == pytest.approx(of_generated.mean() / of_real.mean() - 1, rel=1e-9), name
    of_generated, of_real = (ring_power(stack.astype(float)).mean(axis=0) for stack in (generated, real))
    assert found["spectrum"] == pytest.approx(np.sqrt(np.mean((of_generated / of_real - 1) ** 2)), rel=1e-6)
    assert all(value == 0 for value in deviations(*sides(real, real), real.size).values())


def test_halo_shape_of_known_peaks():
    images = np.zeros((3, 16, 16))
    for image, row, column in zip(images, (4, 6, 9), (5, 7, 2), strict=True):
        image[row, column] = 400.0
        image[row, column + 1] = image[row + 1, column] = 100.0
    nearest, parity = halo_shape(images)
    assert nearest == pytest.approx(50.0 / 400.0)
    assert parity == pytest.approx(2 / 3)
    assert all(np.isnan(value) for value in halo_shape(np.zeros((2, 8, 8))))


@pytest.mark.parametrize("place", [(1, 3), (14, 2), (3, 12), (15, 15)])
def test_unevenness_of_structures_in_the_corners_alone(place):
    images = np.zeros((2, 16, 16))
    images[0][place] = 11.0
    images[1, 8, 8] = 10.0  # no more than the limit
    # Of the four places of a quarter one has all: a mean of 1/4, a variance of (3²/4² + 3/4²)/4 = 3/4².
    assert unevenness(images) == pytest.approx(3**0.5)


def test_structures_in_all_places_are_even(rng):
    images = np.zeros((16, 16, 16))
    # In each slice one pixel of every place of 4 x 4, in all slices together all of them.
    for image, (row, column) in zip(images, itertools.product(range(4), repeat=2), strict=True):
        image[row::4, column::4] = 50.0
    assert unevenness(images) == pytest.approx(0.0, abs=1e-12)
    thinned = np.where(rng.random((4000, 32, 32)) < 0.1, 11.0, 0.0)
    # Of 16 places the four on the diagonal are means of 4 x 16 pixels of 4000 slices, the others of 8 x 16; each pixel
    # has a relative variance of (1 - 0.1)/0.1.
    noise = 9 / 4000 * (4 / 64 + 12 / 128) / 16
    assert unevenness(thinned) == pytest.approx(noise**0.5, rel=0.5)


def test_unevenness_of_slices_of_any_side(rng):
    assert np.isnan(unevenness(np.full((2, 16, 16), 10.0)))
    images = np.where(rng.random((50, 20, 20)) < 0.5, 11.0, 0.0)
    middle = images.copy()
    middle[:, 8:12] = middle[:, :, 8:12] = 99.0
    assert unevenness(middle) == unevenness(images) > 0


def test_largest_structure_of_known_slices():
    images = np.zeros((3, 12, 12))
    images[0, range(2, 9), range(2, 9)] = 3.5  # seven pixels that touch by corners
    images[0, 2:4, 9:11] = 100.0
    images[1, 5, :] = 3.0  # no more than the limit
    images[1, :, 3] = images[1, :, 6] = 3.5  # twice twelve, which only the slice before would connect
    assert largest_structure(images) == pytest.approx((7 + 12 + 0) / 3)


def test_noise_connects_what_scikit_image_says(rng):
    images = rng.random((20, 32, 32)) * 5.0
    sizes = [np.bincount(label(image > 3.0, connectivity=2).ravel())[1:].max() for image in images]
    assert largest_structure(images) == np.mean(sizes)


def test_scatter_of_slices_that_are_full_or_empty():
    images = np.zeros((4, 8, 8))
    images[2:] = 4.0  # s = -1 and 0
    assert slice_scatter(images, 4.0) == pytest.approx(0.5)
    images[:, ::2] = 0.0
    assert slice_scatter(images, 4.0) == pytest.approx(0.25)


def test_scatter_of_slices_is_the_power_of_their_means(rng):
    """White noise in s of standard deviation 0.1 leaves 0.1/N in the mean of N² pixels."""
    s = np.clip(rng.normal(0.0, 0.1, (4000, 16, 16)), -0.9, 0.9)
    assert slice_scatter(4.0 * (1.0 + s) / (1.0 - s), 4.0) == pytest.approx(0.1 / 16, rel=0.05)
