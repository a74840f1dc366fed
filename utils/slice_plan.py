"""How universes are cut into images, and which of them go to which slice file: pure functions, no files."""

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from utils.cli import UserError
from utils.universes import Universe, redshift_column

# Slabs of one universe are neighbours: where there are this many planes, one is left out between any two slabs.
PLANES_TO_SPARE = 8


@dataclass(frozen=True)
class Cut:
    """How every universe is cut into images."""

    dim: int  # pixels per side
    stride: int  # voxels between planes
    axes: tuple[int, ...]  # (0,) or (0, 1, 2)
    redshift: float

    def planes(self, grid: int) -> range:
        """The planes across each axis of a universe of grid³ voxels."""
        return range(0, grid, self.stride)

    def images(self, grid: int, planes: range) -> int:
        """How many images these planes give."""
        return len(self.axes) * len(planes) * (grid // self.dim) ** 2


class Member(Protocol):
    """What a data set needs to know of a universe; a `Universe` or its `Shard`."""

    path: Path
    grid: int  # voxels per side
    pixel_size: float  # Mpc/h
    tag: str  # dataset_tag


@dataclass(frozen=True)
class Part:
    """The images that one universe gives to one split: neighbouring rows of its shard."""

    split: str
    universe: int  # number in the list of all universes
    first_row: int  # in the shard
    images: int


def check_cut(universe: Universe, cut: Cut) -> None:
    """Refuse a sound universe that does not fit the options; that is never skipped silently."""
    if universe.grid < cut.dim:
        raise UserError(f"{universe.path} has {universe.grid}³ voxels, too few for --img-dim {cut.dim}")
    redshift_column(universe, cut.redshift)


def check_together(universes: Sequence[Member]) -> None:
    """Refuse universes that do not fit one another."""
    for first, universe in zip(universes[:1] * len(universes), universes, strict=True):
        if not math.isclose(universe.pixel_size, first.pixel_size, rel_tol=1e-6):
            raise UserError(
                f"{first.path} has pixels of {first.pixel_size:g} Mpc/h but {universe.path} has {universe.pixel_size:g}"
                " Mpc/h: universes of one slicing need the same pixel size, slice them apart"
            )
        if universe.tag != first.tag:
            raise UserError(
                f"{first.path} has the dataset_tag '{first.tag}' but {universe.path} has '{universe.tag}': they belong "
                "to different data sets, which are not to be mixed: slice them apart, each FOLDER to its own --out"
            )


def share_out(number: int, shares: dict[str, float]) -> dict[str, int]:
    """Divide `number` things among the splits by their shares, at least one each; training gets the rest."""
    counts = {split: max(1, math.floor(number * share + 0.5)) for split, share in shares.items() if split != "train"}
    while sum(counts.values()) > number - 1:
        counts[max(counts, key=counts.get)] -= 1
    return {"train": number - sum(counts.values())} | counts


def draw_splits(number: int, shares: dict[str, float], seed: int, given: Sequence[str] = ()) -> list[str]:
    """Give each of `number` universes its split; those of the first universes may be given.

    The split of a universe follows from those before it and the seed. So adding universes never moves one that has its
    split already, and adding them in turn gives what adding them at once gives.

    First every split gets a universe. From then on one is drawn among those that have less than their share, so that a
    split's next universe may be any of the 1/share in which it is due, about equally likely: universes often come in an
    order, such as ten realisations of each cosmology. But a split that lacks a whole universe is not made to wait. So
    three splits (or fewer) stay within one universe of their shares, once each has been due its first: a split that is
    drawn gets less than one too many, and of two that lack a whole one, the third would have one too many.

    Returns
    -------
    list of str
        (number,), the same with every version of Python.
    """
    splits = list(given)
    counts = {split: splits.count(split) for split in shares}
    for index in range(len(splits), number):
        lacking = {split: share * (index + 1) - counts[split] for split, share in shares.items()}
        without = {split: 1.0 for split, count in counts.items() if count == 0}
        most = max(lacking, key=lacking.get)
        if without:
            weights = without
        elif lacking[most] >= 1:
            weights = {most: 1.0}
        else:
            weights = {s: shares[s] / (1 + shares[s] - x) for s, x in lacking.items() if x > 0}
        splits.append(_draw(weights, random.Random(f"{seed} {index}").random()))
        counts[splits[-1]] += 1
    return splits


def _draw(weights: dict[str, float], chance: float) -> str:
    """One of the keys, with a probability that is proportional to its weight; `chance` is uniform in [0, 1)."""
    rest = chance * sum(weights.values())
    for key, weight in weights.items():
        rest -= weight
        if rest < 0:
            return key
    return key


def cut_slabs(planes: range, shares: dict[str, float]) -> dict[str, range]:
    """Divide the planes of one universe into neighbouring slabs, one per split.

    From `PLANES_TO_SPARE` planes on, one is left out after each slab; after the last one too, since a universe is
    periodic and its last plane is a neighbour of its first.
    """
    gap = int(len(planes) >= PLANES_TO_SPARE)
    slabs, start = {}, 0
    for split, count in share_out(len(planes) - gap * len(shares), shares).items():
        slabs[split] = planes[start : start + count]
        start += count + gap
    return slabs


def plan(universes: Sequence[Member], splits: Sequence[str | None], cut: Cut, shares: dict[str, float]) -> list[Part]:
    """Decide which rows of the universes' shards go to which split, universe by universe; a split of None: slabs."""
    parts = []
    for number, (universe, split) in enumerate(zip(universes, splits, strict=True)):
        planes = cut.planes(universe.grid)
        given = _slabs(universe, len(universes), cut, shares) if split is None else {split: planes}
        for name, chosen in given.items():
            # In slabs there is axis 0 alone, so that their planes follow one another in the shard.
            first_row = planes.index(chosen[0]) * (universe.grid // cut.dim) ** 2
            parts.append(Part(name, number, first_row, cut.images(universe.grid, chosen)))
    return parts


def _slabs(universe: Member, number: int, cut: Cut, shares: dict[str, float]) -> dict[str, range]:
    need = f"{number} universe(s) for {len(shares)} files ({', '.join(shares)}) have to be cut into slabs"
    if cut.axes != (0,):
        raise UserError(
            f"{need} along axis 0, which images across the axes 1 and 2 would cross: give more universes, "
            "or --axes 0, or set --test-fraction to 0"
        )
    planes = cut.planes(universe.grid)
    if len(planes) < len(shares):
        raise UserError(f"{need}, but {universe.path} has too few planes at --stride {cut.stride}")
    return cut_slabs(planes, shares)


def planes_to_read(planes: range, grid: int, cut: Cut) -> list[int]:
    """The planes across axis 0 to read, front to back: the chosen ones, and all that other axes' images cover."""
    covered = range(grid // cut.dim * cut.dim) if len(cut.axes) > 1 else ()
    return sorted({*planes, *covered})


def cut_images(
    planes: Iterable[tuple[int, np.ndarray]], chosen: range, grid: int, cut: Cut
) -> Iterator[tuple[int, np.ndarray]]:
    """Cut images out of planes across axis 0, given front to back.

    Images across the axes 1 and 2 grow by one row with every plane; they are kept until they are complete, which
    takes the memory of at most 2·dim·N²/stride pixels.

    Yields
    ------
    int, (m, dim, dim) array
        Row of the first image, counted from the part's first row, and m images for consecutive rows; to be used at
        once, the memory serves again.
    """
    tiles, dim = grid // cut.dim, cut.dim
    side, every = tiles * dim, slice(chosen.start, chosen.stop, chosen.step)
    growing = {}
    for index, plane in planes:
        if index in chosen:
            # (N, N) -> (tiles, dim, tiles, dim) -> (tiles, tiles, dim, dim)
            images = plane[:side, :side].reshape(tiles, dim, tiles, dim).swapaxes(1, 2)
            yield chosen.index(index) * tiles**2, images.reshape(-1, dim, dim)
        for axis in cut.axes[1:] if index < side else ():
            lines = plane[every, :side] if axis == 1 else plane[:side, every].T  # (planes, side)
            if axis not in growing:
                growing[axis] = np.empty((len(chosen), tiles, dim, dim), plane.dtype)
            growing[axis][:, :, index % dim] = lines.reshape(len(chosen), tiles, dim)
            if index % dim == dim - 1:
                for number, row_of_images in enumerate(growing[axis]):  # (tiles, dim, dim)
                    yield ((axis * len(chosen) + number) * tiles + index // dim) * tiles, row_of_images
