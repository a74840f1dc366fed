#!/usr/bin/env python
"""Cut universes into square images for training, validation and test.

Every *.hdf5 file below FOLDER is a universe. Of each, the planes 0, stride, 2·stride … across the chosen axes are
tiled into images that do not overlap, and written to <out>_train.h5, <out>_val.h5 and <out>_test.h5 (their layout:
utils/slices.py). No universe gives images to two of these files as long as there are as many universes as files. With
fewer, each universe is cut along axis 0 into separate slabs, one per file.

Nothing is replaced before everything is complete: after an error or an interruption the former files are still there.
"""

import hashlib
import math
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
# Python looks for modules beside the script, in data/; what all scripts share lies one folder up.
sys.path.insert(0, str(HERE.parent))

from utils.cli import ArgumentParser, UserError, run
from utils.files import atomic_path
from utils.slice_plan import Cut, Part, check_together, cut_images, plan, planes_to_read
from utils.slice_writer import SliceWriter
from utils.slices import SPLITS, slice_path
from utils.universes import PARAMETERS, DamagedUniverse, Universe, find_universes, read_header, read_planes


@dataclass
class Totals:
    """Range and sum of all pixels seen."""

    pixels: int = 0
    minimum: float = math.inf
    maximum: float = -math.inf
    total: float = 0

    def add(self, images: np.ndarray) -> None:
        self.pixels += images.size
        self.minimum = min(self.minimum, float(images.min()))
        self.maximum = max(self.maximum, float(images.max()))
        # Counts are summed in integers, so exactly.
        self.total += images.sum(dtype=np.int64 if images.dtype.kind == "i" else np.float64).item()

    @property
    def mean(self) -> float:
        return self.total / self.pixels


def write_part(part: Part, universe: Universe, cut: Cut, file: SliceWriter, totals: Totals) -> None:
    """Write one part's images and their coordinates to the rows that the plan gives them."""
    planes = read_planes(universe, planes_to_read(part.planes, universe.grid, cut), cut.redshift)
    for row, images in cut_images(planes, part.planes, universe.grid, cut):
        file.write("slices", part.first_row + row, images)
        totals.add(images)
    corners = np.arange(universe.grid // cut.dim) * cut.dim
    axis, plane, top, left = np.meshgrid(cut.axes, part.planes, corners, corners, indexing="ij")
    file.write("universe", part.first_row, np.full(part.images, part.table_row))
    file.write("axis", part.first_row, axis.ravel())
    file.write("plane", part.first_row, plane.ravel())
    file.write("corner", part.first_row, np.stack([top.ravel(), left.ravel()], axis=1))


def pixel_type(universes: list[Universe]) -> np.dtype:
    """Counts stay int16; as soon as one universe has densities in floats, all images are float32."""
    return np.dtype(np.int16 if all(universe.dtype.kind in "iu" for universe in universes) else np.float32)


def write_slices(
    out: Path, universes: list[Universe], parts: list[Part], cut: Cut, attributes: dict
) -> dict[str, Totals]:
    """Write all files beside their places and move them there together once all of them are complete."""
    totals = {split: Totals() for split in SPLITS if split in {part.split for part in parts}}
    out.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as renames:
        paths = {split: renames.enter_context(atomic_path(slice_path(out, split))) for split in totals}
        with ExitStack() as closes:
            files = {}
            for split, path in paths.items():
                own = [part for part in parts if part.split == split]
                number, table = sum(part.images for part in own), table_of([universes[part.universe] for part in own])
                header = attributes | {"split": split}
                writer = SliceWriter(path, number, cut.dim, pixel_type(universes), *table, PARAMETERS, header)
                files[split] = closes.enter_context(writer)
            for part in tqdm(parts, desc="slicing", unit="file", smoothing=0.05, disable=None):
                write_part(part, universes[part.universe], cut, files[part.split], totals[part.split])
            slicing = hashlib.sha256(repr((table_of(universes), attributes, totals)).encode()).hexdigest()
            for split, total in totals.items():
                files[split].finish(total.minimum, total.maximum, total.mean, slicing)
    return totals


def table_of(universes: list[Universe]) -> tuple[list[str], list[tuple[float, ...]]]:
    """Names and parameters of universes."""
    return [universe.name for universe in universes], [universe.parameters for universe in universes]


# ---- The command ----


def parse_arguments():
    parser = ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("folder", nargs="?", type=Path, default=HERE, metavar="FOLDER", help="where to look for *.hdf5, at any depth")
    add("--img-dim", type=int, default=128, metavar="N", help="pixels per side of an image")
    add("--stride", type=int, default=8, metavar="N", help="take every Nth plane")
    add("--axes", choices=("0", "012"), default="0", help="take planes across the first axis, or across all three")
    add("--redshift", type=float, default=0.0, metavar="Z", help="which snapshot to take")
    add("--val-fraction", type=float, default=0.1, metavar="F", help="share of universes for validation, 0: no file")
    add("--test-fraction", type=float, default=0.1, metavar="F", help="share of universes for the test, 0: no file")
    add("--out", type=Path, default=HERE / "raw", metavar="NAME", help="beginning of the names of the files to write")
    add("--seed", type=int, default=0, help="decides which universe goes to which file")
    add("--skip-damaged", action="store_true", help="warn of files that are no sound universes and go on without them")
    arguments = parser.parse_args()
    for name in ("img_dim", "stride"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(arguments, name)}, it must be at least 1")
    if arguments.seed < 0:
        parser.error(f"--seed is {arguments.seed}, it must not be negative")
    fractions = arguments.val_fraction, arguments.test_fraction
    if not (min(fractions) >= 0 and sum(fractions) < 1):
        parser.error(
            f"--val-fraction {fractions[0]} and --test-fraction {fractions[1]} must leave a share for training"
        )
    return arguments


def keep_sound(items: list, check: Callable, description: str, skip_damaged: bool) -> list:
    """Return check(item) of all items; damaged ones end the program, or are warned of and left out."""
    sound = []
    with tqdm(items, desc=description, unit="file", disable=None) as progress:
        for item in progress:
            try:
                sound.append(check(item))
            except DamagedUniverse as error:
                if not skip_damaged:
                    raise UserError(f"{error} (--skip-damaged goes on without such files)") from error
                tqdm.write(f"slice_universes.py: warning: skipped {' '.join(str(error).split())}", file=sys.stderr)
    if not sound:
        raise UserError(f"none of {len(items)} files is a sound universe")
    return sound


def verify(universe: Universe, cut: Cut) -> Universe:
    """Read everything that will be needed of a universe once, and throw it away."""
    for _ in read_planes(universe, planes_to_read(cut.planes(universe.grid), universe.grid, cut), cut.redshift):
        pass
    return universe


def check_outputs(out: Path, universes: list[Universe], parts: list[Part], cut: Cut) -> None:
    """Refuse to leave an older file beside the new ones, and to start what the disk cannot hold."""
    for split in set(SPLITS) - {part.split for part in parts}:
        if slice_path(out, split).exists():
            raise UserError(
                f"{slice_path(out, split)} is left over from an earlier slicing, its universes may now be in the other "
                "files: delete it, or choose another --out"
            )
    needed = sum(part.images for part in parts) * cut.dim**2 * pixel_type(universes).itemsize
    existing = next(folder for folder in out.absolute().parents if folder.exists())
    if needed > (free := shutil.disk_usage(existing).free):
        raise UserError(f"the slices take {needed / 1e9:.3g} GB but {existing} has {free / 1e9:.3g} GB free: see --out")


def summarise(out: Path, universes: list[Universe], parts: list[Part], cut: Cut, totals: dict[str, Totals]) -> None:
    print(
        f"{cut.dim} x {cut.dim} pixels of {universes[0].pixel_size:g} Mpc/h at redshift {cut.redshift:g}, "
        f"every {cut.stride} voxels across axes {', '.join(map(str, cut.axes))}"
    )
    if len(universes) < len(totals):
        print(f"{len(universes)} universe(s) for {len(totals)} files: each file has its own slab of every universe")
    for split, total in totals.items():
        own = [part for part in parts if part.split == split]
        print(
            f"{slice_path(out, split)}: {sum(part.images for part in own)} slices from {len(own)} universe(s), "
            f"pixels from {total.minimum:g} to {total.maximum:g}, mean {total.mean:.5f}"
        )


def main() -> None:
    # A scheduler's SIGTERM then removes the unfinished files, as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    arguments = parse_arguments()
    cut = Cut(arguments.img_dim, arguments.stride, tuple(map(int, arguments.axes)), arguments.redshift)
    shares = {
        "train": 1 - arguments.val_fraction - arguments.test_fraction,
        "val": arguments.val_fraction,
        "test": arguments.test_fraction,
    }
    shares = {split: share for split, share in shares.items() if share > 0 or split == "train"}

    folder, skip = arguments.folder, arguments.skip_damaged
    paths = find_universes(folder)
    universes = keep_sound(paths, lambda p: read_header(p, p.relative_to(folder).as_posix()), "reading headers", skip)
    check_together(universes, cut)
    if skip:
        # Damage in the middle of a file is found before anything is planned: the rows of all files are fixed then,
        # and the shares are those of the sound universes. The price is to read every universe twice.
        universes = keep_sound(universes, lambda universe: verify(universe, cut), "looking for damage", skip)

    parts = plan(universes, cut, shares, arguments.seed)
    check_outputs(arguments.out, universes, parts, cut)
    attributes = {
        "img_dim": cut.dim,
        "pixel_size": universes[0].pixel_size,
        "redshift": cut.redshift,
        "seed": arguments.seed,
        "stride": cut.stride,
        "axes": arguments.axes,
        "split_by": "universes" if len(universes) >= len(shares) else "slabs",
    }
    totals = write_slices(arguments.out, universes, parts, cut, attributes)
    summarise(arguments.out, universes, parts, cut, totals)


if __name__ == "__main__":
    run(main)
