"""Time and memory of the simulator beside the machine's own limit, and how near its universes are to physics.

The limit is the time of the fast Fourier transforms alone, which the method cannot do without. Every simulation runs in
a process of its own, start of Python included.

python -m benchmarks.bench_simulate [--grids 64 128 256] [--num 8] [--reference FILE.npy]
"""

import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import scipy.fft

from data import simulate_universes as su
from utils.cli import ArgumentParser, UserError, run

INITIAL_TRANSFORMS = 14  # noise 1, first displacement 3, second-order source 7, second displacement 3
TRANSFORMS_PER_STEP = 4  # density 1, force 3


def run_simulations(folder: Path, *options: object) -> tuple[float, float]:
    """Run the command; wall time [s] and peak memory of its main process [GiB]."""
    line = [sys.executable, su.__file__, "--out", str(folder), *map(str, options)]
    start = time.perf_counter()
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)  # Popen cannot know: wait4 has taken it
    if process.returncode:
        raise UserError(f"{' '.join(line)} failed with exit code {process.returncode}")
    return time.perf_counter() - start, usage.ru_maxrss / 2**20


def fft_seconds(grid: int, steps: int = 10) -> float:
    """Time of a simulation's transforms alone, on all cores: the best of three forward and three inverse ones."""
    cores = os.cpu_count()
    field = np.random.default_rng(0).standard_normal((grid,) * 3, dtype=np.float32)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        modes = scipy.fft.rfftn(field, workers=cores)
        scipy.fft.irfftn(modes, field.shape, workers=cores)
        times.append((time.perf_counter() - start) / 2)
    return (INITIAL_TRANSFORMS + TRANSFORMS_PER_STEP * steps) * min(times)


def ring_spectrum(cube: np.ndarray) -> np.ndarray:
    """Mean of |fft2(x - 1)|^2 over the planes of a cube, in rings int(hypot(row - c, column - c)), from ring 1.

    c is (N - 1)/2, half a pixel off the zero frequency, as published spectra of these data have it.
    """
    centre = (len(cube) - 1) / 2
    power = np.mean([np.abs(np.fft.fftshift(np.fft.fft2(plane - 1.0))) ** 2 for plane in cube], axis=0)
    ring = np.hypot(*np.ix_(np.arange(len(cube)) - centre, np.arange(len(cube)) - centre)).astype(int).ravel()
    return (np.bincount(ring, power.ravel()) / np.bincount(ring))[1:]


def print_growth(folder: Path) -> None:
    """Growth of structure since z = 3 on large scales (k <= 0.1 h/Mpc), over that of linear theory."""
    run_simulations(folder, "--num", 1, "--grid", 128, "--box", 256)
    with h5py.File(folder / "universe_0.hdf5") as file:
        modes = [np.fft.fftn(file["full"][..., i]) for i in range(4)]
    frequency = 2 * math.pi * np.fft.fftfreq(128, 256 / 128)
    k = np.sqrt(sum(axis**2 for axis in np.ix_(frequency, frequency, frequency)))
    large = (k > 0) & (k <= 0.1)
    cross = np.array([(one * modes[3].conj()).real[large].sum() for one in modes])
    growth = su.growth_factors(1 / (1 + np.array(su.REDSHIFTS)), 0.3)[0]
    ratios = cross / cross[3] / (growth / growth[3])
    print("growth since z = 3 over linear theory, box 256 Mpc/h, k <= 0.1 h/Mpc:")
    print("  " + ", ".join(f"z = {z:g}: {ratio:.3f}" for z, ratio in zip(su.REDSHIFTS, ratios, strict=True)))


def print_spectrum(folder: Path, reference: Path | None, num: int) -> None:
    """Mean power spectrum of universes of 128^3 in 128 Mpc/h, over a reference curve of the same estimator."""
    one, _ = run_simulations(folder, "--num", num, "--jobs", os.cpu_count())
    print(f"{num} universes of 128^3 with --jobs {os.cpu_count()}: {one:.1f} s, {one / num:.1f} s each")
    if reference is None:
        return
    spectra = []
    for path in sorted(folder.glob("*.hdf5")):
        with h5py.File(path) as file:
            spectra.append(ring_spectrum(file["full"][..., 0]))
    ratio = np.mean(spectra, axis=0)[:63] / np.load(reference)[:63]
    worst = int(np.argmax(np.abs(ratio - 1)))
    print(f"mean spectrum over {reference.name}, rings 1 to 63: {ratio.min():.3f} to {ratio.max():.3f}")
    print(f"  worst: ring {worst + 1}, {ratio[worst]:.3f}")


def main() -> None:
    parser = ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--grids", type=int, nargs="+", default=[64, 128, 256], help="grids to time")
    parser.add_argument("--num", type=int, default=8, help="universes of the mean spectrum")
    parser.add_argument("--reference", type=Path, help="spectrum to compare with: .npy, entry i is ring i + 1")
    arguments = parser.parse_args()
    if arguments.reference and not arguments.reference.is_file():
        raise UserError(f"--reference {arguments.reference} is no file")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print("grid   wall [s]   FFTs alone [s]   peak memory [GiB]   bytes per particle")
    with tempfile.TemporaryDirectory() as scratch:
        for grid in arguments.grids:
            seconds, memory = run_simulations(Path(scratch) / str(grid), "--num", 1, "--grid", grid)
            alone = fft_seconds(grid)
            print(
                f"{grid:4d} {seconds:10.1f} {alone:16.2f} {memory:19.2f} {memory * 2**30 / grid**3:20.0f}", flush=True
            )
        print_growth(Path(scratch) / "growth")
        print_spectrum(Path(scratch) / "spectrum", arguments.reference, arguments.num)


if __name__ == "__main__":
    run(main)
