"""Time and memory of the statistics and of a whole scorecard, beside the machine's FFT rate.

python -m benchmarks.bench_statistics [--slices 3000] [--pixels 128]

Every statistic is timed on as many slices; the scorecard compares that many with as many, of sixteen universes, so that
p-values are part of it. The loop is what is usually written: one fft2 per image, then radii sorted and the power
averaged between jumps of the radius. One transform of N² real numbers counts as 2.5 N² log2(N²) operations.
"""

import resource
import time

import numpy as np
import scipy.fft

from utils.cli import ArgumentParser, run
from utils.comparison import GENERATED_BLOCKS, Generated, Known, Real, compare
from utils.noise import noise_floor, p_values
from utils.scorecard import scorecard
from utils.similarity import coarse, nearest_neighbours
from utils.statistics import (
    equilateral_bispectrum,
    minkowski_functionals,
    ms_ssim_diversity,
    peak_counts,
    pixel_histogram,
    power_spectrum,
)
from utils.summaries import MINKOWSKI_THRESHOLDS, PEAK_EDGES, Summary, summarise
from utils.training_search import Places
from utils.transforms import transform

A = 4.0
UNIVERSES = 16
BATCH = 512


def seconds(call, repeats: int = 3) -> float:
    """The shortest of several times: the one least disturbed by other processes."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def sparse_slices(number: int, pixels: int, seed: int) -> np.ndarray:
    """Clustered counts (number, pixels, pixels), int16, most of them 0, as slices of universes are."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(pixels)[:, np.newaxis], np.fft.rfftfreq(pixels)) * pixels
    filtered = (frequency**2 + 9.0) ** -0.7
    images = np.empty((number, pixels, pixels), np.int16)
    for start in range(0, number, BATCH):
        part = images[start : start + BATCH]
        gaussian = scipy.fft.irfft2(scipy.fft.rfft2(rng.normal(size=part.shape)) * filtered, s=part.shape[1:])
        part[...] = rng.poisson(np.exp(1.7 * gaussian / gaussian.std() - 1.7**2 / 2))
    return images


def spectrum_by_loop(images: np.ndarray) -> None:
    """What `power_spectrum` replaces: one image at a time, sorted by radius."""
    pixels = images.shape[-1]
    for image in images:
        power = np.abs(np.fft.fftshift(np.fft.fft2(image / image.mean() - 1.0))) ** 2
        row, column = np.indices(power.shape)
        radius = np.hypot(row - pixels / 2, column - pixels / 2)
        order = np.argsort(radius.flat)
        ring = radius.flat[order].astype(int)
        jumps = np.flatnonzero(np.diff(ring))
        sums = np.cumsum(power.flat[order])
        np.diff(sums[jumps]) / np.diff(jumps)


def summarised(images: np.ndarray, universe=None, block=None) -> Summary:
    """Summary of a set, batch by batch."""
    parts = [slice(start, start + BATCH) for start in range(0, len(images), BATCH)]
    universe = np.zeros(len(images), int) if universe is None else universe
    summaries = [summarise(images[part], A, universe=universe[part], block=block[part]) for part in parts]
    return sum(summaries[1:], start=summaries[0])


def found_in(training: np.ndarray, images: np.ndarray) -> Known:
    """The nearest training slice of each, as where slices do not tile planes."""
    distance, row, orientation = nearest_neighbours(coarse(transform(images, A)), training, symmetries=True)
    return Known(np.arange(len(images)), Places(distance, row, np.zeros((len(images), 2), np.int64), orientation))


def whole_scorecard(generated: np.ndarray, real: np.ndarray, training: np.ndarray) -> dict:
    """All that `analyze_output.py` computes between drawing slices and drawing figures."""
    number = len(real)
    universe = np.arange(number) * UNIVERSES // number
    block = np.arange(number) * GENERATED_BLOCKS // number
    known = coarse(transform(training, A))
    of_real, of_generated = (found_in(known, images) for images in (real, generated))
    real_side = Real(None, None, summarised(real, universe, block % 2), real, universe, None, of_real)
    generated_side = Generated(summarised(generated, block=block), generated, of_generated)
    likeness = compare(generated_side, real_side)
    sides = generated_side.summary, real_side.summary
    return scorecard(*sides, noise_floor(sides[1], likeness), likeness, p_values(*sides, likeness))


def main():
    """Measure and print."""
    parser = ArgumentParser(description="Time the statistics and a whole scorecard.")
    parser.add_argument("--slices", type=int, default=3000, help="slices in a set")
    parser.add_argument("--pixels", type=int, default=128, help="pixels per side")
    arguments = parser.parse_args()
    number, pixels = arguments.slices, arguments.pixels
    images = sparse_slices(number, pixels, 0)
    s = transform(images[:BATCH], A)

    batch = images[:128].astype(np.float64)
    operations = 2.5 * pixels**2 * np.log2(pixels**2)
    fft = seconds(lambda: scipy.fft.rfft2(batch, workers=-1), 5) / len(batch)
    print(f"{number} slices of {pixels} x {pixels} pixels")
    print(f"  FFT of a slice                    {1e3 * fft:9.3f} ms, {operations / fft / 1e9:.1f} GFLOP/s")

    def report(name, time_per_set, note=""):
        ratio = time_per_set / number / fft
        print(f"  {name:33} {time_per_set:9.2f} s, {ratio:7.1f} FFTs a slice{note}", flush=True)

    report("pixel histogram", seconds(lambda: pixel_histogram(images, np.arange(0, 200, 8))))
    spectrum = seconds(lambda: power_spectrum(images))
    loop = seconds(lambda: spectrum_by_loop(images[:100])) * number / 100
    report("power spectrum", spectrum, f"; {loop / spectrum:.0f} times as fast as the loop ({loop:.1f} s)")
    report("peaks", seconds(lambda: peak_counts(images, PEAK_EDGES), 1))
    report("Minkowski functionals", seconds(lambda: minkowski_functionals(images, MINKOWSKI_THRESHOLDS), 1))
    report("bispectrum", seconds(lambda: equilateral_bispectrum(images), 1))
    pairs = seconds(lambda: ms_ssim_diversity(s, 1000), 1)
    print(f"  {'MS-SSIM of 1000 pairs':33} {pairs:9.2f} s")
    small = coarse(transform(images, A))
    neighbours = seconds(lambda: nearest_neighbours(small, small, symmetries=True), 1)
    print(f"  {'neighbours, eight orientations':33} {neighbours:9.2f} s")

    others = sparse_slices(number, pixels, 1).astype(np.float32), sparse_slices(number, pixels, 2)
    start = time.perf_counter()
    card = whole_scorecard(others[0], images, others[1])
    taken = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"  {'whole scorecard':33} {taken:9.2f} s, peak memory {peak:.2f} GiB")
    print(f"  its figure of merit, of equals    {card['figure_of_merit']['value']:9.2f}")


if __name__ == "__main__":
    run(main)
