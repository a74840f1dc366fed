"""Writing HDF5 files that hold slices or universes, or refer to slices, so that a full disk is an error, no crash."""

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from utils.files import HDF5_OVERHEAD

_BYTES_PER_MAPPING = 1024  # of a virtual dataset: two names and two selections, generously


@dataclass(frozen=True)
class Mapping:
    """Where consecutive rows of a virtual dataset are: rows of the dataset of the same name in another file."""

    file: str  # path relative to the folder of the virtual dataset's own file
    first_row: int
    rows: int
    all_rows: int  # of the dataset there


class SliceWriter:
    """One HDF5 file in the making; a context manager that closes it.

    HDF5 lays the file out and writes what is small. The large arrays are then written past HDF5 to where it has put
    them: on a full disk plain writing raises an `OSError`, while the HDF5 library crashes (seen with 1.14).

    No times are stored, so that the same input gives the same bytes. The arrays are contiguous, neither chunked nor
    compressed: a random slice is found without an index and read in one piece.

    Parameters
    ----------
    path : Path
        The file, replaced if it exists.
    arrays : dict of str to (shape, dtype)
        Arrays to be written with `write`.
    small : dict of str to ndarray
        Arrays to be written at once, by path in the file.
    attributes : dict
        Attributes of the file.
    """

    def __init__(
        self,
        path: Path,
        arrays: dict[str, tuple[tuple[int, ...], np.dtype]],
        small: dict[str, np.ndarray],
        attributes: dict,
    ):
        self._path = path
        with _naming(path):
            _try_room(path, sum(math.prod(shape) * np.dtype(kind).itemsize for shape, kind in arrays.values()), small)
        allocated = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        allocated.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        allocated.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        with _naming(path), h5py.File(path, "w") as file:
            file.attrs.update(attributes)
            for name, values in small.items():
                file.create_dataset(name, data=values, track_times=False)
            self._places = {}
            for name, (shape, kind) in arrays.items():
                dataset = file.create_dataset(name, shape, kind, dcpl=allocated, track_times=False)
                self._places[name] = (dataset.id.get_offset(), dataset.dtype, shape)
        self._file = open(path, "rb+", buffering=0)  # noqa: SIM115 - stays open until __exit__

    def __enter__(self) -> "SliceWriter":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def write(self, name: str, row: int, values: np.ndarray) -> None:
        """Write the rows `row`, `row` + 1, … of one array; `values` has one entry per row along its first axis."""
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


def add_virtual(path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype, mappings: Sequence[Mapping]) -> None:
    """Add a virtual dataset to a file: an array (rows, dim, dim) whose rows lie in other files, one part after another.

    HDF5 converts where an array there is of another type.
    """
    room = HDF5_OVERHEAD + _BYTES_PER_MAPPING * len(mappings)
    with _naming(path), open(path, "rb+") as file:
        size = file.seek(0, os.SEEK_END)
        file.write(bytes(room))
        file.truncate(size)
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_obj_track_times(False)
    here, row = h5py.h5s.create_simple(shape), 0
    for mapping in mappings:
        there = h5py.h5s.create_simple((mapping.all_rows, *shape[1:]))
        there.select_hyperslab((mapping.first_row, 0, 0), (mapping.rows, *shape[1:]))
        here.select_hyperslab((row, 0, 0), (mapping.rows, *shape[1:]))
        # HDF5 takes a per cent sign for the beginning of a pattern.
        properties.set_virtual(here, os.fsencode(mapping.file.replace("%", "%%")), name.encode(), there)
        row += mapping.rows
    here.select_all()
    with _naming(path), h5py.File(path, "r+") as file:
        h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(dtype), here, properties)


def _try_room(path: Path, size: int, small: dict[str, np.ndarray]) -> None:
    """HDF5's own kilobytes must not meet a full disk either, nor a limit to the length of files."""
    with open(path, "wb") as trial:
        trial.truncate(size)
        trial.seek(size)
        trial.write(bytes(HDF5_OVERHEAD + sum(values.nbytes for values in small.values())))


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Say in system errors which file they are about, in one line: HDF5 gives a paragraph, a plain write no name."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
