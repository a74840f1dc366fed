"""Images at any place of a plane, put together from the slices that tile it.

Slices are cut side by side from planes of a universe. Where they tile a whole plane they hold all of it, and since
universes are periodic, an image may lie across its edges too: N² images instead of a handful.
"""

import h5py
import numpy as np

from utils.cli import UserError
from utils.slice_rows import telling_damage
from utils.slices import SliceSet


class NoPlanes(UserError):
    """Slices do not tile planes, or do not say so."""


class PeriodicCrops:
    """Cuts images anew from the planes that a set of slices was cut from.

    Parameters
    ----------
    slices : SliceSet
        Of a file of data/slice_universes.py whose slices tile whole planes.

    Raises
    ------
    NoPlanes
        If the file does not say where its slices were cut, or they leave out a part of their planes.
    UserError
        If it is damaged there.
    """

    def __init__(self, slices: SliceSet):
        self._slices = slices
        grid, corner = _places(slices)
        sides = grid // slices.dim  # tiles per side of each slice's plane
        tile = corner // slices.dim
        rows = np.arange(len(slices))
        first_of_universe = np.searchsorted(slices.universe, slices.universe)
        number = tile[:, 0] * sides + tile[:, 1]
        if (grid % slices.dim).any() or not np.array_equal(number, (rows - first_of_universe) % sides**2):
            raise NoPlanes(
                f"random_crops = true needs slices that tile whole planes; in {slices.path} planes of {grid.max()} "
                f"voxels a side are not filled by slices of {slices.dim}; choose an img_dim that divides it, or set "
                f"random_crops to false"
            )
        self._sides, self._tile, self._first = sides, tile, rows - number

    def read(self, rows: np.ndarray, shifts: np.ndarray) -> np.ndarray:
        """Read images that begin a shift further down and right than the slices of these rows.

        Parameters
        ----------
        rows : (m,) integers
        shifts : (m, 2) integers
            Pixels, each from 0 to dim − 1.

        Returns
        -------
        (m, dim, dim) array
            In the stored precision.
        """
        sides = self._sides[rows, np.newaxis]
        down, right = ((self._tile[rows, axis, np.newaxis] + (0, 1)) % sides for axis in (0, 1))  # (m, 2) each
        tiles = self._first[rows, np.newaxis, np.newaxis] + (down * sides)[:, :, np.newaxis] + right[:, np.newaxis]
        dim = self._slices.dim
        # (m * 4, dim, dim) -> (m, 2, 2, dim, dim) -> (m, 2, dim, 2, dim) -> (m, 2 dim, 2 dim)
        squares = self._slices.read(tiles.reshape(-1)).reshape(-1, 2, 2, dim, dim).swapaxes(2, 3)
        squares = squares.reshape(-1, 2 * dim, 2 * dim)
        pairs = zip(squares, shifts, strict=True)
        return np.stack([square[top : top + dim, left : left + dim] for square, (top, left) in pairs])

    def planes(self, most: int) -> list[tuple[np.ndarray, int]]:
        """Planes spread over all universes that `most` slices fill (one at least), those of a size together.

        Returns
        -------
        list of ((p,) int64 array, int)
            The rows of the planes' first slices, whose others follow row by row, and how many slices a side has.
        """
        first = np.unique(self._first)
        number = max(1, len(first) * min(most, len(self._slices)) // len(self._slices))
        first = first[np.arange(number) * len(first) // number]
        sides = self._sides[first]
        return [(first[sides == each], int(each)) for each in np.unique(sides)]

    def at(self, first: int, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows (m,) and shifts (m, 2), as `read` takes them, of places (m, 2) in pixels in the plane of a first row."""
        sides = self._sides[first]
        tiles, shifts = np.divmod(places % (sides * self._slices.dim), self._slices.dim)
        return first + tiles @ (sides, 1), shifts


def _places(slices: SliceSet) -> tuple[np.ndarray, np.ndarray]:
    """Voxels per side of each slice's universe (n,), and the corner of each slice in its plane (n, 2)."""
    if slices.path.suffix == ".h5":
        with telling_damage(slices.path), h5py.File(slices.path) as file:
            if "corner" in file and "universes/grid" in file:
                grid, corner = file["universes/grid"][...], file["corner"][...]
                return grid[slices.universe], corner.reshape(len(slices), 2)
    raise NoPlanes(
        f"random_crops = true needs to know where slices were cut, which {slices.path} does not say; slice again with "
        f"data/slice_universes.py, or set random_crops to false"
    )
