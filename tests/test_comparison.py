"""The two sides of a comparison, read and drawn in batches."""

import weakref

import numpy as np
import pytest

from tests.log_normal import distances, slices
from utils import comparison
from utils.comparison import compare, read_real, take_generated
from utils.likeness import likeness_scores
from utils.noise import noise_floor
from utils.scorecard import scorecard
from utils.scores import DEFINITIONS
from utils.slices import open_slices
from utils.summaries import summarise
from utils.training_search import training_search

A = 4.0


@pytest.fixture
def folder(tmp_path):
    """Slices of the old suite's format, whose universes are unknown."""
    for split, seeds in (("train", range(3)), ("val", range(5, 9))):
        np.save(tmp_path / f"raw_{split}.npy", slices(seeds)[0][..., np.newaxis])
    return tmp_path


def opened(folder, most=1000):
    validation, training = (open_slices("raw", split, 32, folder) for split in ("val", "train"))
    return validation, training, training_search(training, A, most)


def test_real_side_is_what_the_files_hold(folder, monkeypatch):
    monkeypatch.setattr(comparison, "_BATCH", 7)
    validation, training, search = opened(folder)
    real = read_real(validation, training.mean, A, 1000, search)
    images = np.load(folder / "raw_val.npy")[..., 0]
    expected = summarise(images, A, 1.0, training.mean)
    for name in ("slices", "counts", "power", "bispectrum", "minkowski"):
        np.testing.assert_allclose(getattr(real.summary, name), getattr(expected, name), rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(real.images, images)
    np.testing.assert_array_equal(real.universe, np.arange(96) * 8 // 96)  # blocks, for want of universes
    np.testing.assert_array_equal(real.known.rows, np.arange(96))
    expected = distances(np.load(folder / "raw_train.npy")[..., 0], images)
    np.testing.assert_allclose(real.known.places.distance, expected, rtol=1e-6)


def test_whole_particles_are_told_from_all_slices(tmp_path, monkeypatch):
    """Not from the first alone: universes of counts may come before universes of fractions."""
    monkeypatch.setattr(comparison, "_BATCH", 7)
    images = slices(range(2))[0].astype(np.float32)
    for name, last in (("counts", 0.0), ("mixed", 0.25)):
        images[-1] += last
        for split in ("train", "val"):
            np.save(tmp_path / f"{name}_{split}.npy", images[..., np.newaxis])
        found = read_real(open_slices(name, "val", 32, tmp_path), 3.0, A, 1000)
        assert found.summary.settings.resolution == (1 / 8 if last else 1)


def test_memory_is_bounded(folder, monkeypatch):
    monkeypatch.setattr(comparison, "_KEPT_SLICES", 70)
    validation, training, search = opened(folder, most=20)
    real = read_real(validation, training.mean, A, 90, search)
    assert len(real.images) == len(real.universe) == 70
    assert set(real.known.places.row) <= set(training.rows_spread(20))
    assert real.summary.slices.sum() == 90
    assert len(np.unique(real.universe)) == 8


@pytest.mark.parametrize(("pixels", "slices_kept"), [(64, 4096), (128, 4096), (512, 256), (10_000, 64)])
def test_kept_slices_take_a_quarter_of_a_gibibyte(pixels, slices_kept):
    assert comparison._limit(pixels) == slices_kept


@pytest.mark.parametrize(("pixels", "pairs"), [(32, 4096), (64, 4096), (96, 1820), (512, 1000)])
def test_smaller_slices_are_paired_more_often(pixels, pairs):
    assert comparison._pairs(pixels) == pairs


def test_generated_side_in_batches(folder):
    validation, training, search = opened(folder)
    real = read_real(validation, training.mean, A, 50, search)
    images = slices(range(20, 23))[0].astype(np.float32)
    found = take_generated(iter(np.array_split(images, 5)), len(images), real)
    whole = summarise(images, A, 1.0, training.mean)
    for name in ("slices", "counts", "power", "mass"):
        np.testing.assert_allclose(getattr(found.summary, name).sum(axis=0), getattr(whole, name).sum(axis=0))
    np.testing.assert_array_equal(found.images, images[: len(real.images)])
    assert len(found.summary.slices) == 32
    likeness = compare(found, real)
    assert len(likeness.similarity) == 5 * 4096
    card = scorecard(found.summary, real.summary, noise_floor(real.summary, likeness, repeats=10), likeness)
    assert set(card["scores"]) == set(DEFINITIONS)
    observed = likeness_scores(likeness, likeness.generated, ~likeness.generated)
    assert card["scores"]["memorisation"]["value"] == observed["memorisation"]


def test_only_slices_that_are_kept_stay_in_memory(folder):
    validation, training, _ = opened(folder)
    real = read_real(validation, training.mean, A, 50)
    alive = []

    def batches():
        for seed in range(4):
            images = slices([20 + seed])[0].astype(np.float32)
            alive.append(weakref.ref(images))
            yield images

    found = take_generated(batches(), 4 * 24, real)
    assert len(found.images) == 50
    assert [images() for images in alive] == [None] * 4


def test_without_a_search_memorisation_is_unknown(folder):
    validation, training, _ = opened(folder)
    real = read_real(validation, training.mean, A, 50)
    images = slices(range(20, 22))[0].astype(np.float32)
    likeness = compare(take_generated(iter([images]), len(images), real), real)
    scores = likeness_scores(likeness, likeness.generated, ~likeness.generated)
    assert np.isnan(scores["memorisation"])
    assert np.isfinite(scores["repetition"])


@pytest.mark.parametrize(("universes", "blocks"), [(1, 32), (12, 36), (20, 40), (64, 64)])
def test_generated_groups_are_as_many_as_universes_and_of_one_size(universes, blocks):
    images = slices([0])[0][:1].astype(np.float32)
    summary = summarise(np.repeat(images, universes, axis=0), A, universe=np.arange(universes), bispectrum=False)
    real = comparison.Real(None, None, summary, images, np.zeros(1, int), None, None)
    found = take_generated(iter([np.repeat(images, 2 * blocks, axis=0)]), 2 * blocks, real).summary
    np.testing.assert_array_equal(found.slices, np.full(blocks, 2))
