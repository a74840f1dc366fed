"""Shards: all slices of one universe, cut in one way, in a file of their own.

A shard knows nothing of training and validation, so that it serves whatever becomes of its universe, and is never
changed once it is there. Those of ``<out>`` lie in ``<out>_shards/<cut>/<universe>.<name>.<digest>.h5``, with the first
digits of the SHA-256 of the universe's name and of its digest: when a universe changes, its new slices lie beside the
old ones, and what refers to those stays whole. Layout, with n slices of dim × dim pixels:

    slices              (n, dim, dim) int16 or float32    by axis, plane, row and column of the corner
    axis, plane, corner                                   as in slice files (utils/slices.py)
    minimum, maximum    (n,)    float64                   of the pixels of each slice
    sum                 (n,)    int64 or float64          of the pixels of each slice
    checksum            (n,)    uint32                    CRC-32 of the bytes of each slice
    digest              (1,)    bytes                     SHA-256 of all that, and of the attributes but for source_…
    attributes          shard_version, universe, dataset_tag, grid, pixel_size, physPar, img_dim, stride, axes,
                        redshift, source_bytes and source_mtime_ns (of the universe's file)
"""

import contextlib
import glob
import hashlib
import os
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from utils.files import HDF5_DAMAGE, clear_left_behind, partial_path, publish
from utils.slice_plan import Cut, cut_images, planes_to_read
from utils.slice_writer import SliceWriter
from utils.universes import DamagedUniverse, Universe, read_planes

SHARD_VERSION = 1
_LONGEST_NAME = 100
_DIGITS = 12
_STATE = ("source_bytes", "source_mtime_ns")
_COORDINATES = {"axis": np.int8, "plane": np.int32, "corner": np.int32}


@dataclass(frozen=True)
class Shard:
    """What the header of one shard says."""

    path: Path
    name: str  # of its universe
    tag: str  # dataset_tag of its universe
    grid: int  # voxels per side of its universe
    pixel_size: float  # Mpc/h
    parameters: tuple[float, ...]
    dtype: np.dtype
    images: int
    bytes: int  # length of the file
    offset: int  # of the first slice in the file
    digest: bytes
    digest_offset: int
    source_bytes: int
    source_mtime_ns: int


class ShardFolder:
    """The shards of one cut.

    Parameters
    ----------
    out : Path
        What the names of the slice files begin with.
    cut : Cut
    """

    def __init__(self, out: Path, cut: Cut):
        self._out_name = out.name
        self.root = out.with_name(f"{out.name}_shards")
        axes = "".join(map(str, cut.axes))
        self.path = self.root / f"{cut.dim}px_stride{cut.stride}_axes{axes}_z{cut.redshift!r}"
        self._cut = cut
        self._known = defaultdict(list)
        for path in sorted(self.path.glob("[!.]*.h5")):
            self._known[path.name.rsplit(".", 2)[0]].append(path)

    @property
    def record(self) -> Path:
        """Where the data set is recorded (utils/data_set.py)."""
        return self.root / "data_set.json"

    def all(self) -> set[Path]:
        """Every shard of any cut that there is."""
        return set(self.root.glob("*/[!.]*.h5"))

    def find(self, name: str, source: Path) -> Shard | None:
        """The sound shard of a universe's file as it is now, if there was one in the beginning."""
        return _matching(self._known[_prefix(name)], name, source)

    def write(self, universe: Universe) -> Shard:
        """Slice a universe, in constant memory, unless another process has done so meanwhile.

        Raises
        ------
        DamagedUniverse
            If its pixels cannot be read or are no densities, or if its file changes meanwhile.
        OSError
            If the disk is full, for instance.
        """
        prefix = _prefix(universe.name)
        there = _matching(self.path.glob(f"{prefix}.*.h5"), universe.name, universe.path)
        if there is not None:
            return there
        self.path.mkdir(parents=True, exist_ok=True)
        before = _state(universe.path)
        temporary = partial_path(self.path / f"{prefix}.h5")
        try:
            digest = _write_shard(temporary, universe, self._cut, dict(zip(_STATE, before, strict=True)))
            if _state(universe.path) != before:
                raise DamagedUniverse(f"{universe.path}: has changed while it was sliced: is it still being written?")
            path = self.path / f"{prefix}.{digest[:_DIGITS]}.h5"
            publish(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return read_shard(path)

    def size(self, universe: Universe) -> int:
        """Bytes that the shard of a universe will take, but for its header."""
        images = self._cut.images(universe.grid, self._cut.planes(universe.grid))
        return images * (self._cut.dim**2 * shard_type(universe).itemsize + 50)

    def remove_if_empty(self) -> None:
        """Leave no empty folders behind when nothing came of slicing."""
        with contextlib.suppress(OSError):
            self.path.rmdir()
            self.root.rmdir()

    def clear_leftovers(self) -> None:
        """Delete what processes that were killed have not finished."""
        clear_left_behind([*self.root.glob("*"), *self.root.glob("*/*")])
        clear_left_behind(self.root.parent.glob(f".*.{glob.escape(self._out_name)}_*.h5"))


def read_shard(path: Path) -> Shard | None:
    """Read a shard's header; None where there is no shard, or no sound one."""
    try:
        with h5py.File(path, "r") as file:
            slices, digest, attributes = file["slices"], file["digest"], dict(file.attrs)
            if attributes.pop("shard_version") != SHARD_VERSION:
                return None
            return Shard(
                path=path,
                name=os.fsdecode(attributes["universe"]),
                tag=attributes["dataset_tag"],
                grid=int(attributes["grid"]),
                pixel_size=float(attributes["pixel_size"]),
                parameters=tuple(attributes["physPar"].tolist()),
                dtype=slices.dtype,
                images=len(slices),
                bytes=path.stat().st_size,
                offset=slices.id.get_offset(),
                digest=bytes(digest[0]),
                digest_offset=digest.id.get_offset(),
                **{name: int(attributes[name]) for name in _STATE},
            )
    except (*HDF5_DAMAGE, AttributeError):  # the last where a group stands in a dataset's place
        return None


def shard_type(universe: Universe) -> np.dtype:
    """Counts stay int16, densities in floats become float32."""
    return np.dtype(np.int16 if universe.dtype.kind in "iu" else np.float32)


def _matching(paths: Iterable[Path], name: str, source: Path) -> Shard | None:
    """The shard among these that was made of a universe's file as it is now."""
    for shard in filter(None, map(read_shard, sorted(paths))):
        if shard.name == name and (shard.source_bytes, shard.source_mtime_ns) == _state(source):
            return shard
    return None


def _state(source: Path) -> tuple[int, int]:
    """What a universe's file is known by, in the order of `_STATE`."""
    status = source.stat()
    return status.st_size, status.st_mtime_ns


def _write_shard(path: Path, universe: Universe, cut: Cut, state: dict) -> str:
    """Write a shard; gives its digest."""
    planes, dtype = cut.planes(universe.grid), shard_type(universe)
    number = cut.images(universe.grid, planes)
    numbers = {
        "minimum": np.empty(number),
        "maximum": np.empty(number),
        "sum": np.empty(number, np.int64 if dtype.kind == "i" else np.float64),
        "checksum": np.empty(number, np.uint32),
    }
    columns = _coordinates(universe.grid, planes, cut) | numbers
    attributes = {
        "shard_version": SHARD_VERSION,
        "universe": np.bytes_(os.fsencode(universe.name)),
        "dataset_tag": universe.tag,
        "grid": universe.grid,
        "pixel_size": universe.pixel_size,
        "physPar": np.array(universe.parameters, np.float64),
        "img_dim": cut.dim,
        "stride": cut.stride,
        "axes": "".join(map(str, cut.axes)),
        "redshift": cut.redshift,
    }
    arrays = {"slices": ((number, cut.dim, cut.dim), dtype), "digest": ((1,), np.dtype("S64"))}
    arrays |= {name: (values.shape, values.dtype) for name, values in columns.items()}
    with SliceWriter(path, arrays, {}, attributes | state) as file:
        read = read_planes(universe, planes_to_read(planes, universe.grid, cut), cut.redshift)
        for row, images in cut_images(read, planes, universe.grid, cut):
            images = np.ascontiguousarray(images, dtype)
            file.write("slices", row, images)
            for place, image in enumerate(images, start=row):
                numbers["checksum"][place] = zlib.crc32(image)
            rows = slice(row, row + len(images))
            numbers["minimum"][rows] = images.min(axis=(1, 2))
            numbers["maximum"][rows] = images.max(axis=(1, 2))
            numbers["sum"][rows] = images.sum(axis=(1, 2), dtype=numbers["sum"].dtype)
        header = (universe.name, universe.tag, universe.grid, universe.pixel_size, universe.parameters, cut, dtype.str)
        digest = hashlib.sha256(repr((SHARD_VERSION, *header)).encode())
        for name, values in columns.items():
            file.write(name, 0, values)
            digest.update(values)
        file.write("digest", 0, np.array([digest.hexdigest()], "S64"))
    return digest.hexdigest()


def _coordinates(grid: int, planes: range, cut: Cut) -> dict[str, np.ndarray]:
    corners = np.arange(grid // cut.dim) * cut.dim
    axis, plane, top, left = np.meshgrid(cut.axes, planes, corners, corners, indexing="ij")
    values = {"axis": axis.ravel(), "plane": plane.ravel(), "corner": np.stack([top.ravel(), left.ravel()], axis=1)}
    return {name: column.astype(_COORDINATES[name]) for name, column in values.items()}


def _prefix(name: str) -> str:
    """What names of shards of a universe begin with: legible, harmless to any file system, and its own."""
    legible = re.sub(r"[^A-Za-z0-9_-]+", "_", name.removesuffix(".hdf5").rsplit("/", 1)[-1])[:_LONGEST_NAME]
    return f"{legible}.{hashlib.sha256(os.fsencode(name)).hexdigest()[:_DIGITS]}"
