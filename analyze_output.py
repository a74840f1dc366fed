#!/usr/bin/env python
"""Draw universes from trained generators, score them against held-back real ones, and plot both.

python analyze_output.py base 0                       the best weights, against the test set
python analyze_output.py base 0 1 2                   several runs, ranked in one table
python analyze_output.py base 0 --weights last        the weights at the end of training
python analyze_output.py base 0 --save-samples x.h5   keep the generated slices
"""

import argparse
import functools
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from networks.device import start_tensorflow
from utils import plots, plots_scorecard
from utils.cli import ArgumentParser, UserError, run
from utils.comparison import Generated, Real, compare, read_real, take_generated
from utils.config import Config
from utils.files import atomic_path, check_writable, clear_left_behind, write_text
from utils.likeness import Likeness
from utils.noise import noise_floor, p_values
from utils.provenance import trained_on
from utils.runs import RunFolder, check_weights, find_weights, load_run_config
from utils.scorecard import markdown, ranking, scorecard, table
from utils.similarity import coarse, nearest_neighbours, oriented
from utils.slice_writer import SliceWriter
from utils.slices import has_split, open_slices
from utils.training_search import training_search
from utils.transforms import transform
from utils.version import VERSION

GRID = 16  # slices in the picture of samples, of each kind
PATHS, STEPS = 3, 8  # of the picture of interpolations


def parse_arguments():
    """Read the command line."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tag", metavar="TAG", nargs="?", default="base", help="tag of the runs (default: base)")
    parser.add_argument("runs", metavar="RUN", nargs="*", default=["0"], help="number of each run (default: 0)")
    parser.add_argument(
        "--weights",
        default="best",
        metavar="WHICH",
        help="best (the default), best_pspect, last, the number of an epoch, or a weights file",
    )
    parser.add_argument("--split", choices=("test", "val"), help="real slices to compare with (default: test, or val)")
    number = "slices to generate, and of real ones to take at most (default: 2048)"
    parser.add_argument("--num-samples", type=int, default=2048, metavar="N", help=number)
    parser.add_argument("--seed", type=int, default=0, help="seed of the generated slices (default: 0)")
    parser.add_argument("--save-samples", type=Path, metavar="FILE.h5", help="write the generated slices to this file")
    parser.add_argument("--show", action="store_true", help="open the figures in windows too")
    return parser.parse_args()


def main():
    """Check every run, then analyse one after the other, then rank them."""
    arguments = parse_arguments()
    # Before seconds are spent on TensorFlow.
    jobs = [Job(arguments, number) for number in arguments.runs]
    check_arguments(arguments, jobs)
    start_tensorflow()

    cards, figures = {}, []
    for job in jobs:
        cards[f"{arguments.tag} {job.folder.path.name}"], drawn = analyse(job, arguments)
        figures.extend(drawn)
    if len(jobs) > 1:
        ranked = ranking(cards)
        path = jobs[0].folder.path.parent / "ranking.md"
        write_text(path, f"# Runs of {arguments.tag}, best first: ratios to the noise floor\n\n{ranked}\n")
        print(f"{ranked}\nranking: {path}")
    if arguments.show:
        plots.show(figures)


class Job:
    """One run to be analysed: where it lies, and the slices to compare with. Nothing is computed yet."""

    def __init__(self, arguments, number: str):
        self.folder = RunFolder(arguments.tag, number)
        self.config: Config = load_run_config(self.folder.path)
        self.weights = find_weights(self.folder.path, arguments.weights)
        self.stamp = check_weights(self.weights, self.config)
        dataname = self.config.dataname
        self.split = arguments.split or ("test" if has_split(dataname, "test") else "val")
        open_slices(dataname, self.split, self.config.img_dim).close()
        with open_slices(dataname, "train", self.config.img_dim) as training:
            self.same_training_set = trained_on(self.folder.read_record(), training.path)
        of_step = f" of step {self.stamp['step']}" if self.stamp else ""
        self.title = f"{arguments.tag} run {number}, {self.weights.name.removesuffix('.weights.h5')}{of_step}"


def analyse(job: Job, arguments) -> tuple[dict, list]:
    """Generate, score, write and plot one run: in this order, from top to bottom. Gives the card and the figures."""
    config, folder = job.config, job.folder

    # 1. The real slices, as many as will be generated, from all universes.
    real = real_slices(config.dataname, job.split, config.img_dim, config.datascale, arguments.num_samples)
    settings = real.summary.settings

    # 2. Generate.
    from networks.dcgan import density_function, draw_slices, load_generator

    generator = load_generator(folder.path, job.weights)
    drawn = (config.img_dim, arguments.num_samples, arguments.seed)
    batches = draw_slices(density_function(generator), *drawn, progress=True)
    provenance = {
        "tag": arguments.tag,
        "run": folder.path.name.removeprefix("run"),
        "weights": str(job.weights),
        "step": job.stamp.get("step"),
        "seed": arguments.seed,
        "version": VERSION,
        "match_histogram": config.match_histogram,
    }
    if arguments.save_samples:
        attributes = {name: value for name, value in provenance.items() if value is not None}
        attributes |= {"pixel_size": settings.pixel_size, "config": config.to_yaml()}
        batches = save_while_drawn(batches, arguments.save_samples, arguments.num_samples, config.img_dim, attributes)
    generated = take_generated(batches, arguments.num_samples, real)

    # 3. Score.
    likeness = compare(generated, real)
    p = p_values(generated.summary, real.summary, likeness)
    card = scorecard(generated.summary, real.summary, noise_floor(real.summary, likeness), likeness, p)
    card["provenance"] = provenance | {
        "split": job.split,
        "real_slices": str(real.path),
        "redshift": real.redshift,
        "same_training_set": job.same_training_set,
        "memorisation": "at all shifts" if real.search.at_all_shifts else "slices as they are",
    }
    print(f"{job.title}, against the {job.split} set\n{table(card)}")

    # 4. Write and plot.
    folder.analysis.mkdir(exist_ok=True)
    clear_left_behind(folder.analysis.iterdir())
    write_text(folder.analysis / "scorecard.json", json.dumps(card, indent=2) + "\n")
    write_text(folder.analysis / "scorecard.md", markdown(card, job.title))
    figures = draw(job, card, generated, real, likeness, interpolations(generator, arguments.seed))
    for name, figure in figures.items():
        plots.save_png_and_pdf(figure, folder.analysis / name)
    print(f"figures: {folder.analysis}{os.sep}*.png and .pdf: {', '.join(f'{name}.png' for name in figures)}")
    print(f"scores: {folder.analysis / 'scorecard.json'} and scorecard.md")
    if arguments.save_samples:
        print(f"generated slices: {arguments.save_samples}")
    return card, list(figures.values())


@functools.lru_cache(maxsize=1)
def real_slices(dataname: str, split: str, img_dim: int, datascale: float, number: int) -> Real:
    """The real side; runs that are compared share it as a rule."""
    training = open_slices(dataname, "train", img_dim)  # stays open, for the search reads from it
    with open_slices(dataname, split, img_dim) as slices:
        return read_real(slices, training.mean, datascale, number, training_search(training, datascale))


def draw(job: Job, card: dict, generated: Generated, real: Real, likeness: Likeness, paths: np.ndarray) -> dict:
    """All figures by the names of their files."""
    config, label = job.config, job.split
    examples = generated.images[:GRID], real.images[:: max(1, len(real.images) // GRID)][:GRID]
    summaries, scale = (generated.summary, real.summary), (config.cscale, config.datascale)
    pixel_size = real.summary.settings.pixel_size
    named = {"title": job.title, "real_label": label}
    return {
        "summary": plots_scorecard.summary_figure(card, *summaries, *examples, config.cscale, **named),
        "scores": plots_scorecard.scores_figure(card, job.title),
        "generated_images": plots.sample_grid(examples[0], *scale, pixel_size, job.title, examples[1], label),
        "pixel_intensity": plots.pixel_histogram_figure(*summaries, **named),
        "power_spectrum": plots.power_spectrum_figure(*summaries, **named),
        "bispectrum": plots_scorecard.bispectrum_figure(*summaries, **named),
        "peaks": plots_scorecard.peaks_figure(*summaries, **named),
        "minkowski": plots_scorecard.minkowski_figure(*summaries, **named),
        "likeness": plots_scorecard.likeness_figure(likeness, groups=real.summary.groups()[1], **named),
        "pairs": plots_scorecard.pairs_figure(similar_pairs(job, generated, real), *scale, job.title),
        "interpolation": plots_scorecard.interpolation_figure(paths, *scale, job.title),
    }


def similar_pairs(job: Job, generated: Generated, real: Real) -> list[tuple]:
    """The most similar pair of a generated and a held-back real slice, and of a generated slice and the training set.

    Generated slices are turned as they resemble the real ones most.
    """
    held_back = nearest_neighbours(
        *(coarse(transform(images, job.config.datascale)) for images in (generated.images, real.images)),
        symmetries=True,
    )
    one, rows, places = int(np.argmin(held_back.distance)), *generated.known
    other = int(np.argmin(places.distance))
    near, copied = real.images[held_back.index[one]], real.search.image(places.row[other], places.shift[other])
    pairs = []
    for row, orientation, real_image, what, distance in (
        (one, held_back.orientation[one], near, f"Nearest {job.split} slice", held_back.distance[one]),
        (rows[other], places.orientation[other], copied, "Nearest in the training set", places.distance[other]),
    ):
        (image,) = oriented(generated.images[[row]], orientation)
        pairs.append((image, real_image, "Generated", what, f"Distance {distance:.3f}"))
    return pairs


def interpolations(generator, seed: int) -> np.ndarray:
    """Densities (PATHS, STEPS, N, N) along `latent_paths`."""
    from networks.dcgan import up_to_pre_activation
    from networks.images import density_from_pre_activation

    z = latent_paths(generator.noise_vect_len, seed)
    u = up_to_pre_activation(generator)([z.reshape(PATHS * STEPS, -1).astype(np.float32)], training=False)
    # Not rounded to whole particles: noise would hide how smooth the path is.
    density = density_from_pre_activation(u, generator.datascale).numpy()
    return density.reshape(PATHS, STEPS, *density.shape[1:])


def latent_paths(length: int, seed: int) -> np.ndarray:
    """Ways between two latent vectors each, (PATHS, STEPS, length), on great circles (White 2016, arXiv:1609.04468)."""
    first, second = np.random.default_rng(seed).normal(size=(2, PATHS, 1, length))
    norms = np.linalg.norm(first, axis=-1), np.linalg.norm(second, axis=-1)
    cosine = np.clip(np.sum(first * second, axis=-1) / (norms[0] * norms[1]), -1.0, 1.0)
    angle = np.arccos(cosine)[..., np.newaxis]  # (PATHS, 1, 1)
    share = np.linspace(0.0, 1.0, STEPS)[:, np.newaxis]  # (STEPS, 1)
    straight = np.sin(angle) < 1e-6  # no circle to go along, as with vectors of length 1
    circle = (np.sin((1.0 - share) * angle) * first + np.sin(share * angle) * second) / np.sin(angle + straight)
    return np.where(straight, (1.0 - share) * first + share * second, circle)


def check_arguments(arguments, jobs: list[Job]) -> None:
    """Refuse what could not be finished."""
    if arguments.num_samples < 1:
        raise UserError(f"--num-samples {arguments.num_samples}: at least 1 slice has to be generated")
    if not 0 <= arguments.seed < 2**31:
        raise UserError(f"--seed {arguments.seed}: a whole number from 0 to 2147483647 is allowed")
    repeated = [number for number in arguments.runs if arguments.runs.count(number) > 1]
    if repeated:
        raise UserError(f"RUN {repeated[0]} is given twice")
    if arguments.show:
        plots.check_display()
    for job in jobs:
        check_writable(job.folder.analysis)
    path = arguments.save_samples
    if path is None:
        return
    if len(jobs) > 1:
        raise UserError(f"--save-samples {path}: one file holds the slices of one run; give one RUN")
    if path.suffix != ".h5":
        raise UserError(f"--save-samples {path}: the name has to end in .h5, for an HDF5 file is written")
    if path.is_dir():
        raise UserError(f"--save-samples {path} is a folder; give the name of a file in it")
    if not path.parent.is_dir():
        raise UserError(f"--save-samples {path}: the folder {path.parent} does not exist; make it first")
    check_writable(path.parent)
    needed, free = 4 * arguments.num_samples * jobs[0].config.img_dim ** 2, shutil.disk_usage(path.parent).free
    if needed > free:
        raise UserError(
            f"--save-samples {path}: {arguments.num_samples} slices take {needed / 1e9:.3g} GB, and there are "
            f"{free / 1e9:.3g} GB free; choose a smaller --num-samples, or another place"
        )


def save_while_drawn(
    batches: Iterator[np.ndarray], path: Path, number: int, dim: int, attributes: dict
) -> Iterator[np.ndarray]:
    """Pass batches on and write them to an HDF5 file with their provenance as attributes.

    The dataset is called `slices`, (number, dim, dim), float32, in particles per voxel, as in files of real slices.
    """
    slices, unit = {"slices": ((number, dim, dim), np.float32)}, {"unit": "particles per voxel (the cosmic mean is 1)"}
    with atomic_path(path) as temporary, SliceWriter(temporary, slices, {}, attributes | unit) as writer:
        done = 0
        for images in batches:
            writer.write("slices", done, images)
            done += len(images)
            yield images


if __name__ == "__main__":
    run(main)
