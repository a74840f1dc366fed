"""MS-SSIM against scikit-image and its definition; nearest neighbours against brute force."""

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from utils import similarity, stacks
from utils.similarity import SCALE_WEIGHTS, coarse, ms_ssim, ms_ssim_diversity, nearest_neighbours, number_of_scales
from utils.transforms import transform


def fields(n=4, pixels=32, seed=0):
    """Values of s, smooth and noisy at once."""
    rng = np.random.default_rng(seed)
    noise = rng.exponential(2.0, (n, pixels, pixels))
    smooth = noise + np.roll(noise, 1, axis=1) + np.roll(noise, 1, axis=2) + np.roll(noise, 2, axis=1)
    return transform(smooth, 4.0)


def ssim_of_scikit_image(one, other, **arguments):
    return structural_similarity(
        one, other, data_range=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, **arguments
    )


@pytest.mark.parametrize("pixels", [11, 32, 45])
def test_one_scale_agrees_with_scikit_image(pixels):
    one, other = fields(3, pixels), fields(3, pixels, seed=1)
    expected = [ssim_of_scikit_image(*pair) for pair in zip(one, one + 0.1 * other, strict=True)]
    np.testing.assert_allclose(ms_ssim(one, one + 0.1 * other, scales=1), expected, rtol=1e-10)


def test_scales_are_multiplied_with_their_weights():
    one = fields(1, 64)
    other = one + 0.05 * fields(1, 64, seed=1)
    halved = [one[0], other[0]]
    product = 1.0
    weights = np.array(SCALE_WEIGHTS[:3]) / sum(SCALE_WEIGHTS[:3])
    for scale, weight in enumerate(weights):
        # Contrast times structure is the similarity of images without a mean of their own, window by window: from
        # scikit-image's full map it follows by dividing by the luminance, which needs local means.
        _, full = ssim_of_scikit_image(*halved, full=True)
        means = [gaussian_mean(image) for image in halved]
        c1 = (0.01 * 2) ** 2
        luminance = (2 * means[0] * means[1] + c1) / (means[0] ** 2 + means[1] ** 2 + c1)
        chosen = full if scale == 2 else full / luminance
        product *= chosen[5:-5, 5:-5].mean() ** weight
        halved = [image.reshape(image.shape[0] // 2, 2, -1, 2).mean(axis=(1, 3)) for image in halved]
    assert ms_ssim(one, other)[0] == pytest.approx(product, rel=1e-10)


def gaussian_mean(image):
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(image, 1.5, truncate=3.5)


@pytest.mark.parametrize(
    ("pixels", "scales"), [(10, 0), (11, 1), (22, 2), (32, 2), (64, 3), (128, 4), (176, 5), (512, 5)]
)
def test_number_of_scales(pixels, scales):
    assert number_of_scales(pixels) == scales


def test_identical_images_are_identical():
    images = np.concatenate([fields(), np.full((1, 32, 32), -1.0)])
    np.testing.assert_allclose(ms_ssim(images, images), 1.0, rtol=1e-12)


def test_symmetric_and_lower_with_more_noise():
    one, noise = fields(), fields(seed=1)
    np.testing.assert_allclose(ms_ssim(one, noise), ms_ssim(noise, one))
    found = [ms_ssim(one, one + strength * noise).mean() for strength in (0.0, 0.05, 0.2, 1.0)]
    assert (np.diff(found) < 0).all()


@pytest.mark.parametrize("change", [lambda x: x[:, ::-1], lambda x: np.rot90(x, axes=(1, 2))])
def test_flips_and_turns_of_both_change_nothing(change):
    one, other = fields(), fields(seed=1)
    np.testing.assert_allclose(ms_ssim(change(one), change(other)), ms_ssim(one, other), rtol=1e-9)


def test_parts_change_nothing(monkeypatch):
    one, other = fields(7), fields(7, seed=1)
    whole = ms_ssim(one, other)
    monkeypatch.setattr(similarity, "_PAIRS_AT_ONCE", 2)
    np.testing.assert_array_equal(ms_ssim(one, other), whole)


def test_diversity_sees_collapsed_modes():
    diverse = fields(40)
    collapsed = diverse[:1] + 0.02 * fields(40, seed=1)
    assert ms_ssim_diversity(collapsed, 100).mean() > 0.9 > 0.5 > ms_ssim_diversity(diverse, 100).mean()
    np.testing.assert_array_equal(ms_ssim_diversity(diverse, 30, seed=4), ms_ssim_diversity(diverse, 30, seed=4))
    assert not np.array_equal(ms_ssim_diversity(diverse, 30, seed=4), ms_ssim_diversity(diverse, 30, seed=5))
    assert ms_ssim_diversity(fields(2), 50).std() == pytest.approx(0.0, abs=1e-12)  # never an image with itself


@pytest.mark.parametrize(
    ("one", "other", "arguments", "message"),
    [
        (np.ones((2, 16, 16)), np.ones((3, 16, 16)), {}, "equal shape"),
        (np.ones((2, 16, 16)), np.ones((2, 12, 12)), {}, "equal shape"),
        (np.ones((2, 8, 8)), np.ones((2, 8, 8)), {}, "scales"),
        (np.ones((2, 16, 16)), np.ones((2, 16, 16)), {"scales": 2}, "at most 1"),
        (np.ones((2, 16, 16)), np.full((2, 16, 16), np.nan), {}, "NaN"),
        (np.ones((0, 16, 16)), np.ones((0, 16, 16)), {}, "no pixels"),
        (np.ones((2, 16, 16)), np.ones((2, 16, 16)), {"data_range": 0}, "data range"),
    ],
)
def test_ms_ssim_refuses(one, other, arguments, message):
    with pytest.raises(ValueError, match=message):
        ms_ssim(one, other, **arguments)


def test_diversity_needs_two_images():
    for images, pairs in ((fields(1), 5), (fields(2), 0)):
        with pytest.raises(ValueError, match="two images"):
            ms_ssim_diversity(images, pairs)


# --- nearest neighbours ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pixels", "side"), [(128, 32), (64, 32), (96, 32), (100, 50), (32, 32), (8, 8), (74, 37)])
def test_coarse_averages_blocks(pixels, side):
    images = np.random.default_rng(0).normal(size=(2, pixels, pixels))
    found = coarse(images)
    assert found.shape == (2, side, side)
    assert found.dtype == np.float32
    block = pixels // side
    np.testing.assert_allclose(found[1, 0, 1], images[1, :block, block : 2 * block].mean(), rtol=1e-5)


@pytest.mark.parametrize("symmetries", [False, True])
def test_neighbours_agree_with_brute_force(symmetries, monkeypatch):
    monkeypatch.setattr(similarity, "_QUERIES_AT_ONCE", 5)
    queries, references = fields(12, 8), fields(15, 8, seed=1)
    turned = [queries]
    if symmetries:
        turned = [np.rot90(side, turns, axes=(1, 2)) for side in (queries, queries[:, ::-1]) for turns in range(4)]
    squares = [np.mean((side[:, np.newaxis] - references) ** 2, axis=(2, 3)) for side in turned]
    distances = np.sqrt(np.min(squares, axis=0))
    found = nearest_neighbours(queries, references, symmetries)
    np.testing.assert_allclose(found.distance, distances.min(axis=1), rtol=1e-5)
    np.testing.assert_array_equal(found.index, distances.argmin(axis=1))


def test_copies_are_at_distance_zero_in_any_orientation():
    references = fields(9, 16)
    copies = np.stack([np.rot90(image, turns)[:: 1 - 2 * (turns % 2)] for turns, image in enumerate(references)])
    found = nearest_neighbours(copies, references, symmetries=True)
    np.testing.assert_array_equal(found.index, np.arange(9))
    assert found.distance.max() == 0
    assert nearest_neighbours(copies[1:4], references).distance.min() > 0.1


def test_excluded_references_are_no_neighbours():
    stack = fields(9, 16)
    found = nearest_neighbours(stack, stack, excluded=np.arange(9))
    squares = np.mean((stack[:, np.newaxis] - stack) ** 2, axis=(2, 3)) + np.diag(np.full(9, np.inf))
    np.testing.assert_allclose(found.distance, np.sqrt(squares.min(axis=1)), rtol=1e-5)
    np.testing.assert_array_equal(found.index, squares.argmin(axis=1))
    assert np.isinf(nearest_neighbours(stack[:1], stack[:1], excluded=np.zeros(1, int)).distance).all()


def test_neighbours_refuse():
    for queries, references, message in [
        (fields(2, 8), fields(2, 16), "one shape"),
        (fields(2, 8)[:0], fields(2, 8), "no pixels"),
        (fields(2, 8), fields(2, 8)[:0], "no pixels"),
        (fields(2, 8) * np.nan, fields(2, 8), "NaN"),
    ]:
        with pytest.raises(ValueError, match=message):
            nearest_neighbours(queries, references)
    with pytest.raises(ValueError, match="stack"):
        coarse(np.ones((3, 3)))


def test_coarse_works_in_batches(monkeypatch):
    images = fields(7)
    whole = coarse(images)
    monkeypatch.setattr(stacks, "_BATCH_PIXELS", 2000)
    np.testing.assert_array_equal(coarse(images), whole)
