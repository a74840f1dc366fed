"""Universes of another code, to see whether a recipe that was found on those of the simulator inside works on others.

python -m benchmarks.zeldovich_universes OUT [--num 24] [--seed 77000]

Truncated Zel'dovich approximation (Coles, Melott & Shandarin 1993, MNRAS 260, 765): particles go along straight lines,
by Gaussian initial conditions whose small scales are smoothed away, and are counted in the voxels that they end in. The
spectrum is that of Bardeen et al. 1986 (ApJ 304, 15) without baryons. Nothing but the file layout is shared with
data/simulate_universes.py: walls and filaments are thick, haloes faint, the brightest voxels hold some hundred
particles instead of a thousand.
"""

from pathlib import Path

import h5py
import numpy as np
import scipy.integrate
from tqdm import tqdm

from utils.cli import ArgumentParser, run
from utils.files import atomic_path

SIDE = 128  # voxels, and particles; a voxel has 1 Mpc/h
SHAPE = 0.3 * 0.7  # Omega_m h
TILT, SIGMA_8 = 0.96, 0.8
SMOOTHING = 1.0  # of the initial conditions [Mpc/h]


def linear_power(k: np.ndarray) -> np.ndarray:
    """Linear spectrum today, up to a factor, of wave numbers in h/Mpc."""
    q = k / SHAPE
    polynomial = 1.0 + 3.89 * q + (16.1 * q) ** 2 + (5.46 * q) ** 3 + (6.71 * q) ** 4
    return k**TILT * (np.log(1.0 + 2.34 * q) / (2.34 * q)) ** 2 / np.sqrt(polynomial)


def variance_in_spheres(radius: float) -> float:
    """Variance of the overdensity in spheres [Mpc/h] for the spectrum as `linear_power` gives it."""
    k = np.logspace(-3.0, 1.5, 4000)
    x = k * radius
    window = 3.0 * (np.sin(x) - x * np.cos(x)) / x**3
    return float(scipy.integrate.trapezoid(k**2 * linear_power(k) * window**2 / (2.0 * np.pi**2), k))


def counts(seed: int) -> np.ndarray:
    """One universe, (SIDE, SIDE, SIDE) int16: particles per voxel."""
    noise = np.fft.rfftn(np.random.default_rng(seed).normal(size=(SIDE,) * 3))
    whole, half = 2.0 * np.pi * np.fft.fftfreq(SIDE), 2.0 * np.pi * np.fft.rfftfreq(SIDE)
    vectors = np.meshgrid(whole, whole, half, indexing="ij", sparse=True)
    k = np.sqrt(sum(component**2 for component in vectors))
    k[0, 0, 0] = 1.0  # no mode has this wave number: its amplitude is set to zero
    delta = noise * np.sqrt(linear_power(k) * SIGMA_8**2 / variance_in_spheres(8.0))
    delta *= np.exp(-0.5 * (k * SMOOTHING) ** 2)
    delta[0, 0, 0] = 0.0
    voxels = []
    for axis, component in enumerate(vectors):
        displacement = np.fft.irfftn(1j * component / k**2 * delta)
        start = np.arange(SIDE).reshape(np.roll((SIDE, 1, 1), axis))
        voxels.append(np.floor(start + displacement).astype(int) % SIDE)
    where = np.ravel_multi_index([one.ravel() for one in voxels], (SIDE,) * 3)
    return np.bincount(where, minlength=SIDE**3).reshape((SIDE,) * 3).astype(np.int16)


def main():
    """Write the universes, in the layout that data/slice_universes.py reads."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for za_<number>.hdf5")
    parser.add_argument("--num", type=int, default=24, help="number of universes")
    parser.add_argument("--seed", type=int, default=77_000, help="universe i uses seed + i")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for number in tqdm(range(arguments.num), "simulate", disable=None):
        with atomic_path(arguments.out / f"za_{number}.hdf5") as temporary, h5py.File(temporary, "w") as file:
            file["full"] = counts(arguments.seed + number)[..., np.newaxis]
            file["redshifts"] = [0.0]


if __name__ == "__main__":
    run(main)
