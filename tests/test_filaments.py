"""Coherence of orientation, against images whose answer is known."""

import numpy as np
import pytest

from utils.statistics import orientation_coherence


def coherence(images, **scales):
    difference, total = orientation_coherence(images, **scales).sum(axis=0)
    return difference / total


def waves(angle, side=64, length=9.0):
    rows, columns = np.mgrid[:side, :side]
    return np.sin(2 * np.pi / length * (rows * np.sin(angle) + columns * np.cos(angle)))[np.newaxis]


@pytest.mark.parametrize("angle", [0.0, 0.3, np.pi / 4, 2.0])
def test_parallel_lines_are_wholly_coherent(angle):
    # Not quite at the border, where what lies beyond is a mirror image.
    assert coherence(waves(angle)) > 0.97


def test_two_crossed_sets_of_lines_have_no_direction():
    assert coherence(waves(0.0) + waves(np.pi / 2), window=20.0) < 0.05


def test_strength_of_a_plane_wave():
    """Smoothing leaves exp(-(k scale)²/2) of the amplitude, a central difference is sin(k) for k, and sin² is 1/2."""
    k = 2 * np.pi / 16
    rows = np.arange(64)[:, np.newaxis] * np.ones(64)
    expected = 0.5 * (np.sin(k) * np.exp(-(k**2) / 2)) ** 2
    # A wave that its mirror images beyond the border continue.
    difference, total = orientation_coherence(np.cos(k * (rows + 0.5))[np.newaxis])[0]
    assert total == pytest.approx(expected, rel=0.01)
    assert difference == pytest.approx(total, rel=1e-6)


def test_filaments_are_told_from_their_pixels_moved_about():
    """Segments of lines, against the same pixels in clumps: as many, as bright, and covering the same area."""
    rng = np.random.default_rng(5)
    lines, clumps = np.zeros((2, 40, 64, 64))
    for image, blob in zip(lines, clumps, strict=True):
        for _ in range(6):
            row, column, angle = *rng.uniform(12, 52, 2), rng.uniform(0, np.pi)
            along = np.arange(-12, 12.1, 0.5)
            image[
                np.rint(row + along * np.sin(angle)).astype(int), np.rint(column + along * np.cos(angle)).astype(int)
            ] = 1
        while blob.sum() < image.sum():
            row, column = rng.integers(2, 60, 2)
            blob[row : row + 3, column : column + 3] = 1
    assert abs(lines.mean() / clumps.mean() - 1) < 0.05
    assert coherence(lines) > 1.3 * coherence(clumps)


def test_turning_and_brightness_change_nothing():
    images = np.random.default_rng(6).lognormal(size=(3, 20, 20))
    here = coherence(images)
    assert coherence(np.rot90(images, axes=(1, 2))) == pytest.approx(here)
    assert coherence(7.0 * images + 2.0) == pytest.approx(here)


def test_images_do_not_depend_on_their_neighbours():
    images = np.random.default_rng(8).poisson(1.0, (5, 16, 16))
    together = orientation_coherence(images)
    np.testing.assert_array_equal(
        together, np.concatenate([orientation_coherence(image[np.newaxis]) for image in images])
    )


def test_bad_input_is_refused():
    images = np.ones((2, 8, 8))
    for arguments in ((images[0],), (images[:, :1, :1],), (images, 0.0), (images, 1.0, np.nan)):
        with pytest.raises(ValueError, match=r"images|positive|pixels"):
            orientation_coherence(*arguments)
