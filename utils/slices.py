"""Slice files: how they lie on disk, and reading them in training and analysis.

data/slice_universes.py writes the slices of each universe to a file of its own, a shard (utils/shards.py), and joins
shards without copying: ``<name>_<split>.h5`` refers to rows of them. Layout, with n slices of dim × dim pixels from m
universes:

    slices              (n, dim, dim) int16 or float32    particles per voxel; a virtual dataset of HDF5
    universe            (n,)    int32                     row number in the table of universes
    axis                (n,)    int8                      axis across which the plane was taken: 0, 1 or 2
    plane               (n,)    int32                     index of the plane along that axis
    corner              (n, 2)  int32                     first row and column of the image in its plane, in voxels
    universes/file      (m,)    bytes                     path relative to the sliced folder
    universes/grid      (m,)    int32                     voxels per side
    universes/physPar   (m, 4)  float64                   physical parameters, NaN where the universe had none
    universes/namePar   (4,)    bytes                     their names
    shards/file         (m,)    bytes                     each universe's shard, from the folder of this file
    shards/offset       (m,)    int64                     byte in it where the first slice of this file begins; the rest
                                                          of them follows without gaps
    shards/dtype        (m,)    bytes                     type of the pixels there
    shards/bytes        (m,)    int64                     its length
    shards/digest       (m,)    bytes                     SHA-256 of what it holds, and
    shards/digest_offset (m,)   int64                     the byte where it says so itself
    attributes          format_version, img_dim, pixel_size [Mpc/h], redshift, seed, stride, axes, split,
                        split_by ("universes" or "slabs"), slicing (the same in all files of one slicing),
                        minimum, maximum and mean of all pixels of this file

Rows and columns of an image are the two remaining axes in ascending order. Files in which `slices` is an array of their
own, contiguous or in chunks, are read as well (without a group `shards`), and so are the old suite's
``<name>_train.npy`` and ``<name>_val.npy``, (n, dim, dim, 1).
"""

import contextlib
import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
from tqdm import tqdm

from utils.cli import UserError
from utils.slice_rows import HOW_TO_MAKE, BlockRows, DatasetRows, ShardRows, ShardTable, telling_damage

SPLITS = ("train", "val", "test")
FORMAT_VERSION = 1
_SCAN_BYTES = 8 * 2**20
_GOLDEN_RATIO = (5**0.5 - 1) / 2


def slice_path(name: str | os.PathLike, split: str, suffix: str = ".h5") -> Path:
    """Path of one split's file: ``<name>_<split>.h5``."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is none of {SPLITS}")
    return Path(f"{os.fspath(name)}_{split}{suffix}")


@dataclass(frozen=True, eq=False)
class SliceSet:
    """The slices of one split, read row by row from disk; safe to use from several threads.

    .npy files say nothing about their pixels' size, redshift and universe: these are 1.0, None and None.
    """

    path: Path
    number: int  # of slices, also len()
    dim: int  # pixels per side
    dtype: np.dtype  # of the pixels, in native byte order
    pixel_size: float  # Mpc/h
    redshift: float | None
    minimum: float  # of all pixels of the file, as are the next two
    maximum: float
    mean: float
    universe: np.ndarray | None  # (number,) int32: which universe each slice comes from
    _rows: BlockRows | DatasetRows | ShardRows = field(repr=False)

    def __len__(self) -> int:
        return self.number

    def __enter__(self) -> "SliceSet":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; reading afterwards is an error."""
        self._rows.close()

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Read the slices of the given row numbers, in their order, repeats allowed.

        Returns
        -------
        (len(indices), dim, dim) array
            In the stored precision, native byte order.

        Raises
        ------
        IndexError
            When a row number lies outside 0 … number − 1.
        UserError
            When pixels are negative or not finite, or the file turns out to be damaged.
        """
        indices = np.asarray(indices, dtype=np.int64)
        if indices.size and not 0 <= indices.min() <= indices.max() < self.number:
            raise IndexError(f"rows {indices.min()} to {indices.max()} asked of {self.path} with {self.number} slices")
        images = self._rows.read(indices)
        if images.size:
            _range(self.path, indices, images)
        return images

    def rows_spread(self, number: int) -> np.ndarray:
        """Choose `number` different rows, evenly spread over the file and so over its universes; all if fewer exist.

        The file is cut into `number` equal stretches and one row is taken from each, its place inside following
        multiples of the golden ratio: a fixed step would meet the same corner of every plane again and again.

        Returns
        -------
        (min(number, len(self)),) int64 array
            Ascending, always the same for the same file length.
        """
        number = min(number, self.number)
        edges = np.arange(number + 1) * self.number // max(number, 1)
        places = np.arange(1, number + 1) * _GOLDEN_RATIO % 1
        return edges[:-1] + (places * np.diff(edges)).astype(np.int64)


def has_split(dataname: str, split: str, folder: str | os.PathLike = "data") -> bool:
    """Say whether `open_slices` would find a file for this split (the test split is optional)."""
    suffix = _suffix(dataname, folder)
    return suffix is not None and slice_path(Path(folder) / dataname, split, suffix).is_file()


def open_slices(dataname: str, split: str, img_dim: int, folder: str | os.PathLike = "data") -> SliceSet:
    """Open ``<folder>/<dataname>_<split>.h5``, or ``.npy`` of the old suite where there is no .h5 pair.

    The pair of training and validation files decides: both .h5 are there, or else both .npy, or else it is an
    error. So a single .h5 beside a pair of .npy is not read, and the two formats are never mixed in one run.

    Only the header of an .h5 file is read, and of its shards whether they are what they were. An .npy file has none of
    our numbers, so its pixels are read through once, in constant memory, for their range and mean and to make sure that
    they are densities.

    Parameters
    ----------
    dataname : str
        Base name of the files; may be an absolute path, then `folder` does not matter.
    split : {"train", "val", "test"}
        Which file.
    img_dim : int
        Pixels per side that the images must have.
    folder : path
        Where the files are.

    Raises
    ------
    UserError
        When the file is missing, damaged, empty, not of this format or of another image size, when pixels of an
        .npy file are negative or not finite, when .h5 files of two different slicings lie side by side, or when a shard
        is missing or has been replaced.
    """
    name = Path(folder) / dataname
    suffix = _suffix(dataname, folder)
    if suffix is None:
        pairs = [" and ".join(str(slice_path(name, split, kind)) for split in SPLITS[:2]) for kind in (".h5", ".npy")]
        raise UserError(f"no slices found: looked for {pairs[0]}, then for {pairs[1]}; {HOW_TO_MAKE}")
    path = slice_path(name, split, suffix)
    if not path.is_file():
        raise UserError(f"{path} does not exist; {HOW_TO_MAKE}, with a --{split}-fraction above 0")
    if suffix == ".npy":
        return _open_npy(path, img_dim)
    _check_same_slicing(path, slice_path(name, "train"))
    return _open_h5(path, img_dim)


def _suffix(dataname: str, folder: str | os.PathLike) -> str | None:
    """Which format has both the training and the validation file."""
    for suffix in (".h5", ".npy"):
        if all(slice_path(Path(folder) / dataname, split, suffix).is_file() for split in SPLITS[:2]):
            return suffix
    return None


def _open_h5(path: Path, img_dim: int) -> SliceSet:
    with telling_damage(path), h5py.File(path) as file:
        if (version := _number(file, "format_version")) > FORMAT_VERSION:
            raise UserError(f"{path} has format version {version:g}, newer than {FORMAT_VERSION}: update this program")
        slices = file.get("slices")
        if not isinstance(slices, h5py.Dataset) or slices.shape is None:
            raise UserError(f"{path} is no slice file: it has no dataset `slices`; {HOW_TO_MAKE}")
        _check_array(path, slices.shape, slices.dtype, 3, img_dim)
        numbers = {name: _number(file, name) for name in ("pixel_size", "redshift", "minimum", "maximum", "mean")}
        if not (numbers["pixel_size"] > 0 and 0 <= numbers["minimum"] <= numbers["maximum"]):
            raise UserError(f"{path} is damaged: impossible numbers among its attributes: {numbers}; {HOW_TO_MAKE}")
        _check_mean(path, numbers["mean"])
        universe = file.get("universe")
        if not isinstance(universe, h5py.Dataset) or universe.shape != (len(slices),):
            raise UserError(f"{path} is damaged: no dataset `universe` with one number per slice; {HOW_TO_MAKE}")
        universe = universe[...].astype(np.int32)
        if universe.min() < 0:
            raise UserError(f"{path} is damaged: its dataset `universe` has the number {universe.min()}")
        shape, dtype = slices.shape, slices.dtype
        # None for chunked storage, as other tools may leave it; behind a user block all addresses are shifted.
        offset = slices.id.get_offset() if file.userblock_size == 0 else None
        table = _shard_table(path, file, universe) if slices.is_virtual and "shards" in file else None
    if table is not None:
        rows = ShardRows(path, table, universe, img_dim, dtype)
    else:
        rows = DatasetRows(path) if offset is None else BlockRows(path, offset, img_dim, dtype)
    return SliceSet(path, shape[0], img_dim, dtype.newbyteorder("="), universe=universe, _rows=rows, **numbers)


def _shard_table(path: Path, file: h5py.File, universe: np.ndarray) -> ShardTable:
    try:
        columns = {name: dataset[...] for name, dataset in file["shards"].items()}
        names = [os.fsdecode(name) for name in columns.pop("file")]
        dtypes = [np.dtype(name.decode()) for name in columns.pop("dtype")]
        digests = columns.pop("digest").tolist()
        # A link to the file is as good as the file.
        folder = path.parent if all((path.parent / name).exists() for name in names[:1]) else path.resolve().parent
        table = ShardTable([folder / name for name in names], dtype=dtypes, digest=digests, **columns)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: its group `shards` is not as it should be: {error}") from error
    if any(len(column) != len(names) for column in (dtypes, digests, *columns.values())):
        raise UserError(f"{path} is damaged: its group `shards` has columns of different length; {HOW_TO_MAKE}")
    if not ((np.diff(universe) >= 0).all() and 0 <= universe[0] <= universe[-1] < len(names)):
        raise UserError(f"{path} is damaged: its slices are not in the order of its shards; {HOW_TO_MAKE}")
    return table


def _number(file: h5py.File, name: str) -> float:
    value = file.attrs.get(name)
    if not isinstance(value, int | float | np.number) or not np.isfinite(value):
        raise UserError(
            f"{file.filename} is no slice file: attribute {name} is {value}, not a finite number; {HOW_TO_MAKE}"
        )
    return float(value)


def _check_same_slicing(path: Path, train: Path) -> None:
    """A file left over from an earlier slicing may hold universes that this training set holds too."""
    slicings = set()
    for each in dict.fromkeys((path, train)):
        with telling_damage(each), h5py.File(each) as file:
            slicings.add(file.attrs.get("slicing"))
    if len(slicings) > 1:
        raise UserError(f"{path} and {train} come from different slicings and may share universes: slice again")


def _open_npy(path: Path, img_dim: int) -> SliceSet:
    try:
        # Only the header is used; mapping makes NumPy compare it with the length of the file. Never unpickle.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read, it is no array of numbers or truncated: {error}") from error
    if not isinstance(array, np.memmap):
        raise UserError(f"{path} is an archive of arrays, not an .npy file")
    _check_array(path, array.shape, array.dtype, 4, img_dim)
    if not array.flags.c_contiguous:
        raise UserError(f"{path} is stored in Fortran order, its slices are scattered: save np.ascontiguousarray of it")
    status = path.stat()
    place = path, array.offset, img_dim, array.dtype
    minimum, maximum, mean = _scan(*place, len(array), (status.st_size, status.st_mtime_ns))
    _check_mean(path, mean)
    rows = BlockRows(*place)
    dtype = array.dtype.newbyteorder("=")
    return SliceSet(path, len(array), img_dim, dtype, 1.0, None, minimum, maximum, mean, universe=None, _rows=rows)


def _check_array(path: Path, shape: tuple, dtype: np.dtype, ndim: int, img_dim: int) -> None:
    wanted = "(n, dim, dim, 1)" if ndim == 4 else "(n, dim, dim)"
    if len(shape) != ndim or shape[1] != shape[2] or shape[3:] not in ((), (1,)):
        raise UserError(f"{path} has an array of shape {shape}, slices have {wanted}")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise UserError(f"{path} has pixels of type {dtype}, they must be integers or floats of at most 64 bits")
    if shape[0] == 0:
        raise UserError(f"{path} has no slices; {HOW_TO_MAKE}")
    if shape[1] != img_dim:
        raise UserError(
            f"{path} has images of {shape[1]} × {shape[1]} pixels but img_dim is {img_dim}: "
            f"configure img_dim {shape[1]}, or slice again with --img-dim {img_dim}"
        )


def _check_mean(path: Path, mean: float) -> None:
    if not mean > 0:
        raise UserError(f"{path} has no particles, the mean of its pixels is {mean:g}; {HOW_TO_MAKE}")


@functools.lru_cache
def _scan(path: Path, offset: int, img_dim: int, dtype: np.dtype, number: int, _version) -> tuple[float, float, float]:
    """Minimum, maximum and mean of all pixels, in one pass that refuses what is no density; once for each version."""
    minimum, maximum, total, pixels = np.inf, -np.inf, 0.0, 0
    with (
        contextlib.closing(BlockRows(path, offset, img_dim, dtype)) as rows,
        tqdm(total=number, desc=f"reading through {path.name}", unit="slice", disable=None) as progress,
    ):
        step = max(1, _SCAN_BYTES // rows.slice_bytes)
        for start in range(0, number, step):
            indices = np.arange(start, min(start + step, number))
            images = rows.read(indices)
            low, high = _range(path, indices, images)
            minimum, maximum = min(minimum, low), max(maximum, high)
            total += float(images.sum(dtype=np.float64))
            pixels += images.size
            progress.update(len(images))
    return minimum, maximum, total / pixels


_LARGEST = float(np.finfo(np.float32).max)  # larger numbers are infinite to the networks


def _range(path: Path, rows: np.ndarray, images: np.ndarray) -> tuple[float, float]:
    """The least and the greatest pixel of some rows, which must be densities."""
    low, high = images.min(), images.max()
    if not (low >= 0 and float(high) <= _LARGEST):
        with np.errstate(invalid="ignore"):  # what is no number at all in the file's own type
            good = ((images.astype(np.float64) <= _LARGEST) & (images >= 0)).all(axis=(1, 2))
        row = rows[np.argmin(good)]
        raise UserError(f"{path}: slice {row} has negative, infinite or undefined pixels, they must be densities")
    return float(low), float(high)
