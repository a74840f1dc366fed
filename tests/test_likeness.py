"""Likeness of slices: pairs and neighbours within and across groups, alarms, and what an honest noise floor needs."""

import numpy as np
import pytest
import scipy.stats

from tests.log_normal import distances, slices
from utils import likeness as module
from utils.likeness import alarms, compare_slices, likeness_curve, likeness_range, likeness_scores, mean_similarity
from utils.noise import noise_floor
from utils.similarity import coarse, ms_ssim, nearest_neighbours
from utils.summaries import summarise
from utils.transforms import transform

A = 4.0


@pytest.fixture(scope="module")
def sets():
    """Slices of three disjoint sets of universes: (images, labels) of `real`, `other` and `train`."""
    return {"real": slices(range(6)), "other": slices(range(10, 16)), "train": slices(range(20, 22))}


@pytest.fixture(scope="module")
def known(sets):
    return sets["train"][0]


def compare(sets, known, generated, labels=None, **arguments):
    real, of_real = sets["real"]
    return compare_slices(
        generated, real, A, of_real, labels, distances(known, generated, real), pairs=200, **arguments
    )


def observed(likeness):
    return likeness_scores(likeness, likeness.generated, ~likeness.generated)


def test_it_holds_pairs_and_neighbours_of_all_groups(sets, known):
    (real, labels), (other, other_labels) = sets["real"], sets["other"]
    found = compare(sets, known, other, other_labels)
    np.testing.assert_array_equal(found.generated, [True] * 6 + [False] * 6)
    np.testing.assert_array_equal(found.group, np.concatenate([other_labels, labels + 6]))
    assert 0.1 < np.mean(found.pairs[:, 0] == found.pairs[:, 1]) < 0.25  # one in six
    assert (found.generated[found.pairs[:, 0]] == found.generated[found.pairs[:, 1]]).all()
    fields = coarse(transform(real, A))
    for group in range(6):
        expected = nearest_neighbours(fields[labels != group], fields[labels == group], symmetries=True).distance
        np.testing.assert_array_equal(found.nearest[len(other) :][labels != group, 6 + group], expected)
        members = fields[labels == group]
        turned = [np.rot90(flip, turns, axes=(1, 2)) for flip in (members, members[:, ::-1]) for turns in range(4)]
        squares = np.min([np.mean((members[:, np.newaxis] - one) ** 2, axis=(2, 3)) for one in turned], axis=0)
        expected = np.sqrt(np.min(squares + np.diag(np.full(len(members), np.inf)), axis=1))  # itself not counted
        np.testing.assert_allclose(found.nearest[len(other) :][labels == group, 6 + group], expected, rtol=1e-5)
    assert np.isinf(found.nearest[: len(other), 6:]).all()  # not compared without `cross`
    np.testing.assert_allclose(found.training[len(other) :], distances(known, real), rtol=1e-6)


def test_scores_are_their_definitions(sets, known):
    found = compare(sets, known, *sets["other"])
    scores = observed(found)
    generated = found.generated[found.group]
    own_set = generated[:, np.newaxis] == found.generated
    own_group = found.group[:, np.newaxis] == np.arange(len(found.generated))
    nearest = np.where(own_set, found.nearest, np.inf).min(axis=1)
    apart = np.where(own_set & ~own_group, found.nearest, np.inf).min(axis=1)
    nearer = scipy.stats.ks_2samp(nearest[generated], nearest[~generated], alternative="greater").statistic
    farther = scipy.stats.ks_2samp(nearest[generated], apart[~generated], alternative="less").statistic
    assert scores["repetition"] == pytest.approx(max(nearer, farther))
    expected = scipy.stats.ks_2samp(found.training[generated], found.training[~generated]).statistic
    assert scores["memorisation"] == pytest.approx(expected)

    of_generated, within = found.generated[found.pairs[:, 0]], found.pairs[:, 0] == found.pairs[:, 1]
    similarity, of_real, of_real_apart = (
        found.similarity[pairs].mean() for pairs in (of_generated, ~of_generated, ~of_generated & ~within)
    )
    expected = min(abs(similarity - of_real), abs(similarity - of_real_apart))
    assert scores["diversity"] == pytest.approx(expected)
    assert set(scores) == set(module.DEFINITIONS)


def test_similarities_are_of_slices_of_the_groups_named(sets, known):
    """With one slice per group the pairs are known, and so is their similarity."""
    real = sets["real"][0][::24]
    found = compare_slices(real, real, A, np.arange(len(real)), np.arange(len(real)), pairs=20)
    s = transform(np.concatenate([real, real]), A)
    expected = ms_ssim(s[found.pairs[:, 0]], s[found.pairs[:, 1]])
    np.testing.assert_allclose(found.similarity, expected, rtol=1e-6)


def test_generated_slices_are_dealt_into_groups_of_equal_size(sets, known):
    found = compare(sets, known, sets["other"][0])
    sizes = np.bincount(found.group)
    np.testing.assert_array_equal(sizes, [24] * 12)
    np.testing.assert_array_equal(found.group, compare(sets, known, sets["other"][0]).group)
    assert not np.array_equal(found.group, compare(sets, known, sets["other"][0], seed=1).group)


def test_other_real_universes_raise_no_alarm(sets, known):
    found = alarms(compare(sets, known, *sets["other"]))
    assert found["repeated_fraction"] == found["copied_fraction"] == 0
    assert found["ms_ssim_generated"] == pytest.approx(found["ms_ssim_real"], abs=0.05)


@pytest.mark.parametrize("change", [lambda x: x, lambda x: x[:, ::-1], lambda x: np.rot90(x, axes=(1, 2))])
def test_copies_of_training_slices_raise_the_alarm(sets, known, change):
    other, train = sets["other"][0], sets["train"][0]
    found = compare(sets, known, np.concatenate([other[: len(other) - 14], change(train[:14])]))
    assert alarms(found)["copied_fraction"] == pytest.approx(14 / len(other))


def test_a_part_of_a_set_is_enough_to_find_copies(sets, known):
    """What was not looked for in the training set takes no part in score, alarm and curve."""
    other, (real, labels) = sets["other"][0], sets["real"]
    distance = distances(known, np.concatenate([other[:-14], known[:14]]), real)
    part = distance.copy()
    part[: len(other) : 2] = part[len(other) + 1 :: 2] = np.nan
    whole, half = (compare_slices(other, real, A, labels, None, each, pairs=20) for each in (distance, part))
    assert alarms(half)["copied_fraction"] == pytest.approx(2 * 7 / len(other)) == alarms(whole)["copied_fraction"]
    known_part = np.isfinite(half.training)
    generated = half.generated[half.group]
    expected = scipy.stats.ks_2samp(half.training[generated & known_part], half.training[~generated & known_part])
    assert observed(half)["memorisation"] == pytest.approx(expected.statistic)
    points = likeness_range(half, "memorisation", 20)
    assert likeness_curve(half, "memorisation", True, points, repeats=20).mean[-1] == 1


def test_repeated_slices_raise_the_alarm(sets, known):
    some = sets["other"][0][::2]
    for repeated in (np.repeat(some, 2, axis=0), np.tile(some, (2, 1, 1)), np.concatenate([some, some[:, ::-1]])):
        assert alarms(compare(sets, known, repeated))["repeated_fraction"] == 1


def test_labels_of_real_slices_make_no_difference_to_what_they_repeat(sets):
    """Slices so close to each other that they resemble their neighbours, with and without universes as labels."""
    real, other, independent = slices(range(8), step=2), slices(range(60, 68), step=2), slices(range(100, 196), step=32)
    for generated in (other, (other[0], None), independent):
        found = compare_slices(generated[0], *(real[0], A, real[1]), generated[1], pairs=500)
        floor = noise_floor(summarise(real[0], A, universe=real[1], bispectrum=False), found, repeats=40)
        score = observed(found)
        assert score["repetition"] < 2.5 * floor.mean["repetition"]
        assert score["diversity"] < 3.0 * floor.mean["diversity"]


def test_a_collapsed_mode_is_less_diverse(sets, known):
    noise = np.random.default_rng(0).poisson(0.2, sets["other"][0].shape)
    found = compare(sets, known, sets["other"][0][:1] + noise)
    assert alarms(found)["ms_ssim_generated"] > alarms(found)["ms_ssim_real"] + 0.3
    assert observed(found)["diversity"] > 0.3


def test_crossing_lets_groups_change_sides(sets, known):
    found = compare(sets, known, *sets["other"], cross=True)
    across = found.generated[found.pairs[:, 0]] != found.generated[found.pairs[:, 1]]
    assert across.sum() > 300
    assert np.isfinite(found.nearest).all()
    plain = compare(sets, known, *sets["other"])
    assert observed(found)["repetition"] == observed(plain)["repetition"]
    mixed = np.arange(12) % 2 == 0
    assert all(np.isfinite(value) for value in likeness_scores(found, mixed, ~mixed).values())


def test_unknown_is_nan(sets):
    real, labels = sets["real"]
    without = observed(compare_slices(real, real, A, labels, labels, pairs=20))
    assert np.isnan(without["memorisation"])
    small = observed(compare_slices(real[:, :8, :8], real[:, :8, :8], A, labels, labels))
    assert np.isnan(small["diversity"])
    assert small["repetition"] == 0
    alone = compare_slices(real[:1], real[:4], A, [0, 0, 0, 0], pairs=5)
    assert all(np.isnan(value) for value in observed(alone).values())
    assert {name for name, value in alarms(alone).items() if np.isfinite(value)} == {"ms_ssim_real"}
    assert np.isnan(mean_similarity(alone, ~alone.generated, apart=True))


def test_curves_are_cumulative_distributions(sets, known):
    found = compare(sets, known, *sets["other"])
    for name in module.DEFINITIONS:
        points = likeness_range(found, name, 50)
        for generated in (True, False):
            curve = likeness_curve(found, name, generated, points, repeats=50)
            assert (np.diff(curve.mean) >= 0).all()
            assert curve.mean[-1] == 1
            assert (curve.low <= curve.high).all()
            inside = (curve.low <= curve.mean + 1e-9) & (curve.mean <= curve.high + 1e-9)
            assert inside.mean() > 0.8
    middle = np.median(found.training[found.generated[found.group]])
    assert likeness_curve(found, "memorisation", True, [middle]).mean[0] == pytest.approx(0.5, abs=0.01)


def test_unknown_curves_are_nan(sets):
    real, labels = sets["real"]
    found = compare_slices(real, real, A, labels, labels, pairs=20)
    assert len(likeness_range(found, "memorisation")) == 0
    assert np.isnan(likeness_curve(found, "memorisation", True, [0.1]).mean).all()


def test_refuses(sets):
    real, labels = sets["real"]
    for arguments, message in [
        ((real, real, A, labels[:-1]), "labels"),
        ((real, real, A, labels, labels[:-1]), "labels"),
        ((np.full((2, 32, 32), np.nan), real, A, labels), "NaN"),
        ((real[:0], real, A, labels), "no pixels"),
        ((real[:, :16, :16], real, A, labels), "one shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            compare_slices(*arguments)


def test_fresh_universes_stand_at_the_floor(known):
    """The median ratio over several sets of universes is near 1 for every score that compares slices."""
    ratios = {name: [] for name in module.DEFINITIONS}
    for trial in range(8):
        real, labels = slices(range(100 * trial, 100 * trial + 8), step=8)
        other, other_labels = slices(range(100 * trial + 50, 100 * trial + 58), step=8)
        found = compare_slices(other, real, A, labels, other_labels, distances(known, other, real), pairs=300)
        floor = noise_floor(summarise(real, A, universe=labels, bispectrum=False), found, repeats=60)
        for name, value in observed(found).items():
            ratios[name].append(value / floor.mean[name])
    for name, values in ratios.items():
        assert 0.5 < np.median(values) < 2.0, (name, values)
