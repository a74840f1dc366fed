"""Where in the training set the nearest neighbour of a slice lies: is the slice a copy?

Slices that tile whole planes (`utils.crops`) hold every image that begins anywhere in these periodic planes. Networks
that train on random crops have seen all of them, and convolutions can draw what they have seen in another place. So
all are searched, at every shift and in all eight orientations. Slices of other files are searched as they are.
"""

from typing import NamedTuple

import numpy as np
import scipy.fft
from tqdm import tqdm

from utils.crops import NoPlanes, PeriodicCrops
from utils.similarity import COARSE_SIDE, ORIENTATIONS, coarse, nearest_neighbours, oriented
from utils.slices import SliceSet
from utils.stacks import map_parts
from utils.transforms import transform

MOST = 8192  # training slices that are searched, spread over all universes; of planes, as many as so many slices fill
_BATCH = 512  # training slices read at once
_SIDE = 16  # of the images that are looked for at all shifts: half the resolution that distances are told at
_AT_ALL_SHIFTS = 256  # slices of a set that are looked for there: each takes some sixty times as long as without shifts
_AROUND = np.array([(0, 0), (-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)])


class Places(NamedTuple):
    """The nearest training image of each of n slices."""

    distance: np.ndarray
    """(n,) float32, root mean square difference of s per pixel of the images of `utils.similarity.coarse`."""
    row: np.ndarray
    """(n,) int64, training slice in which it begins."""
    shift: np.ndarray
    """(n, 2) int64, pixels from the corner of that slice, down and right."""
    orientation: np.ndarray
    """(n,) int64, number of the orientation (`utils.similarity.oriented`) in which the slice resembles it."""


def training_search(training: SliceSet, a: float, most: int = MOST) -> "PlaneSearch | SliceSearch":
    """A search at all shifts where slices tile planes, of the slices as they are elsewhere.

    Parameters
    ----------
    training : SliceSet
        Read from as long as the search is used.
    a : float
        Density that maps to s = 0 (`datascale`).
    most : int
        Training slices to search.

    Raises
    ------
    UserError
        If the file is damaged.
    """
    try:
        return PlaneSearch(training, a, most)
    except NoPlanes:
        return SliceSearch(training, a, most)


class SliceSearch:
    """Looks for slices among training slices as they are; parameters are those of `training_search`."""

    at_all_shifts = False

    def __init__(self, training: SliceSet, a: float, most: int = MOST):
        self._training, self._a = training, a
        self._rows = training.rows_spread(most)
        self._references = _coarse(training, self._rows, a, COARSE_SIDE)

    def number(self, slices: int) -> int:
        """How many of so many slices to look for: all."""
        return slices

    def nearest(self, images) -> Places:
        """As `PlaneSearch.nearest`; shifts are zero."""
        found = nearest_neighbours(coarse(transform(images, self._a)), self._references, symmetries=True)
        shift = np.zeros((len(found.index), 2), np.int64)
        return Places(found.distance, self._rows[found.index], shift, found.orientation)

    def image(self, row: int, shift) -> np.ndarray:
        """The training image (N, N) at a place, in the stored precision."""
        return self._training.read([row])[0]


class PlaneSearch:
    """Looks for slices at all shifts of the planes that training slices tile; parameters as for `training_search`.

    Raises
    ------
    NoPlanes
        If they tile none.
    """

    at_all_shifts = True

    def __init__(self, training: SliceSet, a: float, most: int = MOST):
        self._crops, self._training, self._a = PeriodicCrops(training), training, a
        self._mean = float(transform(training.mean, a))
        self._planes = [self._spectra(*planes) for planes in self._crops.planes(most)]

    def number(self, slices: int) -> int:
        """How many of so many slices to look for."""
        return min(slices, _AT_ALL_SHIFTS)

    def nearest(self, images) -> Places:
        """Find the nearest training image of each slice.

        It is first looked for with images of 16 pixels a side, by Fourier transforms, at shifts of whole such pixels;
        then the shift is improved down to single pixels with images of 32. So a copy is found wherever it lies, and the
        distance of what is no copy may be a little above the smallest.

        Parameters
        ----------
        images : (n, N, N) array
            Densities [particles per voxel].

        Returns
        -------
        Places

        Raises
        ------
        ValueError
            As for `utils.similarity.coarse`.
        UserError
            As for `utils.slices.SliceSet.read`.
        """
        fields = transform(images, self._a)
        small = coarse(fields, _SIDE) - self._mean
        block = fields.shape[-1] // small.shape[-1]
        with tqdm(total=len(fields), desc="searching the training set", unit="slice", disable=None) as progress:
            guesses = map_parts(lambda part: self._guess(small[part], progress), len(fields), 1)
        found = [
            self._refined(field, first, block * place, orientation, block)
            for field, (first, place, orientation) in zip(fields, guesses, strict=True)
        ]
        distance, *where = (np.array(column) for column in zip(*found, strict=True))
        return Places(distance.astype(np.float32), *where)

    def image(self, row: int, shift) -> np.ndarray:
        """The training image (N, N) at a place, in the stored precision."""
        return self._crops.read(np.array([row]), np.array([shift]))[0]

    def _spectra(self, first: np.ndarray, sides: int) -> "_Planes":
        rows = (first[:, np.newaxis] + np.arange(sides**2)).ravel()
        tiles = _coarse(self._training, rows, self._a, _SIDE) - self._mean
        side = tiles.shape[-1]
        # (p sides², side, side) -> (p, sides, sides, side, side) -> (p, sides, side, sides, side) -> (p, G, G)
        planes = tiles.reshape(-1, sides, sides, side, side).swapaxes(2, 3).reshape(len(first), sides * side, -1)
        window = np.zeros(planes.shape[1:], np.float32)
        window[:side, :side] = 1.0
        energy = _correlation(np.conj(scipy.fft.rfft2(window)) * scipy.fft.rfft2(planes**2), planes.shape)
        return _Planes(first, scipy.fft.rfft2(planes), energy)

    def _guess(self, small: np.ndarray, progress: tqdm) -> tuple:
        """First row of the best plane, place there in pixels of the small image (1, M, M), and orientation."""
        found = []
        for orientation in range(ORIENTATIONS):
            for planes in self._planes:
                squares = planes.mismatch(oriented(small, orientation)[0])
                plane, *place = np.unravel_index(np.argmin(squares), squares.shape)
                found.append((squares[plane, *place], planes.first[plane], np.array(place), orientation))
        progress.update()
        return min(found, key=lambda each: each[0])[1:]

    def _refined(self, field: np.ndarray, first: int, place: np.ndarray, orientation: int, step: int) -> tuple:
        """From a guess of whole steps to the smallest distance of images of 32 pixels a side, by steps that are halved.

        Gives the row of `Places` for a slice.
        """
        image = coarse(oriented(field[np.newaxis], orientation))
        while True:  # once where a guess is of whole pixels
            step //= 2
            places = place + step * _AROUND
            rows, shifts = self._crops.at(first, places)
            seen = coarse(transform(self._crops.read(rows, shifts), self._a))
            distances = np.sqrt(np.mean((seen - image) ** 2, axis=(1, 2)))
            nearest = np.argmin(distances)
            place = places[nearest]
            if step <= 1:
                return distances[nearest], rows[nearest], shifts[nearest], orientation


class _Planes(NamedTuple):
    """Planes of one size, as the search at all shifts wants them: p of G x G pixels, each several of a slice's."""

    first: np.ndarray
    """(p,) int64, row of the first slice of each."""
    waves: np.ndarray
    """(p, G, G/2 + 1) complex64, Fourier transforms of s."""
    energy: np.ndarray
    """(p, G, G) float32, sum of s² over the image that begins at each pixel."""

    def mismatch(self, image: np.ndarray) -> np.ndarray:
        """(p, G, G) sum of squared differences from the image at each pixel, less the sum of the image's squares."""
        wave = scipy.fft.rfft2(image, s=self.energy.shape[1:])  # the rest of the plane is zero
        return self.energy - 2.0 * _correlation(np.conj(wave) * self.waves, self.energy.shape)


def _coarse(training: SliceSet, rows: np.ndarray, a: float, side: int) -> np.ndarray:
    """s of training slices, averaged over blocks of pixels."""
    parts = (rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH))
    return np.concatenate([coarse(transform(training.read(part), a), side) for part in parts])


def _correlation(waves: np.ndarray, shape: tuple) -> np.ndarray:
    return scipy.fft.irfft2(waves, s=shape[1:], overwrite_x=True)
