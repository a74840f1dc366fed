"""Small universes for tests: log-normal density fields in a box (Coles & Jones 1991), as particle counts."""

import numpy as np

from utils.similarity import coarse, nearest_neighbours
from utils.transforms import transform


def universe(seed, side=32, strength=1.3):
    """(side, side, side) int16, particles per voxel, mean 3."""
    rng = np.random.default_rng(seed)
    frequency = np.fft.fftfreq(side, 1 / side)
    k2 = frequency[:, None, None] ** 2 + frequency[:, None] ** 2 + frequency**2
    waves = np.fft.fftn(rng.normal(size=(side,) * 3)) * np.where(k2 > 0, (k2 + 4.0) ** -1.1, 0.0)
    gaussian = np.fft.ifftn(waves).real
    gaussian *= strength / gaussian.std()
    density = np.exp(gaussian)
    return rng.poisson(3.0 * density / density.mean()).astype(np.int16)  # as simulations do, a box keeps its mass


def distances(known, *stacks, a=4.0):
    """How far slices of several sets are from training slices, as these are: in any orientation."""
    fields = np.concatenate([coarse(transform(stack, a)) for stack in stacks])
    return nearest_neighbours(fields, coarse(transform(known, a)), symmetries=True).distance


def slices(seeds, step=4):
    """Slices across all three axes of one universe per seed, and the label of each."""
    boxes = [universe(seed) for seed in seeds]
    stacks = [np.concatenate([np.moveaxis(box, axis, 0)[::step] for axis in range(3)]) for box in boxes]
    return np.concatenate(stacks), np.repeat(np.arange(len(stacks)), len(stacks[0]))
