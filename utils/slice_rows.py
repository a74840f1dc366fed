"""Reading single slices from disk, however they lie there: in one file, in many, or in chunks."""

import contextlib
import functools
import os
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from utils.cli import UserError
from utils.files import HDF5_DAMAGE

HOW_TO_MAKE = "make them with data/simulate_universes.py (or download universes) and then data/slice_universes.py"
# Shards kept open at the same time: at most so many, and at most this share of the files that a process may open.
_MOST_OPEN = 1024
_SHARE_OF_DESCRIPTORS = 1 / 4


@contextlib.contextmanager
def telling_damage(path: Path) -> Iterator[None]:
    """Turn what h5py raises where a file is no HDF5 file, or damaged, into a `UserError` that names it."""
    try:
        yield
    except HDF5_DAMAGE as error:
        raise UserError(f"{path} cannot be read, it is no HDF5 file or damaged: {error}; {HOW_TO_MAKE}") from error


class BlockRows:
    """Slices that lie one after the other in a file.

    One positional read per slice: it needs no lock of HDF5 (one for the whole process), lets other threads run
    while the disk works, and keeps nothing in memory, where pages of a mapped file would count as ours.
    """

    def __init__(self, path: Path, offset: int, dim: int, dtype: np.dtype):
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - stays open until close()
        self._offset, self._dim, self._dtype = offset, dim, dtype
        self.slice_bytes = dim * dim * dtype.itemsize

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Slices of these rows, (len(indices), dim, dim)."""
        images = np.empty((len(indices), self._dim, self._dim), self._dtype)
        for index, image in zip(indices.tolist(), images, strict=True):
            _read_into(image, self._file.fileno(), self._offset + index * self.slice_bytes, self._file.name)
        return images.astype(self._dtype.newbyteorder("="), copy=False)

    def close(self) -> None:
        self._file.close()


class DatasetRows:
    """Slices that HDF5 has to find, in chunks; one by one, since h5py's fancy indexing is many times slower."""

    def __init__(self, path: Path):
        self._path = path
        with telling_damage(path):
            self._file = h5py.File(path, "r")
            self._slices = self._file["slices"]
            sources = self._slices.virtual_sources() if self._slices.is_virtual else ()
        for source in sources:
            # HDF5 itself takes what is missing for slices full of zeros.
            if source.file_name != "." and not (path.parent / source.file_name.replace("%%", "%")).exists():
                raise UserError(f"{path} refers to {source.file_name}, which is not there: move both together")

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Slices of these rows, (len(indices), dim, dim)."""
        images = np.empty((len(indices), *self._slices.shape[1:]), self._slices.dtype.newbyteorder("="))
        with telling_damage(self._path):
            for index, image in zip(indices.tolist(), images, strict=True):
                self._slices.read_direct(image, source_sel=np.s_[index])
        return images

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True, eq=False)
class ShardTable:
    """Where the slices of each of m universes lie; what a joined file says in its group `shards`."""

    file: list[Path]
    bytes: np.ndarray  # (m,) int64, length of the shard
    offset: np.ndarray  # (m,) int64, byte where the first slice begins, of those that belong to this file
    dtype: list[np.dtype]
    digest: list[bytes]  # of what the shard holds; it stands in the shard too:
    digest_offset: np.ndarray  # (m,) int64, at this byte


class ShardRows:
    """Slices that lie in many files, those of one universe one after the other in one of them.

    Every shard is looked at once in the beginning: that it is there, has its length, and holds what it held when the
    file that refers to it was written. That takes some ten microseconds each (HDF5 would take a hundred times longer).

    Parameters
    ----------
    path : Path
        The file that refers to them, for messages.
    table : ShardTable
    universe : ndarray, (n,), int32
        Which universe each row is of, ascending.
    dim : int
        Pixels per side.
    dtype : dtype
        Of what is read; shards of another type are converted.

    Raises
    ------
    UserError
        If a shard is missing or is another one; it says which, and what to do.
    """

    def __init__(self, path: Path, table: ShardTable, universe: np.ndarray, dim: int, dtype: np.dtype):
        self._path, self._table, self._universe = path, table, universe
        self._dim, self._dtype = dim, dtype.newbyteorder("=")
        self._slice_bytes = np.array([dim * dim * kind.itemsize for kind in table.dtype], np.int64)
        rows = np.bincount(universe, minlength=len(table.file))
        self._first_row = np.cumsum(rows) - rows
        for number in range(len(table.file)):
            _check_shard(path, table, number)
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        most = _MOST_OPEN if most == resource.RLIM_INFINITY else min(_MOST_OPEN, int(most * _SHARE_OF_DESCRIPTORS))
        # Threads may share it. What leaves the cache is closed as soon as nobody reads from it any more.
        self._open: Callable[[int], _Shard] | None = functools.lru_cache(max(1, most))(lambda i: _Shard(table.file[i]))

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Slices of these rows, (len(indices), dim, dim)."""
        if self._open is None:
            raise ValueError(f"read of closed file {self._path}")
        images = np.empty((len(indices), self._dim, self._dim), self._dtype)
        universe = self._universe[indices]
        places = self._table.offset[universe] + (indices - self._first_row[universe]) * self._slice_bytes[universe]
        for number, place, image in zip(universe.tolist(), places.tolist(), images, strict=True):
            dtype = self._table.dtype[number]
            try:
                shard = self._open(number)
            except FileNotFoundError as error:
                raise _unusable(self._path, self._table.file[number], "is no longer there") from error
            stored = image if dtype == self._dtype else np.empty(image.shape, dtype)
            _read_into(stored, shard.descriptor, place, self._table.file[number])
            if stored is not image:
                image[...] = stored
        return images

    def close(self) -> None:
        if self._open is not None:
            self._open.cache_clear()
            self._open = None


class _Shard:
    """An open file, closed with the last reference to it."""

    def __init__(self, path: Path):
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self):
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def _check_shard(path: Path, table: ShardTable, number: int) -> None:
    file, digest = table.file[number], table.digest[number]
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError as error:
        raise _unusable(path, file, f"cannot be opened ({error.strerror})") from error
    try:
        if os.fstat(descriptor).st_size != table.bytes[number]:
            raise _unusable(path, file, f"has {os.fstat(descriptor).st_size} bytes, not {table.bytes[number]}")
        if os.pread(descriptor, len(digest), int(table.digest_offset[number])) != digest:
            raise _unusable(path, file, "holds other slices than it did")
    finally:
        os.close(descriptor)


def _unusable(path: Path, shard: Path, why: str) -> UserError:
    return UserError(
        f"{path} takes slices from {shard}, which {why}: move {path.name} only together with its folder of shards, "
        "or run data/slice_universes.py again as before, which makes what is missing"
    )


def _read_into(image: np.ndarray, descriptor: int, position: int, name: str | Path) -> None:
    """Fill an array with the bytes at a position."""
    place = image.reshape(-1).view(np.uint8)
    while len(place):  # one turn, as a rule; a signal may cut a read short
        count = os.preadv(descriptor, [place], position)
        if count == 0:
            raise UserError(f"{name} ends too early: it was shortened after it had been opened")
        place, position = place[count:], position + count
