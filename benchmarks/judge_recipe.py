"""Are generators as good as the recipe promises? Several runs against held-back universes, score by score.

python -m benchmarks.judge_recipe demo 0 1 2 3 4 [--split test] [--num-samples 3072] [--weights last] [--no-map]

Beside every score stands its target: a fixed number or, where that is larger and the score is not one of pixels'
values, twice the noise floor, which is the mean score of two sets of universes resampled from the held-back ones.
Beside that stands what the run's own training slices score: a generator that has learned them perfectly would do no
better. Deviations are relative; 12 numbers of morphology (three functionals, four densities) are listed one by one,
since an average could hide one that is bad. Six more lines have no target: how far structures are drawn out into
filaments, how many pixels are connected with one another, what bright haloes look like, whether structures are equally
frequent everywhere in a slice, and how much slices differ from one another.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from networks.device import start_tensorflow
from utils.cli import ArgumentParser, UserError, run
from utils.comparison import Real, compare, read_real, take_generated
from utils.config import Config
from utils.likeness import Likeness, likeness_scores
from utils.noise import noise_floor
from utils.runs import load_run_config
from utils.scores import SCORED_THRESHOLDS, Means, means
from utils.slices import SliceSet, open_slices
from utils.statistics import are_peaks
from utils.summaries import BRIGHT, MINKOWSKI_THRESHOLDS, Summary
from utils.transforms import transform

# Edges of the bins of chi_1 [particles per voxel]: wider where pixels are few.
CHI_EDGES = np.concatenate(
    [[-0.5], np.arange(0.5, 101, 5), np.arange(120.5, 301, 20), np.arange(350.5, 1001, 50), [2000]]
)
REAL_PIXELS_PER_BIN = 25
FUNCTIONALS = ("area", "boundary", "euler")
TARGETS = {"spectrum of s": 0.05, "spectrum": 0.15, "chi_1": 0.003, "bright fraction": 0.20, "diversity": 0.0}
TARGETS |= {f"{name} at {threshold:g}": 0.15 for name in FUNCTIONALS for threshold in SCORED_THRESHOLDS}
# Scores of pixels' values, whose targets no floor widens.
FIXED = {"chi_1", "bright fraction"}
DRAWS = 200
BATCH = 512
# Peaks above that are haloes whose shape is told [particles per voxel].
HALO = 200.0
# Pixels above that are the web, filaments and all [particles per voxel].
WEB = 3.0
# Pixels above that, in thick filaments and haloes, are counted place by place [particles per voxel]; a place's side.
STRUCTURE, PLACE = 10.0, 4


def chi_1(generated: Means, real: Means, pixels: float) -> float:
    """Sum of (h_gen - h_real)^2 / h_real over histograms normalised to an integral of 1.

    Values beyond the edges count in the end bins; bins are merged from the top until each holds 25 real pixels.

    Parameters
    ----------
    generated, real : Means
        With counts of whole densities.
    pixels : float
        Real pixels in all, 25 at least.
    """
    values = np.clip(np.arange(len(real.counts)), None, CHI_EDGES[-1])
    sides = [np.histogram(values, CHI_EDGES, weights=side.counts / side.counts.sum())[0] for side in (generated, real)]
    first, held = [], 0  # the faintest of the bins that become one, from the top
    for index, number in reversed(list(enumerate(np.rint(sides[1] * pixels)))):
        held += number
        if held >= REAL_PIXELS_PER_BIN:
            first.append(index)
            held = 0
    first[-1] = 0  # what is left over at the faint end joins the last one
    widths, one, other = (np.add.reduceat(bins, first[::-1]) for bins in (np.diff(CHI_EDGES), *sides))
    return float(np.sum((one - other) ** 2 / (other * widths)))


def deviations(generated: Means, real: Means, pixels: float) -> dict[str, float]:
    """Every score but the diversity; with a sign where it is of one number."""
    scored = np.searchsorted(MINKOWSKI_THRESHOLDS, SCORED_THRESHOLDS)
    ratio = generated.minkowski[:, scored] / real.minkowski[:, scored] - 1.0
    bright = slice(int(BRIGHT) + 1, None)
    found = {
        "spectrum of s": rms(generated.power_s / real.power_s - 1.0),
        "spectrum": rms(generated.power / real.power - 1.0),
        "chi_1": chi_1(generated, real, pixels),
        "bright fraction": generated.counts[bright].sum() / real.counts[bright].sum() - 1.0,
    }
    for name, row in zip(FUNCTIONALS, ratio, strict=True):
        found |= {f"{name} at {threshold:g}": value for threshold, value in zip(SCORED_THRESHOLDS, row, strict=True)}
    return {name: float(value) for name, value in found.items()}


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def floors(real: Summary) -> dict[str, float]:
    """Mean deviations between two sets of universes drawn from the real ones, as `utils.noise` draws them."""
    groups = real.by_universe()
    number, length = len(groups.slices), groups.counts.shape[1]
    pixels = float(real.counts.sum())
    draws = np.random.default_rng(0).multinomial(number - 2, np.full(number, 1 / number), size=(DRAWS, 2))
    rows = [deviations(*(means(groups, length, weights) for weights in pair), pixels) for pair in draws]
    return {name: float(np.mean([abs(row[name]) for row in rows])) for name in rows[0]}


def halo_shape(images: np.ndarray) -> tuple[float, float]:
    """The shape of peaks above `HALO`, which transposed convolutions make pointed and put always on the same pixels.

    Parameters
    ----------
    images : array, (n, N, N)

    Returns
    -------
    float, float
        Mean ratio of the four nearest pixels to the peak; and the share of peaks on the commonest of the four
        combinations of odd and even rows and columns, 1/4 where the grid has no say, and with `augment`, since a flip
        makes odd rows even.
    """
    images = images.astype(float)
    inner = images[:, 1:-1, 1:-1]
    peaks = are_peaks(images) & (inner > HALO)
    if not peaks.any():
        return np.nan, np.nan
    # (n, N - 2, N - 2): the mean of the pixels above, below, left and right
    nearest = (images[:, :-2, 1:-1] + images[:, 2:, 1:-1] + images[:, 1:-1, :-2] + images[:, 1:-1, 2:]) / 4.0
    _, rows, columns = np.nonzero(peaks)
    parities = np.bincount(rows % 2 * 2 + columns % 2, minlength=4)
    return float(np.mean(nearest[peaks] / inner[peaks])), float(parities.max() / parities.sum())


def largest_structure(images: np.ndarray) -> float:
    """How much of a slice its largest structure connects: a web in pieces has smaller ones.

    Parameters
    ----------
    images : array, (n, N, N)

    Returns
    -------
    float
        Mean number of pixels of the largest structure of a slice, pixels above 3 that touch by sides or corners. (A
        thin filament that lies aslant is all corners.) After Shandarin 1983, Sov. Astron. Lett. 9, 104.
    """
    touching = np.zeros((3, 3, 3), bool)
    touching[1] = True  # within a slice, not from one to the next
    labels, _ = ndimage.label(images > WEB, touching)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0  # what is not in any
    return float(sizes[labels].max(axis=(1, 2)).mean())


def unevenness(images: np.ndarray) -> float:
    """How much more frequent structures are in some places of a slice than in others; the universe has no such places.

    Parameters
    ----------
    images : array, (n, N, N)
        N at least 8; where it is not a multiple of 8, pixels in the middle are left out.

    Returns
    -------
    float
        Standard deviation over places of 4 x 4 pixels of the fraction of pixels above 10, over its mean; NaN where
        there are none. Places that symmetries of the square take to one another are one. Of slices that prefer none it
        is the noise of so many.
    """
    often = np.mean(images > STRUCTURE, axis=0)
    if not often.any():
        return np.nan
    for turned in (np.flipud, np.fliplr, np.transpose):
        often = (often + turned(often)) / 2.0
    number = len(often) // 2 // PLACE
    quarter = often[: number * PLACE, : number * PLACE]  # which the other three are like
    # (4 * number, 4 * number) -> (number, 4, number, 4) -> (number, number)
    places = quarter.reshape(number, PLACE, number, PLACE).mean(axis=(1, 3))
    return float(places.std() / places.mean())


def slice_scatter(images: np.ndarray, a: float) -> float:
    """How much fuller some slices are than others: the mode of zero wave number, which no power spectrum shows.

    Parameters
    ----------
    images : array, (n, N, N)
        Densities.
    a : float
        Of s(x).

    Returns
    -------
    float
        Standard deviation over slices of the mean of s.
    """
    return float(np.std([transform(image.astype(float), a).mean() for image in images]))


def shapes(side: Means, images: np.ndarray, a: float) -> dict[str, float]:
    """What has no target: coherence of orientation of s, and all that the functions above tell of structures."""
    difference, total = side.orientation
    nearest, parity = halo_shape(images)
    return {
        "coherence": float(difference / total),
        "largest structure": largest_structure(images),
        "neighbours/peak": nearest,
        "one parity": parity,
        "unevenness": unevenness(images),
        "slice scatter": slice_scatter(images, a),
    }


def drawn(folder: Path, weights: str, number: int, mapped: bool) -> Iterator[np.ndarray]:
    """Batches of slices of one run's generator, with or without its map of densities."""
    from networks.dcgan import density_function, draw_slices, load_generator
    from networks.matching import HistogramMatching

    generator = load_generator(folder, weights)
    for layer in generator.layers:
        if isinstance(layer, HistogramMatching) and not mapped:
            layer.table.assign(np.zeros(layer.table.shape))  # no shift anywhere
    return draw_slices(density_function(generator), generator.output_shape[-2], number, 0)


def shuffled(slices: SliceSet, number: int) -> Iterator[np.ndarray]:
    """Batches of so many slices, or all there are, in random order, as if they were generated."""
    rows = np.random.default_rng(0).permutation(slices.rows_spread(number))
    return (slices.read(part) for part in np.array_split(rows, -(-len(rows) // BATCH)))


def judge(batches: Iterator[np.ndarray], number: int, real: Real) -> tuple[dict[str, float], Likeness]:
    """The deviations of `number` slices, and what resembles what."""
    generated = take_generated(batches, number, real)
    length = max(generated.summary.counts.shape[1], real.summary.counts.shape[1])
    sides = means(generated.summary, length), means(real.summary, length)
    likeness = compare(generated, real)
    found = deviations(*sides, float(real.summary.counts.sum()))
    found |= shapes(sides[0], generated.images, real.summary.settings.a)
    found["diversity"] = likeness_scores(likeness, likeness.generated, ~likeness.generated)["diversity"]
    return found, likeness


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tag", help="tag of the runs")
    parser.add_argument("runs", nargs="+", help="numbers of the runs, one per seed")
    parser.add_argument("--split", choices=("val", "test"), default="test", help="slices to judge by")
    parser.add_argument(
        "--real", metavar="NAME", default=argparse.SUPPRESS, help="slice files to judge by; default: those of the run"
    )
    parser.add_argument("--weights", default="last", help="best, best_pspect, last or an epoch")
    parser.add_argument("--num-samples", type=int, default=3072, help="slices to generate")
    parser.add_argument(
        "--map",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="with the map of densities (match_histogram), or as the networks make them",
    )
    arguments = parser.parse_args()
    if arguments.num_samples < 1:
        raise UserError(f"--num-samples {arguments.num_samples}: at least 1 slice has to be generated")
    return arguments


def load_comparable(folders: Sequence[Path]) -> Config:
    """The configuration of the first run; the others must have been trained on the same kind of slices."""
    config, *others = map(load_run_config, folders)
    for folder, other in zip(folders[1:], others, strict=True):
        for key in ("dataname", "img_dim", "datascale"):
            if getattr(other, key) != getattr(config, key):
                raise UserError(f"{folder} has another {key} than {folders[0]}; judge them apart")
    return config


def read_held_back(name: str, split: str, config: Config) -> Real:
    """All slices of a split, which must be counts of at least three universes."""
    held_back, known = (open_slices(name, part, config.img_dim) for part in (split, "train"))
    with held_back as slices, known as training:
        real = read_real(slices, training.mean, config.datascale, len(slices))
    if real.summary.groups()[1] != "universes" or real.summary.settings.resolution != 1:
        raise UserError(f"{name}: counts of at least three universes are needed to judge by")
    return real


def print_scores(runs: Sequence[str], rows: Sequence[dict], learned: dict, floor: dict) -> None:
    """One line per score that has a target, marked where the median of the runs misses it."""
    columns = "".join(f"{number:>9}" for number in runs)
    print(f"{'':18}{'target':>9}{'floor':>9}{'training':>9}{'median':>9}  {columns}")
    for name, fixed in TARGETS.items():
        target = fixed if name in FIXED else max(fixed, 2.0 * floor[name])
        values = [row[name] for row in rows]
        median = float(np.median(np.abs(values)))
        cells = "".join(f"{value:9.4f}" for value in values)
        mark = " " if median <= target else "!"
        print(f"{name:18}{target:9.4f}{floor[name]:9.4f}{learned[name]:9.4f}{median:9.4f}{mark} {cells}")


def print_shapes(rows: Sequence[dict], learned: dict, real: dict) -> None:
    """One line for each of `shapes`, of generated, training and held-back slices."""
    for name, value in real.items():
        values = [row[name] for row in rows]
        cells = "".join(f"{value:9.4f}" for value in values)
        print(f"{name:18}{'':18}{learned[name]:9.4f}{np.median(values):9.4f}  {cells}  (real: {value:.4f})")


def main():
    """Judge all runs and print the table."""
    arguments = parse_arguments()
    folders = [Path("expts") / arguments.tag / f"run{number}" for number in arguments.runs]
    config = load_comparable(folders)
    start_tensorflow()
    real = read_held_back(getattr(arguments, "real", config.dataname), arguments.split, config)
    number = arguments.num_samples
    generated = (drawn(folder, arguments.weights, number, arguments.map) for folder in folders)
    rows, likenesses = zip(*(judge(batches, number, real) for batches in generated), strict=True)
    with open_slices(config.dataname, "train", config.img_dim) as slices:
        learned, _ = judge(shuffled(slices, number), min(number, len(slices)), real)
    # Only the real slices' part in a likeness matters to its floor.
    floor = floors(real.summary) | {"diversity": noise_floor(real.summary, likenesses[0]).mean["diversity"]}
    print_scores(arguments.runs, rows, learned, floor)
    if config.match_histogram and arguments.map:
        print("chi_1, bright fraction and area are fitted to the training set, by match_histogram")
    real_means = means(real.summary, real.summary.counts.shape[1])
    print_shapes(rows, learned, shapes(real_means, real.images, config.datascale))


if __name__ == "__main__":
    run(main)
