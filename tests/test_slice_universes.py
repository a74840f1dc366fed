"""Cutting universes into slices: every voxel where it belongs, and no leakage between the files."""

import itertools
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest

from tests.conftest import ROOT, assert_refused, run_script
from tests.universe_files import (
    GRID,
    REDSHIFTS,
    SCRIPT,
    SMALL,
    THIRDS,
    joined_bytes,
    load,
    names,
    outputs,
    shard_paths,
    slice_them,
    voxels,
    write_universe,
    write_universes,
)
from utils.slice_plan import cut_slabs, share_out

# ---- Every voxel where it belongs ----


@pytest.mark.parametrize(("axes", "grid", "dim", "stride"), [("0", 16, 8, 4), ("012", 16, 8, 8), ("012", 20, 6, 3)])
def test_every_slice_is_the_place_it_names(tmp_path, axes, grid, dim, stride):
    write_universes(tmp_path / "in", 3, grid=grid)
    files = slice_them(tmp_path, "--axes", axes, "--img-dim", dim, "--stride", stride)
    corners = range(0, grid - dim + 1, dim)
    wanted = list(itertools.product(map(int, axes), range(0, grid, stride), corners, corners))
    for split, content in files.items():
        assert content["slices"].dtype == np.int16
        places = zip(content["axis"], content["plane"], *content["corner"].T, strict=True)
        assert [tuple(map(int, place)) for place in places] == wanted
        number = int(content["file"][0][-7:-5])
        assert content["physPar"].tolist() == [[0.3, 0.8, 0.96, 70 + number]]
        assert content["universe"].tolist() == [0] * len(wanted)
        for image, (axis, plane, row, column) in zip(content["slices"], wanted, strict=True):
            whole = np.take(voxels(number, grid), plane, axis)
            assert np.array_equal(image, whole[row : row + dim, column : column + dim])
        attributes = {"img_dim": dim, "stride": stride, "axes": axes, "seed": 0, "redshift": 0, "split": split}
        assert {name: content[name] for name in attributes} == attributes
        assert content["pixel_size"] == 1
        assert content["minimum"] == content["slices"].min()
        assert content["maximum"] == content["slices"].max()
        assert content["mean"] == pytest.approx(content["slices"].mean(), rel=1e-14)


def test_redshift_is_chosen_by_value(tmp_path):
    write_universes(tmp_path / "in", 3)
    for column, redshift in list(enumerate(REDSHIFTS))[1:]:
        files = slice_them(tmp_path, *SMALL, "--redshift", redshift)
        assert all((content["slices"] == column).all() for content in files.values())
        assert files["train"]["redshift"] == redshift
    process = run_script(SCRIPT, tmp_path / "in", "--redshift", 1, *SMALL, cwd=tmp_path)
    assert_refused(process, "no redshift 1", "0, 0.5, 1.5, 3")


def test_universes_of_different_size_but_equal_pixels(tmp_path):
    for number, grid in enumerate((16, 24, 32)):
        write_universe(tmp_path / f"in/{number}.hdf5", grid=grid, box_size=grid / 2)
    files = slice_them(tmp_path, *SMALL)
    counts = {content["file"][0]: len(content["slices"]) for content in files.values()}
    assert counts == {"0.hdf5": 4 * 4, "1.hdf5": 6 * 9, "2.hdf5": 8 * 16}
    assert files["val"]["pixel_size"] == 0.5


def test_float_universes_give_float_slices(tmp_path):
    write_universes(tmp_path / "in", 2)
    write_universe(tmp_path / "in/float.hdf5", 2, dtype=np.float64)
    for content in slice_them(tmp_path, *SMALL).values():
        assert content["slices"].dtype == np.float32
        number = int(content["slices"][0, 0, 0]) // 4096
        assert np.array_equal(content["slices"][0], voxels(number)[0, :8, :8])


def test_parameters_may_be_absent(tmp_path):
    write_universes(tmp_path / "in", 3, physPar=None, namePar=None)
    assert np.isnan(slice_them(tmp_path, *SMALL)["train"]["physPar"]).all()


def test_slices_lie_in_one_piece(tmp_path):
    write_universes(tmp_path / "in", 3)
    files = slice_them(tmp_path, *SMALL)
    shards = shard_paths(tmp_path)
    assert len(shards) == 3
    for path in shards:
        with h5py.File(path) as file:
            assert file["slices"].chunks is None
            assert file["slices"].compression is None
            assert file["slices"].id.get_offset() is not None
            assert any(np.array_equal(file["slices"], content["slices"]) for content in files.values())


# ---- No leakage, and the same again ----


def test_no_universe_in_two_files(tmp_path):
    write_universes(tmp_path / "in", 7)
    splits = set()
    for seed in range(3):
        files = slice_them(tmp_path, *SMALL, *THIRDS, "--seed", seed)
        given = {split: names(content) for split, content in files.items()}
        for split, share in {"train": 0.4, "val": 0.3, "test": 0.3}.items():
            assert abs(len(given[split]) - 7 * share) < 1
        assert len(set.union(*given.values())) == 7
        for content in files.values():
            assert content["file"] == sorted(names(content))
            assert (np.diff(content["universe"]) >= 0).all()
            numbers = content["slices"].max(axis=(1, 2)) // 4096
            assert [int(content["file"][row][-7:-5]) for row in content["universe"]] == numbers.tolist()
        splits.add(str(given))
    assert len(splits) > 1


def test_same_seed_same_bytes(tmp_path):
    write_universes(tmp_path / "in", 5)
    slice_them(tmp_path, *SMALL)
    shutil.copytree(tmp_path / "in", tmp_path / "elsewhere/in")
    slice_them(tmp_path / "elsewhere", *SMALL)
    for split in ("train", "val", "test"):
        again = (tmp_path / f"elsewhere/raw_{split}.h5").read_bytes()
        assert (tmp_path / f"raw_{split}.h5").read_bytes() == again
    assert outputs(tmp_path) == ["elsewhere", "raw_shards", "raw_test.h5", "raw_train.h5", "raw_val.h5"]


@pytest.mark.parametrize("number", [1, 2])
def test_few_universes_give_separate_slabs(tmp_path, number):
    write_universes(tmp_path / "in", number)
    files = slice_them(tmp_path, "--img-dim", 8, "--stride", 1)
    assert {content["split_by"] for content in files.values()} == {"slabs"}
    for universe in range(number):
        split_of = {}
        for split, content in files.items():
            assert len(content["file"]) == number
            for plane in content["plane"][content["universe"] == universe].tolist():
                assert split_of.setdefault(plane, split) == split
        assert len(split_of) == GRID - 3
        for plane, split in split_of.items():
            assert split_of.get((plane + 1) % GRID, split) == split
    for content in files.values():
        number_of = [int(name[-7:-5]) for name in content["file"]]
        for image, row, plane, corner in zip(
            content["slices"], content["universe"], content["plane"], content["corner"], strict=True
        ):
            assert image[0, 0] == voxels(number_of[row])[(plane, *corner)]


def test_one_universe_for_training_alone_is_whole(tmp_path):
    write_universe(tmp_path / "in/one.hdf5")
    files = slice_them(tmp_path, *SMALL, "--axes", "012", "--val-fraction", 0, "--test-fraction", 0)
    assert files["val"] is files["test"] is None
    assert len(files["train"]["slices"]) == 3 * 4 * 4


def test_slabs_across_other_axes_are_refused(tmp_path):
    write_universes(tmp_path / "in", 2)
    process = run_script(SCRIPT, "in", "--axes", "012", *SMALL, "--out", "raw", cwd=tmp_path)
    assert_refused(process, "cross", "--axes 0")
    process = run_script(SCRIPT, "in", "--img-dim", 8, "--stride", 8, "--out", "raw", cwd=tmp_path)
    assert_refused(process, "too few planes")
    assert outputs(tmp_path) == []


@pytest.mark.parametrize("val", [0.01, 0.1, 0.3, 0.45])
@pytest.mark.parametrize("test", [0.01, 0.1, 0.3, 0.45])
def test_everybody_gets_a_share(val, test):
    shares = {"train": 1 - val - test, "val": val, "test": test}
    for number in range(3, 60):
        counts = share_out(number, shares)
        assert sum(counts.values()) == number
        assert min(counts.values()) >= 1
        if number > 20:
            assert all(abs(counts[split] - number * share) <= 2 for split, share in shares.items())
        slabs = cut_slabs(range(0, 4 * number, 4), shares)
        planes = [plane for slab in slabs.values() for plane in slab]
        assert len(planes) == len(set(planes)) == (number - 3 if number >= 8 else number)
        assert planes == sorted(planes)


def test_a_file_of_an_earlier_slicing_is_not_left_beside_new_ones(tmp_path):
    write_universes(tmp_path / "in", 3)
    slice_them(tmp_path, *SMALL)
    before = joined_bytes(tmp_path)
    process = run_script(SCRIPT, "in", *SMALL, "--test-fraction", 0, "--seed", 1, "--out", "raw", cwd=tmp_path)
    assert_refused(process, "raw_test.h5", "earlier slicing")
    assert before == joined_bytes(tmp_path)
    (tmp_path / "raw_test.h5").unlink()
    assert slice_them(tmp_path, *SMALL, "--test-fraction", 0)["test"] is None


# ---- Where it looks and writes ----


def test_default_folders_are_beside_the_script(tmp_path):
    house = tmp_path / "house"
    for folder in ("data", "utils"):
        shutil.copytree(ROOT / folder, house / folder, ignore=shutil.ignore_patterns("*.h5", "*.hdf5", "__pycache__"))
    for number in range(3):
        write_universe(house / f"data/universes/{number}.hdf5", full=np.full((128, 128, 128, 1), number, np.int16))
        with h5py.File(house / f"data/universes/{number}.hdf5", "r+") as file:
            del file["redshifts"]
            file["redshifts"] = [0.0]
    made = []
    for folder, script in ((house, "data/slice_universes.py"), (house / "data", "slice_universes.py")):
        process = subprocess.run([sys.executable, script], cwd=folder, capture_output=True, text=True, check=False)
        assert (process.returncode, process.stderr) == (0, "")
        for split in ("train", "val", "test"):
            assert load(house / f"data/raw_{split}.h5")["slices"].shape == (16, 128, 128)
            made.append((house / f"data/raw_{split}.h5").read_bytes())
            (house / f"data/raw_{split}.h5").unlink()
    assert made[:3] == made[3:]


def test_links_are_followed_but_no_universe_counts_twice(tmp_path):
    write_universes(tmp_path / "real", 3)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a").symlink_to(tmp_path / "real")
    (tmp_path / "in/b").symlink_to(tmp_path / "real")
    (tmp_path / "in/again.hdf5").symlink_to(tmp_path / "real/deep/down/1/universe_01.hdf5")
    (tmp_path / "real/loop").symlink_to(tmp_path / "in")
    (tmp_path / "in/.unfinished.hdf5").write_text("left behind by an interrupted program")
    files = slice_them(tmp_path, *SMALL)
    assert sum(len(content["file"]) for content in files.values()) == 3
    assert sorted(int(content["slices"].max()) // 4096 for content in files.values()) == [0, 1, 2]


def test_summary_says_what_was_made(tmp_path):
    write_universes(tmp_path / "in", 5)
    process = run_script(SCRIPT, "in", *SMALL, "--out", "new/raw", cwd=tmp_path)
    assert (process.returncode, process.stderr) == (0, "")
    for words in ("8 x 8 pixels of 1 Mpc/h", "raw_train.h5: 48 slices from 3", "raw_val.h5: 16 slices from 1", "mean"):
        assert words in process.stdout
