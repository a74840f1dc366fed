#!/usr/bin/env python
"""Cut universes into square images for training, validation and test.

Every *.hdf5 file below FOLDER is a universe. Of each, the planes 0, stride, 2·stride … across the chosen axes are
tiled into images that do not overlap, and written to a file in <out>_shards/. These are then joined, without copying,
to <out>_train.h5, <out>_val.h5 and <out>_test.h5 (their layout: utils/slices.py). No universe gives images to two of
these files as long as there are as many universes as files. With fewer, each universe is cut along axis 0 into separate
slabs, one per file.

What is sliced already is not sliced again: the same command goes on after an interruption, and takes in universes that
were added, without moving an image from one file to another. Nothing is replaced before everything is complete.
"""

import argparse
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

HERE = Path(__file__).resolve().parent
# Python looks for modules beside the script, in data/; what all scripts share lies one folder up.
sys.path.insert(0, str(HERE.parent))

from utils import data_set
from utils.cli import ArgumentParser, UserError, run
from utils.data_set import DataSet, Entry
from utils.files import check_writable
from utils.lock import one_at_a_time
from utils.processes import map_unordered
from utils.shards import Shard, ShardFolder, read_shard
from utils.slice_join import Joined, join
from utils.slice_plan import Cut, check_cut, check_together, plan
from utils.slices import SPLITS, slice_path
from utils.universes import DamagedUniverse, Universe, find_universes, read_header

_SMALL_FILES = 2**20  # what the joined files take, but for their rows [bytes]


@dataclass(frozen=True)
class Found:
    """One universe's file, and its shard, or its header where it is still to be sliced."""

    path: Path
    name: str
    content: Shard | Universe


@dataclass(frozen=True)
class Job:
    """Everything that the command line says."""

    folder: Path
    out: Path
    cut: Cut
    shares: dict[str, float]
    seed: int
    skip_damaged: bool
    processes: int
    part: tuple[int, int]  # slice only universes whose number leaves this rest when divided by that

    @property
    def options(self) -> dict:
        """What decides about the data set: with other options it is another one."""
        return {
            # From one to the other, so that both may be moved together.
            "FOLDER": os.path.relpath(self.folder.resolve(), self.out.parent.resolve()),
            "--img-dim": self.cut.dim,
            "--stride": self.cut.stride,
            "--axes": "".join(map(str, self.cut.axes)),
            "--redshift": self.cut.redshift,
            "--val-fraction": self.shares.get("val", 0),
            "--test-fraction": self.shares.get("test", 0),
            "--seed": self.seed,
        }

    def attributes(self, universes: list[Shard], slabs: bool) -> dict:
        """Attributes of the joined files."""
        return {
            "img_dim": self.cut.dim,
            "pixel_size": universes[0].pixel_size,
            "redshift": self.cut.redshift,
            "seed": self.seed,
            "stride": self.cut.stride,
            "axes": "".join(map(str, self.cut.axes)),
            "split_by": "slabs" if slabs else "universes",
        }


# ---- Looking at what is there ----


def on_damage(error: DamagedUniverse, job: Job) -> None:
    """End the program, or warn."""
    if not job.skip_damaged:
        raise UserError(f"{error} (--skip-damaged goes on without such files)") from error
    tqdm.write(f"slice_universes.py: warning: skipped {' '.join(str(error).split())}", file=sys.stderr)


def look(paths: list[Path], job: Job, shards: ShardFolder) -> list[Found]:
    """Find the shard of every universe that has one, and read the headers of the others."""
    found = []
    for path in tqdm(paths, desc="looking", unit="file", disable=None):
        name = path.relative_to(job.folder).as_posix()
        try:
            content = (path.exists() and shards.find(name, path)) or read_header(path, name)
        except DamagedUniverse as error:
            on_damage(error, job)
            continue
        if isinstance(content, Universe):
            check_cut(content, job.cut)
        found.append(Found(path, name, content))
    return found


def recorded_data_set(job: Job, shards: ShardFolder) -> tuple[DataSet, list[str]]:
    """The data set so far, empty if there is none, and what is to be said about it."""
    recorded = data_set.load(shards.record)
    if recorded is None:
        return DataSet(job.options), []
    changes = [
        f"{name} was {recorded.options.get(name)}, is {value}"
        for name, value in job.options.items()
        if recorded.options.get(name) != value
    ]
    if changes:
        return DataSet(job.options), [f"another data set than the last ({'; '.join(changes)}): begun anew"]
    return recorded, []


def members(recorded: DataSet, found: list[Found], shards: ShardFolder) -> tuple[list[Entry], dict, list[str]]:
    """Universes of the data set that are still to be had, all universes by name, and what is to be said."""
    universes, kept, vanished = {one.name: one.content for one in found}, [], []
    for entry in recorded.universes:
        if entry.file not in universes:
            path = shards.path / entry.shard
            if not path.exists():
                continue
            shard = read_shard(path)
            if shard is None:
                raise UserError(f"{path} is damaged, and {entry.file} is no longer there to be sliced again: delete it")
            universes[entry.file] = shard
            vanished.append(entry.file)
        kept.append(entry)
    said = []
    if vanished:
        said.append(
            f"{len(vanished)} universe(s) are no longer there, {vanished[0]} for one: their slices stay "
            f"(delete their files in {shards.path} to forget them)"
        )
    if len(kept) < len(recorded.universes):
        said.append(f"{len(recorded.universes) - len(kept)} universe(s) are forgotten: neither file nor shard is left")
    return kept, universes, said


def arrange(job: Job, recorded: DataSet, found: list[Found], shards: ShardFolder):
    """Decide about the data set: its universes by name in order, their splits, parts, and what is to be said."""
    kept, universes, said = members(recorded, found, shards)
    known = {entry.file for entry in kept}
    added = [one.name for one in found if one.name not in known]
    splits = data_set.assign(kept, added, job.shares, job.seed, shards.record)
    ordered = [universes[name] for name in splits]
    check_together(ordered)
    return ordered, splits, plan(ordered, list(splits.values()), job.cut, job.shares), said


def check_room(job: Job, missing: list[Found], shards: ShardFolder, rows: int) -> None:
    """Refuse to start what the disk cannot hold."""
    needed = sum(shards.size(one.content) for one in missing) + 20 * rows + _SMALL_FILES
    existing = next(folder for folder in job.out.absolute().parents if folder.exists())
    if needed > (free := shutil.disk_usage(existing).free):
        raise UserError(
            f"the slices take {needed / 1e9:.3g} GB more but {existing} has {free / 1e9:.3g} GB free: see --out"
        )


def check_leftovers(job: Job) -> None:
    """Refuse to leave an older file beside the new ones."""
    for split in set(SPLITS) - set(job.shares):
        if slice_path(job.out, split).exists():
            raise UserError(
                f"{slice_path(job.out, split)} is left over from an earlier slicing, its universes may now be in the "
                "other files: delete it, or choose another --out"
            )


# ---- Slicing and joining ----


def slice_missing(missing: list[Found], job: Job, shards: ShardFolder) -> list[Found]:
    """Write the shards that are missing; gives those universes that turned out to be sound."""
    sliced, by_path = [], {one.content: one for one in missing}
    results = map_unordered(shards.write, list(by_path), min(job.processes, max(1, len(missing))))
    bar = tqdm(results, total=len(missing), desc="slicing", unit="file", smoothing=0.05, disable=None)
    try:
        for universe, result in bar:
            if isinstance(result, DamagedUniverse):
                on_damage(result, job)
            elif isinstance(result, Exception):
                raise result
            else:
                one = by_path[universe]
                sliced.append(Found(one.path, one.name, result))
    finally:
        results.close()  # now, not when Python gets round to it: it ends the processes
        shards.remove_if_empty()
    return sliced


def join_all(job: Job, found: list[Found], shards: ShardFolder) -> dict[str, Joined]:
    """Record the data set and write the slice files, one process after the other."""
    with one_at_a_time(shards.root / ".lock"):
        recorded, said = recorded_data_set(job, shards)
        ordered, splits, parts, more = arrange(job, recorded, found, shards)
        pairs = zip(splits.items(), ordered, strict=True)
        entries = [Entry(name, split, shard.path.name) for (name, split), shard in pairs]
        data_set.save(shards.record, DataSet(job.options, entries))
        slabs = None in splits.values()
        joined = join(job.out, ordered, parts, job.attributes(ordered, slabs))
    for line in said + more:
        print(line)
    print(
        f"{job.cut.dim} x {job.cut.dim} pixels of {ordered[0].pixel_size:g} Mpc/h at redshift {job.cut.redshift:g}, "
        f"every {job.cut.stride} voxels across axes {', '.join(map(str, job.cut.axes))}"
    )
    if slabs:
        print(f"{len(ordered)} universe(s) for {len(joined)} files: each file has its own slab of every universe")
    for split, file in joined.items():
        print(
            f"{slice_path(job.out, split)}: {file.slices} slices from {file.universes} universe(s), "
            f"pixels from {file.minimum:g} to {file.maximum:g}, mean {file.mean:.5f}"
        )
    if "val" not in joined:
        print("there is no validation file, without which train.py and analyze_output.py do not take the others")
    unused = shards.all() - {shard.path for shard in ordered}
    if unused:
        size = sum(path.stat().st_size for path in unused)
        print(
            f"{len(unused)} file(s) in {shards.root} ({size / 1e9:.3g} GB) do not belong to this data set but to "
            "other options, or to universes as they were; delete them if they are of no use"
        )
    return joined


# ---- The command ----


def shard_number(text: str) -> tuple[int, int]:
    """An argparse type: I/N."""
    first, slash, second = text.partition("/")
    if not (slash and first.isdecimal() and second.isdecimal() and int(first) < int(second)):
        raise argparse.ArgumentTypeError(f"'{text}' is not I/N, with whole numbers from 0/N to N-1/N")
    return int(first), int(second)


def parse_arguments() -> Job:
    parser = ArgumentParser(description=__doc__.split("\n\n")[0], epilog="\n".join(__doc__.split("\n\n")[1:]))
    add = parser.add_argument
    add("folder", nargs="?", type=Path, default=HERE, metavar="FOLDER", help="where to look for *.hdf5, at any depth")
    add("--img-dim", type=int, default=128, metavar="N", help="pixels per side of an image")
    add("--stride", type=int, default=8, metavar="N", help="take every Nth plane")
    add("--axes", choices=("0", "012"), default="0", help="take planes across the first axis, or across all three")
    add("--redshift", type=float, default=0.0, metavar="Z", help="which snapshot to take, by its redshift")
    share = "share of universes for validation, without which nothing trains; 0: no file"
    add("--val-fraction", type=float, default=0.1, metavar="F", help=share)
    add("--test-fraction", type=float, default=0.1, metavar="F", help="share of universes for the test, 0: no file")
    add("--out", type=Path, default=HERE / "raw", metavar="NAME", help="beginning of the names of the files to write")
    add("--seed", type=int, default=0, help="decides which universe goes to which file")
    add("--jobs", type=int, default=1, metavar="N", help="universes at a time, each in a process of its own")
    more = "slice only every Nth universe, from number I (from 0) on, and do not join: for array jobs, see slurm/"
    add("--shard", type=shard_number, metavar="I/N", default=argparse.SUPPRESS, help=more)
    add("--skip-damaged", action="store_true", help="warn of files that are no sound universes and go on without them")
    arguments = parser.parse_args()
    for name in ("img_dim", "stride", "jobs"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(arguments, name)}, it must be at least 1")
    if arguments.out.name in ("", ".."):
        parser.error(
            f"--out {arguments.out} has no name: give what the names of the files begin with, such as data/raw"
        )
    if arguments.seed < 0:
        parser.error(f"--seed is {arguments.seed}, it must not be negative")
    fractions = arguments.val_fraction, arguments.test_fraction
    if not (min(fractions) >= 0 and sum(fractions) < 1):
        parser.error(
            f"--val-fraction {fractions[0]} and --test-fraction {fractions[1]} must leave a share for training"
        )
    shares = {"train": 1 - sum(fractions), "val": fractions[0], "test": fractions[1]}
    return Job(
        folder=arguments.folder,
        out=arguments.out,
        cut=Cut(arguments.img_dim, arguments.stride, tuple(map(int, arguments.axes)), arguments.redshift),
        shares={split: share for split, share in shares.items() if share > 0},
        seed=arguments.seed,
        skip_damaged=arguments.skip_damaged,
        processes=arguments.jobs,
        part=getattr(arguments, "shard", None),
    )


def main() -> None:
    job, start = parse_arguments(), time.perf_counter()
    shards = ShardFolder(job.out, job.cut)

    # Everything that can be known is checked before anything is written.
    for folder in (shards.path, job.out.parent):
        check_writable(folder)
    recorded, _ = recorded_data_set(job, shards)
    paths = find_universes(job.folder, none_is_fine=bool(recorded.universes))
    if job.part:
        paths = paths[job.part[0] :: job.part[1]]
    found = look(paths, job, shards)
    if paths and not found:
        raise UserError(f"none of {len(paths)} files is a sound universe")
    missing = [one for one in found if isinstance(one.content, Universe)]
    rows = 0
    if job.part:
        check_together([one.content for one in found])
    else:
        check_leftovers(job)
        rows = sum(part.images for part in arrange(job, recorded, found, shards)[2])
    shards.clear_leftovers()
    check_room(job, missing, shards, rows)
    sliced = slice_missing(missing, job, shards)
    if missing:
        seconds = time.perf_counter() - start
        print(
            f"sliced {len(sliced)} universe(s) in {seconds:.1f} s, {len(sliced) / seconds:.3g} files/s; "
            f"{len(found) - len(missing)} were sliced already"
        )
    if job.part:
        print(f"part {job.part[0]} of {job.part[1]}, not joined: run the command without --shard when all parts are")
        return
    new = {one.name: one for one in sliced}
    found = [new.get(one.name, one) for one in found if one.name in new or isinstance(one.content, Shard)]
    if not found and not recorded.universes:
        raise UserError(f"none of {len(paths)} files is a sound universe")
    join_all(job, found, shards)


if __name__ == "__main__":
    run(main)
