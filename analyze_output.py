#!/usr/bin/env python
"""Draw universes from a trained generator, score them against held-back real ones, and plot both.

python analyze_output.py base 0                       the best weights, against the test set
python analyze_output.py base 0 --weights last        the weights at the end of training
python analyze_output.py base 0 --save-samples x.h5   keep the generated slices
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from networks.device import start_tensorflow
from utils import plots
from utils.cli import ArgumentParser, UserError, run
from utils.config import Config
from utils.files import atomic_path, write_text
from utils.runs import RunFolder, check_writable, find_weights, load_run_config
from utils.scores import noise_floor, scorecard
from utils.slices import SliceSet, has_split, open_slices
from utils.summaries import Summary, natural_resolution, summarise
from utils.version import VERSION

# Slices in the picture of samples, of each kind.
GRID = 16
# Real slices are summarised in batches of this size, so that memory does not grow with their number.
BATCH = 512


def parse_arguments():
    """Read the command line."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tag", metavar="TAG", nargs="?", default="base", help="tag of the run (default: base)")
    parser.add_argument("run", metavar="RUN", nargs="?", default="0", help="number of the run (default: 0)")
    parser.add_argument(
        "--weights",
        default="best",
        metavar="WHICH",
        help="best (by histogram; the default), best_pspect, last, the number of an epoch, or a weights file",
    )
    parser.add_argument("--split", choices=("test", "val"), help="real slices to compare with (default: test, or val)")
    parser.add_argument("--num-samples", type=int, default=2048, metavar="N", help="slices to generate (default: 2048)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the generated slices (default: 0)")
    parser.add_argument("--save-samples", type=Path, metavar="FILE.h5", help="write the generated slices to this file")
    parser.add_argument("--show", action="store_true", help="open the figures in windows too")
    return parser.parse_args()


def main():
    """Check everything, generate, score, plot: in this order, from top to bottom."""
    arguments = parse_arguments()

    # 1. Check what is needed, before seconds are spent on TensorFlow.
    folder = RunFolder(arguments.tag, arguments.run)
    config = load_run_config(folder.path)
    weights = find_weights(folder.path, arguments.weights)
    split = arguments.split or ("test" if has_split(config.dataname, "test") else "val")
    real_slices = open_slices(config.dataname, split, config.img_dim)
    mean = open_slices(config.dataname, "train", config.img_dim).mean
    check_arguments(arguments, folder)

    # 2. Summarise the real slices, as many as will be generated, from all universes.
    real, real_examples = summarise_real(config, real_slices, mean, arguments.num_samples)

    # 3. Generate.
    start_tensorflow()
    from networks.dcgan import density_function, draw_slices, load_generator

    generator = load_generator(folder.path, weights)
    batches = draw_slices(density_function(generator), arguments.num_samples, arguments.seed, progress=True)
    provenance = {
        "tag": arguments.tag,
        "run": arguments.run,
        "weights": str(weights),
        "seed": arguments.seed,
        "version": VERSION,
    }
    if arguments.save_samples:
        attributes = provenance | {"pixel_size": real_slices.pixel_size, "config": config.to_yaml()}
        batches = save_while_drawn(batches, arguments.save_samples, arguments.num_samples, config.img_dim, attributes)
    generated, examples = summarise_generated(config, batches, real)

    # 4. Score, write, plot.
    card = scorecard(generated, real, noise_floor(real))
    card["provenance"] = provenance | {"split": split, "real_slices": str(real_slices.path)}
    print(table(card))
    folder.analysis.mkdir(exist_ok=True)
    write_text(folder.analysis / "scorecard.json", json.dumps(card, indent=2) + "\n")
    title = f"{arguments.tag} run {arguments.run}, {weights.name.removesuffix('.weights.h5')}"
    figures = {
        "generated_images.png": plots.sample_grid(
            examples, config.cscale, config.datascale, real_slices.pixel_size, title, real_examples, split
        ),
        "pixel_intensity.png": plots.pixel_histogram_figure(generated, real, title=title, real_label=split),
        "power_spectrum.png": plots.power_spectrum_figure(generated, real, title=title, real_label=split),
    }
    for name, figure in figures.items():
        plots.save(figure, folder.analysis / name)
    print(f"figures: {', '.join(str(folder.analysis / name) for name in figures)}")
    print(f"scores: {folder.analysis / 'scorecard.json'}")
    if arguments.save_samples:
        print(f"generated slices: {arguments.save_samples}")
    if arguments.show:
        plots.show(list(figures.values()))


def check_arguments(arguments, folder: RunFolder) -> None:
    """Refuse what could not be finished."""
    if arguments.num_samples < 1:
        raise UserError(f"--num-samples {arguments.num_samples}: at least 1 slice has to be generated")
    if not 0 <= arguments.seed < 2**31:
        raise UserError(f"--seed {arguments.seed}: a whole number from 0 to 2147483647 is allowed")
    check_writable(folder.analysis)
    path = arguments.save_samples
    if path is None:
        return
    if path.suffix != ".h5":
        raise UserError(f"--save-samples {path}: the name has to end in .h5, for an HDF5 file is written")
    if not path.parent.is_dir():
        raise UserError(f"--save-samples {path}: the folder {path.parent} does not exist; make it first")
    check_writable(path.parent)


def summarise_real(config: Config, slices: SliceSet, mean: float, number: int) -> tuple[Summary, np.ndarray]:
    """Summarise `number` slices spread over all universes; also give a few of them to look at."""
    rows = slices.rows_spread(number)
    universe = np.zeros(len(rows), np.int64) if slices.universe is None else slices.universe[rows].astype(np.int64)
    # Eight blocks of neighbouring slices in each universe, told here because a universe may span batches.
    first = np.searchsorted(universe, universe)
    block = (np.arange(len(rows)) - first) * 8 // np.bincount(universe)[universe]
    summary, resolution = None, None
    for start in range(0, len(rows), BATCH):
        part = slice(start, start + BATCH)
        images = slices.read(rows[part])
        resolution = resolution or natural_resolution(images)
        added = summarise(images, config.datascale, slices.pixel_size, mean, universe[part], block[part], resolution)
        summary = added if summary is None else summary + added
    return summary, slices.read(slices.rows_spread(GRID))


def summarise_generated(config: Config, batches: Iterator[np.ndarray], real: Summary) -> tuple[Summary, np.ndarray]:
    """Summarise generated slices as the real ones were; also give the first few to look at."""
    settings, summary, examples = real.settings, None, []
    for images in batches:
        added = summarise(images, config.datascale, settings.pixel_size, settings.mean, resolution=settings.resolution)
        summary = added if summary is None else summary + added
        examples.extend(images[: GRID - len(examples)])
    return summary, np.stack(examples)


def save_while_drawn(
    batches: Iterator[np.ndarray], path: Path, number: int, dim: int, attributes: dict
) -> Iterator[np.ndarray]:
    """Pass batches on and write them to an HDF5 file with their provenance as attributes.

    The dataset is called `slices`, (number, dim, dim), float32, in particles per voxel, as in files of real slices.
    """
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        slices = file.create_dataset("slices", (number, dim, dim), np.float32)
        slices.attrs["unit"] = "particles per voxel (the cosmic mean is 1)"
        file.attrs.update(attributes)
        done = 0
        for images in batches:
            slices[done : done + len(images)] = images
            done += len(images)
            yield images


def table(card: dict) -> str:
    """The scores for reading: value, noise floor, and their ratio."""
    lines = [f"{'score':20}{'value':>14}{'noise floor':>14}{'ratio':>10}"]
    for name, score in card["scores"].items():
        numbers = (score["value"], score["noise_floor"], score["ratio"])
        cells = ["unknown" if number is None else f"{number:.4g}" for number in numbers]
        lines.append(f"{name:20}{cells[0]:>14}{cells[1]:>14}{cells[2]:>10}")
    lines.append(f"ratio 1: as far from the real slices as other real universes are; {card['noise_floor']['basis']}")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
