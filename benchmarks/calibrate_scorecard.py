"""Are the ratios of the scorecard right? Real universes split in two, and sets spoiled on purpose.

python -m benchmarks.calibrate_scorecard data/pool_train.h5 [--each 8] [--splits 50] [--spoiled 5] [--labelled]

The files are of data/slice_universes.py and hold three times as many universes as `--each` at least. Universes are
dealt at random into a "generated", a real and a training set, again and again; the generated slices are said to be of
no universe, as those of a generator are, unless `--labelled`. Then the first `--spoiled` generated sets are spoiled.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import scipy.ndimage
from tqdm import tqdm

from utils.cli import ArgumentParser, UserError, run
from utils.comparison import GENERATED_BLOCKS
from utils.likeness import compare_slices
from utils.noise import noise_floor
from utils.scorecard import scorecard
from utils.scores import FAMILIES
from utils.similarity import coarse, nearest_neighbours
from utils.summaries import Summary, summarise
from utils.transforms import transform

A = 4.0
MERIT = "figure of merit"


def scrambled(images: np.ndarray, rng) -> np.ndarray:
    """The same amplitudes with the phases of noise; negative densities, which come with it, are cut."""
    waves = np.fft.rfft2(images)
    phases = np.fft.rfft2(rng.normal(size=images.shape))
    phases /= np.abs(phases)
    phases[:, 0, 0] = 1.0  # the mean stays
    return np.clip(np.fft.irfft2(np.abs(waves) * phases, s=images.shape[1:]), 0.0, None)


def remapped(images: np.ndarray, power: float) -> np.ndarray:
    """Contrast changed, the mean kept: what leaves the mean density alone."""
    changed = images.astype(np.float64) ** power
    return changed * (images.mean() / changed.mean())


def blurred(images: np.ndarray, sigma: float) -> np.ndarray:
    return scipy.ndimage.gaussian_filter(images.astype(np.float64), (0, sigma, sigma), mode="wrap")


def mixed(images: np.ndarray, others: np.ndarray, share: float) -> np.ndarray:
    """The last part of a set replaced by other slices."""
    number = round(share * len(images))
    return np.concatenate([images[: len(images) - number], np.resize(others, (number, *images.shape[1:]))])


def poisson(images: np.ndarray, rng) -> np.ndarray:
    """Unclustered particles of the same mean."""
    return rng.poisson(images.mean(), images.shape)


SPOILED: dict[str, Callable] = {
    "blurred, sigma 1 pixel": lambda x, t, r: blurred(x, 1.0),
    "blurred, sigma 0.5 pixels": lambda x, t, r: blurred(x, 0.5),
    "phases scrambled": lambda x, t, r: scrambled(x, r),
    "brightness x 1.05": lambda x, t, r: 1.05 * x,
    "brightness x 0.95": lambda x, t, r: 0.95 * x,
    "contrast: density^1.05": lambda x, t, r: remapped(x, 1.05),
    "contrast: density^0.95": lambda x, t, r: remapped(x, 0.95),
    "every slice twice": lambda x, t, r: np.repeat(x[::2], 2, axis=0),
    "first half, then again": lambda x, t, r: np.tile(x[: len(x) // 2], (2, 1, 1)),
    "every slice eight times": lambda x, t, r: np.repeat(x[::8], 8, axis=0),
    "every slice twice, shifted": lambda x, t, r: np.concatenate([x[::2], np.roll(x[::2], 2, axis=1)]),
    "training slices": lambda x, t, r: np.resize(t, x.shape),
    "training slices, mirrored": lambda x, t, r: np.resize(t, x.shape)[:, ::-1],
    "training slices, turned": lambda x, t, r: np.rot90(np.resize(t, x.shape), axes=(1, 2)),
    "half training slices": lambda x, t, r: mixed(x, t, 0.5),
    "half blurred": lambda x, t, r: mixed(x, blurred(x, 1.0), 0.5),
    "one slice and noise": lambda x, t, r: x[:1] + r.poisson(0.2, x.shape),
    "constant": lambda x, t, r: np.ones(x.shape),
    "unclustered particles": lambda x, t, r: poisson(x, r),
    "brightest pixels cut at 100": lambda x, t, r: np.minimum(x, 100),
}
"""(slices, training slices, random generator) -> spoiled slices, of the same shape."""


@dataclasses.dataclass
class Pool:
    """Real slices of many universes, and their summary."""

    images: np.ndarray
    universe: np.ndarray
    summary: Summary

    def part(self, universes) -> tuple[np.ndarray, np.ndarray, Summary]:
        """Slices, labels and summary of some universes."""
        rows, chosen = np.isin(self.universe, universes), np.isin(self.summary.universe, universes)
        fields = {field.name: getattr(self.summary, field.name) for field in dataclasses.fields(Summary)}
        parts = {name: value[chosen] for name, value in fields.items() if name != "settings"}
        return self.images[rows], self.universe[rows], dataclasses.replace(self.summary, **parts)


def read_pool(paths: list[Path]) -> Pool:
    """All slices of some files, sorted by universe."""
    images, labels, number = [], [], 0
    for path in paths:
        with h5py.File(path) as file:
            images.append(file["slices"][:])
            labels.append(file["universe"][:].astype(np.int64) + number)
            number += len(file["universes/file"])
            pixel_size = float(file.attrs["pixel_size"])
    stack, universe = np.concatenate(images), np.concatenate(labels)
    order = np.argsort(universe, kind="stable")
    stack, universe = stack[order], universe[order]
    return Pool(stack, universe, summarise(stack, A, pixel_size, float(stack.mean()), universe))


def split(pool: Pool, each: int, seed: int) -> list[tuple[np.ndarray, np.ndarray, Summary]]:
    """Universes dealt into a generated, a real and a training set."""
    dealt = np.random.default_rng(seed).permutation(np.unique(pool.universe))
    return [pool.part(dealt[start * each : (start + 1) * each]) for start in range(3)]


def ratios(images, universe, summary: Summary, real, training: np.ndarray) -> dict[str, float]:
    """The scorecard's ratios, figure of merit and alarms."""
    fields = coarse(transform(np.concatenate([images, real[0]]), A))
    distance = nearest_neighbours(fields, training, symmetries=True).distance
    likeness = compare_slices(images, *(real[0], A, real[1]), universe, distance)
    card = scorecard(summary, real[2], noise_floor(real[2], likeness), likeness)
    found = {name: score["ratio"] for name, score in card["scores"].items()}
    found[MERIT] = card["figure_of_merit"]["value"]
    for name in ("repeated_fraction", "copied_fraction", "mode_collapse"):
        found[name] = card["alarms"][name]
    return {name: np.nan if value is None else float(value) for name, value in found.items()}


def spoiled_summary(images: np.ndarray, like: Summary) -> Summary:
    settings = like.settings
    block = np.arange(len(images)) * GENERATED_BLOCKS // len(images)
    return summarise(images, settings.a, settings.pixel_size, settings.mean, block=block)


def print_splits(rows: list[dict[str, float]]) -> None:
    """Percentiles of every ratio over the splits."""
    print(f"{'real against real':22}{'median':>8}{'16 %':>8}{'84 %':>8}{'95 %':>8}{'highest':>9}")
    for name in rows[0]:
        values = np.array([row[name] for row in rows])
        numbers = *np.nanpercentile(values, (50, 16, 84, 95)), np.nanmax(values)
        print(f"{name:22}" + "".join(f"{number:8.2f}" for number in numbers[:-1]) + f"{numbers[-1]:9.2f}")


def print_spoiled(table: dict[str, list[dict[str, float]]], real: list[dict[str, float]]) -> None:
    """What catches each spoiled set: the scores furthest beyond the highest ratio of all real splits."""
    names = [name for names in FAMILIES.values() for name in names]
    limit = {name: np.nanmax([row[name] for row in real]) for name in [*names, MERIT]}
    print(f"\n{'spoiled':28}{'merit':>8}  lowest ratio over the splits (how far beyond all real ones)")
    for spoiling, rows in table.items():
        lowest = {name: np.nanmin([row[name] for row in rows]) for name in names if not np.isnan(rows[0][name])}
        best = sorted(lowest, key=lambda name: lowest[name] / limit[name], reverse=True)[:3]
        cells = ", ".join(f"{name} {lowest[name]:.1f} ({lowest[name] / limit[name]:.1f}x)" for name in best)
        print(f"{spoiling:28}{np.median([row[MERIT] for row in rows]):8.2f}  {cells}")


def main():
    """Deal, score and print."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.h5", help="slices of unused universes")
    parser.add_argument("--each", type=int, default=8, help="universes in each set")
    parser.add_argument("--splits", type=int, default=50, help="random splits")
    parser.add_argument("--spoiled", type=int, default=5, help="of these splits, how many to spoil")
    parser.add_argument("--labelled", action="store_true", help="say which universe a generated slice is of")
    parser.add_argument("--seed", type=int, default=0, help="of the splits")
    arguments = parser.parse_args()
    pool = read_pool(arguments.files)
    number = len(np.unique(pool.universe))
    if arguments.each < 3:
        raise UserError(f"--each {arguments.each}: at least 3 universes make a noise floor worth calibrating")
    if number < 3 * arguments.each:
        raise UserError(f"{number} universes are too few for three sets of {arguments.each}")
    print(f"{number} universes, {len(pool.images)} slices; {arguments.each} universes in each set")

    real_rows, table = [], {name: [] for name in SPOILED}
    for index in tqdm(range(arguments.splits), unit="split", disable=None):
        generated, real, (train, *_) = split(pool, arguments.each, arguments.seed + index)
        known = coarse(transform(train, A))
        labels = generated[1] if arguments.labelled else None
        real_rows.append(ratios(generated[0], labels, generated[2], real, known))
        if index < arguments.spoiled:
            rng = np.random.default_rng(index)
            for name, spoil in SPOILED.items():
                images = spoil(generated[0], train, rng)
                table[name].append(ratios(images, None, spoiled_summary(images, real[2]), real, known))
    print_splits(real_rows)
    if arguments.spoiled:
        print_spoiled(table, real_rows)


if __name__ == "__main__":
    run(main)
