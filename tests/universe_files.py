"""Universe files for tests, in which every voxel tells where it is, and what comes of slicing them."""

import os

import h5py
import numpy as np

from tests.conftest import run_script

GRID = 16
REDSHIFTS = (0, 0.5, 1.5, 3)
SCRIPT = "data/slice_universes.py"
SMALL = ("--img-dim", 8, "--stride", 4)
THIRDS = ("--val-fraction", 0.3, "--test-fraction", 0.3)


def voxels(number, grid=GRID):
    """Counts that tell universe and place."""
    return np.arange(grid**3).reshape(grid, grid, grid) + 4096 * number


def write_universe(path, number=0, grid=GRID, dtype=np.int16, **changes):
    """A universe of `voxels` at z = 0; other redshifts are empty but for their column's number."""
    full = np.empty((grid, grid, grid, 4), dtype)
    full[...] = np.arange(4)
    full[..., 0] = voxels(number, grid)
    content = {
        "full": full,
        "redshifts": np.array(REDSHIFTS, np.float32),
        "namePar": np.array([b"Omega_m", b"sigma_8", b"N_spec", b"H_0"]),
        "physPar": np.array([0.3, 0.8, 0.96, 70 + number]),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        box_size = changes.pop("box_size", None)
        for name, value in (content | changes).items():
            if value is not None:
                file[name] = value
        if box_size is not None:
            file.attrs["box_size"] = box_size


def write_universes(folder, number, **changes):
    for i in range(number):
        write_universe(folder / f"deep/down/{i % 2}/universe_{i:02d}.hdf5", i, **changes)
    return folder


def slice_them(folder, *arguments, out="raw", **keywords):
    """Slice below `folder`/in into `folder`; gives the contents of the files that came out."""
    process = run_script(SCRIPT, folder / "in", *arguments, "--out", folder / out, cwd=folder, **keywords)
    assert process.returncode == 0, process.stderr
    return {split: load(folder / f"{out}_{split}.h5") for split in ("train", "val", "test")}


def load(path):
    if not path.exists():
        return None
    with h5py.File(path) as file:
        content = {name: file[name][...] for name in ("slices", "universe", "axis", "plane", "corner")}
        content["file"] = [name.decode() for name in file["universes/file"]]
        content["physPar"] = file["universes/physPar"][...]
        return content | dict(file.attrs)


def names(content):
    """The universes that really give slices."""
    return {content["file"][row] for row in content["universe"]}


def outputs(folder):
    return sorted(name for name in os.listdir(folder) if name != "in")


def joined_bytes(folder, out="raw"):
    """The bytes of the slice files that there are, by split."""
    paths = {split: folder / f"{out}_{split}.h5" for split in ("train", "val", "test")}
    return {split: path.read_bytes() for split, path in paths.items() if path.exists()}


def shard_paths(folder, out="raw"):
    """Shards, whole ones, by path."""
    return sorted((folder / f"{out}_shards").glob("*/[!.]*.h5"))
