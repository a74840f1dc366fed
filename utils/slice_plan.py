"""Which voxels of which universe go to which row of which slice file: pure functions, no files.

A plan is a list of `Part`s that know their rows beforehand, so they can be carried out in any order.
"""

import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Part:
    """The images that one universe gives to one split."""

    split: str
    universe: int  # number in the list of all universes
    table_row: int  # number in the split's own table of universes
    planes: range
    first_row: int  # in the split's dataset; the images follow by axis, plane, row and column of the corner
    images: int


def check_together(universes: list[Universe], cut: Cut) -> None:
    """Refuse sound universes that do not fit the options or one another; that is never skipped silently."""
    first = universes[0]
    for universe in universes:
        if universe.grid < cut.dim:
            raise UserError(f"{universe.path} has {universe.grid}³ voxels, too few for --img-dim {cut.dim}")
        if not math.isclose(universe.pixel_size, first.pixel_size, rel_tol=1e-6):
            raise UserError(
                f"{first.path} has pixels of {first.pixel_size:g} Mpc/h but {universe.path} has {universe.pixel_size:g}"
                " Mpc/h: universes of one slicing need the same pixel size, slice them apart"
            )
        redshift_column(universe, cut.redshift)


def share_out(number: int, shares: dict[str, float]) -> dict[str, int]:
    """Divide `number` things among the splits by their shares, at least one each; training gets the rest."""
    counts = {split: max(1, math.floor(number * share + 0.5)) for split, share in shares.items() if split != "train"}
    while sum(counts.values()) > number - 1:
        counts[max(counts, key=counts.get)] -= 1
    return {"train": number - sum(counts.values())} | counts


def draw_splits(number: int, shares: dict[str, float], seed: int) -> list[str]:
    """Give each of `number` universes its split, by a shuffle that is the same with every version of Python."""
    generator = random.Random(seed)
    keys = [generator.random() for _ in range(number)]
    order = sorted(range(number), key=keys.__getitem__)
    labels = [split for split, count in share_out(number, shares).items() for _ in range(count)]
    return [label for _, label in sorted(zip(order, labels, strict=True))]


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


def plan(universes: list[Universe], cut: Cut, shares: dict[str, float], seed: int) -> list[Part]:
    """Decide which planes of which universe go to which rows of which split, universe by universe."""
    if len(universes) >= len(shares):
        splits = draw_splits(len(universes), shares, seed)
        planes = [{split: cut.planes(u.grid)} for split, u in zip(splits, universes, strict=True)]
    else:
        _check_slabs(universes, cut, shares)
        planes = [cut_slabs(cut.planes(universe.grid), shares) for universe in universes]
    parts, rows, tables = [], dict.fromkeys(shares, 0), dict.fromkeys(shares, 0)
    for number, (universe, given) in enumerate(zip(universes, planes, strict=True)):
        for split, chosen in given.items():
            images = cut.images(universe.grid, chosen)
            parts.append(Part(split, number, tables[split], chosen, rows[split], images))
            rows[split] += images
            tables[split] += 1
    return parts


def _check_slabs(universes: list[Universe], cut: Cut, shares: dict[str, float]) -> None:
    need = f"{len(universes)} universe(s) for {len(shares)} files ({', '.join(shares)}) have to be cut into slabs"
    if cut.axes != (0,):
        raise UserError(
            f"{need} along axis 0, which images across the axes 1 and 2 would cross: give more universes, "
            "or --axes 0, or set --val-fraction or --test-fraction to 0"
        )
    for universe in universes:
        if len(cut.planes(universe.grid)) < len(shares):
            raise UserError(f"{need}, but {universe.path} has too few planes at --stride {cut.stride}")


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
