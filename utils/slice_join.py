"""Joining shards to slice files, without copying pixels."""

import hashlib
import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from utils.files import atomic_path
from utils.shards import Shard
from utils.slice_plan import Part
from utils.slice_writer import Mapping, SliceWriter, add_virtual
from utils.slices import FORMAT_VERSION, SPLITS, slice_path
from utils.universes import PARAMETERS

_COLUMNS = {"universe": np.int32, "axis": np.int8, "plane": np.int32, "corner": np.int32}


@dataclass(frozen=True)
class Joined:
    """What a slice file holds."""

    slices: int
    universes: int
    minimum: float
    maximum: float
    mean: float


def join(out: Path, shards: Sequence[Shard], parts: Sequence[Part], attributes: dict) -> dict[str, Joined]:
    """Write all slice files beside their places and move them there together once all of them are complete.

    Parameters
    ----------
    out : Path
        What the names of the files begin with.
    shards : sequence of Shard
        Of all universes, in the order of the data set.
    parts : sequence of Part
        Which of their rows go where.
    attributes : dict
        Attributes of every file; must have img_dim.

    Returns
    -------
    dict of str to Joined
        By split.
    """
    content = [(shards[part.universe].digest, part.split, part.first_row, part.images) for part in parts]
    slicing = hashlib.sha256(repr((sorted(attributes.items()), content)).encode()).hexdigest()
    attributes = attributes | {"format_version": FORMAT_VERSION, "slicing": np.bytes_(slicing)}
    joined = {}
    with ExitStack() as renames:
        for split in SPLITS:
            own = [part for part in parts if part.split == split]
            if own:
                path = renames.enter_context(atomic_path(slice_path(out, split)))
                dtype = np.result_type(*(shard.dtype for shard in shards))
                joined[split] = _write(path, out, shards, own, dtype, attributes | {"split": split})
    return joined


def _write(
    path: Path, out: Path, shards: Sequence[Shard], parts: Sequence[Part], dtype: np.dtype, attributes: dict
) -> Joined:
    """Write one file, constant memory per universe."""
    own, dim = [shards[part.universe] for part in parts], attributes["img_dim"]
    number = sum(part.images for part in parts)
    pixels = [_pixels(shard, part) for shard, part in zip(own, parts, strict=True)]
    statistics = {
        "minimum": min(low for low, _, _ in pixels),
        "maximum": max(high for _, high, _ in pixels),
        "mean": math.fsum(total for _, _, total in pixels) / (number * dim**2),
    }
    files = [os.path.relpath(shard.path, out.parent) for shard in own]
    offsets = [
        shard.offset + part.first_row * dim**2 * shard.dtype.itemsize for shard, part in zip(own, parts, strict=True)
    ]
    small = {
        "universes/file": np.array([os.fsencode(shard.name) for shard in own]),
        "universes/grid": np.array([shard.grid for shard in own], np.int32),
        "universes/physPar": np.array([shard.parameters for shard in own], np.float64),
        "universes/namePar": np.array([name.encode() for name in PARAMETERS]),
        "shards/file": np.array([os.fsencode(file) for file in files]),
        "shards/offset": np.array(offsets, np.int64),
        "shards/dtype": np.array([shard.dtype.str.encode() for shard in own]),
        "shards/bytes": np.array([shard.bytes for shard in own], np.int64),
        "shards/digest": np.array([shard.digest for shard in own]),
        "shards/digest_offset": np.array([shard.digest_offset for shard in own], np.int64),
    }
    shapes = {name: ((number, 2) if name == "corner" else (number,), kind) for name, kind in _COLUMNS.items()}
    with SliceWriter(path, shapes, small, attributes | statistics) as file:
        row = 0
        for place, (shard, part) in enumerate(zip(own, parts, strict=True)):
            file.write("universe", row, np.full(part.images, place))
            for name, values in _read(shard, part, ("axis", "plane", "corner")).items():
                file.write(name, row, values)
            row += part.images
    mappings = [
        Mapping(file, part.first_row, part.images, shard.images)
        for file, shard, part in zip(files, own, parts, strict=True)
    ]
    add_virtual(path, "slices", (number, dim, dim), dtype, mappings)
    return Joined(number, len(own), **statistics)


def _pixels(shard: Shard, part: Part) -> tuple[float, float, float]:
    """Minimum, maximum and sum of a part's pixels, without reading them: exact where they are counts."""
    columns = _read(shard, part, ("minimum", "maximum", "sum"))
    total = columns["sum"].sum().item() if columns["sum"].dtype.kind == "i" else math.fsum(columns["sum"])
    return columns["minimum"].min().item(), columns["maximum"].max().item(), total


def _read(shard: Shard, part: Part, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Columns of a shard, of the rows that belong to a part."""
    with h5py.File(shard.path, "r") as file:
        return {name: file[name][part.first_row : part.first_row + part.images] for name in names}
