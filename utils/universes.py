"""Universe files: finding them, and reading them one plane at a time.

The layout is that of the public CosmoFlow N-body data set: ``full``, (N, N, N, redshifts), particles per voxel;
``redshifts``; ``physPar``, four parameters; the attributes ``box_size`` [Mpc/h], N where it is absent, and
``dataset_tag``, which data set it belongs to.
"""

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from utils.cli import UserError
from utils.files import HDF5_DAMAGE

PARAMETERS = ("Omega_m", "sigma_8", "N_spec", "H_0")
LARGEST_COUNT = np.iinfo(np.int16).max


class DamagedUniverse(UserError):
    """A file that is no sound universe; --skip-damaged goes on without it."""


@dataclass(frozen=True)
class Universe:
    """What the header of one universe file says."""

    path: Path
    name: str  # path relative to the folder that is searched, with forward slashes
    grid: int  # voxels per side, N
    dtype: np.dtype
    redshifts: tuple[float, ...]
    pixel_size: float  # Mpc/h
    parameters: tuple[float, ...]  # physPar, NaN where the file has none
    tag: str  # dataset_tag, "none" where the file has none


def find_universes(folder: Path, none_is_fine: bool = False) -> list[Path]:
    """All universe files below a folder, by relative path; through links, but no file twice.

    Hidden files are left out: they are what an interrupted program has left behind.

    Parameters
    ----------
    folder : Path
    none_is_fine : bool
        Whether a folder without any is no error.

    Raises
    ------
    UserError
        If there is no such folder, or nothing in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder")
    paths, seen = [], set()
    for root, folders, files in os.walk(folder, followlinks=True, onerror=_raise):
        if not _is_new(Path(root), seen):
            folders.clear()
            continue
        folders.sort()
        paths += [Path(root, name) for name in files if name.endswith(".hdf5") and not name.startswith(".")]
    paths = [path for path in sorted(paths, key=lambda path: path.relative_to(folder).parts) if _is_new(path, seen)]
    if not (paths or none_is_fine):
        raise UserError(f"no universes (*.hdf5) in {folder} or below: download some, or run data/simulate_universes.py")
    return paths


def _raise(error: OSError) -> None:
    raise error


def _is_new(path: Path, seen: set) -> bool:
    """Whether neither this file or folder nor another link to it was met before (a dangling link is left to be met)."""
    if not path.exists():
        return True
    key = (path.stat().st_dev, path.stat().st_ino)
    new = key not in seen
    seen.add(key)
    return new


def read_header(path: Path, name: str) -> Universe:
    """Read what a universe file says about itself, no pixels; `DamagedUniverse` says what is wrong with it."""
    try:
        return _read_header(path, name)
    except HDF5_DAMAGE as error:
        raise DamagedUniverse(f"{path}: its header is damaged: {error}") from error


def _read_header(path: Path, name: str) -> Universe:
    with _open_universe(path) as file:
        full, redshifts = (_dataset(file, key) for key in ("full", "redshifts"))
        if full.ndim != 4 or not 0 < full.shape[0] == full.shape[1] == full.shape[2]:
            raise DamagedUniverse(f"{path}: dataset full has shape {full.shape}, not (N, N, N, redshifts)")
        if full.dtype.kind not in "iuf":
            raise DamagedUniverse(f"{path}: dataset full has type {full.dtype}, neither integer nor float")
        if redshifts.shape != full.shape[3:] or redshifts.dtype.kind not in "iuf":
            raise DamagedUniverse(f"{path}: dataset redshifts is not {full.shape[3]} numbers, as many as full has")
        box_size = np.asarray(file.attrs.get("box_size", full.shape[0]))
        if box_size.size != 1 or box_size.dtype.kind not in "iuf" or not 0 < box_size.item() < math.inf:
            raise DamagedUniverse(f"{path}: attribute box_size is {box_size}, not a length in Mpc/h")
        parameters = _dataset(file, "physPar")[...] if "physPar" in file else np.full(len(PARAMETERS), np.nan)
        if parameters.shape != (len(PARAMETERS),) or parameters.dtype.kind not in "iuf":
            raise DamagedUniverse(f"{path}: dataset physPar is not {len(PARAMETERS)} numbers")
        grid, values, pixel_size = full.shape[0], tuple(redshifts[...].tolist()), box_size.item() / full.shape[0]
        tag = _text(file.attrs.get("dataset_tag", "none"))
        return Universe(path, name, grid, full.dtype, values, pixel_size, tuple(parameters.tolist()), tag)


def _text(value) -> str:
    """A text attribute, however it was written: as text, as bytes, or as an array of one of them."""
    value = value.item() if isinstance(value, np.ndarray | np.generic) and value.size == 1 else value
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _open_universe(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise DamagedUniverse(f"{path}: cannot be opened, it is no HDF5 file, or truncated: {error}") from error


def _dataset(file: h5py.File, name: str) -> h5py.Dataset:
    dataset = file.get(name)
    if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
        raise DamagedUniverse(f"{file.filename}: no dataset {name}")
    return dataset


def redshift_column(universe: Universe, redshift: float) -> int:
    """Position of a redshift, given by value, on the last axis of a universe."""
    for column, value in enumerate(universe.redshifts):
        if math.isclose(1 + value, 1 + redshift, rel_tol=1e-5):
            return column
    there = ", ".join(f"{value:g}" for value in universe.redshifts)
    raise UserError(f"{universe.path} has no redshift {redshift:g}; it has {there}")


def read_planes(universe: Universe, planes: Iterable[int], redshift: float) -> Iterator[tuple[int, np.ndarray]]:
    """Read planes across axis 0 one at a time, (index, (N, N) array), and make sure that they are densities."""
    column = redshift_column(universe, redshift)
    with _open_universe(universe.path) as file:
        for index in planes:
            try:
                # All redshifts at once: the plane is then one run of bytes, read three times faster than every fourth.
                plane = file["full"][index][..., column]
            except HDF5_DAMAGE as error:
                raise DamagedUniverse(f"{universe.path}: plane {index} cannot be read: {error}") from error
            low, high = plane.min(), plane.max()
            limit = LARGEST_COUNT if plane.dtype.kind in "iu" else np.finfo(np.float32).max
            if not (low >= 0 and high <= limit):  # also when one of them is NaN
                raise DamagedUniverse(
                    f"{universe.path}: plane {index} across axis 0 has pixels from {low} to {high}, "
                    f"they must be finite, at least 0 and at most {limit:g}"
                )
            yield index, plane
