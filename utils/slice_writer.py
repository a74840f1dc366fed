"""Writing slice files, in the layout that utils/slices.py describes."""

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np

from utils.slices import FORMAT_VERSION

# Known only at the end, when the file already has its final size: their places are taken in the beginning.
_LATE = {"minimum": np.float64(0), "maximum": np.float64(0), "mean": np.float64(0), "slicing": np.bytes_(64 * "0")}


class SliceWriter:
    """One slice file in the making; a context manager that closes it.

    HDF5 lays the file out, with everything but pixels and coordinates. Those are then written past HDF5 to where it
    has put them: on a full disk plain writing raises an `OSError`, while the HDF5 library crashes (seen with 1.14).

    No times are stored, so that the same input gives the same bytes. The slices are contiguous, neither chunked nor
    compressed: a random slice is found without an index and read in one piece.

    Parameters
    ----------
    path : Path
        The file, replaced if it exists.
    number, dim : int
        How many slices, and pixels per side.
    dtype : dtype
        Of the pixels.
    files : sequence of str
        Names of the m universes.
    parameters : (m, 4) array
        Their physical parameters.
    names : sequence of str
        What these are called.
    attributes : dict
        All attributes except format_version and those that `finish` takes.
    """

    def __init__(
        self,
        path: Path,
        number: int,
        dim: int,
        dtype: np.dtype,
        files: Sequence[str],
        parameters: np.ndarray,
        names: Sequence[str],
        attributes: dict,
    ):
        self._path = path
        shapes = {
            "slices": ((number, dim, dim), dtype),
            "universe": ((number,), np.int32),
            "axis": ((number,), np.int8),
            "plane": ((number,), np.int32),
            "corner": ((number, 2), np.int32),
        }
        with _naming(path), open(path, "wb") as trial:
            # HDF5's own few kilobytes must not meet a full disk either, nor a limit to the length of files.
            trial.truncate(sum(math.prod(shape) * np.dtype(kind).itemsize for shape, kind in shapes.values()))
            trial.write(bytes(2**16 + 512 * len(files)))
        allocated = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        allocated.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        allocated.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        with _naming(path), h5py.File(path, "w") as file:
            table = file.create_group("universes")
            table.create_dataset("file", data=np.array([os.fsencode(name) for name in files]), track_times=False)
            table.create_dataset("physPar", data=np.asarray(parameters, np.float64), track_times=False)
            table.create_dataset("namePar", data=np.array([name.encode() for name in names]), track_times=False)
            file.attrs["format_version"] = FORMAT_VERSION
            for name, value in (attributes | _LATE).items():
                file.attrs[name] = value
            self._places = {}
            for name, (shape, kind) in shapes.items():
                dataset = file.create_dataset(name, shape, kind, dcpl=allocated, track_times=False)
                self._places[name] = (dataset.id.get_offset(), dataset.dtype, shape)
        self._file = open(path, "rb+", buffering=0)  # noqa: SIM115 - stays open until __exit__

    def __enter__(self) -> "SliceWriter":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def write(self, name: str, row: int, values: np.ndarray) -> None:
        """Write the rows `row`, `row` + 1, … of one dataset; `values` has one entry per row along its first axis."""
        offset, dtype, shape = self._places[name]
        if values.shape[1:] != shape[1:] or not 0 <= row <= row + len(values) <= shape[0]:
            raise IndexError(f"{values.shape} written to row {row} of dataset {name} of shape {shape}")
        values = np.ascontiguousarray(values, dtype)
        position = offset + row * dtype.itemsize * math.prod(shape[1:])
        data = values.reshape(-1).view(np.uint8)
        with _naming(self._path):
            while len(data):  # one turn, as a rule; a signal may cut a write short
                count = os.pwrite(self._file.fileno(), data, position)
                data, position = data[count:], position + count

    def finish(self, minimum: float, maximum: float, mean: float, slicing: str) -> None:
        """Write what is known when all pixels are: their range and mean, and the digest of the whole slicing."""
        with h5py.File(self._path, "r+") as file:
            for name, value in zip(_LATE, (minimum, maximum, mean, np.bytes_(slicing)), strict=True):
                file.attrs.modify(name, value)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Say in system errors which file they are about, in one line: HDF5 gives a paragraph, a plain write no name."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
