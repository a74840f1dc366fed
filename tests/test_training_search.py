"""Nearest neighbours in a training set: at all shifts and orientations of its planes, or among slices as they are."""

import h5py
import numpy as np
import pytest

from tests.conftest import run_script
from tests.log_normal import distances, universe
from tests.universe_files import SCRIPT
from utils.cli import UserError
from utils.crops import PeriodicCrops
from utils.similarity import coarse, oriented
from utils.slices import open_slices
from utils.training_search import training_search
from utils.transforms import transform

A = 4.0


def sliced(folder, dim, side, universes=2, stride=8):
    """Slices that tile the planes of a few log-normal universes."""
    (folder / "universes").mkdir()
    (folder / "data").mkdir()
    for number in range(universes):
        with h5py.File(folder / "universes" / f"{number}.hdf5", "w") as file:
            file["full"] = universe(number, side)[..., np.newaxis]
            file["redshifts"] = [0.0]
    arguments = ("universes", "--img-dim", dim, "--stride", stride, "--val-fraction", 0, "--test-fraction", 0)
    process = run_script(SCRIPT, *arguments, "--out", "data/raw", cwd=folder)
    assert process.returncode == 0, process.stderr
    # Training wants a validation file beside; which one does not matter here.
    (folder / "data" / "raw_val.h5").symlink_to("raw_train.h5")
    return open_slices("raw", "train", dim, folder / "data")


def test_it_finds_what_brute_force_finds(tmp_path):
    """Slices of 16 pixels are compared at full resolution, so that the guess is the answer."""
    with sliced(tmp_path, 16, 32) as training:
        search = training_search(training, A, len(training))
        assert search.at_all_shifts
        images = np.stack([universe(9, 32)[plane, :16, :16] for plane in (1, 11, 23)])
        found = search.nearest(images)

        crops = PeriodicCrops(training)
        rows = np.repeat(np.arange(len(training)), 256)
        shifts = np.tile(np.stack(np.divmod(np.arange(256), 16), axis=1), (len(training), 1))
        everything = transform(crops.read(rows, shifts), A)
        for number, image in enumerate(transform(images, A)):
            all_eight = [oriented(image[np.newaxis], orientation)[0] for orientation in range(8)]
            squares = np.stack([np.mean((everything - one) ** 2, axis=(1, 2)) for one in all_eight])
            orientation, place = np.unravel_index(np.argmin(squares), squares.shape)
            assert found.distance[number] == pytest.approx(np.sqrt(squares.min()), rel=1e-5)
            assert (found.row[number], found.orientation[number]) == (rows[place], orientation)
            np.testing.assert_array_equal(found.shift[number], shifts[place])
            np.testing.assert_array_equal(search.image(found.row[number], found.shift[number]), crops_at(crops, place))


def crops_at(crops, place):
    row, shift = np.divmod(place, 256)
    return crops.read(np.array([row]), np.array([np.divmod(shift, 16)]))[0]


@pytest.mark.parametrize("noisy", [False, True])
def test_a_copy_is_found_wherever_it_begins(tmp_path, noisy):
    """Also where it begins between the pixels of the coarse images: 64 pixels a side, looked for with 16."""
    with sliced(tmp_path, 64, 128, stride=32) as training:
        rng = np.random.default_rng(2)
        rows, shifts = rng.integers(len(training), size=12), rng.integers(0, 64, (12, 2))
        copies = PeriodicCrops(training).read(rows, shifts)
        if noisy:
            copies = rng.poisson(copies)
        turned = np.concatenate([oriented(copies[[number]], number % 8) for number in range(12)])
        search = training_search(training, A, len(training))
        found, others = search.nearest(turned), search.nearest(universe(9, 128)[::32, :64, :64])
    np.testing.assert_array_equal(found.row, rows)
    np.testing.assert_array_equal(found.shift, shifts)
    assert found.distance.max() < (0.5 * others.distance.min() if noisy else 1e-6)
    for copy, image, orientation in zip(copies, turned, found.orientation, strict=True):
        if not noisy:
            np.testing.assert_array_equal(oriented(image[np.newaxis], orientation)[0], copy)


def test_distances_are_those_of_the_coarse_images(tmp_path):
    with sliced(tmp_path, 64, 128, stride=32) as training:
        search = training_search(training, A, len(training))
        images = universe(9, 128)[::32, :64, :64]
        found = search.nearest(images)
        for number, image in enumerate(images):
            there = coarse(transform(search.image(found.row[number], found.shift[number])[np.newaxis], A))
            turned = coarse(oriented(transform(image, A)[np.newaxis], found.orientation[number]))
            assert found.distance[number] == pytest.approx(np.sqrt(np.mean((there - turned) ** 2)), rel=1e-5)
        aligned = distances(training.read(np.arange(len(training))), images)
        assert (found.distance < aligned).mean() > 0.9
        assert np.median(found.distance / aligned) < 1


def test_a_part_of_the_planes_is_searched(tmp_path):
    with sliced(tmp_path, 16, 32, stride=4) as training:
        assert len(training) == 2 * 8 * 4
        search = training_search(training, A, 24)
        found = search.nearest(training.read(np.arange(len(training))))
        copies = np.flatnonzero(found.distance == 0)
    assert len(copies) == 24
    np.testing.assert_array_equal(np.unique(found.row[copies] // 4), [0, 2, 5, 8, 10, 13])  # spread over both universes


def test_damage_is_no_reason_to_search_slices_as_they_are(tmp_path):
    with sliced(tmp_path, 16, 32) as training:
        with h5py.File(training.path, "r+") as file:
            del file["corner"]
            file["corner"] = np.zeros((3, 2), int)
        with pytest.raises(UserError, match=r"raw_train.h5 .* damaged"):
            training_search(training, A)


def test_slices_that_tile_nothing_are_searched_as_they_are(tmp_path):
    stack = np.concatenate([universe(number)[::2] for number in range(2)])
    for split in ("train", "val"):
        np.save(tmp_path / f"raw_{split}.npy", stack[..., np.newaxis])
    with open_slices("raw", "train", 32, tmp_path) as training:
        search = training_search(training, A, 1000)
        assert not search.at_all_shifts
        assert search.number(5000) == 5000
        turned = oriented(stack[[3]], 5)
        found = search.nearest(np.concatenate([turned, np.roll(stack[[7]], 9, axis=1)]))
        np.testing.assert_array_equal(search.image(found.row[0], found.shift[0]), stack[3])
    assert found.distance[0] == 0 < found.distance[1]
    np.testing.assert_array_equal(oriented(turned, found.orientation[0])[0], stack[3])
