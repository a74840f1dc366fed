#!/usr/bin/env python3
"""Simulate universes of dark matter, in the file layout of the public CosmoFlow N-body data set.

Gaussian initial conditions are moved by second-order Lagrangian perturbation theory (2LPT) and by COLA time steps,
which integrate only what 2LPT leaves of the particles' paths (Tassev et al. 2013, arXiv:1301.0322). The mesh has one
cell per particle. Unless a name says otherwise lengths are mesh cells, time is the scale factor a, the Hubble constant
is 1, and a `transform` is a complex64 rfftn.
"""

import argparse
import contextlib
import functools
import itertools
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import scipy.fft
import scipy.integrate
import scipy.special
from tqdm import tqdm

# The script also runs from inside data/, where the repository root is not on the path.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.cli import ArgumentParser, UserError, run
from utils.files import HDF5_DAMAGE, atomic_path, check_writable, clear_left_behind
from utils.processes import map_unordered
from utils.slice_writer import SliceWriter

VERSION = 1  # of physics and random numbers; files of another version are not reused
REDSHIFTS = (0.0, 0.5, 1.5, 3.0)
PARAMETERS = {"Omega_m": 0.3, "sigma_8": 0.8, "N_spec": 0.96, "H_0": 70.0}  # of physPar, and where unitPar is zero
BARYON_FRACTION = 0.16  # Omega_b / Omega_m, as Planck 2018 finds
INITIAL_SCALE_FACTOR = 0.1
BYTES_PER_VOXEL = 140  # of memory, about
COLA_EXPONENT = -2.5  # residual speeds go like a**-2.5 within a step (n_LPT of Tassev et al.)


@dataclass(frozen=True)
class Universe:
    """All that decides the content of a file: a flat universe of matter and a cosmological constant."""

    seed: int
    grid: int  # voxels, and particles, per side
    box: float  # side [Mpc/h]
    steps: int  # COLA time steps
    omega_m: float  # matter density today / critical density
    sigma_8: float  # rms linear overdensity today in spheres of 8 Mpc/h
    n_s: float  # slope of the primordial spectrum
    h: float  # Hubble constant / (100 km/s/Mpc)


def transfer_function(k: np.ndarray, omega_m: float, h: float) -> np.ndarray:
    """Matter transfer function without wiggles at k [h/Mpc]: Eisenstein & Hu 1998, astro-ph/9709112, eqs. 26-31."""
    matter, baryons = omega_m * h**2, BARYON_FRACTION * omega_m * h**2
    sound_horizon = 44.5 * math.log(9.83 / matter) / math.sqrt(1 + 10 * baryons**0.75)  # [Mpc]
    alpha = 1 - 0.328 * math.log(431 * matter) * BARYON_FRACTION + 0.38 * math.log(22.3 * matter) * BARYON_FRACTION**2
    suppression = alpha + (1 - alpha) / (1 + (0.43 * k * h * sound_horizon) ** 4)
    q = k * (2.7255 / 2.7) ** 2 / (omega_m * h * suppression)  # the microwave background has 2.7255 K
    log_term = np.log(2 * math.e + 1.8 * q)
    return log_term / (log_term + (14.2 + 731 / (1 + 62.5 * q)) * q**2)


def linear_power(k: np.ndarray, universe: Universe) -> np.ndarray:
    """Linear power spectrum today [(Mpc/h)^3] at k > 0 [h/Mpc]; sigma_8 is that of top-hat spheres of 8 Mpc/h."""

    def shape(k):
        return k**universe.n_s * transfer_function(k, universe.omega_m, universe.h) ** 2

    nodes = np.geomspace(1e-5, 1e2, 8192)
    window = 3 * scipy.special.spherical_jn(1, 8 * nodes) / (8 * nodes)
    variance = np.trapezoid(nodes**3 * shape(nodes) * window**2, np.log(nodes)) / (2 * math.pi**2)
    return universe.sigma_8**2 / variance * shape(k)


def expansion(a: np.ndarray, omega_m: float) -> np.ndarray:
    """Q = a^3 H(a): Q d/da is the time derivative of Tassev et al."""
    return a**3 * np.sqrt(omega_m / a**3 + 1 - omega_m)


def growth_factors(a: np.ndarray, omega_m: float) -> np.ndarray:
    """Growth factors D1, normalised to 1 today, and D2, float64 (2, n), at the scale factors a (n,).

    D1 is the exact growing mode; D2 = 3/7 D1^2 Omega_m(a)^(-1/143) is that of Bouchet et al. 1995, astro-ph/9406013,
    but for its sign, which is in the second displacement here.
    """
    ratio = (1 - omega_m) / omega_m
    d1, today = (t * scipy.special.hyp2f1(1 / 3, 1, 11 / 6, -ratio * t**3) for t in (a, 1.0))
    d1 = d1 / today
    return np.array([d1, 3 / 7 * d1**2 * (1 + ratio * a**3) ** (1 / 143)])


def wavenumbers(grid: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Wave numbers [radian/cell] of a transform along its three axes, and k^2; float32, broadcastable.

    The former are for derivatives, which vanish at the Nyquist frequency of a real field. k^2 is 1 at k = 0.
    """
    axes = [scipy.fft.fftfreq(grid), scipy.fft.fftfreq(grid), scipy.fft.rfftfreq(grid)]
    kx, ky, kz = np.ix_(*(np.float32(2 * np.pi * axis) for axis in axes))
    squared = kx**2 + ky**2 + kz**2
    squared[0, 0, 0] = 1
    kx[grid // 2], ky[:, grid // 2], kz[..., grid // 2] = 0, 0, 0
    return [kx, ky, kz], squared


def displacement_field(source: np.ndarray, threads: int) -> np.ndarray:
    """The curl-free field [cells], float32 (3, grid, grid, grid), whose divergence is minus a source (a transform).

    Of an overdensity it is the Zel'dovich displacement, and also the acceleration over 3/2 Omega_m a.
    """
    grid = len(source)
    k, squared = wavenumbers(grid)
    potential = source / squared
    field = np.empty((3, grid, grid, grid), np.float32)
    for axis in range(3):
        field[axis] = scipy.fft.irfftn(1j * k[axis] * potential, (grid,) * 3, workers=threads, overwrite_x=True)
    return field


def initial_overdensity(universe: Universe, rng: np.random.Generator, threads: int) -> np.ndarray:
    """Transform of a Gaussian overdensity with the linear power spectrum of today."""
    noise = rng.standard_normal((universe.grid,) * 3, dtype=np.float32)
    modes = scipy.fft.rfftn(noise, workers=threads, overwrite_x=True)
    cells = universe.grid / universe.box  # per Mpc/h
    for plane, k_squared in zip(modes, wavenumbers(universe.grid)[1], strict=True):  # float64 planes need little memory
        plane *= np.sqrt(linear_power(np.sqrt(k_squared) * cells, universe) * cells**3)
    modes[0, 0, 0] = 0
    return modes


def second_order_source(overdensity: np.ndarray, threads: int) -> np.ndarray:
    """Transform of the 2LPT source: sum over i < j of phi_ii phi_jj - phi_ij^2, where laplace(phi) = overdensity."""
    k, squared = wavenumbers(len(overdensity))
    potential = -overdensity / squared

    def derivative(i, j):
        return scipy.fft.irfftn(-k[i] * k[j] * potential, (len(potential),) * 3, workers=threads, overwrite_x=True)

    xx, yy, zz = (derivative(i, i) for i in range(3))
    source = xx * yy + zz * (xx + yy)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        source -= derivative(i, j) ** 2
    return scipy.fft.rfftn(source, workers=threads, overwrite_x=True)


def lattice_chunks(grid: int) -> list[slice]:
    """Planes of particles that are worked on together; sums depend on it, so the number of threads must not matter."""
    width = max(1, min(grid // 8, 2**20 // grid**2))
    return [slice(start, min(start + width, grid)) for start in range(0, grid, width)]


def cloud_in_cell(displacement: np.ndarray, first_plane: int, planes: int) -> tuple[np.ndarray, np.ndarray]:
    """The eight cells that share each particle, and their shares (Hockney & Eastwood 1981).

    Takes the displacements [cells] of n lattice planes, float32 (3, n, grid, grid), as float32 positions would be too
    coarse on large grids, the lattice number of the first plane, and the planes of the periodic mesh, which is
    (planes, grid, grid). Gives flat cell numbers, intp (8, particles), and shares that add up to 1, float32.
    """
    lower = np.floor(displacement)
    offset = displacement - lower
    shape = (planes, *displacement.shape[2:])
    lattice = np.ix_(*(np.arange(length) for length in displacement.shape[1:]))
    sides = []
    for axis, start in enumerate((first_plane, 0, 0)):
        cell = (lower[axis].astype(np.intp) + (lattice[axis] + start)) % shape[axis]
        neighbour = np.where(cell + 1 == shape[axis], 0, cell + 1)
        stride = math.prod(shape[axis + 1 :])
        sides.append(((cell * stride, 1 - offset[axis]), (neighbour * stride, offset[axis])))
    index = np.empty((8, *displacement.shape[1:]), np.intp)
    weight = np.empty(index.shape, np.float32)
    for corner, ((x, share_x), (y, share_y), (z, share_z)) in enumerate(itertools.product(*sides)):
        index[corner] = x + y + z
        weight[corner] = share_x * share_y * share_z
    return index.reshape(8, -1), weight.reshape(8, -1)


def density_field(displacement: Callable[[slice], np.ndarray], grid: int, pool: Executor) -> np.ndarray:
    """Particles per cell, float32 (grid, grid, grid); `displacement` gives those of some lattice planes."""

    def deposit(planes):
        moved = displacement(planes)
        reached = np.floor(moved[0]) + np.arange(planes.start, planes.stop)[:, None, None]
        lowest = int(reached.min())
        shape = (int(reached.max()) - lowest + 2, grid, grid)
        index, weight = cloud_in_cell(moved, planes.start - lowest, shape[0])
        return lowest, np.bincount(index.ravel(), weight.ravel(), minlength=math.prod(shape)).reshape(shape)

    mesh = np.zeros((grid, grid, grid))
    # Each chunk has a mesh of its own; adding them in lattice order gives the same sum with any number of threads.
    for lowest, mass in pool.map(deposit, lattice_chunks(grid)):
        for number, plane in enumerate(mass, start=lowest):
            mesh[number % grid] += plane
    return mesh.astype(np.float32)


def step_schedule(steps: int) -> tuple[np.ndarray, dict[int, int]]:
    """Scale factors (steps + 1,) from 0.1 to 1, and {steps done: index of the redshift that is then reached}."""
    ends = [INITIAL_SCALE_FACTOR, *(1 / (1 + z) for z in reversed(REDSHIFTS))]
    counts = np.ones(len(REDSHIFTS), int)
    for _ in range(steps - len(REDSHIFTS)):
        counts[np.argmax(np.diff(ends) / counts)] += 1  # one more where steps are longest
    pieces = [np.linspace(ends[i], ends[i + 1], n, endpoint=False) for i, n in enumerate(counts)]
    return np.concatenate([*pieces, [1.0]]), dict(zip(np.cumsum(counts).tolist(), (3, 2, 1, 0), strict=True))


def step_factors(times: np.ndarray, omega_m: float) -> Iterator[tuple[float, float]]:
    """Per step: change of speed per acceleration, change of place per speed (Tassev et al. 2013, appendix A)."""
    n = COLA_EXPONENT
    # Speeds are known half-way between positions (leapfrog), except that the first kick starts with the positions.
    middles = [times[0], *((times[1:] + times[:-1]) / 2)]
    for a, a_next, before, after in zip(times[:-1], times[1:], middles[:-1], middles[1:], strict=True):
        kick = 1.5 * omega_m * a * (after**n - before**n) / (n * a ** (n - 1) * expansion(a, omega_m))
        yield kick, scipy.integrate.quad(lambda t: t**n / expansion(t, omega_m), a, a_next)[0] / after**n


def evolve(overdensity: np.ndarray, omega_m: float, steps: int, threads: int) -> Iterator[np.ndarray]:
    """Move particles from a = 0.1 to today and yield their density, float32 (grid, grid, grid), after every step.

    Their paths are lattice point + D1 first + D2 second + residual, and the steps integrate the residual. `overdensity`
    is the transform of the linear overdensity of today; the mean density is 1.
    """
    grid, times = len(overdensity), step_schedule(steps)[0]
    first = displacement_field(overdensity, threads)
    second = displacement_field(second_order_source(overdensity, threads), threads)
    residual, speed = np.zeros_like(first), np.zeros_like(first)
    growth = growth_factors(times, omega_m).T.astype(np.float32)

    def displacement(planes):
        return d1 * first[:, planes] + d2 * second[:, planes] + residual[:, planes]

    def move(planes, kick, drift):
        index, weight = cloud_in_cell(displacement(planes), planes.start, grid)
        for axis in range(3):
            part = axis, planes
            acceleration = np.einsum("cp,cp->p", force[axis].reshape(-1).take(index), weight).reshape(first[part].shape)
            acceleration -= d1 * first[part] + (d2 + d1**2) * second[part]  # what 2LPT accounts for
            speed[part] += np.float32(kick) * acceleration
            residual[part] += np.float32(drift) * speed[part]

    with ThreadPoolExecutor(threads) as pool:
        d1, d2 = growth[0]
        density = density_field(displacement, grid, pool)
        for (kick, drift), growth_after in zip(step_factors(times, omega_m), growth[1:], strict=True):
            force = displacement_field(scipy.fft.rfftn(density, workers=threads), threads)
            list(pool.map(move, lattice_chunks(grid), itertools.repeat(kick), itertools.repeat(drift)))
            d1, d2 = growth_after
            density = density_field(displacement, grid, pool)
            yield density


def round_counts(density: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Whole particles per voxel, int16: each value is rounded up with a probability equal to its fraction.

    Systematic sampling in random order: unbiased everywhere, and the total is kept to one particle, which independent
    draws would not do. Raises `UserError` where a voxel holds more than int16 can.
    """
    if density.max() > np.iinfo(np.int16).max - 1:
        raise UserError(f"a voxel holds {density.max():.0f} particles, int16 at most 32767: use a smaller --sigma-8")
    counts = np.floor(density.ravel())
    order = rng.permutation(counts.size)
    total = np.floor(np.cumsum((density.ravel() - counts)[order], dtype=np.float64) + rng.random())
    counts[order] += np.diff(total, prepend=0)
    return counts.astype(np.int16).reshape(density.shape)


def random_streams(seed: int) -> list[np.random.Generator]:
    """Independent random numbers for a universe's parameters, its initial conditions and the rounding."""
    return [np.random.default_rng(stream) for stream in np.random.SeedSequence(seed).spawn(3)]


def contents(universe: Universe) -> tuple[dict, dict]:
    """The small datasets and the attributes of a universe's file."""
    physical = np.array([universe.omega_m, universe.sigma_8, universe.n_s, 100 * universe.h])
    datasets = {"redshifts": np.array(REDSHIFTS), "namePar": np.array([name.encode() for name in PARAMETERS])}
    datasets |= {"physPar": physical, "unitPar": physical / np.array(list(PARAMETERS.values())) - 1}
    tags = {"dataset_tag": "exagan_cola", "universe_tag": f"universe_{universe.seed}", "seed9": universe.seed}
    return datasets, tags | {"box_size": universe.box, "steps": universe.steps, "simulator_version": VERSION}


def simulate(item: tuple[Universe, Path], threads: int, show_steps: bool) -> str:
    """Simulate a universe, write its file, and say so in a line."""
    (universe, path), start = item, time.perf_counter()
    _, initial_rng, rounding_rng = random_streams(universe.seed)
    overdensity = initial_overdensity(universe, initial_rng, threads)
    snapshots = np.empty((*(universe.grid,) * 3, len(REDSHIFTS)), np.int16)
    reached = step_schedule(universe.steps)[1]
    steps = evolve(overdensity, universe.omega_m, universe.steps, threads)
    bar = {"total": universe.steps, "desc": path.stem, "unit": "step", "leave": False}
    for number, density in enumerate(tqdm(steps, disable=None if show_steps else True, **bar), start=1):
        if number in reached:
            snapshots[..., reached[number]] = round_counts(density, rounding_rng)
    full = {"full": (snapshots.shape, snapshots.dtype)}
    with atomic_path(path) as temporary, SliceWriter(temporary, full, *contents(universe)) as writer:
        writer.write("full", 0, snapshots)
    seconds, brightest = time.perf_counter() - start, snapshots[..., 0].max()
    return f"{path}: written in {seconds:.1f} s, up to {brightest} particles per voxel"


def is_complete(universe: Universe, path: Path) -> bool:
    """Whether a universe's file is there already; raises `UserError` if something else has its name."""
    if not path.exists():
        return False
    datasets, attributes = contents(universe)
    try:
        with h5py.File(path) as file:
            same = all(file.attrs[name] == value for name, value in attributes.items())
            same &= all(np.array_equal(file[name], value) for name, value in datasets.items())
            same &= getattr(file["full"], "shape", ()) == (*(universe.grid,) * 3, len(REDSHIFTS))
    except HDF5_DAMAGE as error:
        raise UserError(f"{path} is no universe of ours ({error}): remove it or choose another --out") from error
    if not same:
        raise UserError(f"{path} has other parameters than this {universe}: remove it or choose another --out")
    return True


def bounded(low: float, high: float, kind: type = float, ranged: bool = False) -> Callable[[str], object]:
    """An argparse type: a number from low to high; if `ranged`, that or MIN:MAX, as a pair."""

    def parse(text):
        try:
            values = [kind(part) for part in text.split(":")]
        except ValueError:
            values = []
        if not 1 <= len(values) <= 1 + ranged or not all(low <= v <= high for v in values) or values != sorted(values):
            what = "a whole number" if kind is int else "VALUE or MIN:MAX" if ranged else "a number"
            raise argparse.ArgumentTypeError(f"'{text}' is not {what} from {low:g} to {high:g}")
        return (values[0], values[-1]) if ranged else values[0]

    return parse


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(
        description=__doc__.split("\n")[0] + " Those that are there already are kept.",
        epilog="A parameter given as MIN:MAX is drawn uniformly; the draw depends on the universe's seed alone.",
    )
    out, one = Path(__file__).resolve().parent / "universes", {"metavar": "VALUE|MIN:MAX"}
    parser.add_argument("--num", type=bounded(1, 10**6, int), default=8, help="number of universes")
    parser.add_argument(
        "--grid",
        type=bounded(16, 1024, int),
        default=128,
        help=f"voxels per side, even; about {BYTES_PER_VOXEL} bytes of memory each",
    )
    box = "side of the universe [Mpc/h] (default: the grid, so that voxels have 1 Mpc/h)"
    parser.add_argument("--box", type=bounded(1, 1e5), default=argparse.SUPPRESS, help=box)
    parser.add_argument("--seed", type=bounded(0, 10**9, int), default=0, help="universe i uses seed + i")
    parser.add_argument("--out", type=Path, default=out, help="folder for universe_<seed>.hdf5")
    parser.add_argument(
        "--omega-m", type=bounded(0.01, 0.99, ranged=True), default="0.3", help="matter / critical density", **one
    )
    parser.add_argument(
        "--sigma-8", type=bounded(0.01, 5, ranged=True), default="0.8", help="rms linear overdensity in 8 Mpc/h", **one
    )
    parser.add_argument("--h", type=bounded(0.1, 2, ranged=True), default="0.7", help="H_0 / (100 km/s/Mpc)", **one)
    parser.add_argument(
        "--n-s", type=bounded(-1, 3, ranged=True), default="0.96", help="slope of the primordial spectrum", **one
    )
    parser.add_argument("--steps", type=bounded(4, 1000, int), default=10, help="COLA time steps")
    parser.add_argument("--jobs", type=bounded(1, 1024, int), default=1, help="universes at a time, sharing the cores")
    parser.add_argument("--threads", type=bounded(0, 1024, int), default=0, help="per universe; 0: the cores over jobs")
    arguments = parser.parse_args()
    if arguments.grid % 2:
        parser.error(f"argument --grid: {arguments.grid} is odd, an even number is needed")
    arguments.box = vars(arguments).get("box", float(arguments.grid))
    return arguments


def check_memory(grid: int, jobs: int) -> None:
    """Refuse what the machine's memory cannot hold; the system would end the program without a word."""
    needed, there = BYTES_PER_VOXEL * grid**3 * jobs, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise UserError(
            f"{jobs} universe(s) of {grid}³ voxels at a time take {needed / 1e9:.0f} GB of memory, and there are "
            f"{there / 1e9:.0f} GB: use a smaller --grid, or fewer --jobs"
        )


def prepare_folder(folder: Path, grid: int, num: int) -> None:
    """Make the folder ready; refuse at once what would fail when the first universe is done."""
    check_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    clear_left_behind(folder.iterdir())
    needed, free = num * grid**3 * len(REDSHIFTS) * 2, shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(f"{folder} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed: use a smaller --num")


def main() -> None:
    arguments = parse_arguments()
    ranges = np.array([arguments.omega_m, arguments.sigma_8, arguments.n_s, arguments.h])
    missing = []
    for seed in range(arguments.seed, arguments.seed + arguments.num):
        share = random_streams(seed)[0].random(len(ranges))  # the same draws whichever parameters have a range
        drawn = ranges[:, 0] + share * (ranges[:, 1] - ranges[:, 0])
        universe = Universe(seed, arguments.grid, arguments.box, arguments.steps, *drawn.tolist())
        path = arguments.out / f"universe_{seed}.hdf5"
        if is_complete(universe, path):
            print(f"{path}: reused")
        else:
            missing.append((universe, path))
    if not missing:
        return
    jobs = min(arguments.jobs, len(missing))
    check_memory(arguments.grid, jobs)
    prepare_folder(arguments.out, arguments.grid, len(missing))
    threads = arguments.threads or max(1, len(os.sched_getaffinity(0)) // jobs)
    work = functools.partial(simulate, threads=threads, show_steps=jobs == 1)
    with contextlib.closing(map_unordered(work, missing, jobs)) as results:  # in the end the processes are stopped
        for _, result in tqdm(results, total=len(missing), unit="universe", disable=None):
            if isinstance(result, Exception):
                raise result
            tqdm.write(result)


if __name__ == "__main__":
    run(main)
