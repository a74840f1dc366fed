"""Summaries and scores: direct transcriptions of the definitions, SciPy, and noise floors of known scatter."""

import dataclasses
import json

import numpy as np
import pytest
import scipy.stats

from utils import likeness
from utils.noise import noise_floor
from utils.scorecard import scorecard
from utils.scores import DEFINITIONS, UNITS, ratio_to_floor, scores
from utils.statistics import (
    minkowski_functionals,
    orientation_coherence,
    peak_counts,
    pixel_histogram,
    power_spectrum,
    ring_power,
)
from utils.summaries import MINKOWSKI_THRESHOLDS, PEAK_EDGES, TOP_VALUE, summarise, whole_numbers
from utils.transforms import transform

A, DX, MEAN = 4.0, 1.5, 1.1
NAMES = [name for name in DEFINITIONS if name not in likeness.DEFINITIONS]  # without a Likeness


def slices(n, seed=0, pixels=16, strength=1.0):
    """Integer densities with a bright tail, but none so heavy that a few pixels decide everything."""
    return np.random.default_rng(seed).exponential(20 * strength, (n, pixels, pixels)).astype(np.int16)


def summary(images, **arguments):
    return summarise(images, A, DX, MEAN, **arguments)


def universes(number, each, seed, pixels=16):
    """Slices whose universes differ in strength: the labels, and the densities."""
    rng = np.random.default_rng(seed)
    images = [slices(each, rng.integers(2**31), pixels, 1 + 0.05 * rng.normal()) for _ in range(number)]
    return np.repeat(np.arange(number), each), np.concatenate(images)


# --- summaries ------------------------------------------------------------------------------------------------------


def test_summary_holds_the_statistics():
    images = slices(10)
    found = summary(images)
    power = power_spectrum(images, DX, MEAN)
    np.testing.assert_array_equal(found.k, power.k)
    np.testing.assert_allclose(found.power.sum(axis=0), power.power.sum(axis=0))
    np.testing.assert_allclose(found.curve("power").mean, power.power.mean(axis=0))
    np.testing.assert_allclose(found.power_squares.sum(axis=0), (power.power**2).sum(axis=0))
    s_power = DX**2 / 16**2 * ring_power(transform(images, A))
    np.testing.assert_allclose(found.power_s.sum(axis=0), s_power.sum(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.peaks.sum(axis=0), 10 * peak_counts(images, PEAK_EDGES))
    np.testing.assert_allclose(
        found.minkowski.sum(axis=0), 10 * minkowski_functionals(images, MINKOWSKI_THRESHOLDS), atol=1e-12
    )
    np.testing.assert_array_equal(found.counts.sum(axis=0), np.bincount(images.ravel()))
    assert found.slices.sum() == 10


def test_batches_add_up_to_the_whole():
    labels, images = universes(4, 6, seed=1)
    block = np.tile([0, 0, 1, 1, 2, 2], 4)
    whole = summary(images, universe=labels, block=block)
    order = np.random.default_rng(2).permutation(len(images))
    parts = [summary(images[part], universe=labels[part], block=block[part]) for part in np.array_split(order, 5)]
    added = sum(parts[1:], start=parts[0])
    for field in dataclasses.fields(whole)[1:]:
        one, other = getattr(added, field.name), getattr(whole, field.name)
        np.testing.assert_allclose(one, other, atol=1e-9, err_msg=field.name)
    assert scores(added, whole) == pytest.approx(dict.fromkeys(NAMES, 0.0), abs=1e-9)


def test_blocks_by_default_and_their_sum():
    labels, images = universes(3, 16, seed=3)
    found = summary(images, universe=labels)
    np.testing.assert_array_equal(found.slices, np.full(24, 2))
    np.testing.assert_array_equal(found.by_universe().slices, [16, 16, 16])
    np.testing.assert_array_equal(found.by_universe().counts.sum(), images.size)
    assert found.groups()[1] == "universes"
    assert summary(images).groups()[1] == "blocks"


def test_densities_become_whole_numbers():
    images = np.array([[[0.4, 0.6], [2.5, 3.5]], [[1e9, 0], [7.9, 100]]])
    np.testing.assert_array_equal(whole_numbers(images).ravel(), [0, 1, 2, 4, TOP_VALUE, 0, 8, 100])
    np.testing.assert_array_equal(whole_numbers(images[:1], resolution=0.25).ravel(), [2, 2, 10, 14])
    np.testing.assert_array_equal(whole_numbers(np.array([0, 200], np.uint8)), [0, 200])
    bright = np.array([TOP_VALUE - 1, TOP_VALUE + 1])  # what counts as how many particles is the same question
    np.testing.assert_array_equal(whole_numbers(bright, resolution=1 / 8), [8 * (TOP_VALUE - 1), 8 * TOP_VALUE])


def test_resolution_keeps_fractional_densities():
    images = slices(6) / 4.0
    coarse, fine = summary(images), summary(images, resolution=0.25)
    values = np.repeat(fine.values, fine.counts.sum(axis=0))
    np.testing.assert_array_equal(values, np.sort(images, axis=None))
    np.testing.assert_allclose(
        fine.minkowski.sum(axis=0), 6 * minkowski_functionals(images, MINKOWSKI_THRESHOLDS), atol=1e-12
    )
    with pytest.raises(ValueError, match="settings"):
        scores(coarse, fine)


def test_summarise_refuses():
    images = slices(4)
    for arguments, message in [
        ({"images": images - 1}, "negative"),
        ({"images": np.where(images > 3, np.nan, images)}, "NaN"),
        ({"images": images, "universe": np.arange(3)}, "universe"),
        ({"images": images, "block": np.zeros(4)}, "block"),
        ({"images": images, "resolution": 0.0}, "resolution"),
    ]:
        with pytest.raises(ValueError, match=message):
            summary(**arguments)


def test_histogram_curve():
    labels, images = universes(4, 8, seed=4)
    edges = np.array([-0.5, 0.5, 1.5, 4.5, 20.5, 30000.5])
    curve = summary(images, universe=labels).histogram_curve(edges)
    groups = [pixel_histogram(images[labels == label], edges) / (8 * 256) / np.diff(edges) for label in range(4)]
    np.testing.assert_allclose(curve.mean, np.mean(groups, axis=0))
    np.testing.assert_allclose(curve.scatter, np.std(groups, axis=0, ddof=1))
    # Edges that are no half-integers: what counts is how many integers a bin holds.
    uneven = summary(images).histogram_curve([0.2, 0.8, 1.3, 3.0, 5.7]).mean
    expected = [np.nan, np.mean(images == 1), np.mean(images == 2), np.mean((images >= 3) & (images <= 5)) / 3]
    np.testing.assert_allclose(uneven, expected)


def test_power_curve_and_scatter():
    labels, images = universes(5, 20, seed=5)
    found = summary(images, universe=labels)
    power = power_spectrum(images, DX, MEAN).power
    groups = power.reshape(5, 20, -1).mean(axis=1)
    np.testing.assert_allclose(found.curve("power").scatter, groups.std(axis=0, ddof=1))
    low, high = found.power_scatter()
    # The log-normal of this range has the slices' mean and variance.
    median, sigma = np.sqrt(low * high), np.log(high / low) / 2
    np.testing.assert_allclose(median * np.exp(sigma**2 / 2), power.mean(axis=0))
    np.testing.assert_allclose(np.expm1(sigma**2), power.var(axis=0) / power.mean(axis=0) ** 2)
    single = summary(images[:1])
    assert np.isnan(single.curve("power").scatter).all()
    np.testing.assert_allclose(single.power_scatter(), np.tile(power[0], (2, 1)))


# --- scores ---------------------------------------------------------------------------------------------------------


def test_identical_sets_score_zero():
    found = summary(slices(5))
    assert scores(found, found) == dict.fromkeys(NAMES, 0.0)
    assert set(UNITS) == set(DEFINITIONS)


@pytest.mark.parametrize("number", [12, 5, 30])
def test_chisq_is_its_definition(number):
    real, generated = slices(12, seed=1), slices(number, seed=2, strength=0.8)
    h_real, edges = np.histogram(real, bins=25)
    h_generated = np.histogram(generated, bins=edges)[0]
    # Counts of as many slices as the smaller set has.
    same = min(number, 12)
    h_real, h_generated = h_real[:-5] * same / 12, h_generated[:-5] * same / number
    used = h_real > 0
    expected = np.sum((h_generated - h_real)[used] ** 2 / h_real[used])
    assert scores(summary(generated), summary(real))["chisq"] == pytest.approx(expected)


def test_chisq_of_constant_real_slices():
    found = scores(summary(slices(4)), summary(np.full((4, 16, 16), 3)))
    assert np.isfinite(found["chisq"])
    assert np.isnan(found["bright_fraction"])
    assert np.isnan(found["peaks"])


def test_distribution_scores_agree_with_scipy():
    real, generated = slices(6, seed=1), slices(9, seed=2, strength=0.9)
    found = scores(summary(generated + 0.3), summary(real))  # rounds to the integers
    assert found["ks"] == pytest.approx(scipy.stats.ks_2samp(generated.ravel(), real.ravel()).statistic)
    distance = scipy.stats.wasserstein_distance(generated.ravel(), real.ravel())
    assert found["wasserstein"] == pytest.approx(distance)
    fine = scores(summary(generated / 4, resolution=0.25), summary(real / 4, resolution=0.25))
    assert fine["wasserstein"] == pytest.approx(distance / 4)
    bright = np.mean(generated > 100) / np.mean(real > 100)
    assert found["bright_fraction"] == pytest.approx(abs(bright - 1))


def test_power_scores_are_their_definitions():
    real, generated = slices(6, seed=1), slices(9, seed=2, strength=0.9) + 0.25
    found = scores(summary(generated), summary(real))
    ours, theirs = (ring_power(images).mean(axis=0) for images in (generated, real))
    assert found["chisq_pspect"] == pytest.approx(np.sum((ours - theirs) ** 2 / theirs))
    assert found["pspect_rms"] == pytest.approx(np.sqrt(np.mean((ours / theirs - 1) ** 2)))
    ours, theirs = (ring_power(transform(images, A)).mean(axis=0) for images in (generated, real))
    assert found["pspect_rms_s"] == pytest.approx(np.sqrt(np.mean((ours / theirs - 1) ** 2)), rel=1e-5)


def test_morphology_scores_are_their_definitions():
    real, generated = slices(20, seed=1), slices(9, seed=2, strength=0.9)
    found = scores(summary(generated), summary(real))
    ours, theirs = (peak_counts(images, PEAK_EDGES) for images in (generated, real))
    assert found["peaks"] == pytest.approx(np.abs(ours - theirs).sum() / theirs.sum())
    ours, theirs = (minkowski_functionals(images, [3, 10, 30, 100]) for images in (generated, real))
    for row, name in enumerate(("minkowski_area", "minkowski_boundary", "minkowski_euler")):
        assert found[name] == pytest.approx(np.sqrt(np.mean((ours[row] / theirs[row] - 1) ** 2)))
    ours, theirs = (orientation_coherence(transform(images, A)).sum(axis=0) for images in (generated, real))
    assert found["filaments"] == pytest.approx(abs(ours[0] / ours[1] / (theirs[0] / theirs[1]) - 1), rel=1e-4)


def test_clumps_are_not_filaments_whatever_else_they_share():
    """Walls in random directions against the same walls, cut into squares that are turned by quarters at random."""
    rng = np.random.default_rng(3)
    rows, columns = np.mgrid[:32, :32]
    angles, phases = rng.uniform(0, np.pi, (2, 200, 1, 1))
    real = np.rint(30 * np.exp(4 * np.cos(0.5 * (rows * np.sin(angles) + columns * np.cos(angles)) + 2 * phases) - 4))
    # (n, 32, 32) -> (n, 4, 8, 4, 8) -> (n, 4, 4, 8, 8): each image as sixteen squares
    squares = real.reshape(-1, 4, 8, 4, 8).swapaxes(2, 3).copy()
    for index in np.ndindex(squares.shape[:3]):
        squares[index] = np.rot90(squares[index], rng.integers(4))
    generated = squares.swapaxes(2, 3).reshape(real.shape)
    found = scores(summary(generated), summary(real))
    assert found["ks"] == found["mean_density"] == 0
    assert found["filaments"] > 0.2


# --- noise floor ----------------------------------------------------------------------------------------------------


def test_other_universes_score_at_ratio_one():
    """Fresh sets of universes stand at the floor of the first, on average over many trials."""
    ratios = {name: [] for name in NAMES}
    for trial in range(60):
        labels, images = universes(6, 6, seed=1000 + trial)
        fresh = universes(6, 6, seed=2000 + trial)[1]
        real = summary(images, universe=labels)
        floor = noise_floor(real, repeats=60)
        for name, value in scores(summary(fresh), real).items():
            ratios[name].append(ratio_to_floor(name, value, floor.mean[name]))
    # 60 trials know the mean to about 10 %.
    for name, values in ratios.items():
        assert 0.7 < np.mean(values) < 1.3, name
        assert np.percentile(values, 95) < 3.5, name


def test_a_wrong_generator_stands_far_above_the_floor():
    labels, images = universes(8, 20, seed=6)
    real = summary(images, universe=labels)
    card = scorecard(summary(np.random.default_rng(0).permuted(images, axis=1) ** 1.3), real, noise_floor(real))
    assert card["scores"]["pspect_rms"]["ratio"] > 3
    assert card["scores"]["wasserstein"]["ratio"] > 3


def test_the_floor_depends_on_seed_and_nothing_else():
    labels, images = universes(5, 4, seed=7)
    real = summary(images, universe=labels)
    assert noise_floor(real, None, 20, seed=1) == noise_floor(real, None, 20, seed=1)
    assert noise_floor(real, None, 20, seed=1).mean != noise_floor(real, None, 20, seed=2).mean
    # Blocks inside universes play no part when there are universes enough.
    rows = summary(images, universe=labels, block=np.zeros(20, dtype=int))
    assert noise_floor(rows, None, 20, seed=1).mean == pytest.approx(noise_floor(real, None, 20, seed=1).mean)


def test_universes_of_equal_mass_do_not_hide_a_wrong_brightness():
    rng = np.random.default_rng(0)
    images = np.stack([rng.permutation(slices(1).ravel()).reshape(16, 16) for _ in range(12)])
    real = summary(images, universe=np.arange(12) // 3)
    entry = scorecard(summary(1.05 * images), real, noise_floor(real, repeats=20))["scores"]["mean_density"]
    assert entry["noise_floor"] == pytest.approx(1 / np.sqrt(images.sum()))
    assert entry["ratio"] == pytest.approx(0.05 * np.sqrt(images.sum()))


def test_floor_from_blocks_says_so():
    floor = noise_floor(summary(slices(40), universe=np.repeat([3, 7], 20)), repeats=30)
    assert (floor.reliable, floor.universes) == (False, 2)
    assert "indication" in floor.basis
    assert floor.mean["pspect_rms"] > 0
    assert floor.low["pspect_rms"] < floor.mean["pspect_rms"] < floor.high["pspect_rms"]


def test_no_floor_from_a_single_group():
    floor = noise_floor(summary(slices(1)))
    assert np.isnan(list(floor.mean.values())).all()
    assert not floor.reliable
    assert "unknown" in floor.basis


# --- scorecard ------------------------------------------------------------------------------------------------------


def test_scorecard_documents_itself():
    labels, images = universes(4, 5, seed=8)
    real, generated = summary(images, universe=labels), summary(slices(10, seed=9))
    floor = noise_floor(real, repeats=30)
    card = json.loads(json.dumps(scorecard(generated, real, floor), allow_nan=False))
    assert set(card["scores"]) == set(NAMES)
    for name, value in scores(generated, real).items():
        entry = card["scores"][name]
        assert entry["value"] == value
        power = 0.5 if name.startswith("chisq") else 1.0
        assert entry["ratio"] == pytest.approx((value / entry["noise_floor"]) ** power)
        assert entry["noise_floor_16_84"][0] <= entry["noise_floor"] <= entry["noise_floor_16_84"][1]
        assert entry["definition"] == DEFINITIONS[name]
        assert entry["unit"]
    # chisq counts 10 slices here and 20 in the floor.
    assert card["scores"]["chisq"]["noise_floor"] == pytest.approx(floor.mean["chisq"] / 2)
    assert card["sets"]["generated"]["slices"] == 10
    assert card["sets"]["real"] == {"slices": 20, "universes": 4}
    assert card["noise_floor"]["reliable"] is True


def test_scorecard_without_a_floor_has_no_ratio():
    real = summary(slices(1))
    card = scorecard(summary(slices(3, seed=1)), real, noise_floor(real))
    json.dumps(card, allow_nan=False)
    assert card["scores"]["ks"]["value"] > 0
    assert card["scores"]["ks"]["noise_floor"] is None
    assert card["scores"]["ks"]["ratio"] is None


def test_a_floor_of_zero_has_no_ratio():
    """Real universes that do not differ at all."""
    images = np.tile(slices(2), (4, 1, 1))
    real = summary(images, universe=np.repeat(np.arange(4), 2))
    card = scorecard(summary(slices(8, seed=1)), real, noise_floor(real, repeats=10))
    assert card["scores"]["ks"]["noise_floor"] == 0
    assert card["scores"]["ks"]["ratio"] is None
