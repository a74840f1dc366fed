"""Images put together from the slices that tile a plane, against universes in which every voxel tells where it is."""

import h5py
import numpy as np
import pytest

from tests.conftest import assert_refused, run_script, write_config
from tests.run_files import weights
from tests.universe_files import SCRIPT, voxels, write_universe
from utils.cli import UserError
from utils.crops import PeriodicCrops
from utils.slices import open_slices
from utils.streaming import BatchStream, rows_of_step, shifts_of_step


def sliced(folder, dim=8, axes="012"):
    for number in range(3):
        write_universe(folder / "universes" / f"{number}.hdf5", number)
    (folder / "data").mkdir()
    arguments = ("universes", "--img-dim", dim, "--stride", 4, "--axes", axes, "--test-fraction", 0)
    process = run_script(SCRIPT, *arguments, "--out", "data/raw", cwd=folder)
    assert process.returncode == 0, process.stderr
    return open_slices("raw", "train", dim, folder / "data")


def test_crops_are_of_their_place_in_the_periodic_plane(tmp_path):
    rng = np.random.default_rng(3)
    with sliced(tmp_path) as slices:
        rows, shifts = np.arange(len(slices)), rng.integers(0, 8, (len(slices), 2))
        images = PeriodicCrops(slices).read(rows, shifts)
        with h5py.File(slices.path) as file:
            names = [int(name.decode().removesuffix(".hdf5")) for name in file["universes/file"]]
            table = [file[name][...] for name in ("universe", "axis", "plane", "corner")]
    assert images.shape == (len(rows), 8, 8)
    for image, shift, universe, axis, plane, corner in zip(images, shifts, *table, strict=True):
        whole = np.take(voxels(names[universe]), plane, axis)
        expected = np.roll(whole, -(corner + shift), axis=(0, 1))[:8, :8]
        np.testing.assert_array_equal(image, expected.astype(np.int16))


def test_without_a_shift_a_crop_is_the_slice(tmp_path):
    with sliced(tmp_path) as slices:
        rows = np.array([5, 0, len(slices) - 1])
        np.testing.assert_array_equal(PeriodicCrops(slices).read(rows, np.zeros((3, 2), int)), slices.read(rows))


def test_a_plane_that_is_one_slice_is_rolled(tmp_path):
    with sliced(tmp_path, dim=16) as slices:
        (image,), (whole,) = PeriodicCrops(slices).read(np.array([2]), np.array([[3, 15]])), slices.read([2])
    np.testing.assert_array_equal(image, np.roll(whole, (-3, -15), (0, 1)))


def test_batches_are_crops_of_seed_and_step_and_workers_share_them(tmp_path):
    with sliced(tmp_path) as slices:
        alone, *shares = (
            list(BatchStream(slices, 6, 5, 2, 5, rank, workers, random_crops=True))
            for rank, workers in ((0, 1), (0, 2), (1, 2))
        )
        crops = PeriodicCrops(slices)
        for step, batch in zip(range(2, 5), alone, strict=True):
            expected = crops.read(rows_of_step(step, len(slices), 6, 5), shifts_of_step(step, 8, 6, 5))
            np.testing.assert_array_equal(batch, expected)
    np.testing.assert_array_equal(np.concatenate(shares, axis=1), alone)
    shifts = np.concatenate([shifts_of_step(step, 8, 64, 5) for step in range(50)])
    assert set(np.unique(shifts)) == set(range(8))
    assert abs(np.corrcoef(shifts.T)[0, 1]) < 5 / np.sqrt(len(shifts))


def test_planes_with_a_margin_left_over_are_refused(tmp_path):
    with sliced(tmp_path, dim=6) as slices, pytest.raises(UserError, match=r"planes of 16 voxels .* slices of 6"):
        PeriodicCrops(slices)


@pytest.mark.parametrize(
    ("name", "value"), [("universes/grid", np.array([16])), ("corner", np.zeros((3, 2), int)), ("corner", None)]
)
def test_damaged_places_are_told(tmp_path, name, value):
    with sliced(tmp_path) as slices:
        with h5py.File(slices.path, "r+") as file:
            del file[name]
            if value is None:
                file.create_group(name)
            else:
                file[name] = value
        with pytest.raises(UserError, match=r"raw_train.h5 .* damaged"):
            PeriodicCrops(slices)


def test_old_files_without_places_are_refused_before_anything_is_written(workplace):
    images = np.ones((8, 8, 8, 1), np.int16)
    for split in ("train", "val"):
        np.save(workplace / f"old_{split}.npy", images)
    write_config(workplace, dataname=str(workplace / "old"), random_crops=True)
    assert_refused(run_script("train.py", "tiny", 0, cwd=workplace), "random_crops", "old_train.npy", "slice again")
    assert not (workplace / "expts").exists()


def test_training_on_crops_resumes_exactly(workplace):
    write_config(workplace, Nepochs=2, random_crops=True, save_steps=5, checkpt_batch=100)
    one, two = (
        [run_script("train.py", "tiny", run, "--resume", "--set", f"Nepochs={n}", cwd=workplace) for n in epochs]
        for run, epochs in ((0, (2,)), (1, (1, 2)))
    )
    uncropped = run_script("train.py", "tiny", 2, "--set", "random_crops=False", cwd=workplace)
    assert [process.returncode for process in (*one, *two, uncropped)] == [0, 0, 0, 0], two[-1].stderr
    first, second, other = (weights(workplace / "expts" / "tiny" / f"run{run}", "g_cosmo_last") for run in range(3))
    assert first.keys() == second.keys()
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name])
    assert any(not np.array_equal(values, other[name]) for name, values in first.items())
